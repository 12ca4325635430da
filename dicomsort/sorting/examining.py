"""Walk, examine in workers, spool: the first half of the pipeline, with a bounded number of files on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial

from dicomsort.catalog import Catalog
from dicomsort.classify import grouping_of, showable_frames
from dicomsort.discover import Folder, Passed
from dicomsort.engine import Engine, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.files import sha256_of
from dicomsort.progress import Progress
from dicomsort.records import Examined, Found, Grouping, Header, Kind
from dicomsort.tasks import examine

BATCH_FILES = 64
BATCH_BYTES = 32 << 20


def examine_inbox(
    inbox: str,
    entries: Iterable[Found | Passed | Folder],
    engine: Engine,
    catalog: Catalog,
    progress: Progress,
) -> Iterator[dict[int, int]]:
    """Fill the catalog with the files that a walk of the inbox yields, in path order.

    Yields, after each batch, how many files each group got, by the group's number.
    """
    progress.stage("reading headers", None)
    task = partial(examine, inbox)
    waiting: deque[Future[list[Examined]]] = deque()

    def take() -> dict[int, int]:
        batch = waiting.popleft().result()
        progress.advance(len(batch))
        return catalog.add([_spooled(inbox, e) for e in batch])

    for files, passed in _batches(entries, catalog):
        waiting.append(submit_batch(engine, task, files, _on_lost) if files else _ready([]))
        waiting.append(_ready([_passed(p) for p in passed]))
        while waiting and (len(waiting) > 8 * engine.workers or waiting[0].done()):
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


def _spooled(inbox: str, e: Examined) -> tuple[Examined, Grouping, int]:
    e = hashed_here(inbox, e)
    return e, grouping_of(e), showable_frames(e)


def hashed_here(inbox: str, e: Examined) -> Examined:
    """The file with its hash, where a worker left that out because no time limit may cut it short."""
    if e.sha256 or e.failed or not e.found.inode:
        return e
    try:
        return Examined(e.found, e.header, sha256_of(f"{inbox}/{e.found.path}"))
    except OSError as error:
        return Examined(e.found, e.header, failed=error.strerror or str(error))


def _on_lost(found: Found, error: WorkerLost) -> Examined:
    if error.from_outside:  # the file is not at fault, and stays for the next run
        return Examined(found, Header(Kind.UNKNOWN), failed=f"reading the header: {error}")
    return Examined(found, Header(Kind.UNKNOWN, problem="beyond-limit", message=f"reading the header: {error}"))


def _passed(passed: Passed) -> Examined:
    found = Found(passed.path, 0, 0, 0, 0)
    if passed.failed:
        return Examined(found, Header(Kind.UNKNOWN), failed=passed.message)
    return Examined(found, Header(Kind.UNKNOWN, ignored=passed.reason, message=passed.message))


def _ready(batch: list[Examined]) -> Future[list[Examined]]:
    future: Future[list[Examined]] = Future()
    future.set_result(batch)
    return future
