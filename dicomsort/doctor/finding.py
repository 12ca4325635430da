"""What one check found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How bad it is: fine, to be known, to be mended."""

    FINE = "fine"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and how to mend what is not fine."""

    state: State
    what: str
    told: str
    mend: str = ""


def fine(what: str, told: str) -> Finding:
    """Nothing to do."""
    return Finding(State.FINE, what, told)


def note(what: str, told: str, mend: str) -> Finding:
    """It works, but somebody should know."""
    return Finding(State.NOTE, what, told, mend)


def wrong(what: str, told: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(State.WRONG, what, told, mend)


def guarded(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; a finding too where the system refuses the check itself."""
    try:
        yield from check()
    except OSError as error:
        yield wrong(what, f"expected to look, received {error.strerror or error}", "mend that, then ask again")
