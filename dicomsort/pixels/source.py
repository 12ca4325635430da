"""A DICOM file opened for its pixels: the few elements that rendering needs, and where the pixel data lies.

Only the header is read. Part 10 files, bare data sets without preamble or meta information (ACR-NEMA, as they leave
some archives), and deflated ones (PS3.5 A.5) end up in the same ``Source``.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.values import converters

from dicomsort.pixels.content import Content
from dicomsort.pixels.problems import MAX_INFLATED, PixelsError
from dicomsort.pixels.values import TAGS, text
from dicomsort.pixels.walk import Unusual, Walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom.tag import BaseTag

_MAGIC_END = 132
_SMALL = 2 << 20
_SYNTAX = 0x00020010
_PIXEL_ELEMENTS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}


@dataclass(frozen=True, slots=True)
class Element:
    """Where the pixel data lies: ``length`` is ``UNDEFINED`` where it is encapsulated (PS3.5 A.4)."""

    keyword: str
    vr: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Source:
    """A header, and the content (a file's, or what it inflates to) that holds its pixel data."""

    content: Content
    dataset: Dataset
    syntax: str
    little: bool
    element: Element


def read(content: Content) -> Source:
    """Read the header of a DICOM file up to its pixel data."""
    head = content.at(0, _MAGIC_END + 2)
    start = _MAGIC_END if head[128:132] == b"DICM" else 0
    if not start and not _plausible(head):
        raise PixelsError("neither PNG, JPEG nor DICOM")
    syntax, start = _read_syntax(content, start, head[start : start + 2])
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        content, start = _inflate(content, start), 0
    implicit, little = _encoding(content.at(start, 6), syntax)
    try:
        dataset, element = _read_usual(content, start, implicit=implicit, little=little)
    except Unusual:
        dataset, element = _read_unusual(content, start, implicit=implicit, little=little)
    return Source(content, dataset, syntax, little, element)


def _read_usual(content: Content, start: int, *, implicit: bool, little: bool) -> tuple[Dataset, Element]:
    walk = Walk(content, implicit=implicit, little=little)
    elements, place = walk.take(start, TAGS, range(min(_PIXEL_ELEMENTS)), _PIXEL_ELEMENTS.__contains__)
    if place.vr == "":
        raise Unusual
    return Dataset(elements), Element(_PIXEL_ELEMENTS[place.tag], place.vr or "OW", place.value, place.length)


def _read_unusual(content: Content, start: int, *, implicit: bool, little: bool) -> tuple[Dataset, Element]:
    found: list[Element] = []
    file = content.file(start, _SMALL)

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in _PIXEL_ELEMENTS:
            return False
        found[:] = [Element(_PIXEL_ELEMENTS[tag], vr or "OW", file.tell(), length)]
        return True

    dataset = read_dataset(file, implicit, little, stop_when=at_pixels, specific_tags=list(TAGS))
    if not found:
        raise PixelsError("no pixel data")
    return dataset, found[0]


def _plausible(head: bytes) -> bool:
    """Whether a file without preamble starts as a data set does: group 0002 or 0008, in either byte order."""
    return head[:2] in {b"\x02\0", b"\x08\0", b"\0\x08", b"\0\0"} and any(head[4:8])


def _read_syntax(content: Content, start: int, group: bytes) -> tuple[str, int]:
    """Read past the meta information (PS3.10 7.1) or a command set; return the transfer syntax UID, "" if none."""
    syntax = ""
    if group == b"\x02\0":
        meta, start = _read_group(content, start, 0x0002, implicit=False)
        syntax = text(meta, "TransferSyntaxUID")
    elif group == b"\0\0":
        _, start = _read_group(content, start, 0x0000, implicit=True)
    return syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "", start


def _read_group(content: Content, start: int, group: int, *, implicit: bool) -> tuple[Dataset, int]:
    """Return the transfer syntax among the elements of a group, and where the group ends."""
    inside = range(group << 16, (group + 1) << 16)
    try:
        walk = Walk(content, implicit=implicit, little=True)
        elements, place = walk.take(start, frozenset({_SYNTAX}), inside, lambda tag: tag not in inside)
        return Dataset(elements), place.start
    except Unusual:
        file = content.file(start, _SMALL)
        outside: Callable[[BaseTag, str | None, int], bool] = lambda tag, _vr, _length: tag not in inside
        return read_dataset(file, implicit, is_little_endian=True, stop_when=outside), file.tell()


def _inflate(content: Content, start: int) -> Content:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(content.at(start, MAX_INFLATED), MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise PixelsError(f"the deflated data set exceeds the limit of {MAX_INFLATED} bytes")
    return Content.of_bytes(data)


def _encoding(first: bytes, syntax: str) -> tuple[bool, bool]:
    """Tell (implicit VR, little endian) by the transfer syntax, or by the first element where there is none."""
    if syntax:
        return syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
    explicit = first[4:6].decode("latin-1") in converters
    return not explicit, not (explicit and first[:1] == b"\0")
