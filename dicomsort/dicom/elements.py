"""From element to element of a data set (PS3.5 7), and the bytes that are read.

``ElementReader`` reads plain data sets, checks every bound, and takes only the values that are wanted. Anything else
raises ``NeedsFullParser``: then pydicom reads, which knows the oddities of real files, but makes objects of all that it
passes.
"""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, Final, Self, cast

from dicomsort.dicom.encoding import ELEMENT_HEADERS, LONG_HEADER, SHORT_HEADER, Encoding

Element = tuple[int, int, int, int, bytes | None]  # tag, VR, length, offset of the value, value
UNDEFINED: Final = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DELIMITERS: Final = 0xFFFE  # group of items and delimiters
LAST: Final = (DELIMITERS << 16) - 1  # the last tag that an element may have
HEADER_LIMIT: Final = 4 * 1024 * 1024  # bytes that reading one header may cost, fetched or inflated
AHEAD: Final = 64 << 10  # bytes read at once where more will be needed: of a header, of a chain of small fragments
_MAX_LEVELS: Final = 16_384  # open sequences and items; real files stay below 20
_CHUNK: Final = 8 * 1024  # bytes fetched at once within a header: enough for what follows a value that is skipped


class NeedsFullParser(Exception):
    """Not plain enough for this reader: an unknown VR, tags out of order, a delimiter in a wrong place."""


class ReadingEnded(Exception):
    """The data set ended before all that was requested; ``code`` is the ``Header.problem`` it may become."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class ByteSource:
    """``size`` bytes by their offsets: ``head`` holds the first, ``more(offset, length)`` is called for the others.

    ``limit`` bounds the bytes fetched, ``chunk`` is how many are fetched at once. All methods raise what ``more`` does.
    """

    def __init__(
        self,
        head: bytes,
        size: int,
        more: Callable[[int, int], bytes],
        *,
        limit: int = HEADER_LIMIT,
        chunk: int = _CHUNK,
    ) -> None:
        self.size = size
        self._head, self._more = head, more
        self._buffer, self._base = head, 0
        self._left, self._chunk = limit, chunk

    @classmethod
    def of_file(cls, descriptor: int, size: int) -> Self:
        """Return all bytes of an open regular file of ``size`` bytes; OSError where it cannot be read."""
        head = os.pread(descriptor, AHEAD, 0)
        return cls(head, size, partial(_pread, descriptor), limit=sys.maxsize, chunk=AHEAD)

    @classmethod
    def of_bytes(cls, data: bytes) -> Self:
        """Return the bytes of a buffer."""
        return cls(data, len(data), lambda _offset, _length: b"")

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return a buffer with at least ``length`` bytes from ``offset`` on, and the offset of its first byte.

        It has fewer only where the data end.

        Raises:
            ReadingEnded: the limit of bytes is spent, or the compressed stream is broken.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b"", offset
        if end <= len(self._head):
            return self._head, 0
        if not (self._base <= offset and end <= self._base + len(self._buffer)):
            count = min(max(length, self._chunk), self.size - offset)
            if count > self._left:
                raise ReadingEnded("header-beyond-limit")
            self._left -= count
            self._buffer, self._base = self._more(offset, count), offset
            if len(self._buffer) < count:
                self.size = offset + len(self._buffer)
        return self._buffer, self._base

    def ends_before(self, offset: int) -> bool:
        """Return whether the data end before ``offset``, so that a value said to reach it is cut."""
        return offset > self.size

    def at(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset`` on and fetch no others; fewer where they end before.

        Whatever ``length`` claims, no more memory is taken than there are bytes.
        """
        stop = min(offset + length, self.size)
        if stop <= len(self._head):
            return self._head[offset:stop]
        return self._more(offset, stop - offset) if offset < stop else b""

    def stream(self, offset: int = 0) -> BinaryIO:
        """Return an unbuffered file for a library that wants one, at ``offset``; closing it closes nothing else."""
        return cast("BinaryIO", SourceStream(self, offset))

    def file(self, offset: int = 0, whole: int = AHEAD) -> BinaryIO:
        """Return a file at ``offset``: read at once where it has up to ``whole`` bytes, so that none can claim more."""
        small = self.size <= whole
        file = io.BytesIO(self.at(0, self.size)) if small else io.BufferedReader(SourceStream(self), AHEAD)
        file.seek(offset)
        return file


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    stop = offset + length
    while offset < stop and (part := os.pread(descriptor, stop - offset, offset)):  # 2 GiB at most
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class InflatedSource(ByteSource):
    """A data set of a deflated transfer syntax, inflated as far as it is read: ``packed`` from ``start`` on."""

    def __init__(self, packed: ByteSource, start: int) -> None:
        super().__init__(b"", sys.maxsize, lambda offset, length: self.window(offset, length)[0][offset:][:length])
        self._packed, self._next = packed, start
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # without a zlib header (PS3.5 A.5)
        self._done = self._broken = False

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """See ``ByteSource``."""
        end = offset + length
        if end > len(self._buffer) and not self._done:
            if end > HEADER_LIMIT:
                raise ReadingEnded("header-beyond-limit")
            self._inflate(max(end, min(2 * len(self._buffer), HEADER_LIMIT), _CHUNK))
        if end > len(self._buffer) and self._broken:
            raise ReadingEnded("deflate-broken")
        return self._buffer, 0

    def _inflate(self, end: int) -> None:
        data = bytearray(self._buffer)
        while len(data) < end and not self._done:
            feed = self._inflater.unconsumed_tail or self._read_packed()
            try:
                more = self._inflater.decompress(feed, end - len(data))
            except zlib.error:
                self._done = self._broken = True
                break
            data += more
            self._done = self._inflater.eof or not (feed or more)
        self._buffer = bytes(data)

    def _read_packed(self) -> bytes:
        buffer, base = self._packed.window(self._next, 1)
        feed = buffer[self._next - base :]
        self._next += len(feed)
        return feed

    def ends_before(self, offset: int) -> bool:
        """See ``ByteSource``."""
        return self._done and offset > len(self._buffer)


