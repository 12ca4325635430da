"""What a service remembers of an inbox from round to round, in a few bytes a file.

A file is known by its path, size, time and inode, as a 64-bit number: what changes in any of these is news. Nothing of
it is written down: after a restart everything is looked at once more, and what the manifest tells already is no news.
"""

from __future__ import annotations

import heapq
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from dicomsort.discover import Folder, Passed
from dicomsort.errors import DicomsortError
from dicomsort.records import Action, Found, Row, Status

AGAIN_NS = 3600 * 10**9  # until a file that failed is tried again, if nothing changes it before
TRANSIENT = frozenset({"part-file", "vanished"})  # gone before anybody reads of it
_TRIED_AGAIN = frozenset({Status.FAILED, Status.CHANGED, Status.CONFLICT})
_MASK = 2 * sys.maxsize + 1


class Keys:
    """A set of 64-bit numbers that takes 8 bytes each."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        """``numbers`` may come in any order, and twice."""
        self._sorted = array("Q", (key for key, _ in groupby(sorted(numbers))))

    def __contains__(self, key: int) -> bool:
        place = bisect_left(self._sorted, key)
        return place < len(self._sorted) and self._sorted[place] == key

    def __len__(self) -> int:
        return len(self._sorted)

    def update(self, numbers: Iterable[int]) -> None:
        """Add numbers."""
        merged = heapq.merge(self._sorted, sorted(numbers))
        self._sorted = array("Q", (key for key, _ in groupby(merged)))


@dataclass(frozen=True, slots=True)
class Scan:
    """What one walk of the inbox met; times are nanoseconds since 1970, None where there is no such file.

    ``waiting`` files have been dealt with by no round; ``ripe`` of them are not held up by their own time.
    """

    files: int = 0
    oldest_ns: int | None = None
    waiting: int = 0
    waiting_since_ns: int | None = None
    ripe: int = 0


class KnownFiles:
    """The memory of one service, by which it tells ``sorting`` what is new and since when (``sorting.Arrivals``).

    A file changed when it says so itself, but not after it was first met: the clock of a file server may go wrong.
    Where mtime and ctime lie ahead of the clock, it counts from when it was first met: two rounds tell if it rests. A
    file that came while the service ran is taken for fresh until it was met again, for copies often keep old times.
    """

    def __init__(self, settle_ns: int, again_ns: int, clock: Callable[[], int]) -> None:
        """``clock`` tells nanoseconds since 1970 and never goes back; a file is fresh until ``again_ns`` later."""
        self._settle_ns = settle_ns
        self._fresh_ns = settle_ns - min(again_ns, settle_ns)
        self._clock = clock
        self._known = Keys()
        self._changed: dict[int, int] = {}  # of files that wait: key -> when they changed
        self._again: dict[int, int] = {}  # of files that failed: key -> when to try again
        self._is_first = True
        self._met = array("Q")  # of the round at hand: path, key, when it changed; three numbers a file
        self._waits: set[int] = set()  # of the round at hand, by path
        self._failed: set[int] = set()

    def forget(self) -> None:
        """Somebody else changed the outbox: everything in the inbox may be to be sorted again."""
        self._known, self._again, self._is_first = Keys(), {}, True

    def scan(self, entries: Iterable[Found | Passed | Folder]) -> Scan:
        """Count what lies in the inbox, and forget what does not any more; a new round begins."""
        now = self._clock()
        self._met, self._waits, self._failed = array("Q"), set(), set()
        self._again = {key: due for key, due in self._again.items() if due > now}
        there, count = array("Q"), _Count(now, self._settle_ns)
        waiting: dict[int, int] = {}
        for entry in entries:
            if isinstance(entry, Passed) and entry.path == "./":
                raise DicomsortError(f"INBOX: expected a folder that can be read, received: {entry.message}")
            if isinstance(entry, Found):
                count.meet(entry)
            if isinstance(entry, Folder) or _is_transient(entry):
                continue
            key = _key(entry)
            if key in self._known:
                there.append(key)
            elif key not in self._again:
                changed = self._since(key, entry, now)
                if not count.wait(entry, changed) or not self._is_first:
                    waiting[key] = changed
        if len(there) != len(self._known):
            self._known = Keys(there)
        if not (count.ripe and self._is_first):  # else the round that follows tells which of a full inbox must wait
            self._changed, self._is_first = waiting, False
        return count.told()

    def is_known(self, entry: Found | Passed | Folder) -> bool:
        """Whether a round has dealt with it; what it has not is what the round at hand is about."""
        if isinstance(entry, Folder):
            return False
        key = _key(entry)
        if _is_transient(entry) or key in self._known or key in self._again:
            return True
        self._met.extend((hash(entry.path) & _MASK, key, self._since(key, entry, self._clock())))
        return False

    def changed_ns(self, found: Found) -> int:
        """When a file changed, for settling."""
        return self._since(_key(found), found, self._clock())

    def note(self, row: Row) -> None:
        """Remember what must be looked at again: what settles, and what failed."""
        if row.status == Status.SETTLING:
            self._waits.add(hash(row.source) & _MASK)
        elif row.action == Action.LEFT and row.status in _TRIED_AGAIN:
            self._failed.add(hash(row.source) & _MASK)

    def end_round(self) -> None:
        """The round came to its end: all that it met is dealt with, but for what must be looked at again."""
        met, due = self._met, self._clock() + AGAIN_NS
        self._changed, dealt_with = {}, array("Q")
        for path, key, changed in zip(met[::3], met[1::3], met[2::3], strict=True):
            if path in self._waits:
                self._changed[key] = changed
            elif path in self._failed:
                self._again[key] = due
            else:
                dealt_with.append(key)
        self._known.update(dealt_with)
        self._is_first = False
        self._met, self._waits, self._failed = array("Q"), set(), set()

    def _since(self, key: int, entry: Found | Passed, now: int) -> int:
        if isinstance(entry, Passed):
            return 0
        if key in self._changed:
            return self._changed[key]
        changed = now if entry.is_ahead else min(max(entry.changed_ns, 0), now)
        return changed if self._is_first else max(changed, now - self._fresh_ns)


class _Count:
    """Adds a scan up."""

    def __init__(self, now: int, settle_ns: int) -> None:
        self._settled_before = now - settle_ns if settle_ns else now
        self._files = self._waiting = 0
        self._oldest: int | None = None
        self._since: int | None = None
        self.ripe = 0

    def meet(self, found: Found) -> None:
        self._files += 1
        self._oldest = found.mtime_ns if self._oldest is None else min(self._oldest, found.mtime_ns)

    def wait(self, entry: Found | Passed, changed: int) -> bool:
        """Count what waits, which is no file where it is a link or a folder that is closed; whether it is ripe."""
        is_ripe = changed <= self._settled_before
        self.ripe += is_ripe
        if isinstance(entry, Found):
            self._waiting += 1
            self._since = changed if self._since is None else min(self._since, changed)
        return is_ripe

    def told(self) -> Scan:
        return Scan(self._files, self._oldest, self._waiting, self._since, self.ripe)


def _key(entry: Found | Passed) -> int:
    if isinstance(entry, Found):
        return hash((entry.path, entry.size, entry.mtime_ns, entry.device, entry.inode)) & _MASK
    return hash((entry.path, entry.reason)) & _MASK


def _is_transient(entry: Found | Passed) -> bool:
    return isinstance(entry, Passed) and entry.reason in TRANSIENT
