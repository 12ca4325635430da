"""The bytes of a file by their places: what is asked for is read, and next to nothing else."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Self, cast

AHEAD = 64 << 10  # bytes read at once where more will be asked for: of a header, of a chain of small fragments


@dataclass(frozen=True, slots=True)
class Content:
    """``size`` bytes, of which ``head`` holds the first; the others are read from ``descriptor`` when asked for."""

    head: bytes
    size: int
    descriptor: int = -1

    @classmethod
    def of_file(cls, descriptor: int, size: int) -> Self:
        """Return the content of an open regular file of ``size`` bytes."""
        return cls(os.pread(descriptor, AHEAD, 0), size, descriptor)

    @classmethod
    def of_bytes(cls, data: bytes) -> Self:
        """Return the content of a buffer."""
        return cls(data, len(data))

    def at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on, fewer where they end before; OSError where they cannot be read.

        Whatever ``length`` claims, no more memory is taken than there are bytes.
        """
        stop = min(offset + length, self.size)
        if stop <= len(self.head):
            return self.head[offset:stop]
        return self._read(offset, stop)

    def _read(self, offset: int, stop: int) -> bytes:
        parts: list[bytes] = []
        while offset < stop and (part := os.pread(self.descriptor, stop - offset, offset)):  # 2 GiB at most
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stream(self, offset: int = 0) -> BinaryIO:
        """Return an unbuffered file for a library that wants one, at ``offset``; closing it closes nothing else."""
        stream = _Stream(self)
        stream.seek(offset)
        return cast("BinaryIO", stream)

    def file(self, offset: int = 0, whole: int = AHEAD) -> BinaryIO:
        """Return a file at ``offset``: read at once where it has up to ``whole`` bytes, so that none can claim more."""
        small = self.size <= whole
        file = io.BytesIO(self.at(0, self.size)) if small else io.BufferedReader(_Stream(self), AHEAD)
        file.seek(offset)
        return file


class _Stream(io.RawIOBase):
    """A content as an unbuffered file."""

    def __init__(self, content: Content) -> None:
        super().__init__()
        self._content, self._place = content, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it has places."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place."""
        self._place = offset + (0, self._place, self._content.size)[whence]
        return self._place

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what BufferedReader calls it with
        """Fill a buffer, as far as there are bytes."""
        found = self._content.at(self._place, len(buffer))
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)
