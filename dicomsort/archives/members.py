"""A member of an archive, and what makes a member's name unsafe."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dicomsort.archives.limits import ArchiveRefused

ENCRYPTED = "archive-encrypted"
DAMAGED = "archive-damaged"
UNSAFE_NAME = "archive-unsafe-name"
_SHOWN = 200  # characters of an unsafe name
LONGEST_PART, LONGEST_NAME = 255, 1024  # bytes of a part of a member's name, and of all of it
PIECE = 1 << 20


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
