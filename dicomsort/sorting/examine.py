"""Walk, examine in workers, spool: the first half of the pipeline, with a bounded number of files on the way.

``sort`` takes everything in an inbox; a round of ``watch`` takes what no earlier round has dealt with.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import filterfalse
from typing import Protocol

from dicomsort.catalog import Catalog
from dicomsort.classify import grouping_of, showable_frames
from dicomsort.discover import Folder, Passed, walk
from dicomsort.engines.engine import Engine, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.files import sha256_of
from dicomsort.files.beneath import Beneath
from dicomsort.progress import Progress
from dicomsort.records import Examined, Found, Grouping, Header, Kind, Row
from dicomsort.tasks import examine, location

BATCH_FILES = 64
BATCH_BYTES = 32 << 20


def examine_inbox(
    inbox: str,
    entries: Iterable[Found | Passed | Folder],
    engine: Engine,
    catalog: Catalog,
    progress: Progress,
    puts_off: Callable[[Examined], bool] = lambda _: False,
) -> Iterator[dict[int, int]]:
    """Fill the catalog with the files that a walk of the inbox yields, in path order.

    Files that ``puts_off`` is true of are kept apart there. Yields, after each batch, how many files each group got, by
    the group's number.
    """
    progress.stage("reading headers", None)
    task = partial(examine, inbox)
    waiting: deque[tuple[Future[list[Examined]] | None, list[Passed]]] = deque()

    def take() -> dict[int, int]:
        future, passed = waiting.popleft()
        batch = [*(future.result() if future else ()), *map(_passed, passed)]
        progress.advance(len(batch))
        for e in filter(puts_off, batch):
            catalog.put_off(hashed_here(inbox, e))
        return catalog.add([spooled(inbox, e) for e in filterfalse(puts_off, batch)])

    for files, passed in _batches(entries, catalog):
        waiting.append((submit_batch(engine, task, files, on_lost) if files else None, passed))
        while waiting and (len(waiting) > 4 * engine.workers or (first := waiting[0][0]) is None or first.done()):
            yield take()
    while waiting:
        yield take()


def _batches(
    entries: Iterable[Found | Passed | Folder], catalog: Catalog
) -> Iterator[tuple[list[Found], list[Passed]]]:
    files: list[Found] = []
    size = 0
    for entry in entries:
        if isinstance(entry, Folder):
            catalog.add_folders([(entry.path, entry.mode, entry.mtime_ns)])
        elif isinstance(entry, Passed):
            yield files, [entry]
            files, size = [], 0
        else:
            files.append(entry)
            size += entry.size
            if len(files) >= BATCH_FILES or size >= BATCH_BYTES:
                yield files, []
                files, size = [], 0
    yield files, []


def spooled(inbox: str, e: Examined) -> tuple[Examined, Grouping, int]:
    """Return what the catalog holds of a file: with its hash, its group, and how many frames may be shown."""
    e = hashed_here(inbox, e)
    return e, grouping_of(e), showable_frames(e)


def hashed_here(inbox: str, e: Examined) -> Examined:
    """Return the file with its hash, where a worker left that out because no time limit may cut it short."""
    if e.sha256 or e.failed or not e.found.inode:
        return e
    beneath = Beneath(inbox)
    try:
        with beneath.kept_open():
            return Examined(e.found, e.header, sha256_of(location(beneath, e.found)))
    except OSError as error:
        return Examined(e.found, e.header, failed=error.strerror or str(error))


def on_lost(found: Found, error: WorkerLost) -> Examined:
    """Return what is known of a file that cost a worker."""
    if error.from_outside:  # the file is not at fault, and stays for the next run
        return Examined(found, Header(Kind.UNKNOWN), failed=f"reading the header: {error}")
    return Examined(found, Header(Kind.UNKNOWN, problem="beyond-limit", message=f"reading the header: {error}"))


def _passed(passed: Passed) -> Examined:
    found = Found(passed.path, 0, 0, 0, 0)
    if passed.failed:
        return Examined(found, Header(Kind.UNKNOWN), failed=passed.message)
    return Examined(found, Header(Kind.UNKNOWN, ignored=passed.reason, message=passed.message))


class Arrivals(Protocol):
    """What a service remembers between its rounds."""

    def is_known(self, entry: Found | Passed | Folder) -> bool:
        """Whether an earlier round has dealt with this."""

    def changed_ns(self, found: Found) -> int:
        """Return when the file changed, or was first found; compared with ``settling.settled_before``."""

    def note(self, row: Row) -> None:
        """Note what becomes of one of the files; called again where it is planned again."""


@dataclass(frozen=True, slots=True)
class Survey:
    """How many files an inbox holds, and when the oldest was last changed (nanoseconds since 1970; None: no file)."""

    files: int = 0
    oldest_ns: int | None = None


def walk_inbox(
    inbox: str, outbox: str | None, clock: Callable[[], int] = time.time_ns
) -> Iterator[Found | Passed | Folder]:
    """Walk an inbox, but not the outbox where that lies in it."""
    try:
        own = os.stat(outbox) if outbox else None
    except FileNotFoundError:
        own = None
    return walk(inbox, lambda status: own is not None and os.path.samestat(status, own), clock)


def survey(inbox: str, outbox: str | None) -> Survey:
    """Count the regular files of an inbox."""
    files, oldest = 0, None
    for entry in walk_inbox(inbox, outbox):
        if isinstance(entry, Found):
            files += 1
            oldest = entry.mtime_ns if oldest is None else min(oldest, entry.mtime_ns)
    return Survey(files, oldest)
