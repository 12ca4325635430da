"""Paths below a folder that lead through no link, whatever somebody puts in the place of a folder meanwhile.

Linux has openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS for this, Python has not. So the folders of a path are
opened one by one without following links, and the path that is used begins with the last of them as ``/proc/self/fd``
shows it: the kernel looks up the name in the folder that was opened, wherever that is by now. Where there is no
``/proc``, paths are ordinary ones.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from dicomsort.files import PATH_MAX

FOLDER = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", 0)  # which needs no right to read it
_OPEN = 8  # folders that a thread keeps open: an operation needs four
_DESCRIPTORS = "/proc/self/fd"
_NOWHERE = f"{_DESCRIPTORS}/-1"  # where nothing can be
_NO_FOLDER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class _Local(threading.local):
    def __init__(self) -> None:
        self.depth = 0
        self.folders: dict[str, int] = {}  # descriptors, the one that was used last at the end
        self.root = -1


class Beneath:
    """Paths below one folder; safe to use from several threads."""

    def __init__(self, root: str) -> None:
        """``root`` is an absolute path, whose own folders are trusted; below an empty one, links are followed."""
        self._root = root
        self._local = _Local()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep open the folders that ``path`` opens in this thread, until the outermost of these blocks ends."""
        local = self._local
        local.depth += 1
        try:
            yield
        finally:
            local.depth -= 1
            if not local.depth:
                for descriptor in (*local.folders.values(), *([local.root] if local.root >= 0 else [])):
                    os.close(descriptor)
                local.folders.clear()
                local.root = -1

    def path(self, below: str) -> str:
        """Return a path of what lies below the root, valid in this block of ``kept_open`` while few are asked for.

        Nothing is there where one of its folders is not there, or a file. OSError (ELOOP) where one is a link. What is
        too long for an ordinary path is too long here: others could not reach it.
        """
        folder, _, name = below.rpartition("/")
        plain = f"{self._root}/{below}"
        if not (folder and self._root and _shows_folders()) or len(os.fsencode(plain)) >= PATH_MAX:
            return plain
        if not self._local.depth:
            raise AssertionError(f"expected a block of kept_open() around the path of {below!r}")
        try:
            return f"{_DESCRIPTORS}/{self._descriptor(folder)}/{name}"
        except OSError as error:
            if error.errno in _NO_FOLDER:
                return f"{_NOWHERE}/{name}"
            raise

    def _descriptor(self, folder: str) -> int:
        folders = self._local.folders
        descriptor = folders.pop(folder, None)
        if descriptor is None:
            descriptor = self._opened(folder)
            if len(folders) >= _OPEN:
                os.close(folders.pop(next(iter(folders))))
        folders[folder] = descriptor
        return descriptor

    def _opened(self, folder: str) -> int:
        local = self._local
        if local.root < 0:
            local.root = os.open(self._root, FOLDER)
        descriptor = local.root
        for name in folder.split("/"):
            outer = descriptor
            try:
                descriptor = _inner(outer, name)
            finally:
                if outer != local.root:
                    os.close(outer)
        return descriptor


@contextmanager
def one_below(root: str, path: str) -> Iterator[str]:
    """Yield the path of one thing below a root, see ``Beneath.path``."""
    beneath = Beneath(root)
    with beneath.kept_open():
        yield beneath.path(path)


def _inner(folder: int, name: str) -> int:
    """Open a folder in an open one."""
    if name in {"", ".", ".."}:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    try:
        return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode):
            raise OSError(errno.ELOOP, "a link is in the place of a folder", name) from None
        raise


@cache
def _shows_folders() -> bool:
    """Whether ``/proc`` shows this process the folders that it has open."""
    descriptor = os.open("/", FOLDER)
    try:
        with suppress(OSError):
            return os.path.samestat(os.stat(f"{_DESCRIPTORS}/{descriptor}/."), os.fstat(descriptor))
        return False
    finally:
        os.close(descriptor)
