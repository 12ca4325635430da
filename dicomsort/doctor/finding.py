"""What one check found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from dicomsort.errors import DicomsortError


class State(StrEnum):
    """How bad it is: fine, to be known, to be mended."""

    FINE = "fine"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was checked ("": as ``checked`` names it), what was found, and how to mend what is not fine."""

    state: State
    what: str
    message: str
    mend: str = ""


def fine(message: str, what: str = "") -> Finding:
    """Nothing to do."""
    return Finding(State.FINE, what, message)


def note(message: str, mend: str, what: str = "") -> Finding:
    """It works, but somebody should know."""
    return Finding(State.NOTE, what, message, mend)


def wrong(message: str, mend: str, what: str = "") -> Finding:
    """It does not work."""
    return Finding(State.WRONG, what, message, mend)


def checked(what: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check under its name, and one more where the system refuses the check itself."""
    try:
        for finding in findings:
            yield finding if finding.what else replace(finding, what=what)
    except OSError as error:
        yield wrong(f"expected to look, received {error.strerror or error}", "mend that, then ask again", what)


def refused(mend: str, check: Callable[[], object], what: str = "") -> Iterator[Finding]:
    """Yield a finding where ``check`` raises one of our errors."""
    try:
        check()
    except DicomsortError as error:
        yield wrong(str(error), mend, what)
