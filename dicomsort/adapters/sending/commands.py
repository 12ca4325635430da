"""Command sets of C-STORE (PS3.7 9.3.1), in implicit VR little endian (PS3.7 6.3.1)."""

from __future__ import annotations

import struct
from contextlib import suppress

_ELEMENT = struct.Struct("<HHL")
_SHORT = struct.Struct("<HHLH")
_LONG = struct.Struct("<HHLL")
_CLASS, _FIELD, _ID, _ID_ANSWERED, _PRIORITY, _DATA_SET, _STATUS, _INSTANCE = (
    0x0002, 0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x1000,
)  # fmt: skip
_REQUEST, _RESPONSE = 0x0001, 0x8001
_MEDIUM, _PRESENT = 0x0000, 0x0001


def store_request(message: int, sop_class: str, sop_uid: str) -> bytes:
    """The command set of a C-STORE-RQ (PS3.7 table 9.3-1)."""
    body = b"".join(
        (
            _uid(_CLASS, sop_class),
            _SHORT.pack(0, _FIELD, 2, _REQUEST),
            _SHORT.pack(0, _ID, 2, message),
            _SHORT.pack(0, _PRIORITY, 2, _MEDIUM),
            _SHORT.pack(0, _DATA_SET, 2, _PRESENT),
            _uid(_INSTANCE, sop_uid),
        )
    )
    return _LONG.pack(0, 0, 4, len(body)) + body


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    value += b"\0" * (len(value) % 2)
    return _ELEMENT.pack(0, element, len(value)) + value


def store_status(data: bytes, message: int) -> int | None:
    """The status that a C-STORE-RSP to this message holds; None where the bytes are no such response."""
    numbers = _numbers(data)
    if numbers.get(_FIELD) != _RESPONSE or numbers.get(_ID_ANSWERED) != message:
        return None
    return numbers.get(_STATUS)


def _numbers(data: bytes) -> dict[int, int]:
    """The elements that hold one number of two bytes."""
    found, at = {}, 0
    with suppress(struct.error):
        while at < len(data):
            _, element, length = _ELEMENT.unpack_from(data, at)
            at += _ELEMENT.size
            if length == _SHORT.size - _ELEMENT.size:
                found[element] = int.from_bytes(data[at : at + length], "little")
            at += length
    return found
