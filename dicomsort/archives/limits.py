"""The limits on what an archive may hold: against zip bombs, and for the room on the disk."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from dicomsort.errors import DicomsortError
from dicomsort.records import ARCHIVE_LIMIT

_FREE_BYTES = 64 << 20  # that an archive may unpack to before its ratio counts: a few blank images are no bomb


class ArchiveRefused(DicomsortError):
    """The archive, or one member, is not unpacked; ``reason`` is the manifest's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The most that an archive may hold: files, bytes of one file, bytes of all, times its own size; and seconds."""

    members: int
    file_bytes: int
    bytes: int
    ratio: float
    seconds: float


class Budget:
    """Counts what comes out of an archive; ArchiveRefused where a limit is passed."""

    def __init__(self, limits: ArchiveLimits, archive_bytes: int, free_bytes: int) -> None:
        """``free_bytes`` is the room on the disk that it is unpacked to."""
        self._limits, self._free = limits, free_bytes
        self._members = self._written = self._read = 0
        self._most = min(limits.bytes, max(int(limits.ratio * archive_bytes), _FREE_BYTES))

    def add_member(self, promised: int) -> None:
        """Count a member before it is read, with the size that the archive promises."""
        self._members += 1
        if self._members > self._limits.members:
            raise ArchiveRefused(ARCHIVE_LIMIT, f"expected at most {self._limits.members:,} files, received more")
        self._require_size(promised)

    def add_read(self, count: int) -> None:
        """Count decompressed bytes, those between members too."""
        self._read += count
        self.require_total(self._read)

    def add_written(self, count: int, of_member: int) -> None:
        """Count bytes of a member, ``of_member`` in all so far."""
        self._written += count
        self.require_total(self._written)
        self._require_size(of_member)

    def require_total(self, size: int) -> None:
        """Check the size of all that comes out of the archive, or that it promises; OSError without room for it."""
        if size > self._most:
            expected = f"expected files of at most {self._most:,} bytes together"
            raise ArchiveRefused(ARCHIVE_LIMIT, f"{expected}, received {size:,} or more")
        if size > self._free:
            received = f"{self._free:,} bytes free"
            raise OSError(errno.ENOSPC, f"expected room to unpack {size:,} bytes or more, received {received}")

    def _require_size(self, size: int) -> None:
        if size > self._limits.file_bytes:
            expected = f"expected files of at most {self._limits.file_bytes:,} bytes"
            raise ArchiveRefused(ARCHIVE_LIMIT, f"{expected}, received one of {size:,} or more")
