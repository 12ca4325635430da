"""When cron is to run a line: whether the five fields, or the name in their place, are any."""

from __future__ import annotations

import re

_NAMES = frozenset(
    {"@reboot", "@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
    | {"@every_minute", "@every_second"}  # of FreeBSD
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# The least and the greatest number of each field, and the names that stand for numbers from the least on.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_PART = re.compile(r"(?:\*|(\w*)(?:([-~])(\w*))?)(?:/(\d+))?", re.ASCII)


def schedule_problem(schedule: str) -> str:
    """What is wrong with the time of a crontab's line; "" where cron takes it."""
    if schedule.startswith("@"):
        known = ", ".join(sorted(_NAMES))
        return "" if schedule.lower() in _NAMES else f"expected one of {known}, received {schedule!r}"
    for text, (field, least, most, names) in zip(schedule.split(), _FIELDS, strict=True):
        for part in text.lower().split(","):
            if not _is_part(part, least, most, names):
                return f"expected as the {field} numbers from {least} to {most}, ranges, steps or *, received {text!r}"
    return ""


def _is_part(part: str, least: int, most: int, names: tuple[str, ...]) -> bool:
    """Whether it is ``*``, a number, a range, or a random number of one (``~``), with a step or without."""
    found = _PART.fullmatch(part)
    if found is None or not part or (found[4] and int(found[4]) == 0):
        return False
    if part.startswith("*"):
        return True
    ends = [_number(end, least, names) for end in (found[1], found[3]) if end]
    is_whole = all((found[1], found[3])) if found[2] == "-" else bool(found[1] or found[2])
    return is_whole and all(least <= end <= most for end in ends) and ends == sorted(ends)


def _number(text: str, least: int, names: tuple[str, ...]) -> int:
    """The number of a name or of digits; -1 for what is neither."""
    if text in names:
        return names.index(text) + least
    return int(text) if text.isdigit() and len(text) < 4 else -1  # noqa: PLR2004 - digits of the largest, and a zero
