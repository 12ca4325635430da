"""A DICOM file opened for its pixels: the few elements that rendering needs, and where the pixel data lies.

Only the header is read. Part 10 files, bare data sets without preamble or meta information (ACR-NEMA, as they leave
some archives), and deflated ones (PS3.5 A.5) end up in the same ``Source``.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, BinaryIO

from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.values import converters

from dicomsort.pixels.problems import MAX_INFLATED, PixelsError

if TYPE_CHECKING:
    from collections.abc import Callable

UNDEFINED = 0xFFFFFFFF
_MAGIC_END = 132
_SMALL = 2 << 20
_KEYWORDS = """
    SOPClassUID PixelIntensityRelationship SamplesPerPixel PhotometricInterpretation PlanarConfiguration
    NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
    PixelPaddingRangeLimit FloatPixelPaddingValue DoubleFloatPixelPaddingValue ModalityLUTSequence RescaleIntercept
    RescaleSlope VOILUTSequence WindowCenter WindowWidth VOILUTFunction SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData
    BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData ExtendedOffsetTable ExtendedOffsetTableLengths
""".split()  # noqa: SIM905 - a list of lines would be four times as long
_PIXEL_ELEMENTS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}


@dataclass(slots=True)
class Element:
    """Where the pixel data lies: ``length`` is ``UNDEFINED`` where it is encapsulated (PS3.5 A.4)."""

    keyword: str
    vr: str
    offset: int
    length: int


@dataclass(slots=True)
class Source:
    """A header, and the file (or inflated buffer) of ``size`` bytes that holds its pixel data."""

    file: BinaryIO
    size: int
    dataset: Dataset
    syntax: str
    little: bool
    element: Element


def read(file: BinaryIO, size: int) -> Source:
    """Read the header of a DICOM file of ``size`` bytes, up to its pixel data."""
    if size <= _SMALL:  # the header's hundreds of short reads cost less, and none can claim more than there is
        file = io.BytesIO(file.read())
    head = file.read(_MAGIC_END + 2)
    start = _MAGIC_END if head[128:132] == b"DICM" else 0
    if not start and not _plausible(head):
        raise PixelsError("neither PNG, JPEG nor DICOM")
    file.seek(start)
    syntax = _read_syntax(file, head[start : start + 2])
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        file, size = _inflate(file)
    implicit, little = _encoding(file, syntax)
    element: list[Element] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in _PIXEL_ELEMENTS:
            return False
        element[:] = [Element(_PIXEL_ELEMENTS[tag], vr or "OW", file.tell(), length)]
        return True

    tags: list[BaseTag | int] = [BaseTag(tag) for name in _KEYWORDS if (tag := tag_for_keyword(name)) is not None]
    dataset = read_dataset(file, implicit, little, stop_when=at_pixels, specific_tags=tags)
    if not element:
        raise PixelsError("no pixel data")
    return Source(file, size, dataset, syntax, little, element[0])


def _plausible(head: bytes) -> bool:
    """Whether a file without preamble starts as a data set does: group 0002 or 0008, in either byte order."""
    return head[:2] in {b"\x02\0", b"\x08\0", b"\0\x08", b"\0\0"} and any(head[4:8])


def _read_syntax(file: BinaryIO, group: bytes) -> str:
    """Read past the meta information (PS3.10 7.1) and a command set; return the transfer syntax UID, "" if none."""
    syntax = ""
    if group == b"\x02\0":
        meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_outside(0x0002))
        syntax = text(meta, "TransferSyntaxUID")
    elif group == b"\0\0":
        read_dataset(file, is_implicit_VR=True, is_little_endian=True, stop_when=_outside(0x0000))
    return syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else ""


def _outside(group: int) -> Callable[[BaseTag, str | None, int], bool]:
    return lambda tag, _vr, _length: tag >> 16 != group


def _inflate(file: BinaryIO) -> tuple[BinaryIO, int]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(MAX_INFLATED), MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise PixelsError(f"the deflated data set exceeds the limit of {MAX_INFLATED} bytes")
    return io.BytesIO(data), len(data)


def _encoding(file: BinaryIO, syntax: str) -> tuple[bool, bool]:
    """Tell (implicit VR, little endian) by the transfer syntax, or by the first element where there is none."""
    if syntax:
        return syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
    first = file.read(6)
    file.seek(-len(first), io.SEEK_CUR)
    explicit = first[4:6].decode("latin-1") in converters
    return not explicit, not (explicit and first[:1] == b"\0")


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element's first value as stripped text, "" where it is absent or cannot be read."""
    return str(next(iter(_values(dataset, keyword)), "")).strip(" \0")


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return an element's values as finite numbers, none where it is absent or one of them is no number."""
    try:
        found = [float(value) for value in _values(dataset, keyword)]
    except (TypeError, ValueError):
        return []
    return found if all(map(isfinite, found)) else []


def integer(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """Return an element's first value as an integer, ``default`` where there is none."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found else default


def item(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return one item of a sequence element, None where it is not there."""
    found = _values(dataset, keyword)
    return found[index] if 0 <= index < len(found) and isinstance(found[index], Dataset) else None


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    try:
        value = dataset.get(keyword)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
        return []  # a value that its VR cannot hold ('1A' frames) is no value
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, str | bytes | int | float):
        return [value]
    return list(value)
