"""Doubles for ``files.Files``: one that dies at a given call, and file systems that refuse what some refuse."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from powercut import name_of, named

from dicomsort.files import Files

CHANGES = (
    "make_folder", "remove_folder", "link", "unlink", "rename", "replace", "create", "open_append", "write", "truncate",
    "allocate", "set_owner", "set_attribute", "remove_attribute", "set_mode", "set_mtime", "clone", "flush",
    "flush_system",
)  # fmt: skip


class Crash(BaseException):
    """The process died here; nothing may catch it."""


class CrashingFiles(Files):
    """Dies before the n-th call that changes something (so: after the one before it), or in the midst of a write.

    With ``only`` the name of a call, only its calls are counted: threads may make others in any number before it.
    ``torn`` is the number of bytes that the write at which it dies still gets to the disk.
    """

    def __init__(self, at: int, base: Callable[[], Files] = Files, *, only: str = "", torn: int = 0) -> None:
        super().__init__()
        self._inner = base()
        self._at, self._only, self._torn = at, only, torn
        self.called: list[str] = []
        self.writes: list[tuple[str, int]] = []  # of each call, the name of the file and how much it writes there
        self.dead = False
        self._names: dict[int, str] = {}
        for name in CHANGES:
            setattr(self, name, self._guarded(name))

    def _guarded(self, name: str) -> Callable[..., Any]:
        change = getattr(self._inner, name)

        def call(*arguments: Any) -> Any:
            if self.dead:
                raise Crash
            self.called.append(name)
            self.writes.append((self._names[arguments[0]], len(arguments[1])) if name == "write" else ("", 0))
            before = (self.called.count(name) if self._only else len(self.called)) - 1
            if before != self._at or self._only not in {"", name}:
                result = change(*arguments)
                if name in {"create", "open_append"}:
                    self._names[result] = arguments[0].rpartition("/")[2]
                return result
            self.dead = True
            if self._torn and name == "write":
                descriptor, data = arguments
                os.write(descriptor, bytes(data)[: self._torn])
            raise Crash

        return call


class NoLinks(Files):
    """A file system without hard links."""

    code = errno.EPERM

    def link(self, source: str, target: str) -> None:
        raise OSError(self.code, os.strerror(self.code), source, None, target)


class Unsupported(NoLinks):
    """One that says so by another name."""

    code = errno.ENOTSUP


class Protected(Files):
    """Links to files of others are forbidden (fs.protected_hardlinks), those to one's own copies are not."""

    def link(self, source: str, target: str) -> None:
        if not source.endswith(".part"):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)
        super().link(source, target)


class OtherDevice(Files):
    """Inbox and outbox on different file systems: links work within each only."""

    def link(self, source: str, target: str) -> None:
        if ("/inbox/" in named(source)) != ("/inbox/" in named(target)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)
        super().link(source, target)


class NoOwners(OtherDevice):
    """The outbox's file system keeps no owners."""

    def set_owner(self, descriptor: int, owner: int, group: int) -> None:
        if "/inbox/" not in str(name_of(descriptor)):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        super().set_owner(descriptor, owner, group)


class FixedModes(Files):
    """The outbox is on exFAT: no links there, and all files have one mode."""

    def link(self, source: str, target: str) -> None:
        if "/outbox/" in named(source) + named(target):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)
        super().link(source, target)

    def create(self, path: str, mode: int = 0o600) -> int:
        descriptor = super().create(path, mode)
        if "/outbox/" in named(path):
            os.fchmod(descriptor, 0o755)
        return descriptor

    def set_mode(self, path: str | int, mode: int) -> None:
        if "/outbox/" not in str(name_of(path) if isinstance(path, int) else named(path)):
            super().set_mode(path, mode)


class NoSyncfs(Files):
    """A system that can flush single files only."""

    def flush_system(self, path: str) -> bool:
        return False


class Unwritten(Files):
    """A disk that loses what was written before its first flush: that fails, and the next one has nothing to do."""

    def __init__(self, base: Callable[[], Files] = Files) -> None:
        super().__init__()
        self.link = base().link  # type: ignore[method-assign]
        self.lost: set[int] | None = None  # inodes, once a flush has failed
        self._written: set[int] = set()

    def create(self, path: str, mode: int = 0o600) -> int:
        descriptor = super().create(path, mode)
        for inodes in (self._written, self.lost or set()):
            inodes.discard(os.fstat(descriptor).st_ino)  # of a file that is gone
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        super().write(descriptor, data)
        self._written.add(os.fstat(descriptor).st_ino)

    def flush(self, descriptor: int) -> None:
        super().flush(descriptor)
        self._written.discard(os.fstat(descriptor).st_ino)

    def flush_system(self, path: str) -> bool:
        if self.lost is None:
            self.lost = self._written
            self._written = set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return True


class Clones(Files):
    """A file system where files can share their bytes, as far as can be seen from outside."""

    def clone(self, source: int, target: int) -> None:
        os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)


class Subvolumes(Clones, OtherDevice):
    """Inbox and outbox on two subvolumes of one such file system: bytes can be shared between them, names cannot."""


class Shared(Clones, Unsupported):
    """Such a file system behind a server that has no hard links."""
