"""What a service remembers of an inbox from round to round, in a few bytes a file.

A file is known by its path, size, time and inode, as a 64-bit number; where any of these changes, it is new. Nothing is
written down: after a restart everything is examined once more, and what the manifest says already is not said again.
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
from dicomsort.records import Action, Found, Row, Status, possible_archives

AGAIN_NS = 3600 * 10**9  # until a file that failed is retried, if nothing changes it before
TRANSIENT = frozenset({"part-file", "vanished"})  # gone before anybody reads of it
_RETRIED = frozenset({Status.FAILED, Status.CHANGED, Status.CONFLICT})
_MASK = 2 * sys.maxsize + 1


class Keys:
    """A set of 64-bit numbers that takes 8 bytes each; they may come in any order, and twice."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._sorted = array("Q")
        self.update(numbers)

    def __contains__(self, key: int) -> bool:
        place = bisect_left(self._sorted, key)
        return place < len(self._sorted) and self._sorted[place] == key

    def __len__(self) -> int:
        return len(self._sorted)

    def update(self, numbers: Iterable[int]) -> None:
        """Add numbers."""
        merged = heapq.merge(self._sorted, sorted(numbers))
        self._sorted = array("Q", (key for key, _ in groupby(merged)))


@dataclass(slots=True)
class Scan:
    """Counts of one walk of the inbox; times are nanoseconds since 1970, None where there is no such file.

    ``waiting`` files have been dealt with by no round; ``ripe`` are those that need not settle any longer, with links
    and closed folders.
    """

    files: int = 0
    oldest_ns: int | None = None
    waiting: int = 0
    waiting_since_ns: int | None = None
    ripe: int = 0


class KnownFiles:
    """The memory of one service, by which ``sorting`` learns what is new and since when (``sorting.examine.Arrivals``).

    ``clock`` returns nanoseconds since 1970 and never goes back. A file changed when it says so itself, but not after
    it was first met: the clock of a file server may go wrong. Where mtime and ctime lie ahead of the clock, it counts
    from when it was first met: two rounds tell if it rests. A file that came while the service ran is taken for fresh
    until it was met again ``again_ns`` later, for copies often keep old times.
    """

    def __init__(self, settle_ns: int, again_ns: int, clock: Callable[[], int]) -> None:
        self._settle_ns = settle_ns
        self._fresh_ns = settle_ns - min(again_ns, settle_ns)
        self._clock = clock
        self._known = Keys()
        self._changed: dict[int, int] = {}  # of files that wait: key -> when they changed
        self._again: dict[int, int] = {}  # of files that failed: key -> when to retry them
        self._is_first = True
        self._begin_round()

    def _begin_round(self) -> None:
        self._met = array("Q")  # path, key, when it changed; three numbers a file
        self._waits: set[int] = set()  # by path
        self._failed: set[int] = set()

    def forget(self) -> None:
        """Forget all: somebody else changed the outbox, so everything in the inbox may have to be sorted again."""
        self._known, self._again, self._is_first = Keys(), {}, True

    def scan(self, entries: Iterable[Found | Passed | Folder]) -> Scan:
        """Count what lies in the inbox, and forget what does not any more; a new round begins."""
        now = self._clock()
        self._begin_round()
        self._again = {key: due for key, due in self._again.items() if due > now}
        present, scan = array("Q"), Scan()
        waiting: dict[int, int] = {}
        for entry in entries:
            if isinstance(entry, Passed) and entry.path == "./":
                raise DicomsortError(f"INBOX: expected a folder that can be read, received: {entry.message}")
            if isinstance(entry, Found):
                scan.files += 1
                scan.oldest_ns = _earlier(scan.oldest_ns, entry.mtime_ns)
            if isinstance(entry, Folder) or _is_transient(entry):
                continue
            key = _key(entry)
            if key in self._known:
                present.append(key)
            elif key not in self._again:
                changed = self._since(key, entry, now)
                is_ripe = changed <= now - self._settle_ns
                scan.ripe += is_ripe
                if isinstance(entry, Found):
                    scan.waiting += 1
                    scan.waiting_since_ns = _earlier(scan.waiting_since_ns, changed)
                if not is_ripe or not self._is_first:
                    waiting[key] = changed
        if len(present) != len(self._known):
            self._known = Keys(present)
        if not (scan.ripe and self._is_first):  # else the round that follows finds which of a full inbox must wait
            self._changed, self._is_first = waiting, False
        return scan

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
        """Return when a file changed, for settling; one in an archive rests as that does, which was opened for it."""
        return 0 if found.archive else self._since(_key(found), found, self._clock())

    def note(self, row: Row) -> None:
        """Remember what must be examined again: what settles, and what failed; the archive of a file in one."""
        paths = {hash(path) & _MASK for path in (row.source, *possible_archives(row.source))}
        if row.status == Status.SETTLING:
            self._waits |= paths
        elif row.action == Action.LEFT and row.status in _RETRIED:
            self._failed |= paths

    def end_round(self) -> None:
        """Take all that the round met as dealt with, but for what must be examined again."""
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
        self._begin_round()

    def _since(self, key: int, entry: Found | Passed, now: int) -> int:
        if isinstance(entry, Passed):
            return 0
        if key in self._changed:
            return self._changed[key]
        changed = now if entry.is_ahead else min(max(entry.changed_ns, 0), now)
        return changed if self._is_first else max(changed, now - self._fresh_ns)


def _earlier(known_ns: int | None, ns: int) -> int:
    return ns if known_ns is None else min(known_ns, ns)


def _key(entry: Found | Passed) -> int:
    if isinstance(entry, Found):
        return hash((entry.path, entry.size, entry.mtime_ns, entry.device, entry.inode)) & _MASK
    return hash((entry.path, entry.reason)) & _MASK


def _is_transient(entry: Found | Passed) -> bool:
    return isinstance(entry, Passed) and entry.reason in TRANSIENT
