"""Instances on their way to disk, and their commit: from a part file to a final name in the inbox.

A sort passes over the names of part files, and they are locked while in use. The commit survives a crash at any step:

1. the part file's bytes are flushed; 2. the folders are made; 3. the part file is linked to its final name, which
replaces nothing; 4. the folders are flushed, up to the inbox; 5. the part file's own name is removed. Only then may
success be answered.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from dicomsort.dicom import file_meta
from dicomsort.discover import RECEIVING
from dicomsort.errors import DicomsortError
from dicomsort.files import CHUNK, Files, closing, flush_path, opened, sha256_of

MODE: Final = 0o640  # of received files, less what umask takes: never for everybody
_OURS: Final = re.compile(re.escape(RECEIVING) + r"[0-9a-f]{8}-[0-9]+\.part")
_PART_TRIES: Final = 8


class PartFile:
    """One such file. Its writer holds it locked, so that what a dead one left can be told from what is in use."""

    def __init__(self, files: Files, path: str, descriptor: int) -> None:
        """Take over an open, locked file."""
        self._files = files
        self._descriptor: int | None = descriptor
        self.path = path
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append; OSError where the disk refuses."""
        self._files.write(self._open(), data)
        self.size += len(data)

    def flush(self) -> None:
        """Return when all that was written is durable."""
        self._files.flush(self._open())

    def discard(self) -> None:
        """Take this name of the file away and close, once; a name that cannot go is left to the next start."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with closing(descriptor), contextlib.suppress(OSError):
                self._files.unlink(self.path)

    @property
    def is_open(self) -> bool:
        """Whether it has not been discarded."""
        return self._descriptor is not None

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError("expected a part in use, received a discarded one")
        return self._descriptor


class PartFiles:
    """Makes them, and takes away what earlier processes left."""

    def __init__(self, files: Files, inbox: str) -> None:
        """``inbox`` is an absolute path."""
        self._files = files
        self._inbox = inbox
        self._token = secrets.token_hex(4)
        self._numbers = itertools.count()

    def begin(self) -> PartFile:
        """Make a new, empty part; OSError where the disk refuses."""
        for _ in range(_PART_TRIES):
            path = f"{self._inbox}/{RECEIVING}{self._token}-{next(self._numbers)}.part"
            descriptor = self._files.create(path, MODE)
            try:
                # A process that starts at this moment may have taken it for a leftover before it was locked.
                ours = self._files.lock(descriptor) and os.fstat(descriptor).st_nlink > 0
            except OSError:
                os.close(descriptor)
                raise
            if ours:
                return PartFile(self._files, path, descriptor)
            os.close(descriptor)
        raise FileExistsError(f"expected a part of our own within {_PART_TRIES} tries")

    def clean_up(self) -> int:
        """Remove the parts that nobody holds, which a killed process left; how many there were."""
        removed = 0
        for name in os.listdir(self._inbox):
            if _OURS.fullmatch(name):
                path = f"{self._inbox}/{name}"
                with contextlib.suppress(OSError), closing(self._files.open_append(path, MODE)) as descriptor:
                    if self._files.lock(descriptor):
                        self._files.unlink(path)
                        removed += 1
        return removed

    def check(self) -> None:
        """Try what receiving needs of the inbox's file system; DicomsortError, which says what it refuses."""
        what = "writing and locking a file"
        try:
            part = self.begin()
            try:
                what = "flushing it"
                part.write(b"\x00")
                part.flush()
                what = "hard links (NFS, ext4, XFS have them; exFAT and some FUSE file systems do not)"
                self._files.link(part.path, f"{part.path[:-5]}0.part")
                self._files.unlink(f"{part.path[:-5]}0.part")
            finally:
                part.discard()
        except OSError as error:
            message = f"inbox {self._inbox!r}: expected {what} to work, received {error.strerror or error}"
            raise DicomsortError(message) from error


FOLDER_MODE: Final = 0o750
_TRIES: Final = 20  # a sort that moves may take a file, or prune a folder, between any two calls
_SUFFIXES: Final = (8, 16, 32, 64)  # hex digits of a SHA-256


class Committed(StrEnum):
    """What became of an instance."""

    STORED = "stored"
    REPEATED = "repeated"  # it is there with the same data set and transfer syntax; nothing was written
    BESIDE = "stored beside another"  # its name was taken by other content


@dataclass(frozen=True, slots=True)
class Uids:
    """What names an instance's place; each a valid UID (PS3.5 9.1), so none can lead anywhere else."""

    study: str
    series: str
    sop: str

    @property
    def folder(self) -> str:
        """Its folder, relative to the inbox."""
        return f"{self.study}/{self.series}"


def commit(files: Files, inbox: str, part: PartFile, uids: Uids) -> tuple[Committed, str]:
    """Give a whole part its name in the inbox and return, when that is durable, what it became and where it lies.

    The path is relative to the inbox. Two that come at once by one name are told apart by ``link``, which only one of
    them can win. Raises OSError where the disk refuses; the part is the caller's to discard in any case.
    """
    part.flush()
    for name in _names(part, uids.sop):
        path = f"{uids.folder}/{name}"
        kept = _link_or_match(files, inbox, part, path)
        if kept is None:
            continue
        for folder in (uids.folder, uids.study, ""):
            with contextlib.suppress(FileNotFoundError):  # pruned after a sort moved the file out, durably
                flush_path(files, f"{inbox}/{folder}" if folder else inbox)
        part.discard()
        first = name == f"{uids.sop}.dcm"
        return Committed.BESIDE if kept is Committed.STORED and not first else kept, path
    raise OSError(errno.EEXIST, "every name that its content gives it is taken by other content")


def _names(part: PartFile, sop: str) -> Iterator[str]:
    yield f"{sop}.dcm"
    digest = sha256_of(part.path)
    yield from (f"{sop}.{digest[:digits]}.dcm" for digits in _SUFFIXES)


def _link_or_match(files: Files, inbox: str, part: PartFile, path: str) -> Committed | None:
    """Link the part to ``path``, or find the same instance there; None where something else is."""
    for _ in range(_TRIES):
        try:
            _make_folders(files, inbox, os.path.dirname(path))
            files.link(part.path, f"{inbox}/{path}")
            return Committed.STORED
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                return Committed.REPEATED if _same_instance(files, part.path, f"{inbox}/{path}") else None
        except FileNotFoundError:
            continue
    raise OSError(errno.EBUSY, "its folder, or the file of its name, came and went while it was stored")


def _make_folders(files: Files, inbox: str, folder: str) -> None:
    path = inbox
    for name in folder.split("/"):
        path = f"{path}/{name}"
        with contextlib.suppress(FileExistsError):
            files.make_folder(path, FOLDER_MODE)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "something else stands where a folder of its UIDs should be")


def _same_instance(files: Files, part: str, path: str) -> bool:
    """Whether a file holds the part's data set in the part's transfer syntax; if so, it is durable from now on."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with opened(part) as one, opened(path) as other:
        here, there = file_meta.read_file(one), file_meta.read_file(other)
        if here is None or there is None or here.syntax != there.syntax:
            return False
        if os.fstat(one).st_size - here.end != os.fstat(other).st_size - there.end:
            return False
        offset = 0
        while piece := os.pread(one, CHUNK, here.end + offset):
            if piece != os.pread(other, len(piece), there.end + offset):
                return False
            offset += len(piece)
        files.flush(other)
    return True
