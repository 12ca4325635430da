"""A data set with other VRs around the same values: between explicit and implicit VR little endian (PS3.5 7.1).

Values are copied as the bytes that they are; reading and writing them would trim and pad what somebody wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache

from dicomsort.dicom.encoding import HEADER_SIZE

PIXEL_DATA = 0x7FE00010
_REPRESENTATION = 0x00280103
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED, _LONGEST_SHORT = 0xFFFFFFFF, 0xFFFF
_IMPLICIT, _SHORT, _LONG = struct.Struct("<HHL"), struct.Struct("<HH2sH"), struct.Struct("<HH2sxxL")
_LONG_HEADER = 12
_CLOSED_ITEM = _IMPLICIT.pack(_ITEM_END >> 16, _ITEM_END & 0xFFFF, 0)
_CLOSED_SEQUENCE = _IMPLICIT.pack(_SEQUENCE_END >> 16, _SEQUENCE_END & 0xFFFF, 0)
_AMBIGUOUS = {
    "US or SS": ("US", "SS"),
    "OB or OW": ("OW", "OW"),
    "US or OW": ("OW", "OW"),
    "US or SS or OW": ("OW", "OW"),
}

Value = tuple[str, bytes]  # VR and bytes


class Malformed(Exception):
    """The data set is cut short, or is not what its transfer syntax says."""


def rewrite(body: bytes, *, implicit: bool, to_implicit: bool, replaced: Mapping[int, Value | None]) -> bytes:
    """Encode a little endian data set anew, with some elements replaced or, where None, left out.

    Sequences and items keep a length, or none, as they had it; retired group lengths (PS3.5 7.2) are left out. Raises
    ``Malformed``.
    """
    rewriter = _Rewriter(body, to_implicit=to_implicit)
    read = rewriter.elements(0, len(body), implicit=implicit, skips_fragments=PIXEL_DATA in replaced)
    elements = [each for each in read if each[0] not in replaced]
    for tag, value in replaced.items():
        if value is not None:
            elements.append((tag, rewriter.encoded(tag, value[0].encode(), value[1])))
    return b"".join(element for _, element in sorted(elements, key=lambda each: each[0]))


class _Rewriter:
    def __init__(self, body: bytes, *, to_implicit: bool) -> None:
        self._body = body
        self._to_implicit = to_implicit
        self._signed = False
        self._end = 0  # of what ``elements`` has read

    def elements(
        self, at: int, end: int | None, *, implicit: bool, skips_fragments: bool = False
    ) -> list[tuple[int, bytes]]:
        """Tag and new encoding of each element up to ``end``, or up to the end of an item where that is None."""
        found = []
        while end is None or at < end:
            tag, vr, length, at = self._header(at, implicit=implicit)
            if tag == _ITEM_END and end is None:
                break
            if tag >> 16 == _ITEM >> 16:
                raise Malformed
            if tag == PIXEL_DATA and length == _UNDEFINED:
                if not skips_fragments:
                    raise Malformed
                at = self._after_fragments(at)
                continue
            vr = vr or _known(tag)[self._signed].encode()
            if length == _UNDEFINED or vr == b"SQ":
                inner = implicit or vr == b"UN"  # PS3.5 6.2.2: an UN of undefined length holds implicit items
                value, at = self._items(at, None if length == _UNDEFINED else at + length, implicit=inner)
                vr = b"SQ"
                if length != _UNDEFINED and self._to_implicit and _known(tag)[0] != "SQ":
                    value += _CLOSED_SEQUENCE  # without a length, so that who does not know the tag sees what it is
                    length = _UNDEFINED
            else:
                value = self._value(at, length)
                at += length
            if tag == _REPRESENTATION:
                self._signed = value[:1] == b"\1"
            if tag & 0xFFFF:
                found.append((tag, self.encoded(tag, vr, value, is_open=length == _UNDEFINED)))
        if end is not None and at != end:
            raise Malformed
        self._end = at
        return found

    def _items(self, at: int, end: int | None, *, implicit: bool) -> tuple[bytes, int]:
        """The items of a sequence, and the offset behind them."""
        items = bytearray()
        while end is None or at < end:
            tag, _, length, at = self._header(at, implicit=True)
            if tag == _SEQUENCE_END and end is None:
                return bytes(items + _CLOSED_SEQUENCE), at
            if tag != _ITEM:
                raise Malformed
            elements = self.elements(at, None if length == _UNDEFINED else at + length, implicit=implicit)
            at = self._end
            item = b"".join(element for _, element in elements)
            is_open = length == _UNDEFINED
            items += _IMPLICIT.pack(_ITEM >> 16, _ITEM & 0xFFFF, _UNDEFINED if is_open else len(item)) + item
            items += _CLOSED_ITEM if is_open else b""
        if at != end:
            raise Malformed
        return bytes(items), at

    def _after_fragments(self, at: int) -> int:
        """The offset behind encapsulated pixel data (PS3.5 A.4)."""
        while True:
            tag, _, length, at = self._header(at, implicit=True)
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise Malformed
            at += len(self._value(at, length))

    def _value(self, at: int, length: int) -> bytes:
        value = self._body[at : at + length]
        if len(value) != length:
            raise Malformed
        return value

    def _header(self, at: int, *, implicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty where implicit), length, and where the value begins."""
        try:
            group, element, length = _IMPLICIT.unpack_from(self._body, at)
            vr = b"" if implicit or group == _ITEM >> 16 else self._body[at + 4 : at + 6]
            size = HEADER_SIZE[vr] if vr else _IMPLICIT.size
            if size == _LONG_HEADER:
                length = _LONG.unpack_from(self._body, at)[3]
            elif vr:
                length = _SHORT.unpack_from(self._body, at)[3]
        except (struct.error, KeyError):
            raise Malformed from None
        return group << 16 | element, vr, length, at + size

    def encoded(self, tag: int, vr: bytes, value: bytes, *, is_open: bool = False) -> bytes:
        """One element in the wanted encoding; ``is_open`` where its value ends with a delimiter."""
        group, element, length = tag >> 16, tag & 0xFFFF, _UNDEFINED if is_open else len(value)
        if self._to_implicit:
            return _IMPLICIT.pack(group, element, length) + value
        if HEADER_SIZE[vr] != _LONG_HEADER:
            if length <= _LONGEST_SHORT:
                return _SHORT.pack(group, element, vr, length) + value
            vr = b"UN"  # PS3.5 6.2.2
        return _LONG.pack(group, element, vr, length) + value


@lru_cache(maxsize=4096)
def _known(tag: int) -> tuple[str, str]:
    """The VR of a tag by PS3.6, of unsigned and of signed images; UN where it is none of the standard."""
    from pydicom.datadict import dictionary_VR

    try:
        vr = dictionary_VR(tag)
    except KeyError:
        vr = "LO" if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF else "UN"  # noqa: PLR2004 - a private creator
    return _AMBIGUOUS.get(vr, (vr, vr))
