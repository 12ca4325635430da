"""Reads ZIP files (PKWARE APPNOTE 6.3.10): stored, deflate, deflate64, bzip2, LZMA; ZIP64; data descriptors.

The central directory counts, and must be sound: members that share bytes, or promise more than the limits, make the
whole file damaged or too large before anything is unpacked.
"""

from __future__ import annotations

import lzma
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from dicomsort.archives.limits import ArchiveRefused, Budget
from dicomsort.archives.members import DAMAGED, ENCRYPTED, PIECE, Member, MemberDamaged, said

_LOCAL, _LOCAL_SIZE = b"PK\x03\x04", 30
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000  # encrypted, strongly encrypted, masked headers (APPNOTE 4.4.4)
_DEFLATE64 = 9
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, _DEFLATE64, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA})
_UNIX, _KIND, _LINK, _FOLDER, _FILE = 3, 0o170000, 0o120000, 0o040000, 0o100000
# What the libraries raise for bytes that are no such archive. Each is one of these, or a subclass.
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, NotImplementedError, RuntimeError,
          IndexError, KeyError, OverflowError)  # fmt: skip


def members(stream: BinaryIO, size: int, budget: Budget) -> Iterator[Member]:
    """Yield the files of a ZIP file, in the order of its directory; ArchiveRefused where it cannot be opened whole."""
    try:
        archive = zipfile.ZipFile(stream)
    except BROKEN as error:
        raise ArchiveRefused(DAMAGED, f"expected a whole ZIP file, received: {said(error)}") from None
    infos = [info for info in archive.infolist() if not info.filename.endswith("/") or info.file_size]
    if min((info.header_offset for info in archive.infolist()), default=0):
        raise ArchiveRefused(DAMAGED, "expected a ZIP file, received bytes before it that its directory does not name")
    _check(infos, size, archive.start_dir)
    for info in infos:
        budget.add_member(info.file_size)
    budget.require_total(sum(info.file_size for info in infos))
    for info in infos:
        yield Member(info.orig_filename, info.file_size, _mtime(info), _reader(archive, stream, info), _unsafe(info))


def _check(infos: list[zipfile.ZipInfo], size: int, directory: int) -> None:
    """ArchiveRefused where members are encrypted, lie outside the file, or share bytes, as in bombs."""
    if any(info.flag_bits & _ENCRYPTED_FLAGS for info in infos):
        raise ArchiveRefused(ENCRYPTED, "it is encrypted: unpack it with its password")
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.volume:
            raise ArchiveRefused(DAMAGED, "expected a whole ZIP file, received one part of several")
        if info.header_offset < end or info.compress_size < 0:
            raise ArchiveRefused(DAMAGED, "expected files one after the other, received some that share bytes")
        end = info.header_offset + _LOCAL_SIZE + info.compress_size
        if end > min(size, directory):
            raise ArchiveRefused(DAMAGED, "expected files within the archive, received one beyond its end")


def _unsafe(info: zipfile.ZipInfo) -> str:
    """Return why a member must not be unpacked: it is a link, a device, or a folder's name with a file's bytes."""
    if info.filename.endswith("/"):
        return "it has bytes, and the name of a folder"
    kind = info.external_attr >> 16 & _KIND
    if info.create_system == _UNIX and kind not in {0, _FILE, _FOLDER}:
        return "it is a link" if kind == _LINK else "it is a device"
    return ""


def _mtime(info: zipfile.ZipInfo) -> float | None:
    try:
        return time.mktime((*info.date_time, 0, 0, -1))
    except (ValueError, OverflowError):
        return None


def _reader(archive: zipfile.ZipFile, stream: BinaryIO, info: zipfile.ZipInfo) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        try:
            if info.compress_type not in _METHODS:
                raise NotImplementedError(f"compression method {info.compress_type}, which is not supported")
            yield from _deflate64(stream, info) if info.compress_type == _DEFLATE64 else _plain(archive, info)
        except (*BROKEN, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise
            raise MemberDamaged(f"expected a whole file, received: {said(error)}") from None

    return read


def _plain(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    count = 0
    with archive.open(info, mode="r") as member:
        while piece := member.read(PIECE):
            count += len(piece)
            yield piece
    if count != info.file_size:
        raise EOFError(f"{count:,} bytes instead of {info.file_size:,}")


def _deflate64(stream: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a member that was compressed by deflate64, which zlib does not know."""
    from stream_inflate import stream_inflate64

    stream.seek(info.header_offset)
    head = stream.read(_LOCAL_SIZE)
    if len(head) != _LOCAL_SIZE or not head.startswith(_LOCAL):
        raise EOFError("no head of a file")
    stream.seek(sum(struct.unpack("<HH", head[26:30])), 1)
    inflated, _, _ = stream_inflate64()
    left, crc, total = info.compress_size, 0, 0

    def compressed() -> Iterator[bytes]:
        nonlocal left
        while left and (piece := stream.read(min(left, PIECE))):
            left -= len(piece)
            yield piece

    for piece in inflated(compressed()):
        crc = zlib.crc32(piece, crc)
        total += len(piece)
        yield piece
    if (crc, total) != (info.CRC, info.file_size):
        raise EOFError(f"bad CRC-32, or {total:,} bytes instead of {info.file_size:,}")
