"""Where a data set's bytes come from: the file, or its inflated stream; fetched as needed, never beyond a limit."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT: Final = 4 * 1024 * 1024  # bytes that one header may cost, fetched or inflated
_CHUNK: Final = 8 * 1024  # bytes fetched at once: enough for what follows a value that is skipped
_RAW_DEFLATE: Final = -15  # window bits of a stream without a zlib header (PS3.5 A.5)


class Ended(Exception):
    """The data set ended before all that was asked for; ``code`` is the ``Header.problem`` it may become."""

    def __init__(self, code: str) -> None:
        """Keep the reason code."""
        super().__init__(code)
        self.code = code


class Source(Protocol):
    """Random access to a data set's bytes."""

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return a buffer and the offset of its first byte.

        It holds at least ``length`` bytes from ``offset`` on, fewer only where the data end.

        Raises:
            Ended: the limit of bytes is spent, or the compressed stream is broken.

        """

    def ends_before(self, offset: int) -> bool:
        """Tell whether the data end before ``offset``, so that a value said to reach it is cut."""


class FileSource:
    """The file itself: its first bytes as given, the rest through ``more(offset, length)``."""

    def __init__(self, head: bytes, size: int, more: Callable[[int, int], bytes]) -> None:
        """Start from the first bytes of a file of ``size`` bytes."""
        self._head = head
        self._size = size
        self._more = more
        self._buffer = head
        self._base = 0
        self._left = LIMIT

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """See ``Source``."""
        end = min(offset + length, self._size)
        if offset >= end:
            return b"", offset
        if end <= len(self._head):
            return self._head, 0
        if not (self._base <= offset and end <= self._base + len(self._buffer)):
            asked = min(max(length, _CHUNK), self._size - offset)
            if asked > self._left:
                raise Ended("header-beyond-limit")
            self._left -= asked
            self._buffer = self._more(offset, asked)
            self._base = offset
            if len(self._buffer) < asked:
                self._size = offset + len(self._buffer)
        return self._buffer, self._base

    def ends_before(self, offset: int) -> bool:
        """See ``Source``."""
        return offset > self._size


class InflatedSource:
    """The inflated data set of a deflated transfer syntax, inflated only as far as it is asked for."""

    def __init__(self, packed: Source, start: int) -> None:
        """Inflate the raw deflate stream that begins at ``start`` of ``packed``."""
        self._packed = packed
        self._next = start
        self._inflater = zlib.decompressobj(_RAW_DEFLATE)
        self._buffer = b""
        self._done = False
        self._broken = False

    def window(self, offset: int, length: int) -> tuple[bytes, int]:
        """See ``Source``."""
        end = offset + length
        if end > len(self._buffer) and not self._done:
            if end > LIMIT:
                raise Ended("header-beyond-limit")
            self._inflate(max(end, min(2 * len(self._buffer), LIMIT), _CHUNK))
        if end > len(self._buffer) and self._broken:
            raise Ended("deflate-broken")
        return self._buffer, 0

    def _inflate(self, end: int) -> None:
        data = bytearray(self._buffer)
        while len(data) < end and not self._done:
            feed = self._inflater.unconsumed_tail or self._feed()
            try:
                more = self._inflater.decompress(feed, end - len(data))
            except zlib.error:
                self._done = self._broken = True
                break
            data += more
            self._done = self._inflater.eof or not (feed or more)
        self._buffer = bytes(data)

    def _feed(self) -> bytes:
        buffer, base = self._packed.window(self._next, 1)
        feed = buffer[self._next - base :]
        self._next += len(feed)
        return feed

    def ends_before(self, offset: int) -> bool:
        """See ``Source``."""
        return self._done and offset > len(self._buffer)
