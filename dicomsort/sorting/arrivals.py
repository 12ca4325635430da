"""What lies in an inbox: everything for ``sort``; for a round of ``watch``, what no earlier round has dealt with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dicomsort.discover import Folder, Passed, walk
from dicomsort.records import Found, Group, Row, Vote


class Arrivals(Protocol):
    """What a service remembers from round to round."""

    def is_known(self, entry: Found | Passed | Folder) -> bool:
        """Whether an earlier round has dealt with this, so that it is no news."""

    def changed_ns(self, found: Found) -> int:
        """When the file changed, or was first met; what ``Judge.settled_before_ns`` is compared with."""

    def note(self, row: Row) -> None:
        """What becomes of one of the files; told again where it is planned again."""


@dataclass(frozen=True, slots=True)
class Survey:
    """How many files an inbox holds, and when the oldest was last changed (nanoseconds since 1970; None: no file)."""

    files: int = 0
    oldest_ns: int | None = None


def walk_inbox(inbox: str, outbox: str | None) -> Iterator[Found | Passed | Folder]:
    """Walk an inbox, but not the outbox where that lies in it."""
    return walk(inbox, _is_state_of(outbox))


def survey(inbox: str, outbox: str | None) -> Survey:
    """Count the regular files of an inbox."""
    files, oldest = 0, None
    for entry in walk_inbox(inbox, outbox):
        if isinstance(entry, Found):
            files += 1
            oldest = entry.mtime_ns if oldest is None else min(oldest, entry.mtime_ns)
    return Survey(files, oldest)


def as_one(study: Sequence[tuple[Group, Vote]]) -> list[tuple[Group, Vote]]:
    """The groups of a study as settled as the one that changed last, so that it waits whole."""
    newest = max(group.newest_mtime_ns for group, _ in study)
    return [(replace(group, newest_mtime_ns=newest), vote) for group, vote in study]


def _is_state_of(outbox: str | None) -> Callable[[os.stat_result], bool]:
    """Whether a folder of the walk is the outbox itself."""
    try:
        there = os.stat(outbox) if outbox else None
    except FileNotFoundError:
        there = None
    if there is None:
        return lambda _: False
    return lambda status: (status.st_dev, status.st_ino) == (there.st_dev, there.st_ino)
