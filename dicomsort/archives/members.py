"""A member of an archive, the limits on all of them, and what makes a member's name unsafe."""

from __future__ import annotations

import errno
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dicomsort.errors import DicomsortError
from dicomsort.records import ARCHIVE_LIMIT

ENCRYPTED = "archive-encrypted"
DAMAGED = "archive-damaged"
UNSAFE_NAME = "archive-unsafe-name"
_SHOWN = 200  # characters of an unsafe name
LONGEST_PART, LONGEST_NAME = 255, 1024  # bytes of a part of a member's name, and of all of it
PIECE = 1 << 20
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


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive; ``name`` is as the archive has it.

    ``size`` is the promised one in bytes, ``mtime`` in seconds since 1970 (None: no valid time). ``unsafe`` says why it
    must not be unpacked. ``read`` yields its bytes, in pieces; MemberDamaged where that member alone is damaged.
    """

    name: str
    size: int
    mtime: float | None
    read: Callable[[], Iterator[bytes]]
    unsafe: str = ""


class MemberDamaged(ArchiveRefused):
    """One member alone is damaged."""

    def __init__(self, message: str) -> None:
        super().__init__(DAMAGED, message)


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


def safe_name(name: str) -> tuple[str, str]:
    """Return a member's name without empty and ``.`` parts; and why it is unsafe, or ``""``.

    Archives made on Windows may have backslashes as separators.
    """
    parts = name.replace("\\", "/").split("/")
    if (parts[0] == "" and name) or re.fullmatch("[A-Za-z]:", parts[0]):
        return "", "its name is an absolute path"
    if ".." in parts:
        return "", "its name leads to a folder above"
    if any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in name):
        return "", "its name holds control characters"
    kept = [part for part in parts if part not in {"", "."}]
    sizes = [len(part.encode(errors="surrogateescape")) for part in kept]
    if not kept or max(sizes) > LONGEST_PART or sum(sizes) + len(sizes) > LONGEST_NAME:
        return "", "its name is empty, or too long"
    return "/".join(kept), ""


def shown_name(name: str) -> str:
    """Return an unsafe name for a person: one line, cut to a length, and one part, so that it leads nowhere."""
    parts = re.split(r"[/\\]", "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:_SHOWN]))
    return "\N{DIVISION SLASH}".join(parts) if any(parts) else "(no name)"


def said(error: Exception) -> str:
    """Return what a library said of broken bytes, in one short line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:LONGEST_PART]
