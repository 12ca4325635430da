"""A DICOM file opened for its pixels: the few elements that rendering needs, and where the pixel data lies.

Only the header is read. Part 10 files, bare data sets without preamble or meta information (ACR-NEMA, as they leave
some archives), and deflated ones (PS3.5 A.5) become the same ``Source``.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from pydicom import uid
from pydicom.dataset import Dataset

from dicomsort.dicom import file_meta, pydicom_parser
from dicomsort.dicom.elements import ByteSource, NeedsFullParser, ReadingEnded
from dicomsort.dicom.encoding import HEADER_SIZE, Encoding
from dicomsort.dicom.magic import archive_of
from dicomsort.dicom.pydicom_parser import ElementStart
from dicomsort.pixels.limits import MAX_INFLATED, PixelsError
from dicomsort.pixels.values import TAGS, make_reader, read_elements, text

PIXEL_ELEMENTS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_HEAD = 134  # bytes of a preamble, its prefix, and the group that follows
_COMMAND = Encoding(explicit=False, little=True)  # of a command set (PS3.7 6.3.1)


@dataclass(frozen=True, slots=True)
class Source:
    """A header, and the content (a file's, or what it inflates to) that holds its pixel data."""

    content: ByteSource
    dataset: Dataset
    syntax: str
    little: bool
    element: ElementStart  # of the pixel data; its length is ``UNDEFINED`` where it is encapsulated (PS3.5 A.4)


def read(content: ByteSource) -> Source:
    """Read the header of a DICOM file up to its pixel data."""
    head = content.at(0, _HEAD)
    start = file_meta.offset(head) or 0
    # Without a preamble, a data set starts with group 0002 or 0008, in either byte order.
    if not start and not (head[:2] in {b"\x02\0", b"\x08\0", b"\0\x08", b"\0\0"} and any(head[4:8])):
        archive = archive_of(head, len(head), lambda *_: b"")
        raise PixelsError(f"{archive} archive: only `sort` opens it" if archive else "neither PNG, JPEG nor DICOM")
    syntax, start = _read_syntax(content, start, head[start : start + 2])
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        content, start = _inflate(content, start), 0
    encoding = _encoding(content.at(start, 6), syntax)
    try:
        dataset, element = _read_plain(content, start, encoding)
    except (ReadingEnded, NeedsFullParser):
        dataset, element = _read_full(content, start, encoding)
    return Source(content, dataset, syntax, encoding.little, element)


def _read_plain(content: ByteSource, start: int, encoding: Encoding) -> tuple[Dataset, ElementStart]:
    code = content.at(start + 4, 2)
    if not encoding.explicit and code.isalpha() and code.isupper():  # it is explicit after all
        raise NeedsFullParser
    reader = make_reader(content, encoding, start)
    elements = read_elements(reader, TAGS, min(PIXEL_ELEMENTS) - 1)
    tag, vr, length, offset = reader.element(reader.position, explicit=encoding.explicit)
    if tag not in PIXEL_ELEMENTS:
        raise NeedsFullParser
    return Dataset(elements), ElementStart(tag, reader.header.names.get(vr), length, offset)


def _read_full(content: ByteSource, start: int, encoding: Encoding) -> tuple[Dataset, ElementStart]:
    dataset, _, element = pydicom_parser.read_until(content, start, encoding, PIXEL_ELEMENTS.__contains__, TAGS)
    if element is None:
        raise PixelsError("no pixel data")
    return dataset, element


def _read_syntax(content: ByteSource, start: int, group: bytes) -> tuple[str, int]:
    """Read past the meta information (PS3.10 7.1) or a command set; return the transfer syntax UID, "" if none."""
    syntax = ""
    if group == file_meta.GROUP:
        meta = file_meta.read(content, start)
        syntax, end = meta.syntax.partition("\\")[0].strip(" \0"), meta.end
        if not meta.is_whole:
            dataset, end = _read_group(content, start, 0x0002, file_meta.ENCODING)
            syntax = text(dataset, "TransferSyntaxUID")
        start = end
    elif group == b"\0\0":
        _, start = _read_group(content, start, 0x0000, _COMMAND)
    return syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "", start


def _read_group(content: ByteSource, start: int, group: int, encoding: Encoding) -> tuple[Dataset, int]:
    dataset, end, _ = pydicom_parser.read_until(content, start, encoding, lambda tag: tag >> 16 != group)
    return dataset, end


def _inflate(content: ByteSource, start: int) -> ByteSource:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(content.at(start, MAX_INFLATED), MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise PixelsError(f"the deflated data set exceeds the limit of {MAX_INFLATED} bytes")
    return ByteSource.of_bytes(data)


def _encoding(first: bytes, syntax: str) -> Encoding:
    """Return the encoding by the transfer syntax, or by the first element where there is none."""
    if syntax:
        return Encoding(syntax != uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian)
    explicit = first[4:6] in HEADER_SIZE
    return Encoding(explicit, not (explicit and first[:1] == b"\0"))
