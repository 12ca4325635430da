"""Values of a header's elements, as far as they can be read: what its VR cannot hold ('1A' frames) is no value.

Usual values are read from the element's bytes, everything else by pydicom, with the same result.
"""

from __future__ import annotations

import re
from functools import cache, partial
from math import isfinite
from typing import Any, TypeVar

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicomsort.dicom.elements import LAST, UNDEFINED, ByteSource, ElementReader, NeedsFullParser, ReadingEnded
from dicomsort.dicom.encoding import SHORT_HEADER, Encoding

Elements = dict[BaseTag, DataElement | RawDataElement]
_Default = TypeVar("_Default")

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
_REPRESENTATION = BaseTag(0x00280103)
# Numbers as PS3.5 6.2 defines them, without those that libraries read differently.
_PLAIN = {"DS": re.compile(rb" *[+-]?\d{1,16}(\.\d{0,16})?([eE][+-]?\d\d?)? *"), "IS": re.compile(rb" *[+-]?\d{1,9} *")}


@cache
def _dictionary(keyword: str) -> tuple[BaseTag, str]:
    """Return tag and VR of a keyword, by PS3.6."""
    tag = BaseTag(tag_for_keyword(keyword) or 0)
    return tag, dictionary_VR(tag)


TAGS = frozenset(_dictionary(keyword)[0] for keyword in KEYWORDS)  # all elements that rendering reads of a data set
_ITEM_TAGS = TAGS | {_dictionary(keyword)[0] for keyword in _IN_ITEMS.split()}

make_reader = partial(ElementReader, max_levels=32)  # open sequences and items; pydicom reads what is nested deeper


def read_elements(reader: ElementReader, wanted: frozenset[int], last: int | None = None) -> Elements:
    """Return the ``wanted`` elements up to and including the tag ``last``, to the end of the data where it is None.

    They are raw elements, as pydicom makes them.

    Raises:
        NeedsFullParser: the data set is not plain, or ends elsewhere.
    """
    found: Elements = {}
    explicit, little = reader.encoding
    try:
        for code, vr, length, offset, data in reader.elements(wanted, LAST if last is None else last):
            tag, value = BaseTag(code), data
            if length == UNDEFINED:
                if vr == reader.header.unknown:
                    raise NeedsFullParser
                value = reader.value(offset, reader.position - SHORT_HEADER - offset)
            elif value is None:
                value = reader.value(offset, length)
            name = reader.header.names.get(vr)
            found[tag] = RawDataElement(tag, name, len(value), value, offset, not explicit, little)
    except ReadingEnded as ended:
        if last is None and not ended.code:
            return found
        raise NeedsFullParser from None
    if last is None:  # a delimiter in a wrong place
        raise NeedsFullParser
    return found


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element's first value as stripped text, "" where it is absent or cannot be read."""
    if (found := raw(dataset, keyword)) and found[0] in {"CS", "UI"}:
        return found[1].decode("latin-1").rstrip(" \0").partition("\\")[0].strip(" \0")
    return str(next(iter(_values(dataset, keyword)), "")).strip(" \0")


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return an element's values as finite numbers, [] where it is absent or one of them is no number."""
    if found := raw(dataset, keyword):
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


def number(dataset: Dataset, keyword: str, default: _Default) -> float | _Default:
    """Return an element's first value as a number, ``default`` where there is none."""
    return next(iter(numbers(dataset, keyword)), default)


def integer(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """Return an element's first value as an integer, ``default`` where there is none."""
    return int(number(dataset, keyword, default))


def item(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return one item of a sequence element, None where it is absent. No objects are made of other items."""
    tag, vr = _dictionary(keyword)
    element: object = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.value and (element.VR or vr) == "SQ" and index >= 0:
        encoding = Encoding(not element.is_implicit_VR, element.is_little_endian)
        try:
            begin, end = make_reader(ByteSource.of_bytes(element.value), encoding).item(index)
            reader = make_reader(ByteSource.of_bytes(element.value[begin:end]), encoding)
            elements = read_elements(reader, _ITEM_TAGS)
        except (ReadingEnded, NeedsFullParser):
            pass
        else:
            # It decides between US and SS, also in an item.
            if _REPRESENTATION in dataset and _REPRESENTATION not in elements:
                elements[_REPRESENTATION] = dataset.get_item(_REPRESENTATION)
            return Dataset(elements)
    found = _values(dataset, keyword)
    return found[index] if 0 <= index < len(found) and isinstance(found[index], Dataset) else None


def encoded(dataset: Dataset, keyword: str) -> bytes:
    """Return an element's value as it is stored, b"" where it is absent, empty, or already decoded."""
    found = raw(dataset, keyword)
    return found[1] if found else b""


def raw(dataset: Dataset, keyword: str) -> tuple[str, bytes, bool] | None:
    """Return an element's VR and bytes, and whether they are little endian; None as ``encoded`` says."""
    tag, vr = _dictionary(keyword)
    element: object = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.value:
        return element.VR or vr, element.value, element.is_little_endian
    return None


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    tag, _ = _dictionary(keyword)
    if tag not in dataset:
        return []
    try:
        value = dataset[tag].value
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
        return []
    if value is None or (isinstance(value, str) and not value):
        return []
    return [value] if isinstance(value, str | bytes | int | float) else list(value)