class SourceStream(io.RawIOBase):
    """A source as an unbuffered file, at ``offset``."""

    def __init__(self, source: ByteSource, offset: int = 0) -> None:
        super().__init__()
        self._source, self._offset = source, offset

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to an offset."""
        self._offset = offset + (0, self._offset, self._source.size)[whence]
        return self._offset

    def tell(self) -> int:
        """Return the offset."""
        return self._offset

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what BufferedReader calls it with
        """Fill a buffer, as far as there are bytes."""
        found = self._source.at(self._offset, len(buffer))
        buffer[: len(found)] = found
        self._offset += len(found)
        return len(found)


class ElementReader:
    """Reads the elements of a data set of one encoding.

    ``position`` is the offset of the first element that ``elements`` has not passed, ``passed`` the tag before it.
    At most ``value_limit`` bytes of a value are read; ``max_levels`` bounds the sequences and items open at once.

    Every method that reads raises:
        ReadingEnded: the data end (within an element, or, where its code is empty, before one), or a limit is met.
        NeedsFullParser: a full parser must read this data set.
    """

    def __init__(
        self,
        source: ByteSource,
        encoding: Encoding,
        start: int = 0,
        *,
        value_limit: int = sys.maxsize,
        max_levels: int = _MAX_LEVELS,
    ) -> None:
        self.position, self.passed = start, 0
        self.encoding, self.header = encoding, ELEMENT_HEADERS[encoding.little]
        self._source = source
        self._value_limit, self._max_levels = value_limit, max_levels
        self._unknown = self.header.unknown
        self._unpack = self.header.explicit if encoding.explicit else self.header.implicit
        self._buffer, self._base = b"", 0

    # Most of the time that a header takes is spent here: hence one loop over locals and whole numbers, without calls.
    def elements(self, wanted: frozenset[int], last: int = LAST) -> Iterator[Element]:
        """Yield the ``wanted`` elements from ``position`` up to and including the tag ``last``, in their order.

        Each as tag, VR (0 where implicit), length, offset of its value, and its value: None where that has an undefined
        length or must still be fetched (``value``); then ``position`` is behind it.
        """
        explicit, passed, at, vr = self.encoding.explicit, self.passed, self.position, 0
        header, max_size, (_, _, long_length, short, long, *_) = self._unpack, self._value_limit, self.header
        while True:
            buffer, base = self._source.window(at, LONG_HEADER)
            index, limit, whole = at - base, len(buffer), len(buffer) - LONG_HEADER
            while index <= whole:
                value = index + SHORT_HEADER
                if explicit:
                    group, number, vr, length = header(buffer, index)
                    if vr not in short:
                        if vr not in long:
                            break
                        (length,) = long_length(buffer, value)
                        value += 4
                else:
                    group, number, length = header(buffer, index)
                tag = group << 16 | number
                end = value + length
                if end > limit or tag <= passed or tag > last:
                    break
                if tag in wanted:
                    yield tag, vr, length, base + value, buffer[value : end if length <= max_size else value + max_size]
                passed, index = tag, end
            at = self.position = base + index
            self.passed = passed
            tag, vr, length, value = self.element(at, explicit=explicit)
            if tag > last:
                return
            if tag <= passed:
                raise NeedsFullParser
            at = self.position = self.end(vr, length, value, explicit=explicit)
            if tag in wanted:
                yield tag, vr, length, value, None
            passed = self.passed = tag

    def element(self, offset: int, *, explicit: bool) -> tuple[int, int, int, int]:
        """Return tag, VR (0 where implicit), length of the value, and its offset, of the element at any offset."""
        index = offset - self._base
        if index < 0 or index + LONG_HEADER > len(self._buffer):
            self._buffer, self._base = self._source.window(offset, LONG_HEADER)
            index = offset - self._base
            left = len(self._buffer) - index
            if left < SHORT_HEADER:
                raise ReadingEnded("truncated-header" if left > 0 or self._source.ends_before(offset) else "")
        group, number, length = self.header.implicit(self._buffer, index)
        tag = group << 16 | number
        if not explicit or group == DELIMITERS:
            return tag, 0, length, offset + SHORT_HEADER
        _, _, vr, length = self.header.explicit(self._buffer, index)
        if vr in self.header.short:
            return tag, vr, length, offset + SHORT_HEADER
        if vr not in self.header.long:
            raise NeedsFullParser
        if len(self._buffer) - index < LONG_HEADER:
            raise ReadingEnded("truncated-header")
        (length,) = self.header.length(self._buffer, index + SHORT_HEADER)
        return tag, vr, length, offset + LONG_HEADER

    def end(self, vr: int, length: int, value: int, *, explicit: bool) -> int:
        """Return the offset behind an element whose value begins at ``value``."""
        if length != UNDEFINED:
            return value + length
        return self._close(value, [explicit and vr != self._unknown], 0)

    def item(self, index: int) -> tuple[int, int]:
        """Return the offsets of the data set in an item, and behind it, where the source is a sequence's value."""
        begin = end = behind = 0
        for _ in range(index + 1):
            tag, _, length, begin = self.element(behind, explicit=False)
            if tag != ITEM:
                raise NeedsFullParser
            if length == UNDEFINED:
                behind = self._close(begin, [self.encoding.explicit] * 2, 1)
                end = behind - SHORT_HEADER
            else:
                end = behind = begin + length
        return begin, end

    def _close(self, at: int, levels: list[bool], floor: int) -> int:
        """Return the offset behind the delimiters of the innermost ``levels`` (PS3.5 7.5.2); a loop, never recursion.

        Levels are a sequence, an item, a sequence …; each tells whether its elements have explicit VRs. ``floor`` of
        them stay open.
        """
        in_item = len(levels) % 2 == 0
        while len(levels) > floor:
            try:
                tag, vr, length, at = self.element(at, explicit=levels[-1])
            except ReadingEnded as ended:
                raise ReadingEnded(ended.code or "truncated-header") from None
            if (tag >> 16 != DELIMITERS) if in_item else (tag == ITEM):
                if length != UNDEFINED:
                    at += length
                    continue
                if len(levels) == self._max_levels:
                    raise ReadingEnded("nesting-beyond-limit")
                levels.append(levels[-1] and vr != self._unknown)  # an UN holds implicit items (PS3.5 6.2.2)
            elif tag == (ITEM_END if in_item else SEQUENCE_END):
                levels.pop()
            else:
                raise NeedsFullParser
            in_item = not in_item
        return at

    def value(self, offset: int, length: int) -> bytes:
        """Return a value, at most ``value_limit`` bytes of it."""
        size = min(length, self._value_limit)
        buffer, base = self._source.window(offset, size)
        value = buffer[offset - base : offset - base + size]
        if len(value) < size:
            raise ReadingEnded("truncated-header")
        return value
