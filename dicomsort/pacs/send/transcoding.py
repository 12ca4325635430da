"""Data sets in another transfer syntax, for peers that do not accept the file's own; only where no value changes.

``ElementReader`` reads elements, and pydicom writes them with every value as the bytes that it is: pydicom's own reader
trims values. pydicom decompresses pixel data. A worker that can be killed does all of it: input may be hostile.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dicomsort.dicom.elements import (
    DELIMITERS,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    ByteSource,
    ElementReader,
    NeedsFullParser,
    ReadingEnded,
)
from dicomsort.dicom.encoding import DEFLATED, EXPLICIT_LITTLE, IMPLICIT_LITTLE, SHORT_HEADER, Encoding
from dicomsort.engines.engine import TaskLimits, submit_batch
from dicomsort.engines.processes import ProcessEngine
from dicomsort.errors import WorkerLost
from dicomsort.pacs.send.records import Instance, Unsendable
from dicomsort.pacs.send.selection import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

DECOMPRESSED = {  # transfer syntaxes that compressed instances may be sent in, in order of preference
    EXPLICIT_LITTLE: "Explicit VR Little Endian",
    IMPLICIT_LITTLE: "Implicit VR Little Endian",
}
LIMITS = TaskLimits(60.0, 2 << 30)
Task = tuple[str, int, str, str]  # path, offset of the data set, its transfer syntax, and the wanted one
_PIXEL_DATA, _PHOTOMETRIC, _PLANAR, _REPRESENTATION = 0x7FE00010, 0x00280004, 0x00280006, 0x00280103
_OFFSET_TABLES = (0x7FE00001, 0x7FE00002)  # Extended Offset Table, and its lengths
_AMBIGUOUS = {  # the VRs of a tag that has several, of unsigned and of signed images
    "US or SS": ("US", "SS"),
    "OB or OW": ("OW", "OW"),
    "US or OW": ("OW", "OW"),
    "US or SS or OW": ("OW", "OW"),
}
# What must be the same of an image decompressed
_LAYOUT = (
    "SamplesPerPixel", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3}  # of a native pixel
_START = re.compile(rb"(?:\A|\xff\xd9\0?)(?=\xff\xd8\xff|\xff\x4f\xff\x51|\0\0\0\x0cjP {2})")  # of a frame's codestream
_RLE = "1.2.840.10008.1.2.5"
_LOSSLESS = frozenset({
    *DECOMPRESSED,
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.201",  # high throughput JPEG 2000 lossless
    "1.2.840.10008.1.2.4.202",
    _RLE,
})  # fmt: skip


def is_lossless(syntax: str) -> bool:
    """Whether data of this transfer syntax can be sent in another without a changed value.

    Lossy data could be decompressed, too, but decoders differ in the last bit. Big endian data would have to be swapped
    by VR, which private elements may not show.
    """
    return syntax in _LOSSLESS


class Malformed(Exception):
    """The data set is cut short, or is not what its transfer syntax says; the message says why, where it is known."""


class Transcoder:
    """A worker process that encodes data sets in another transfer syntax."""

    def __init__(self) -> None:
        self._engine = ProcessEngine(1, LIMITS, (__name__,))

    def transcode(self, instance: Instance, syntax: str) -> tuple[bytes, str]:
        """Return the data set in the transfer syntax, and the SHA-256 of the file; ``Unsendable`` where that fails."""
        task = (instance.absolute, instance.offset, instance.syntax, syntax)
        lost: Callable[[Task, WorkerLost], tuple[bytes, str]] = lambda _, error: (b"", str(error))
        ((data_set, message),) = submit_batch(self._engine, _transcode_files, [task], lost).result()
        check(instance)
        if not data_set:
            raise Unsendable(f"it cannot be sent in another encoding: {message}")
        return data_set, message  # a SHA-256

    def close(self) -> None:
        """End the worker."""
        self._engine.close()


def _transcode_files(tasks: list[Task]) -> list[tuple[bytes, str]]:
    return [_transcode_file(task) for task in tasks]


def _transcode_file(task: Task) -> tuple[bytes, str]:
    """Return, in the worker, the data set and the SHA-256 of the file; on failure no data set, and the reason."""
    path, offset, syntax, wanted = task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = Path(path).read_bytes()
            return transcode(content[offset:], syntax, wanted), hashlib.sha256(content).hexdigest()
        except Malformed as error:
            return b"", str(error) or "its data set is cut short or malformed"
        except Exception as error:  # noqa: BLE001 - pydicom raises almost anything on damaged bytes
            return b"", type(error).__name__


def transcode(body: bytes, syntax: str, wanted: str) -> bytes:
    """Encode a data set of a lossless transfer syntax in a native one, without retired group lengths (PS3.5 7.2).

    Sequences keep a length, or none, where they can. Raises ``Malformed`` where it is cut short, or not what ``syntax``
    says; pydicom raises almost anything on damaged bytes.
    """
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    to_implicit = wanted == IMPLICIT_LITTLE
    is_compressed = not (syntax in DECOMPRESSED or syntax in DEFLATED)
    if syntax in DEFLATED:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    try:
        parser = _Parser(body, to_implicit=to_implicit)
        dataset = parser.data_set(0, len(body), explicit=syntax != IMPLICIT_LITTLE, is_compressed=is_compressed)
    except (ReadingEnded, NeedsFullParser):
        raise Malformed from None
    if is_compressed and _PIXEL_DATA in dataset:
        dataset = _ready(_decompressed(dataset, syntax), to_implicit=to_implicit)
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = to_implicit, True
    write_dataset(file, dataset)
    made = file.getvalue()
    if len(made) % 2:
        raise Malformed
    return made


class _Parser:
    """Parses a little endian data set into one of pydicom whose elements are raw, with the VRs to write."""

    def __init__(self, body: bytes, *, to_implicit: bool) -> None:
        self._reader = ElementReader(ByteSource.of_bytes(body), Encoding(explicit=True, little=True))
        self._to_implicit = to_implicit
        self._signed = False
        self._end = 0  # of what was read last

    def data_set(self, at: int, end: int | None, *, explicit: bool, is_compressed: bool = False) -> Dataset:
        """Parse the data set up to ``end``, or up to the end of an item where that is None."""
        from pydicom.dataset import Dataset
        from pydicom.tag import BaseTag

        elements: dict[BaseTag, DataElement | RawDataElement] = {}
        while end is None or at < end:
            number, code, length, at = self._reader.element(at, explicit=explicit)
            if number == ITEM_END and end is None:
                break
            tag = BaseTag(number)
            if number >> 16 == DELIMITERS or tag in elements:
                raise Malformed
            vr = self._reader.header.names.get(code) or _standard_vrs(number)[self._signed]
            if number == _PIXEL_DATA and length == UNDEFINED:
                if not is_compressed:
                    raise Malformed
                elements[tag] = self._raw(tag, vr, UNDEFINED, at, self._reader.end(code, length, at, explicit=explicit))
            elif length == UNDEFINED or vr == "SQ":
                inner = explicit and vr != "UN"  # PS3.5 6.2.2: an UN of undefined length holds implicit items
                elements[tag] = self._sequence(tag, at, None if length == UNDEFINED else at + length, explicit=inner)
            else:
                elements[tag] = raw = self._raw(tag, vr, length, at, at + length)
                if number == _REPRESENTATION:
                    self._signed = (raw.value or b"")[:1] == b"\1"
            at = self._end
        if end is not None and at != end:
            raise Malformed
        self._end = at
        return _ready(Dataset(elements), to_implicit=self._to_implicit)

    def _raw(self, tag: BaseTag, vr: str, length: int, at: int, end: int) -> RawDataElement:
        from pydicom.dataelem import RawDataElement

        self._end = end
        value = self._reader.value(at, end - at - (SHORT_HEADER if length == UNDEFINED else 0))
        return RawDataElement(tag, vr, length, value, at, self._to_implicit, is_little_endian=True)

    def _sequence(self, tag: BaseTag, at: int, end: int | None, *, explicit: bool) -> DataElement:
        from pydicom.dataelem import DataElement
        from pydicom.sequence import Sequence

        items, self._end = [], at
        while end is None or self._end < end:
            number, _, length, at = self._reader.element(self._end, explicit=False)
            self._end = at
            if number == SEQUENCE_END and end is None:
                break
            if number != ITEM:
                raise Malformed
            items.append(self.data_set(at, None if length == UNDEFINED else at + length, explicit=explicit))
            items[-1].is_undefined_length_sequence_item = length == UNDEFINED
        if end is not None and self._end != end:
            raise Malformed
        element = DataElement(tag, "SQ", Sequence(items))
        # Without a length where only its VR showed a sequence, so that a reader who does not know the tag sees it.
        element.is_undefined_length = end is None or (self._to_implicit and _standard_vrs(tag)[0] != "SQ")
        return element


def _ready(dataset: Dataset, *, to_implicit: bool) -> Dataset:
    """Let pydicom write raw elements as they are: it takes the data set for one that has the encoding already."""
    from pydicom.charset import convert_encodings, default_encoding

    is_named = "SpecificCharacterSet" in dataset
    encodings = convert_encodings(dataset.SpecificCharacterSet) if is_named else default_encoding
    dataset.set_original_encoding(to_implicit, is_little_endian=True, character_encoding=encodings)
    return dataset


def _decompressed(dataset: Dataset, syntax: str) -> Dataset:
    """Return the data set with native pixel data; pydicom sets what describes it, all else stays as it was."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    from dicomsort.pixels import decoders

    # Raw still: reading one changes it.
    elements = {tag: element for tag, element in dataset.items() if tag not in _OFFSET_TABLES}
    before = [dataset.get(keyword) for keyword in _LAYOUT]
    frames = _frames(dataset, syntax)
    dataset = Dataset({tag: element for tag, element in dataset.items() if tag not in _OFFSET_TABLES})
    dataset.PixelData = encapsulate(frames, has_bot=False)  # no table, which could lead past a frame
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    decoders.register()
    plugin = "pydicom" if syntax == _RLE else decoders.PLUGIN
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The decoded RLE segment")  # longer than the frame, it would be cut
        dataset.decompress(as_rgb=False, generate_instance_uid=False, decoding_plugin=plugin)
    if [dataset.get(keyword) for keyword in _LAYOUT] != before:
        raise Malformed
    _check_native(dataset, len(frames))
    for tag in (_PIXEL_DATA, _PHOTOMETRIC, *([_PLANAR] if dataset.SamplesPerPixel > 1 else [])):
        elements[dataset[tag].tag] = dataset[tag]
    return Dataset(elements)


