"""Stage 5: carry out a sealed plan, journalled and idempotent; ``sort``, ``resume`` and ``undo`` all end here.

Order of writes for each batch: ``begin`` lines, flushed; new folders; new names (links, or verified copies); one flush
of the file system; ``end`` lines, flushed; only then sources are removed. A plan may be carried out any number of
times: what ended is not done again, and what was begun is recognised by inode, not by content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import TypeVar

from dicomsort.errors import PlacingFailed
from dicomsort.execute.folders import Folders, needed, parent
from dicomsort.execute.placing import Fatal, Placer, Roots
from dicomsort.files import Files, flush_path, is_network
from dicomsort.journal import Journal, Plan
from dicomsort.records import Operation, Outcome, Result, Verb

__all__ = ["BATCH", "Executor", "Roots"]

BATCH = 1024
_WORK = 64 << 10  # what a file costs beside its bytes, in bytes
R = TypeVar("R")


class Executor:
    """Carries out one plan with a few threads; only the thread that calls ``run`` writes the journal."""

    def __init__(self, files: Files, roots: Roots, journal: Journal, run: str, threads: int) -> None:
        """``run`` is the run's id, which names the temporary copies."""
        self._files = files
        self._roots = roots
        self._journal = journal
        self._folders = Folders(files, roots)
        self._placer = Placer(files, roots, run, journal.known)
        self._threads = threads
        self._is_far = is_network(roots.outbox)
        self._placer.copies = os.stat(roots.inbox).st_dev != os.stat(roots.outbox).st_dev

    def run(self, plan: Plan, on_done: Callable[[list[Operation]], None]) -> None:
        """Do all that is not done yet; PlacingFailed where the disk refuses, after what was done is journalled.

        ``on_done`` is given each batch, in the plan's order, when the journal knows how its operations ended.
        """
        with ThreadPoolExecutor(self._threads) as self._pool:
            for kind, group in groupby(plan.operations(), _kind):
                for batch in _batches(group):
                    if kind == "folder":
                        self._folder_batch(batch)
                    else:
                        self._file_batch([o for o in batch if o.verb is not Verb.LEAVE])
                    on_done(batch)

    def settle(self, plan: Plan) -> None:
        """Before an undo: how those operations stand that were begun and not ended; no temporary copy stays."""
        known = self._journal.known
        ended = [self._placer.settle(o) for o in plan.operations() if o.number in known.begun and _kind(o) != "folder"]
        if ended:
            self._journal.end(ended)
        for operation in plan.operations():
            self._placer.tidy(operation)

    def _file_batch(self, batch: list[Operation]) -> None:
        known = self._journal.known
        waiting = [o for o in batch if not known.has_ended(o.number)]
        if waiting:
            self._place(waiting)
        done = [o for o in batch if known.is_done(o.number)]
        finished = self._each(self._placer.finish, done, at_once=self._moves_bytes(done))
        stuck = {result.number: result for result in finished if result is not None}
        if stuck:
            self._journal.end(list(stuck.values()))
            for operation in (o for o in done if o.number in stuck):
                self._placer.take_back(operation)

    def _place(self, waiting: list[Operation]) -> None:
        absent, refused = self._folders.survey(waiting)
        check = lambda o: self._placer.check(o, fresh=parent(o.target) in absent)
        found = self._each(check, waiting, at_once=_kind(waiting[0]) == "remove")  # which compares every byte
        checked = [result or refused.get(o.number) for o, result in zip(waiting, found, strict=True)]
        ready = [o for o, result in zip(waiting, checked, strict=True) if result is None]
        self._journal.begin([o.number for o in ready], missing := needed(ready, absent))
        self._folders.make(missing)
        outcomes = self._each(self._placer.act, ready, at_once=self._moves_bytes(ready))
        placed = [(o, r) for o, r in zip(ready, outcomes, strict=True) if isinstance(r, Result)]
        self._make_durable([o for o, r in placed if r.outcome is Outcome.DONE] + _found_done(waiting, checked))
        self._journal.end([*filter(None, checked), *(r for _, r in placed)])
        for outcome in outcomes:
            if isinstance(outcome, Fatal):
                raise PlacingFailed(outcome.message)

    def _folder_batch(self, batch: list[Operation]) -> None:
        waiting = [o for o in batch if not self._journal.known.has_ended(o.number)]
        if not waiting:
            return
        self._journal.begin([o.number for o in waiting], [])
        self._journal.end([self._folders.change(o) for o in waiting])

    def _make_durable(self, operations: Sequence[Operation]) -> None:
        by_device: dict[int, list[str]] = {}  # a folder of the outbox may be a mount of its own
        try:
            for target in (o.target for o in operations if o.target):
                by_device.setdefault(self._folders.device(target), []).append(target)
            for targets in by_device.values():
                if self._files.flush_system(self._roots.absolute(targets[0].rpartition("/")[0])):
                    continue
                for path in sorted({*targets, *self._folders.chains(targets)}):
                    flush_path(self._files, self._roots.absolute(path))
        except OSError as error:
            message = f"flushing to disk: expected success, received {error.strerror}; sources are untouched"
            raise PlacingFailed(message) from error

    def _each(self, function: Callable[[Operation], R], operations: Sequence[Operation], *, at_once: bool) -> list[R]:
        """Map, in threads where told to: on a local disk, looks and links cost less than their way to a thread."""
        if not (at_once or self._is_far):
            return [function(o) for o in operations]
        mapped = self._pool.map(lambda part: [function(o) for o in part], _slices(operations, self._threads))
        return [result for part in mapped for result in part]

    def _moves_bytes(self, operations: Sequence[Operation]) -> bool:
        """Whether placing or removing these reads or writes files, which threads do at the same time."""
        return self._placer.copies or any(o.verb is Verb.COPY or o.verb is Verb.REMOVE for o in operations)


def _slices(operations: Sequence[Operation], threads: int) -> Iterator[Sequence[Operation]]:
    """Neighbours together, for threads in one folder wait for each other; four slices a thread, of about equal work."""
    work = sum(o.size + _WORK for o in operations)
    start, done = 0, 0
    for end, operation in enumerate(operations, 1):
        done += operation.size + _WORK
        if done * 4 * threads >= work or end == len(operations):
            yield operations[start:end]
            start, done = end, 0


def _kind(operation: Operation) -> str:
    """Kinds are not mixed in a batch: a duplicate is removed only after what it equals was placed."""
    verb = operation.verb
    if verb is Verb.MAKE_FOLDER or verb is Verb.REMOVE_FOLDER:
        return "folder"
    return "remove" if verb is Verb.REMOVE else "place"


def _found_done(waiting: Sequence[Operation], checked: Sequence[Result | None]) -> list[Operation]:
    pairs = zip(waiting, checked, strict=True)
    return [o for o, result in pairs if result is not None and result.outcome is Outcome.DONE]


def _batches(items: Iterable[Operation]) -> Iterator[list[Operation]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
