"""What lies in an inbox: everything for ``sort``; for a round of ``watch``, what no earlier round has dealt with."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dicomsort.catalog import Catalog
from dicomsort.discover import Folder, Passed, walk
from dicomsort.files import look_up
from dicomsort.progress import Progress
from dicomsort.records import Found, Group, Row, Vote

PAUSE = 1.0  # seconds between two steps of the progress while nothing else is done


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


@dataclass(frozen=True, slots=True)
class Clock:
    """Where times come from, and how to wait; ``now_ns`` tells nanoseconds since 1970, and may be wrong, or jump."""

    now_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def walk_inbox(
    inbox: str, outbox: str | None, clock: Callable[[], int] = time.time_ns
) -> Iterator[Found | Passed | Folder]:
    """Walk an inbox, but not the outbox where that lies in it."""
    return walk(inbox, _is_state_of(outbox), clock)


class SecondLook:
    """Tells whether files still change whose mtime and ctime both lie ahead of the clock: by two looks at them."""

    def __init__(self, inbox: str, settle: float, clock: Clock) -> None:
        """The looks are ``settle`` seconds apart, or more."""
        self._inbox, self._settle, self._clock = inbox, settle, clock
        self._met: float | None = None  # when the last of them was met, by the monotonic clock

    def watch(self, entries: Iterable[Found | Passed | Folder]) -> Iterator[Found | Passed | Folder]:
        """Yield what a walk meets, and note whether there are such files."""
        for entry in entries:
            if isinstance(entry, Found) and entry.is_ahead:
                self._met = self._clock.monotonic()
            yield entry

    def take(self, catalog: Catalog, progress: Progress) -> None:
        """Wait as long as needed, then look again; the groups of those that changed are unsettled."""
        if self._met is None:
            return
        due = self._met + self._settle
        left = due - self._clock.monotonic()
        if left > 0:
            progress.stage("waiting until files dated in the future have settled", math.ceil(left / PAUSE))
        while left > 0:
            self._clock.sleep(min(left, PAUSE))
            progress.advance()
            left = due - self._clock.monotonic()
        for group, found in catalog.dated_ahead():
            if not self._is_as_met(found):
                catalog.unsettle(group)

    def _is_as_met(self, found: Found) -> bool:
        try:
            status = look_up(f"{self._inbox}/{found.path}")
        except OSError:
            return False
        if status is None:
            return False
        now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return now == (found.size, found.mtime_ns, found.ctime_ns, found.inode)


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
