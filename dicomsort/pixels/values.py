"""Values of a header's elements, as far as they can be read: what its VR cannot hold ('1A' frames) is no value.

What nearly all files have is read from the element's bytes, everything else by pydicom, with the same result.
"""

from __future__ import annotations

import re
from functools import cache
from math import isfinite
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicomsort.dicom.elements import LAST, UNDEFINED, ByteSource, ElementReader, NeedsFullParser, ReadingEnded
from dicomsort.dicom.encoding import SHORT_HEADER, Encoding

Elements = dict[BaseTag, DataElement | RawDataElement]

KEYWORDS = """
    SOPClassUID PixelIntensityRelationship SamplesPerPixel PhotometricInterpretation PlanarConfiguration
    NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
    PixelPaddingRangeLimit FloatPixelPaddingValue DoubleFloatPixelPaddingValue ModalityLUTSequence RescaleIntercept
    RescaleSlope VOILUTSequence WindowCenter WindowWidth VOILUTFunction SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData
    BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData ExtendedOffsetTable ExtendedOffsetTableLengths
""".split()  # noqa: SIM905 - a list of lines would be four times as long
_IN_ITEMS = "PixelValueTransformationSequence FrameVOILUTSequence LUTDescriptor LUTData"
_MAX_LEVELS = 32  # open sequences and items
_REPRESENTATION = BaseTag(0x00280103)
# Numbers as PS3.5 6.2 has them, less what only some read alike.
_PLAIN = {"DS": re.compile(rb" *[+-]?\d{1,16}(\.\d{0,16})?([eE][+-]?\d\d?)? *"), "IS": re.compile(rb" *[+-]?\d{1,9} *")}


@cache
def known(keyword: str) -> tuple[BaseTag, str]:
    """Return the tag of a keyword of PS3.6, and its VR there."""
    tag = BaseTag(tag_for_keyword(keyword) or 0)
    return tag, dictionary_VR(tag)


TAGS = frozenset(known(keyword)[0] for keyword in KEYWORDS)
"""All that rendering asks of a data set; it takes the elements of these tags alone."""

_ITEM_TAGS = TAGS | {known(keyword)[0] for keyword in _IN_ITEMS.split()}


def reader_of(source: ByteSource, encoding: Encoding, start: int = 0) -> ElementReader:
    """Return a reader of a data set that is to be rendered; what it finds nested too deep pydicom shall judge."""
    return ElementReader(source, encoding, start, max_levels=_MAX_LEVELS)


def take(reader: ElementReader, wanted: frozenset[int], last: int | None = None) -> Elements:
    """Return the ``wanted`` elements up to and including the tag ``last``, to the end of the data where it is None.

    They are raw elements, as pydicom makes them.

    Raises:
        NeedsFullParser: the data set is not what most are, or ends otherwise.
    """
    found: Elements = {}
    explicit, little = reader.encoding
    try:
        for number, vr, length, value, data in reader.elements(wanted, LAST if last is None else last):
            tag, raw = BaseTag(number), data
            if length == UNDEFINED:
                if vr == reader.header.unknown:
                    raise NeedsFullParser
                raw = reader.value(value, reader.position - SHORT_HEADER - value)
            elif raw is None:
                raw = reader.value(value, length)
            found[tag] = RawDataElement(tag, reader.header.names.get(vr), len(raw), raw, value, not explicit, little)
    except ReadingEnded as ended:
        if last is None and not ended.code:
            return found
        raise NeedsFullParser from None
    if last is None:  # a delimiter where none may be
        raise NeedsFullParser
    return found


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element's first value as stripped text, "" where it is absent or cannot be read."""
    if (found := _raw(dataset, keyword)) and found[0] in {"CS", "UI"}:
        return found[1].decode("latin-1").rstrip(" \0").partition("\\")[0].strip(" \0")
    return str(next(iter(_values(dataset, keyword)), "")).strip(" \0")


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return an element's values as finite numbers, none where it is absent or one of them is no number."""
    if found := _raw(dataset, keyword):
        vr, value, little = found
        if vr == "US" and len(value) == 2:  # noqa: PLR2004
            return [float(int.from_bytes(value, "little" if little else "big"))]
        if plain := _PLAIN.get(vr):
            parts = value.rstrip(b" \0").split(b"\\")
            if all(map(plain.fullmatch, parts)):
                return [float(part) for part in parts]
    try:
        numeric = [float(value) for value in _values(dataset, keyword)]
    except (TypeError, ValueError):
        return []
    return numeric if all(map(isfinite, numeric)) else []


def integer(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """Return an element's first value as an integer, ``default`` where there is none."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found else default


def item(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return one item of a sequence element, None where it is not there. Of other items no objects are made."""
    tag, usual = known(keyword)
    element: object = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.value and (element.VR or usual) == "SQ" and index >= 0:
        encoding = Encoding(not element.is_implicit_VR, element.is_little_endian)
        try:
            begin, end = reader_of(ByteSource.of_bytes(element.value), encoding).item(index)
            elements = take(reader_of(ByteSource.of_bytes(element.value[begin:end]), encoding), _ITEM_TAGS)
        except (ReadingEnded, NeedsFullParser):
            pass
        else:
            # On it depends how US or SS is read, also in an item.
            if _REPRESENTATION in dataset and _REPRESENTATION not in elements:
                elements[_REPRESENTATION] = dataset.get_item(_REPRESENTATION)
            return Dataset(elements)
    found = _values(dataset, keyword)
    return found[index] if 0 <= index < len(found) and isinstance(found[index], Dataset) else None


def encoded(dataset: Dataset, keyword: str) -> bytes:
    """Return an element's value as it is stored, b"" where it is absent or no value of its own."""
    found = _raw(dataset, keyword)
    return found[1] if found else b""


def _raw(dataset: Dataset, keyword: str) -> tuple[str, bytes, bool] | None:
    """Return VR and bytes of an element that has some, and whether they are little endian."""
    tag, usual = known(keyword)
    element: object = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.value:
        return element.VR or usual, element.value, element.is_little_endian
    return None


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    tag, _ = known(keyword)
    if tag not in dataset:
        return []
    try:
        value = dataset[tag].value
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
        return []
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, str | bytes | int | float):
        return [value]
    return list(value)
