"""The file meta information (PS3.10 7.1) that goes before a received data set, and where it ends in a file."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import Final

from dicomsort.headers import fast
from dicomsort.headers.encoding import Encoding
from dicomsort.headers.source import Ended, FileSource
from dicomsort.headers.tags import TRANSFER_SYNTAX, Tags

IMPLEMENTATION_UID: Final = "2.25.185968357381461023635362687459038354457"  # made from a UUID (PS3.5 B.2)
IMPLEMENTATION_NAME: Final = "DICOMSORT"
_PREFIX: Final = bytes(128) + b"DICM"
_EXPLICIT: Final = Encoding(explicit=True, little=True)
_LAST: Final = 0x0002FFFF
_HEAD: Final = 4096  # bytes; a few UIDs and names take less


def encode(sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Preamble, prefix and group 0002 for these UIDs: the same bytes for the same UIDs, whoever sent the instance."""
    elements = b"".join(
        [
            struct.pack("<HH2sHI2s", 2, 0x0001, b"OB", 0, 2, b"\x00\x01"),
            _text(0x0002, b"UI", sop_class),
            _text(0x0003, b"UI", sop_uid),
            _text(0x0010, b"UI", syntax),
            _text(0x0012, b"UI", IMPLEMENTATION_UID),
            _text(0x0013, b"SH", IMPLEMENTATION_NAME),
        ]
    )
    return _PREFIX + struct.pack("<HH2sHI", 2, 0x0000, b"UL", 4, len(elements)) + elements


def _text(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    value += (b"\x00" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def find(descriptor: int) -> tuple[bytes, int] | None:
    """The transfer syntax (padding taken off) of an open file and the offset of its data set; None if it has none."""
    head = os.pread(descriptor, _HEAD, 0)
    if not head.startswith(b"DICM", len(_PREFIX) - 4):
        return None
    source = FileSource(head, os.fstat(descriptor).st_size, lambda offset, size: os.pread(descriptor, size, offset))
    tags = Tags()
    with suppress(Ended, fast.Unusual):  # the data set may begin in another encoding
        fast.scan(source, len(_PREFIX), _EXPLICIT, tags, _LAST)
    syntax = tags.values.get(TRANSFER_SYNTAX, b"").rstrip(b" \0")
    return (syntax, tags.position) if syntax else None
