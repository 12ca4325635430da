"""A disk that forgets: at a power cut, what was not flushed may be gone, bytes and names."""

from __future__ import annotations

import os
import shutil
import stat
from itertools import product
from pathlib import Path

from dicomsort.files import Files

LOSSES = [*product((False, True), repeat=2)]  # whether unflushed bytes are lost, and whether unflushed names are


class Forgetful(Files):
    """Remembers what a flush has not made durable yet: bytes by inode, names by folder."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[Path] = []
        self._bytes: dict[int, Path] = {}

    def make_folder(self, path: str, mode: int = 0o777) -> None:
        super().make_folder(path, mode)
        self._names.append(Path(path))

    def link(self, source: str, target: str) -> None:
        super().link(source, target)
        self._names.append(Path(target))

    def create(self, path: str, mode: int = 0o600) -> int:
        descriptor = super().create(path, mode)
        self._names.append(Path(path))
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        super().write(descriptor, data)
        self._bytes[os.fstat(descriptor).st_ino] = name_of(descriptor)

    def flush(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names = [name for name in self._names if name.parent != name_of(descriptor)]
        self._bytes.pop(status.st_ino, None)

    def cut(self, *, lose_bytes: bool, lose_names: bool) -> None:
        """Take away what may be lost: bytes first, for a name that stays may lead to bytes that do not."""
        if lose_bytes:
            for path in {*self._bytes.values(), *self._names}:
                if path.is_file() and path.stat().st_ino in self._bytes:
                    os.truncate(path, 0)
        if lose_names:
            for path in self._names:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def name_of(descriptor: int) -> Path:
    """The name that an open file or folder has."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def named(path: str) -> str:
    """A path by names alone, where it begins with an open folder: see ``files.beneath``."""
    folder, _, name = path.rpartition("/")
    return f"{os.path.realpath(folder)}/{name}" if path.startswith("/proc/self/fd/") else path
