"""Statuses of a C-STORE (PS3.7 annex C, PS3.4 table B.2-1), which STOW-RS uses as failure reasons too (PS3.18 10.5.3).

What the peer adds in words is not repeated anywhere: it may name a patient.
"""

from __future__ import annotations

SUCCESS = 0x0000
_STORED = {SUCCESS, 0xB000, 0xB006, 0xB007}  # PS3.4 table B.2-1
_WARNINGS = {0x0001, 0x0107, 0x0116}
_EXACT = {
    0x0001: "a warning",
    0x0105: "no such attribute",
    0x0106: "an attribute has an invalid value",
    0x0107: "attributes were left out",
    0x0110: "processing failed",
    0x0111: "an instance of this UID is there already",
    0x0112: "no such instance",
    0x0116: "an attribute's value was out of range",
    0x0117: "invalid SOP Instance UID",
    0x0118: "no such SOP class",
    0x0119: "the instance does not match its class",
    0x0122: "the SOP class is not supported",
    0x0124: "not authorised",
    0x0210: "duplicate invocation",
    0x0211: "unrecognised operation",
    0x0212: "mistyped argument",
    0x0213: "out of resources",
    0xB000: "data elements were changed there",
    0xB006: "elements were discarded there",
    0xB007: "the data set does not match its SOP class",
    0xC122: "the transfer syntax is not supported",
    0xFE00: "cancelled",
}
_RANGES = (
    (0xA700, 0xA7FF, "out of resources"),
    (0xA900, 0xA9FF, "the data set does not match its SOP class"),
    (0xB000, 0xBFFF, "an unknown warning"),
    (0xC000, 0xCFFF, "cannot be understood"),
)


def describe(status: int) -> str:
    """Return the status in words and as a number; empty for success."""
    if status == SUCCESS:
        return ""
    ranges = (words for first, last, words in _RANGES if first <= status <= last)
    words = _EXACT.get(status) or next(ranges, "an unknown status")
    return f"the peer says: {words} (0x{status:04X})"


def is_stored(status: int) -> bool:
    """Whether a C-STORE with this status stored the instance: success, and the warnings that storage defines."""
    return status in _STORED


def is_warning(status: int) -> bool:
    """Whether it is a warning (PS3.7 annex C), which alone does not say that anything was stored."""
    return status in _WARNINGS or 0xB000 <= status <= 0xBFFF  # noqa: PLR2004


def is_temporary(status: int) -> bool:
    """Whether the same instance may be accepted later."""
    return 0xA700 <= status <= 0xA7FF or status == 0x0213  # noqa: PLR2004
