"""Command sets of C-STORE (PS3.7 9.3.1), in implicit VR little endian (PS3.7 6.3.1), and how they come in PDUs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_ELEMENT = struct.Struct("<HHL")
_SHORT = struct.Struct("<HHLH")
_LONG = struct.Struct("<HHLL")
_CLASS, _FIELD, _ID, _ID_ANSWERED, _PRIORITY, _DATA_SET, _STATUS, _INSTANCE = (
    0x0002, 0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x1000,
)  # fmt: skip
_REQUEST, _RESPONSE = 0x0001, 0x8001
_MEDIUM, _PRESENT, _NONE = 0x0000, 0x0001, 0x0101


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


def store_status(data: bytes, message: int, sop_class: str, sop_uid: str) -> int:
    """The status in the C-STORE-RSP to such a request; ValueError, which says what ``data`` is, where it is none.

    Affected SOP Class UID and Affected SOP Instance UID are optional in a response, and some peers leave them out; one
    that is there shall equal the request's (usage "U(=)", PS3.7 9.1.1.1 table 9.1-1).
    """
    found = _elements(data)
    if _number(found, _FIELD) != _RESPONSE:
        raise ValueError("a message that is no C-STORE response")
    if _number(found, _ID_ANSWERED) != message:
        raise ValueError("the answer to another message")
    for element, name, sent in ((_CLASS, "SOP Class UID", sop_class), (_INSTANCE, "SOP Instance UID", sop_uid)):
        if found.get(element, sent.encode("ascii")).rstrip(b"\0 ") != sent.encode("ascii"):
            raise ValueError(f"one that does not name the {name} that was sent (0000,{element:04X})")
    if _number(found, _DATA_SET) != _NONE:
        raise ValueError("one that says a data set follows")
    if (status := _number(found, _STATUS)) is None:
        raise ValueError("one without a status")
    return status


def _elements(data: bytes) -> dict[int, bytes]:
    """Element number -> value of a command set; ValueError where it is damaged, or has an element twice."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        start = at + _ELEMENT.size
        group, element, length = _ELEMENT.unpack_from(data.ljust(start, b"\0"), at)
        at = start + length
        if group or element in found or at > len(data):
            raise ValueError("a damaged command set")
        found[element] = data[start:at]
    return found


def _number(found: dict[int, bytes], element: int) -> int | None:
    value = found.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == _SHORT.size - _ELEMENT.size else None


def fragments(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the presentation data values of a P-DATA-TF PDU (PS3.8 9.3.5), one or more: context, control, fragment.

    ValueError where their lengths do not add up.
    """
    at = 0
    while True:
        start, at = at + 6, at + 4 + int.from_bytes(body[at : at + 4], "big")
        if not start <= at <= len(body):
            raise ValueError("a damaged P-DATA-TF PDU")
        yield body[start - 2], body[start - 1], body[start:at]
        if at == len(body):
            return
