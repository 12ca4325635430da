"""From element to element of a data set (PS3.5 7.1), taking a few and skipping the others unread.

It knows what is usual and meets everything else with ``Unusual``: then pydicom reads, which knows the oddities of real
files, but makes objects of all that it passes. What is taken is a ``RawDataElement``, as pydicom makes them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from dicomsort.pixels.content import AHEAD, Content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom.dataelem import DataElement

    Elements = dict[BaseTag, DataElement | RawDataElement]

UNDEFINED = 0xFFFFFFFF
ITEM, SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_ITEM_END, _DELIMITERS = 0xFFFEE00D, 0xFFFE
_INSIDE = range(_DELIMITERS << 16)  # the tags that an item may have
_LONGEST = 12  # bytes of an element's header
_DEEPEST = 16  # sequences in sequences
_SHORT = {vr.encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_16}
_LONG = {vr.encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_32}


class Unusual(Exception):
    """Something that pydicom should read."""


class Place(NamedTuple):
    """Where an element lies: offsets of its header and of its value.

    ``vr`` is None where it is implicit, "" where there is none that is known (then ``value`` is where it would be).
    """

    tag: int
    vr: str | None
    start: int
    value: int
    length: int


class Walk:
    """Walks through a content of one encoding."""

    def __init__(self, content: Content, *, implicit: bool, little: bool) -> None:
        self._content, self._implicit, self._little = content, implicit, little
        order = "<" if little else ">"
        self._explicit_header = struct.Struct(f"{order}HH2sH").unpack_from
        self._implicit_header = struct.Struct(f"{order}HHL").unpack_from
        self._long_length = struct.Struct(f"{order}L").unpack_from
        self._window, self._base = content.head, 0  # bytes of the content, and where they begin

    def take(
        self, start: int, wanted: frozenset[int], passed: range, stop: Callable[[int], bool]
    ) -> tuple[Elements, Place]:
        """Return the ``wanted`` elements from ``start`` to the first whose tag calls for a ``stop``, and that one.

        ``passed`` are tags that call for none.

        Raises:
            Unusual: the data set is not what most are, or ends before.
        """
        code = self._content.at(start + 4, 2)
        if self._implicit and code.isalpha() and code.isupper():  # it is explicit after all
            raise Unusual
        found, place = self._take(start, self._content.size, wanted, passed, stop)
        if place is None:
            raise Unusual
        return found, place

    def item(self, index: int, wanted: frozenset[int]) -> Elements:
        """Return the ``wanted`` elements of an item, where the content is the value of a sequence.

        Raises:
            Unusual: there are not so many items, or they are not what most are.
        """
        at = 0
        for _ in range(index):
            at = self._after_item(at, 0)
        end = self._end(at)
        found, place = self._take(at + 8, end or self._content.size, wanted, _INSIDE, _ITEM_END.__eq__)
        if (end is None) != (place is not None):
            raise Unusual
        return found

    def _take(
        self, start: int, end: int, wanted: frozenset[int], passed: range, stop: Callable[[int], bool]
    ) -> tuple[Elements, Place | None]:
        found: Elements = {}
        for tag, vr, at, value, length in self._elements(start, end, wanted, passed, 0):
            if stop(tag):
                return found, Place(tag, vr, at, value, length)
            if tag in wanted and vr != "":
                size = length if length != UNDEFINED else self._after_sequence(value, 0) - 8 - value
                data = self._content.at(value, size)
                if len(data) != size:
                    raise Unusual
                found[BaseTag(tag)] = RawDataElement(BaseTag(tag), vr, size, data, value, self._implicit, self._little)
        return found, None

    def _elements(
        self, at: int, end: int, wanted: frozenset[int], passed: range, depth: int
    ) -> Iterator[tuple[int, str | None, int, int, int]]:
        """Yield the fields of a ``Place`` for each element between two places that is ``wanted``, or not ``passed``.

        A delimiter is the last.
        """
        first, beyond, last = passed.start, passed.stop, len(self._window) - _LONGEST
        try:
            while at < end:
                offset = at - self._base
                if not 0 <= offset <= last:
                    offset = self._see(at)
                    last = len(self._window) - _LONGEST
                vr: str | None = None
                value = at + 8
                if self._implicit:
                    group, element, length = self._implicit_header(self._window, offset)
                else:
                    group, element, code, length = self._explicit_header(self._window, offset)
                    vr = _SHORT.get(code, "")
                    if not vr and code in _LONG:
                        vr, value, (length,) = _LONG[code], at + 12, self._long_length(self._window, offset + 8)
                tag = group << 16 | element
                if tag in wanted or not first <= tag < beyond:
                    yield tag, vr, at, value, length
                if vr == "" or group == _DELIMITERS:
                    raise Unusual
                at = value + length
                if length == UNDEFINED:
                    at, last = self._after_sequence(value, depth + 1), len(self._window) - _LONGEST
        except struct.error:
            raise Unusual from None
        if at != end:
            raise Unusual

    def _after_sequence(self, at: int, depth: int) -> int:
        """Return where a sequence of undefined length ends, whose first item (or fragment) is at a place."""
        if depth > _DEEPEST:
            raise Unusual
        while self._delimiter(at)[0] != SEQUENCE_END:
            at = self._after_item(at, depth)
        return at + 8

    def _after_item(self, at: int, depth: int) -> int:
        end = self._end(at)
        if end is not None:
            return end
        for tag, _, _, value, _ in self._elements(at + 8, self._content.size, frozenset(), _INSIDE, depth):
            if tag == _ITEM_END:
                return value
        raise Unusual

    def _end(self, at: int) -> int | None:
        """Return where the item at a place ends, None where its length is undefined."""
        tag, length = self._delimiter(at)
        if tag != ITEM:
            raise Unusual
        return None if length == UNDEFINED else at + 8 + length

    def _delimiter(self, at: int) -> tuple[int, int]:
        """Return tag and length of the item or delimiter at a place."""
        offset = self._see(at)
        try:
            group, element, length = self._implicit_header(self._window, offset)
        except struct.error:
            raise Unusual from None
        return group << 16 | element, length

    def _see(self, at: int) -> int:
        """Bring a place into the window; return its offset there."""
        offset = at - self._base
        if not 0 <= offset <= len(self._window) - _LONGEST:
            self._window, self._base, offset = self._content.at(at, AHEAD), at, 0
        return offset
