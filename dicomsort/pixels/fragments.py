"""One frame's bytes among encapsulated pixel data, PS3.5 A.4: by an offset table, else by its fragments.

Of other frames nothing is read but the eight bytes before each fragment, and these only where there is no table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomsort.dicom.elements import ITEM, SEQUENCE_END, UNDEFINED
from dicomsort.dicom.encoding import ELEMENT_HEADERS, SHORT_HEADER
from dicomsort.pixels.layout import choose
from dicomsort.pixels.limits import MAX_FRAGMENTS, PixelsError
from dicomsort.pixels.values import encoded, integer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydicom.dataset import Dataset

    from dicomsort.dicom.elements import ByteSource
    from dicomsort.pixels.source import Source

    Fragment = tuple[int, int]  # where its bytes begin, and how many there are

_HEADER = ELEMENT_HEADERS[True].implicit  # of an item; encapsulated pixel data is little endian (PS3.5 A.4)
_OFFSET, _LONG_OFFSET = 4, 8  # bytes
_END_OF_IMAGE, _NEAR_END = b"\xff\xd9", 10  # of JPEG, JPEG-LS and JPEG 2000; bytes in which it is found
_DAMAGED = "the encapsulated pixel data is damaged"


def read_frame(source: Source, frame: int | None) -> tuple[int, bytes]:
    """Return the index and the encoded bytes of a frame, the middle one where ``frame`` is None."""
    content, start = source.content, source.element.offset
    tag, length = _header(content, start, content.size)
    if length > _OFFSET * MAX_FRAGMENTS:
        raise PixelsError("the offset table is too long")
    if tag != ITEM or length % _OFFSET:
        raise PixelsError(_DAMAGED)
    first = start + SHORT_HEADER + length
    extended, chain = _extended_offsets(source.dataset), []
    if extended:
        held = len(extended[0]) // _LONG_OFFSET
    elif length:
        held = length // _OFFSET
    else:
        chain = list(_fragments(content, first, content.size))
        held = len(chain)
    if not held:
        raise PixelsError("truncated pixel data")
    declared = integer(source.dataset, "NumberOfFrames", 1)
    count = min(declared, held) if declared > 0 else held
    index = choose(frame, count)
    if extended:
        offset, size = (_integer(table, index, _LONG_OFFSET) for table in extended)
        data = content.at(first + offset + SHORT_HEADER, size)
    elif length:
        data = _join(content, _between_offsets(content, start + SHORT_HEADER, first, index, held))
    else:
        data = _join(content, _without_table(content, chain, index, count))
    if not data:
        raise PixelsError("truncated pixel data")
    return index, data


def _extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    """Return (7FE0,0001) *Extended Offset Table* and (7FE0,0002) *Extended Offset Table Lengths* as they are stored."""
    offsets, lengths = encoded(dataset, "ExtendedOffsetTable"), encoded(dataset, "ExtendedOffsetTableLengths")
    return (offsets, lengths) if offsets and len(offsets) == len(lengths) else None


def _integer(table: bytes, index: int, size: int) -> int:
    return int.from_bytes(table[index * size : (index + 1) * size], "little")


def _between_offsets(content: ByteSource, table: int, first: int, index: int, held: int) -> Iterator[Fragment]:
    """Yield the fragments from a frame's offset to the next one's, or to the end."""
    offsets = content.at(table + index * _OFFSET, 2 * _OFFSET)
    begin, after = (_integer(offsets, i, _OFFSET) for i in range(2))
    end = first + after if index < held - 1 and after >= begin else content.size
    return _fragments(content, first + begin, end)


def _without_table(content: ByteSource, chain: list[Fragment], index: int, count: int) -> list[Fragment]:
    """Choose a frame's fragments: one a frame, all of a single frame, or up to the marker that ends an image."""
    if len(chain) in {1, count}:
        return chain[index : index + 1]
    if count == 1:
        return chain
    frames: list[list[Fragment]] = [[]]
    for offset, size in chain:
        frames[-1].append((offset, size))
        if _END_OF_IMAGE in content.at(max(offset, offset + size - _NEAR_END), min(size, _NEAR_END)):
            frames.append([])
    if index >= len(frames) or not frames[index]:
        raise PixelsError(_DAMAGED)
    return frames[index]


def _fragments(content: ByteSource, at: int, end: int) -> Iterator[Fragment]:
    """Yield the fragments between two places, as far as there are any."""
    for _ in range(MAX_FRAGMENTS):
        tag, length = _header(content, at, end)
        if tag in {0, SEQUENCE_END}:
            return
        if tag != ITEM or length == UNDEFINED:
            raise PixelsError(_DAMAGED)
        at += SHORT_HEADER
        yield at, max(0, min(length, end - at))
        at += length
    raise PixelsError("there are too many fragments")


def _header(content: ByteSource, at: int, end: int) -> tuple[int, int]:
    """Return tag and length of the item at a place, (0, 0) where there is none before the end."""
    found = content.at(at, max(0, min(SHORT_HEADER, end - at)))
    if len(found) < SHORT_HEADER:
        return 0, 0
    group, element, length = _HEADER(found)
    return group << 16 | element, length


def _join(content: ByteSource, fragments: Iterable[Fragment]) -> bytes:
    return b"".join(content.at(offset, size) for offset, size in fragments)
