"""The slow path: pydicom reads what ``ElementReader`` does not. Only here its reader and its exceptions are met."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

from dicomsort.dicom.elements import ByteSource, ReadingEnded, SourceStream
from dicomsort.dicom.encoding import Encoding
from dicomsort.dicom.tags import COLUMNS, REFERENCES, VALUE_LIMIT, WANTED, RawValues

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

_LIMIT: Final = 512 * 1024  # bytes read here: pydicom takes seconds and 100 times the memory for hostile megabytes
_SMALL: Final = 2 << 20  # bytes of a data set that is read into memory at once
_BULK: Final = 0x52000000  # per-frame groups, overlays and pixels come last and hold nothing wanted
_TEXT_DELIMITERS: Final = {0x09, 0x0A, 0x0C, 0x0D}  # reset the character set within a value (PS3.5 6.1.2.5.3)


class ElementStart(NamedTuple):
    """An element up to its value: ``vr`` is None where it is implicit, ``offset`` that of the value."""

    tag: int
    vr: str | None
    length: int
    offset: int


class _LimitedStream(SourceStream):
    """A source as the file that pydicom asks for, limited to ``_LIMIT`` bytes."""

    def __init__(self, source: ByteSource, start: int) -> None:
        super().__init__(source, start)
        self._left = _LIMIT
        self.cut = False  # a read met the end within an element
        self.failure: Exception | None = None  # pydicom hides it in one of its own

    def read(self, size: int = -1) -> bytes:
        if size > self._left:
            self.failure = ReadingEnded("header-beyond-limit")
            raise self.failure
        try:
            buffer, base = self._source.window(self._offset, size)
        except (ReadingEnded, OSError) as failure:
            self.failure = failure
            raise
        begin = self._offset - base
        data = buffer[begin : begin + size]
        self.cut = self.cut or 0 < len(data) < size or self._source.ends_before(self._offset)
        self._offset += len(data)
        self._left -= len(data)
        return data


def read(source: ByteSource, start: int, encoding: Encoding, raw: RawValues) -> None:
    """Read the wanted tags into ``raw`` from the data set at ``start``, in whatever order they come.

    Raises:
        ReadingEnded: the data are cut, damaged or nested too deep, or a limit is met; ``raw`` holds what came before.
        OSError: the file could not be read.
    """
    stream = _LimitedStream(source, start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _collect(stream, encoding, raw)
    except Exception as error:  # noqa: BLE001 - pydicom raises almost anything on damaged bytes
        if stream.failure is not None:
            raise stream.failure from None
        deep = isinstance(error, RecursionError)
        raise ReadingEnded("nesting-beyond-limit" if deep else "damaged-header") from None
    if stream.cut or raw.reached < COLUMNS:
        raise ReadingEnded("truncated-header" if stream.cut else "")


def _collect(stream: _LimitedStream, encoding: Encoding, raw: RawValues) -> None:
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.filereader import data_element_generator

    current = raw.reached

    def is_bulk(tag: int, _vr: str | None = None, _length: int = 0) -> bool:
        nonlocal current
        raw.reached = max(raw.reached, current)  # the element before was passed
        current = int(tag)
        return current >= _BULK

    file = cast("BinaryIO", stream)
    explicit, little = encoding
    for element in data_element_generator(file, not explicit, little, is_bulk, specific_tags=[*WANTED]):
        tag = int(element.tag)
        if tag in REFERENCES:
            begin = element.file_tell if isinstance(element, DataElement) else element.value_tell
            raw.spans[tag] = (begin or 0, stream.tell())
        elif isinstance(element, RawDataElement) and tag in WANTED and len(element.value or b"") == element.length:
            raw.values[tag] = (element.value or b"")[:VALUE_LIMIT]
    if not stream.cut:
        is_bulk(current)


def read_until(
    source: ByteSource,
    start: int,
    encoding: Encoding,
    stop: Callable[[int], bool],
    wanted: frozenset[int] = frozenset(),
) -> tuple[Dataset, int, ElementStart | None]:
    """Read the data set at ``start`` up to the first element whose tag calls for a ``stop``, by pydicom alone.

    Return its ``wanted`` elements (all where that is empty), the offset behind them, and where reading stopped.

    Raises:
        Exception: pydicom raises almost anything on damaged bytes.
    """
    from pydicom.filereader import read_dataset

    file = source.file(start, _SMALL)
    stopped: ElementStart | None = None

    def stop_when(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal stopped
        if stop(tag):
            stopped = ElementStart(tag, vr, length, file.tell())
        return stopped is not None

    explicit, little = encoding
    dataset = read_dataset(file, not explicit, little, stop_when=stop_when, specific_tags=[*wanted] or None)
    return dataset, file.tell(), stopped


def decode(value: bytes, character_set: str) -> str:
    """Return a value as text by (0008,0005), whatever that says; undefined bytes become U+FFFD (PS3.5 6.1)."""
    from pydicom.charset import convert_encodings, decode_bytes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encodings = convert_encodings([term.strip() for term in character_set.split("\\")])
            return decode_bytes(value, encodings, _TEXT_DELIMITERS)
        except Exception:  # noqa: BLE001 - a damaged value must not cost the header
            return value.decode("ascii", "replace")
