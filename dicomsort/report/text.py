"""Names as the manifest writes them, and as a terminal may show them."""

from __future__ import annotations

import os
import re

from dicomsort.errors import escaped

FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f]")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def printable(text: str) -> str:
    r"""The text as UTF-8 can hold it: bytes that are no UTF-8, and control characters but line feed, become ``\xNN``.

    A backslash that would read as the beginning of such an escape becomes one itself, so that ``restored`` can tell.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    plain = _ESCAPE.sub(lambda found: f"\\x5cx{found[1]}", text)
    plain = plain.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", plain)


def restored(text: str) -> str:
    """The inverse of ``printable``."""
    if "\\x" not in text:
        return text
    parts = _ESCAPE.split(text)
    parts[1::2] = [bytes.fromhex(code) for code in parts[1::2]]
    return os.fsdecode(b"".join(part if isinstance(part, bytes) else os.fsencode(part) for part in parts))


def cell(text: str) -> str:
    """The text as a cell that no spreadsheet runs as a formula."""
    shown = printable(text)
    return f"'{shown}" if text.startswith(FORMULA) else shown


def uncelled(text: str) -> str:
    """What ``cell`` was given, but for a name that began with an apostrophe before such a sign itself."""
    plain = restored(text)
    return plain[1:] if plain[:1] == "'" and plain[1:].startswith(FORMULA) else plain


def is_plain(line: str) -> bool:
    """Whether cells, joined by commas, are what ``cell`` makes of them but the first, and none needs quotes."""
    if not (line.isascii() and line.isprintable()) or "\\" in line or '"' in line:
        return False
    return ",=" not in line and ",+" not in line and ",-" not in line and ",@" not in line


def visible(text: str) -> str:
    """The text for a terminal: control characters, which could drive it, are escaped."""
    return escaped(printable(text))


def size(count: int) -> str:
    """A number of bytes for people."""
    amount, unit = float(count), "bytes"
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":  # noqa: PLR2004 - the next unit begins there
            break
        amount /= 1000
    return f"{amount:,.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"  # noqa: PLR2004
