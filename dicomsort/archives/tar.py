"""Reads TAR files (POSIX.1-2017 pax and ustar, GNU), plain or compressed by gzip, bzip2, xz or zstd.

A TAR file is a stream without a directory: only its end tells that it is whole. So a damaged one is damaged as a whole.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, BinaryIO

from backports import zstd

from dicomsort.archives.limits import ArchiveRefused, Budget
from dicomsort.archives.members import DAMAGED, PIECE, Member, said
from dicomsort.records import ARCHIVE

BLOCK = tarfile.BLOCKSIZE
_NAMES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
BROKEN = (tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zstd.ZstdError, EOFError, ValueError,
          IndexError, KeyError, OverflowError, RecursionError)  # fmt: skip


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": zstd.ZstdFile,
}


class _Counted(io.RawIOBase):
    """A stream that counts what is read of it, and gives the first block again."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream, self._budget = stream, budget
        self._first = b""

    def peek_block(self) -> bytes:
        """Return the first block, without taking it."""
        while len(self._first) < BLOCK and (piece := self._stream.read(BLOCK - len(self._first))):
            self._first += piece
        return self._first

    def read(self, size: int = -1) -> bytes:
        """Read as the stream does, in bounded pieces."""
        if self._first:
            piece, self._first = self._first[:size], self._first[size:]
        else:
            piece = self._stream.read(min(size, PIECE))
        self._budget.add_read(len(piece))
        return piece


def members(stream: BinaryIO, kind: str, name: str, budget: Budget) -> Iterator[Member]:
    """Yield the files of a TAR file, each to be read before the next; ArchiveRefused where it is not whole.

    ``kind`` is the compression, or ``tar``. ``name`` is that of the archive: what ends too early to be told is damaged
    only if its name says TAR.
    """
    opener = _OPENERS.get(kind)
    with _damaged():
        plain = _Counted(opener(stream) if opener else stream, budget)
        _require_tar(plain, name)
        with tarfile.open(fileobj=plain, mode="r|") as archive:
            while info := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                if not info.isdir():
                    budget.add_member(info.size)
                    yield Member(info.name, info.size, float(info.mtime), partial(_read, archive, info), _unsafe(info))
            end = archive.fileobj.read(BLOCK)
        if end != bytes(BLOCK):
            raise EOFError("the end is missing")
        while piece := plain.read(PIECE):  # a checksum stands at the end
            if any(piece):
                raise EOFError("bytes behind its end")


@contextmanager
def _damaged() -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise ArchiveRefused(DAMAGED, f"expected a whole TAR file, received: {said(error)}") from None
    except OSError as error:
        if error.errno is not None:  # of the disk
            raise
        raise ArchiveRefused(DAMAGED, f"expected a whole TAR file, received: {said(error)}") from None


def _require_tar(plain: _Counted, name: str) -> None:
    try:
        block = plain.peek_block()
        if len(block) == BLOCK and not any(block):
            return  # an empty archive
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except BROKEN:
        if any(part in name.lower() for part in _NAMES):
            raise
        raise ArchiveRefused(ARCHIVE, "it holds no TAR file") from None


def _unsafe(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return ""
    return "it is a link" if info.issym() or info.islnk() else "it is a device"


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    with _damaged():
        if (member := archive.extractfile(info)) is None:
            raise tarfile.ReadError("no bytes")
        while piece := member.read(PIECE):
            yield piece
