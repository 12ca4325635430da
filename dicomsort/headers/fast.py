"""The fast path: a bounds-checked walk over the elements of a data set (PS3.5 7), keeping only the tags that matter."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dicomsort.headers.encoding import HEADER_SIZE
from dicomsort.headers.source import Ended
from dicomsort.headers.tags import PATHS, REFERENCES, SERIES, VALUE_LIMIT, WANTED

if TYPE_CHECKING:
    from dicomsort.headers.encoding import Encoding
    from dicomsort.headers.source import Source
    from dicomsort.headers.tags import Tags

_UNDEFINED: Final = 0xFFFFFFFF
_DELIMITERS: Final = 0xFFFE  # group of items and delimiters
_ITEM: Final = 0xFFFEE000
_MAX_DEPTH: Final = 16_384  # open sequences and items; real files stay below 20
_LONGEST: Final = 12  # bytes of the longest element header
_SHORTEST: Final = 8
_EXPLICIT: Final = {True: Struct("<HH2sH").unpack_from, False: Struct(">HH2sH").unpack_from}
_WORDS: Final = {True: Struct("<HHHH").unpack_from, False: Struct(">HHHH").unpack_from}
_VRS: Final = {  # those with a length of two bytes, and of four, as the number that their two letters make
    order == "little": tuple(
        frozenset(int.from_bytes(vr, order) for vr, size in HEADER_SIZE.items() if size == wanted)
        for wanted in (_SHORTEST, _LONGEST)
    )
    for order in ("little", "big")
}
_IMPLICIT: Final = {True: Struct("<HHI").unpack_from, False: Struct(">HHI").unpack_from}
_LENGTH: Final = {True: Struct("<I").unpack_from, False: Struct(">I").unpack_from}


class Unusual(Exception):
    """Not plain enough for this reader: an unknown VR, tags out of order, a value that is no sequence."""


class _Cursor:
    """An element header at a time, at any offset."""

    def __init__(self, source: Source, encoding: Encoding) -> None:
        self._source = source
        self._little = encoding.little
        self._buffer = b""
        self._base = 0

    def element(self, offset: int, *, explicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty where implicit), length of the value, and its offset."""
        index = offset - self._base
        if index < 0 or index + _LONGEST > len(self._buffer):
            self._buffer, self._base = self._source.window(offset, _LONGEST)
            index = offset - self._base
            left = len(self._buffer) - index
            if left < _SHORTEST:
                raise Ended("truncated-header" if left > 0 or self._source.ends_before(offset) else "")
        group, element, length = _IMPLICIT[self._little](self._buffer, index)
        tag = group << 16 | element
        if not explicit or group == _DELIMITERS:
            return tag, b"", length, offset + _SHORTEST
        _, _, vr, length = _EXPLICIT[self._little](self._buffer, index)
        size = HEADER_SIZE.get(vr)
        if size is None:
            raise Unusual
        if size == _LONGEST:
            if len(self._buffer) - index < _LONGEST:
                raise Ended("truncated-header")
            (length,) = _LENGTH[self._little](self._buffer, index + 8)
        return tag, vr, length, offset + size


def _after_undefined(cursor: _Cursor, offset: int, *, explicit: bool) -> int:
    """Offset behind a value of undefined length that begins at ``offset`` (PS3.5 7.5.2); a loop, never recursion."""
    levels = [explicit]
    if cursor.element(offset, explicit=explicit)[0] >> 16 != _DELIMITERS:
        raise Unusual
    while levels:
        tag, vr, length, offset = cursor.element(offset, explicit=levels[-1])
        if tag >> 16 == _DELIMITERS and tag != _ITEM:
            levels.pop()
        elif length != _UNDEFINED:
            offset += length
        elif len(levels) < _MAX_DEPTH:
            levels.append(levels[-1] and vr != b"UN")  # an UN of undefined length holds implicit items (PS3.5 6.2.2)
        else:
            raise Ended("nesting-beyond-limit")
    return offset


def _value(source: Source, offset: int, length: int) -> bytes:
    kept = min(length, VALUE_LIMIT)
    buffer, base = source.window(offset, kept)
    value = buffer[offset - base : offset - base + kept]
    if len(value) < kept:
        raise Ended("truncated-header")
    return value


def _run(buffer: bytes, index: int, encoding: Encoding, tags: Tags, last: int) -> int:
    """Read on while elements are plain and lie whole in ``buffer``; the index of the first that does not.

    Most of the time that a header takes goes by here: hence one loop over locals and whole numbers, without calls.
    """
    explicit, little = encoding
    header, long_length = (_WORDS if explicit else _IMPLICIT)[little], _LENGTH[little]
    short, long = _VRS[little]
    wanted, values, reached = WANTED, tags.values, tags.reached
    limit = len(buffer)
    while index + _LONGEST <= limit:
        start = index + _SHORTEST
        if explicit:
            group, element, vr, length = header(buffer, index)
            if vr in long:
                (length,) = long_length(buffer, start)
                start += 4
            elif vr not in short:
                break
        else:
            group, element, length = header(buffer, index)
        tag = group << 16 | element
        following = start + length
        if following > limit or tag <= reached or tag > last:
            break
        if tag in wanted:
            if tag in REFERENCES:
                break
            values[tag] = buffer[start : min(following, start + VALUE_LIMIT)]
        reached = tag
        index = following
    tags.reached = reached
    return index


def scan(source: Source, start: int, encoding: Encoding, tags: Tags, last: int) -> None:
    """Read the wanted tags up to and including ``last`` into ``tags``, from the element at ``start`` on.

    Raises:
        Ended: the data stop within an element, or a limit is met; ``tags`` holds what came before.
        Unusual: the slow path must read this data set.

    """
    cursor = _Cursor(source, encoding)
    tags.position = start
    while True:
        buffer, base = source.window(tags.position, _LONGEST)
        tags.position = base + _run(buffer, tags.position - base, encoding, tags, last)
        tag, vr, length, value = cursor.element(tags.position, explicit=encoding.explicit)
        if tag > last:
            return
        if tag <= tags.reached:
            raise Unusual
        if length == _UNDEFINED:
            tags.position = _after_undefined(cursor, value, explicit=encoding.explicit and vr != b"UN")
        else:
            tags.position = value + length
        if tag in REFERENCES:
            tags.spans[tag] = (value, tags.position)
        elif tag in WANTED and length != _UNDEFINED:
            tags.values[tag] = _value(source, value, length)
        tags.reached = tag


def first_series(source: Source, span: tuple[int, int], encoding: Encoding) -> bytes:
    """Return the first Series Instance UID inside a sequence whose value spans these offsets; empty if none.

    Raises:
        Ended, Unusual: as ``scan``.

    """
    cursor = _Cursor(source, encoding)
    offset, end = span
    while offset < end:
        tag, vr, length, value = cursor.element(offset, explicit=encoding.explicit)
        if tag == SERIES:
            return _value(source, value, length)
        if tag in PATHS or tag >> 16 == _DELIMITERS:
            offset = value
        elif length == _UNDEFINED:
            offset = _after_undefined(cursor, value, explicit=encoding.explicit and vr != b"UN")
        else:
            offset = value + length
    return b""
