"""What a DICOM file begins with (PS3.10 7.1), for data sets that lie on disk without it: servers take whole files."""

from __future__ import annotations

import struct

from dicomsort import __version__

IMPLEMENTATION_UID = "2.25.159964189786951432510675317879259221645"  # ours: PS3.7 annex D.3.3.2
IMPLEMENTATION_VERSION = f"DICOMSORT_{__version__}"[:16]
_PREAMBLE = bytes(128)
_MAGIC = b"DICM"
_LENGTH = struct.Struct("<HH2sHL")
_SHORT = struct.Struct("<HH2sH")
_VERSION = bytes.fromhex("02000100 4f420000 02000000 0001")


def lacking(head: bytes, sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """What must stand before a file that begins with ``head``; empty where nothing is missing."""
    if head.startswith(_MAGIC, len(_PREAMBLE)):
        return b""
    if head.startswith(_MAGIC):
        return _PREAMBLE
    if head.startswith(b"\x02\x00"):
        return _PREAMBLE + _MAGIC
    texts = {
        0x0002: sop_class, 0x0003: sop_uid, 0x0010: syntax, 0x0012: IMPLEMENTATION_UID, 0x0013: IMPLEMENTATION_VERSION,
    }  # fmt: skip
    meta = _VERSION + b"".join(_text(element, text) for element, text in texts.items())
    return _PREAMBLE + _MAGIC + _LENGTH.pack(2, 0, b"UL", 4, len(meta)) + meta


def _text(element: int, text: str) -> bytes:
    is_uid = text[0].isdigit()
    value = text.encode("ascii")
    value += (b"\0" if is_uid else b" ") * (len(value) % 2)
    return _SHORT.pack(2, element, b"UI" if is_uid else b"SH", len(value)) + value
