"""From a part to its place in the inbox, in an order of writes that survives a crash at any of them.

1. the part's bytes are flushed; 2. the folders are made; 3. the part is linked to its name, which replaces nothing;
4. the folders are flushed, up to the inbox; 5. the part's own name goes. Only then may success be answered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from dicomsort.adapters.receiving.parts import Part
from dicomsort.dicom import file_meta
from dicomsort.files import CHUNK, Files, flush_path, opened, sha256_of

FOLDER_MODE: Final = 0o750
_TRIES: Final = 20  # a sort that moves may take a file, or prune a folder, between any two calls
_SUFFIXES: Final = (8, 16, 32, 64)  # hex digits of a SHA-256


class Kept(StrEnum):
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


def keep(files: Files, inbox: str, part: Part, uids: Uids) -> tuple[Kept, str]:
    """Give a whole part its name in the inbox and return, when that is durable, what it became and where it lies.

    The path is relative to the inbox. Two that come at once by one name are told apart by ``link``, which only one of
    them can win. Raises OSError where the disk refuses; the part is the caller's to discard in any case.
    """
    part.flush()
    for name in _names(part, uids.sop):
        path = f"{uids.folder}/{name}"
        kept = _settle(files, inbox, part, path)
        if kept is None:
            continue
        for folder in (uids.folder, uids.study, ""):
            with contextlib.suppress(FileNotFoundError):  # pruned after a sort moved the file out, durably
                flush_path(files, f"{inbox}/{folder}" if folder else inbox)
        part.discard()
        first = name == f"{uids.sop}.dcm"
        return Kept.BESIDE if kept is Kept.STORED and not first else kept, path
    raise OSError(errno.EEXIST, "every name that its content gives it is taken by other content")


def _names(part: Part, sop: str) -> Iterator[str]:
    yield f"{sop}.dcm"
    digest = sha256_of(part.path)
    yield from (f"{sop}.{digest[:digits]}.dcm" for digits in _SUFFIXES)


def _settle(files: Files, inbox: str, part: Part, path: str) -> Kept | None:
    """Link the part to ``path``, or find the same instance there; None where something else is."""
    for _ in range(_TRIES):
        try:
            _make_folders(files, inbox, os.path.dirname(path))
            files.link(part.path, f"{inbox}/{path}")
            return Kept.STORED
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                return Kept.REPEATED if _same_instance(files, part.path, f"{inbox}/{path}") else None
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
