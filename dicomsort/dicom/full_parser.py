"""The slow path: pydicom reads what the fast path leaves. The one border to its reader and its exceptions."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

from dicomsort.dicom.elements import ReadingEnded
from dicomsort.dicom.tags import COLUMNS, REFERENCES, VALUE_LIMIT, WANTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

    from dicomsort.dicom.elements import ByteSource
    from dicomsort.dicom.encoding import Encoding
    from dicomsort.dicom.tags import Tags

_LIMIT: Final = 512 * 1024  # bytes read here: pydicom takes seconds and 100 times the memory for hostile megabytes
_SMALL: Final = 2 << 20  # bytes of a data set that is read into memory at once
_BULK: Final = 0x52000000  # per-frame groups, overlays and pixels come last and hold nothing wanted
_TEXT_DELIMITERS: Final = {0x09, 0x0A, 0x0C, 0x0D}  # reset the character set within a value (PS3.5 6.1.2.5.3)


class Stop(NamedTuple):
    """The element where reading stopped: ``vr`` is None where it is implicit, ``value`` the offset of its value."""

    tag: int
    vr: str | None
    length: int
    value: int


class _Stream(io.RawIOBase):
    """A source as the seekable file that pydicom asks for."""

    def __init__(self, source: ByteSource, start: int) -> None:
        self._source = source
        self._offset = start
        self._left = _LIMIT
        self.cut = False  # a read met the end within an element
        self.failure: Exception | None = None  # pydicom hides it in one of its own

    def read(self, size: int = -1) -> bytes:
        try:
            buffer, base = self._bounded_window(size)
        except (ReadingEnded, OSError) as failure:
            self.failure = failure
            raise
        begin = self._offset - base
        data = buffer[begin : begin + size]
        self.cut = self.cut or 0 < len(data) < size or self._source.ends_before(self._offset)
        self._offset += len(data)
        self._left -= len(data)
        return data

    def _bounded_window(self, size: int) -> tuple[bytes, int]:
        if size > self._left:
            raise ReadingEnded("header-beyond-limit")
        return self._source.window(self._offset, size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = offset + (self._offset if whence == io.SEEK_CUR else 0)
        return self._offset

    def tell(self) -> int:
        return self._offset


def read(source: ByteSource, start: int, encoding: Encoding, tags: Tags) -> None:
    """Read the wanted tags into ``tags`` from the data set at ``start``, in whatever order they come.

    Raises:
        Ended: the data are cut, damaged or nested too deep, or a limit is met; ``tags`` holds what came before.
        OSError: the file could not be read.

    """
    stream = _Stream(source, start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _collect(stream, encoding, tags)
    except Exception as error:  # noqa: BLE001 - pydicom raises almost anything on damaged bytes
        if stream.failure is not None:
            raise stream.failure from None
        deep = isinstance(error, RecursionError)
        raise ReadingEnded("nesting-beyond-limit" if deep else "damaged-header") from None
    if stream.cut or tags.reached < COLUMNS:
        raise ReadingEnded("truncated-header" if stream.cut else "")


def _collect(stream: _Stream, encoding: Encoding, tags: Tags) -> None:
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.filereader import data_element_generator

    current = tags.reached

    def passed(tag: int, _vr: str | None = None, _length: int = 0) -> bool:
        nonlocal current
        tags.reached = max(tags.reached, current)
        current = int(tag)
        return current >= _BULK

    elements = data_element_generator(
        cast("BinaryIO", stream),
        not encoding.explicit,
        encoding.little,
        passed,
        specific_tags=[*WANTED],
    )
    for element in elements:
        tag = int(element.tag)
        if tag in REFERENCES:
            begin = element.file_tell if isinstance(element, DataElement) else element.value_tell
            tags.spans[tag] = (begin or 0, stream.tell())
        elif isinstance(element, RawDataElement) and tag in WANTED and len(element.value or b"") == element.length:
            tags.values[tag] = (element.value or b"")[:VALUE_LIMIT]
    if not stream.cut:
        passed(current)


def read_until(
    source: ByteSource,
    start: int,
    encoding: Encoding,
    stop: Callable[[int], bool],
    wanted: frozenset[int] = frozenset(),
) -> tuple[Dataset, int, Stop | None]:
    """Read the data set at ``start`` up to the first element whose tag calls for a ``stop``, by pydicom alone.

    Returns its ``wanted`` elements (all where there are none), the offset behind them, and where reading stopped.

    Raises:
        Exception: pydicom raises almost anything on damaged bytes.

    """
    from pydicom.filereader import read_dataset

    file = source.file(start, _SMALL)
    found: list[Stop] = []

    def stop_when(tag: BaseTag, vr: str | None, length: int) -> bool:
        if stop(tag):
            found.append(Stop(tag, vr, length, file.tell()))
        return bool(found)

    dataset = read_dataset(
        file, not encoding.explicit, encoding.little, stop_when=stop_when, specific_tags=[*wanted] or None
    )
    return dataset, file.tell(), found[0] if found else None


def decode(value: bytes, character_set: str) -> str:
    """Text of a value by (0008,0005), whatever that says; bytes that it cannot mean become U+FFFD (PS3.5 6.1)."""
    from pydicom.charset import convert_encodings, decode_bytes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encodings = convert_encodings([term.strip() for term in character_set.split("\\")])
            return decode_bytes(value, encodings, _TEXT_DELIMITERS)
        except Exception:  # noqa: BLE001 - a damaged value must not cost the header
            return value.decode("ascii", "replace")