def _frames(dataset: Dataset, syntax: str) -> list[bytes]:
    """Return the encapsulated frames, as many as the data set declares; each begins with a fragment (PS3.5 A.4)."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets
    from pydicom.filebase import DicomBytesIO

    from dicomsort.pixels import codestream

    if dataset.BitsAllocated % 8:  # decoders give a byte for each
        raise Malformed(f"its compressed frames allocate {dataset.BitsAllocated} bits a pixel")
    buffer = DicomBytesIO(dataset.PixelData)
    parse_basic_offsets(buffer)
    found: list[list[bytes]] = []
    inner = 0  # frames that share a fragment with one before
    for fragment in generate_fragments(buffer):
        starts = [0] if syntax == _RLE else [start.start() for start in _START.finditer(fragment)]  # RLE: A.4.2
        inner += sum(start > 0 for start in starts)
        if 0 in starts or not found:
            found.append([])
        found[-1].append(fragment)
    declared = int(dataset.get("NumberOfFrames") or 1)
    if inner or len(found) != declared:
        raise Malformed(f"it declares {declared:,} frames and has {len(found) + inner:,}")
    frames = [b"".join(fragments) for fragments in found]
    sides = (dataset.Rows, dataset.Columns)
    for stream in () if syntax == _RLE else map(codestream.parse, frames):
        if stream is None:
            raise Malformed
        if (stream.rows, stream.columns) != sides:  # as many pixels can have other sides
            raise Malformed(f"it declares frames of {sides[0]} rows and {sides[1]} columns, and has others")
    return frames


def _check_native(dataset: Dataset, frames: int) -> None:
    """Raise Malformed unless the pixel data is as long as what describes it demands (PS3.3 C.7.6.3.1.2)."""
    photometric, samples = str(dataset.PhotometricInterpretation), int(dataset.SamplesPerPixel)
    if _SAMPLES.get(photometric) != samples:
        raise Malformed(f"its pixels have {samples} samples, which are not {photometric or 'named'}")
    size = frames * dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated // 8
    if len(dataset.PixelData) != size + size % 2:
        raise Malformed(f"its pixels take {len(dataset.PixelData):,} bytes, and {size:,} are declared")


@lru_cache(maxsize=4096)
def _standard_vrs(tag: int) -> tuple[str, str]:
    """Return the VR of a tag by PS3.6, of unsigned and of signed images; UN where the standard has none."""
    from pydicom.datadict import dictionary_VR

    try:
        vr = dictionary_VR(tag)
    except KeyError:
        vr = "LO" if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF else "UN"  # noqa: PLR2004 - a private creator
    return _AMBIGUOUS.get(vr, (vr, vr))
