"""File meta information (PS3.10 7.1): written before a data set that has none, and read before one that has it."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from dicomsort.dicom.elements import UNDEFINED, ByteSource, ElementReader, NeedsFullParser, ReadingEnded
from dicomsort.dicom.encoding import Encoding
from dicomsort.dicom.tags import MEDIA_SOP_CLASS, TRANSFER_SYNTAX, VALUE_LIMIT

# Made from a UUID (PS3.5 B.2). Neither changes with a release: an instance that is received twice is the same file.
IMPLEMENTATION_CLASS_UID: Final = "2.25.185968357381461023635362687459038354457"
IMPLEMENTATION_VERSION_NAME: Final = "DICOMSORT"
PREAMBLE: Final = 128  # bytes before DICM
MAGIC: Final = b"DICM"
GROUP: Final = b"\x02\x00"  # what the meta information begins with
ENCODING: Final = Encoding(explicit=True, little=True)
_PREFIX: Final = bytes(PREAMBLE) + MAGIC
_LAST: Final = 0x0002FFFF
_WANTED: Final = frozenset({MEDIA_SOP_CLASS, TRANSFER_SYNTAX})
_HEAD: Final = 4096  # bytes; a few UIDs and names take less


class FileMeta(NamedTuple):
    """What was read of it: UIDs without padding, and the offset behind it.

    ``is_whole`` is false where the file ends within or right behind it, or where only a full parser reads the rest.
    """

    sop_class: str
    syntax: str
    end: int
    is_whole: bool


def encode(sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Return preamble, prefix and group 0002 for these UIDs: the same bytes for the same UIDs, whoever sent them."""
    elements = struct.pack("<HH2sHI2s", 2, 0x0001, b"OB", 0, 2, b"\x00\x01")
    elements += _text(0x0002, b"UI", sop_class) + _text(0x0003, b"UI", sop_uid) + _text(0x0010, b"UI", syntax)
    elements += _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID) + _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME)
    return _PREFIX + struct.pack("<HH2sHI", 2, 0x0000, b"UL", 4, len(elements)) + elements


def _text(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    value += (b"\x00" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def lacking(head: bytes, sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Return what a file that begins with ``head`` lacks of preamble, prefix and group 0002, b"" where it has all."""
    start = offset(head)
    return encode(sop_class, sop_uid, syntax) if start is None else _PREFIX[: len(_PREFIX) - start]


def offset(head: bytes) -> int | None:
    """Return the offset of the meta information in a file that begins with ``head``, None where it has none."""
    if head.startswith(MAGIC, PREAMBLE):
        return len(_PREFIX)
    if head.startswith(MAGIC):
        return len(MAGIC)
    return 0 if head.startswith(GROUP) else None


def read(source: ByteSource, start: int) -> FileMeta:
    """Read the meta information that begins at ``start``, as far as it goes.

    Raises:
        OSError: from ``source``.
    """
    reader = ElementReader(source, ENCODING, start, value_limit=VALUE_LIMIT)
    values: dict[int, bytes] = {}
    is_whole = False
    with suppress(ReadingEnded):
        # An implicit or deflated data set is not plain to a reader of explicit elements.
        with suppress(NeedsFullParser):
            for tag, _, length, value, data in reader.elements(_WANTED, _LAST):
                if length != UNDEFINED:
                    values[tag] = reader.value(value, length) if data is None else data
        buffer, base = source.window(reader.position, len(GROUP))
        is_whole = not buffer.startswith(GROUP, reader.position - base)
    sop_class = values.get(MEDIA_SOP_CLASS, b"").decode("ascii", "replace").strip(" \0")
    syntax = values.get(TRANSFER_SYNTAX, b"").decode("ascii", "replace").strip(" \0")
    return FileMeta(sop_class, syntax, reader.position, is_whole)


def read_file(descriptor: int) -> FileMeta | None:
    """Read the meta information of an open Part 10 file, None where there is none, or no transfer syntax in it."""
    head, size = os.pread(descriptor, _HEAD, 0), os.fstat(descriptor).st_size
    source = ByteSource(head, size, lambda offset, length: os.pread(descriptor, length, offset))
    if source.at(PREAMBLE, len(MAGIC)) != MAGIC:
        return None
    meta = read(source, len(_PREFIX))
    return meta if meta.syntax else None
