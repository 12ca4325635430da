"""When files have settled: a study is left alone as long as one of its files may still be written.

``settled_before`` is compared with the time when a file last changed. ``Found.changed_ns`` tells that, in a service
``KnownFiles.changed_ns``: it met the file before. The rule ``settling`` of ``classify.rules`` decides by the newest
file of a group. ``sorting.archives`` leaves an archive closed until it has settled.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dicomsort.catalog import Catalog
from dicomsort.discover import Folder, Passed
from dicomsort.progress import Progress
from dicomsort.records import Found, Group, Prediction

SETTLE = 60.0  # seconds, where files are moved and nothing else is asked for
PAUSE = 1.0  # seconds between two steps of the progress while nothing else is done


@dataclass(frozen=True, slots=True)
class Clock:
    """The source of times, and how to wait; ``now_ns`` returns nanoseconds since 1970, and may be wrong, or jump."""

    now_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def settled_before(now_ns: int, settle_ns: int) -> int | None:
    """Return the time before which a file must have changed last, nanoseconds since 1970; None: nothing settles."""
    return now_ns - settle_ns if settle_ns > 0 else None


@dataclass
class SecondLook:
    """Finds out whether files still change whose mtime and ctime both lie ahead of the clock: it reads them twice."""

    inbox: str
    settle: float  # seconds between the two, at least
    clock: Clock
    _last: float | None = None  # when the last of them was found, by the monotonic clock

    def watch(self, entries: Iterable[Found | Passed | Folder]) -> Iterator[Found | Passed | Folder]:
        """Yield the entries of a walk, and note when the last such file was found."""
        for entry in entries:
            if isinstance(entry, Found) and entry.is_ahead:
                self._last = self.clock.monotonic()
            yield entry

    def take(self, catalog: Catalog, progress: Progress) -> None:
        """Wait as long as needed, then compare; the groups of files that changed are unsettled."""
        if self._last is None:
            return
        due = self._last + self.settle
        left = due - self.clock.monotonic()
        if left > 0:
            progress.stage("waiting until files dated in the future have settled", math.ceil(left / PAUSE))
        while left > 0:
            self.clock.sleep(min(left, PAUSE))
            progress.advance()
            left = due - self.clock.monotonic()
        for group, found in catalog.dated_ahead():
            if not self._is_unchanged(found):
                catalog.unsettle(group)

    def _is_unchanged(self, found: Found) -> bool:
        try:
            status = os.lstat(f"{self.inbox}/{found.path}")
        except OSError:
            return False
        now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return now == (found.size, found.mtime_ns, found.ctime_ns, found.inode)


def as_one(study: Sequence[tuple[Group, Prediction]]) -> list[tuple[Group, Prediction]]:
    """Return the groups of a study as if all had changed with the newest, so that it waits whole."""
    newest = max(group.newest_mtime_ns for group, _ in study)
    return [(replace(group, newest_mtime_ns=newest), prediction) for group, prediction in study]
