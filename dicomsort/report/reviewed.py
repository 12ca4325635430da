"""How a manifest tells of a person's decision: one row a file, whose message says by whom, and where the file lay."""

from __future__ import annotations

import re

from dicomsort.records import OF_ONE_FILE, REVIEW, REVIEWED, REVIEWED_FILE, Action

_WAS = "; was "
_NO_NAME = re.compile(r"[^\w.@ +-]+")
MAX_NAME = 64


def message_of(who: str, was: str) -> str:
    """What the row of a decided file says; ``was`` is where it lay below the outbox."""
    return f"by {who}{_WAS}{was}"


def who_of(message: str) -> str:
    """Who decided, as the message of a decided file's row says; what the move could not keep stands before it."""
    return message.partition(_WAS)[0].rpartition("; ")[2].removeprefix("by ")


def reviewer(name: str) -> str:
    """A person's name as it may stand in a message: letters, digits, blanks and ``.@_+-``, at most 64."""
    return _NO_NAME.sub("", name).strip()[:MAX_NAME].strip() or "unknown"


def decided_from(action: str, reason: str, message: str) -> str:
    """Where a row's file lay before a person decided about it; empty where the row tells of no such move.

    ``message`` is as it was before a manifest escaped it.
    """
    if reason != REVIEWED or action == Action.LEFT:
        return ""
    was = message.partition(_WAS)[2]
    return was if is_held_place(was) else ""


def is_held_place(path: str) -> bool:
    """Whether a path below an outbox is one of something held: a manifest may have been edited."""
    parts = path.split("/")
    return len(parts) > 2 and parts[0] == REVIEW and not {"", ".", ".."} & set(parts) and "\0" not in path  # noqa: PLR2004


def binds(reason: str, was: str) -> str:
    """The reason by which a decision is remembered: it binds the series, or, held for what one file is, that file."""
    return REVIEWED_FILE if reason == REVIEWED and was.split("/")[1] in OF_ONE_FILE else reason
