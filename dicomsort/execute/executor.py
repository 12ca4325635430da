"""Executes a sealed plan in batches with a journal, and fixes the order of writes and flushes.

For each batch: ``begin`` lines, flushed; new folders; new names (links, or verified copies); one flush of the file
system; ``end`` lines, flushed; only then sources are removed. A plan may be executed any number of times: what ended is
not done again, and what was begun is recognised by inode, not by content. Copies that did not end are made again.
Folders are journalled before they are made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import groupby, islice
from typing import TypeVar

from dicomsort.errors import PlacingFailed
from dicomsort.execute.folders import Folders, NotMade, folder_of, needed, parent
from dicomsort.execute.leaving import is_stamped, stamp_of
from dicomsort.execute.outcomes import Fatal
from dicomsort.execute.placing import IsNeeded, Placer, by_nobody
from dicomsort.execute.removing import LOCKED
from dicomsort.execute.roots import Roots
from dicomsort.files import Files, flush_path, is_network, look_up, sha256_of
from dicomsort.journal import Journal, Plan
from dicomsort.records import ARCHIVED, NOT_WHOLE, Operation, Outcome, Result, Verb

BATCH = 1024
_WORK = 64 << 10  # what a file costs beside its bytes, in bytes
R = TypeVar("R")


class Executor:
    """Executes one plan with a few threads; only the thread that calls ``run`` writes the journal.

    ``run`` is the run's id, which names the temporary copies. ``tries_all``: where the disk refuses an operation, the
    others are executed before the run fails. ``is_needed`` tells whether another run needs a file. A run
    that ``gives_up`` is not resumed: where a source cannot be looked at, it stays.
    """

    def __init__(
        self,
        files: Files,
        roots: Roots,
        journal: Journal,
        run: str,
        threads: int,
        *,
        tries_all: bool = False,
        is_needed: IsNeeded = by_nobody,
        gives_up: bool = False,
    ) -> None:
        self._files = files
        self._roots = roots
        self._journal = journal
        self._folders = Folders(files, roots, journal.known.folders)
        self._placer = Placer(files, roots, run, journal.known, is_needed, gives_up=gives_up)
        self._threads = threads
        self._tries_all = tries_all
        self._is_resumed = not journal.known.is_empty
        self._refused, self._refusals = "", 0  # the first refusal of the disk, and their number, where all is tried
        self._not_whole: set[str] = set()  # archives with a member that was not placed
        self._put_off: set[str] = set()  # files and folders of operations that are left to a resume
        self._watched: set[int] = set()  # devices of file systems whose errors are reported
        self._is_far = is_network(roots.outbox)
        inbox = look_up(roots.inbox)  # None where a run is given up because its inbox is lost
        self._placer.copies = inbox is None or inbox.st_dev != os.stat(roots.outbox).st_dev

    def run(self, plan: Plan, on_done: Callable[[list[Operation]], None]) -> None:
        """Do all that is not done yet; PlacingFailed where the disk refuses, after what was done is journalled.

        ``on_done`` gets each batch, in the plan's order, after the journal got the ends of its operations. What the
        disk refused has not ended: a resume tries it again.
        """
        with ThreadPoolExecutor(self._threads) as self._pool, ExitStack() as self._open:
            for kind, group in groupby(plan.operations(), _kind):
                for batch in _batches(group):
                    if kind == "folder":
                        self._folder_batch(batch)
                    else:
                        self._file_batch([o for o in batch if o.verb is not Verb.LEAVE])
                        self._not_whole.update(o.kept for o in batch if o.archive_sha256 and not self._is_placed(o))
                    on_done([o for o in batch if self._journal.known.has_ended(o.number)] if self._refused else batch)
        if self._refused:
            times = f" ({self._refusals:,} refusals in all)" if self._refusals > 1 else ""
            raise PlacingFailed(f"{self._refused}{times}; the rest is done, and `dicomsort resume` tries this again")

    def reconcile(self, plan: Plan, is_left: Callable[[Operation], bool]) -> list[str]:
        """Before an undo, journal the ends of operations that were begun, and remove temporary copies.

        An operation that was not done gets no end: a resume does it, should the undo not begin. Nor does one that
        ``is_left``: nobody can tell, or its new name is another run's. Return a note on the copies that cannot be
        removed.
        """
        self._end_begun((o for o in plan.operations() if not is_left(o)), self._placer.conclude)
        return self._remove_parts(plan.operations())

    def give_up(self, plan: Plan, message: str) -> list[str]:
        """End operations that were not done as failed, with ``message``, but for those that need no inbox.

        These can still be executed: what was unpacked is placed, and so are whole copies. Return a note on the
        temporary copies that cannot be removed.
        """
        known = self._journal.known
        self._end_begun(plan.operations(), self._placer.check)
        open_ = (o for o in plan.operations() if not known.has_ended(o.number) and _needs_inbox(o))
        for batch in _batches(o for o in open_ if o.number not in known.begun or not self._placer.is_under_way(o)):
            self._journal.end([Result(o.number, Outcome.FAILED, message) for o in batch if o.verb is not Verb.LEAVE])
        return self._remove_parts(o for o in plan.operations() if known.has_ended(o.number))

    def _end_begun(self, operations: Iterable[Operation], outcome_of: Callable[[Operation], Result | None]) -> None:
        """Journal how operations ended that were begun and are done, or cannot be done; what is done is durable."""
        known = self._journal.known
        begun = [o for o in operations if o.number in known.begun]
        found = [self._folders.reconcile(o) if _kind(o) == "folder" else outcome_of(o) for o in begun]
        ended = [(o, result) for o, result in zip(begun, found, strict=True) if result is not None]
        self._make_durable([o for o, result in ended if result.outcome is Outcome.DONE and o.target])
        if ended:
            self._journal.end([result for _, result in ended])

    def _remove_parts(self, operations: Iterable[Operation]) -> list[str]:
        stuck = [refusal.message for o in operations if (refusal := self._placer.parts.remove(o)) is not None]
        return [f"{stuck[0]} ({len(stuck):,} in all)"] if stuck else []

    def _file_batch(self, batch: list[Operation]) -> None:
        known = self._journal.known
        waiting = [o for o in batch if not known.has_ended(o.number)]
        if waiting:
            self._place(waiting)
        if self._is_resumed and (lost := [o for o in batch if known.is_done(o.number) and self._has_lost(o)]):
            self._journal.end([Result(o.number, Outcome.CHANGED, "it was placed, and is gone since") for o in lost])
        if self._is_resumed:
            self._clear_parts(
                o for o in batch if o.target and known.has_ended(o.number) and not known.is_done(o.number)
            )
        done = [o for o in batch if known.is_done(o.number)]
        finished = self._each(self._placer.remove_source, done, at_once=self._moves_bytes(done))
        for i, result in enumerate(finished):  # a thread of this run may have held the lock: links are one file
            if isinstance(result, Result) and result.message == LOCKED:
                finished[i] = self._placer.remove_source(done[i])
        stuck = {result.number: result for result in finished if isinstance(result, Result)}
        if stuck:
            self._journal.end([self._with_source(o, stuck[o.number]) for o in done if o.number in stuck])
        for result in finished:
            if isinstance(result, Fatal):
                self._refuse(result.message)

    def _clear_parts(self, operations: Iterable[Operation]) -> None:
        """Remove what an interrupted attempt may have left of temporary copies; what stays is told in the row."""
        kept = []
        for o in operations:
            stays, result = self._placer.parts.remove(o), self._journal.known.result(o.number)
            if stays and result and stays.message not in result.message:
                kept.append(replace(result, message=f"{result.message}; {stays.message}"))
        if kept:
            self._journal.end(kept)

    def _has_lost(self, o: Operation) -> bool:
        """Whether what was placed has gone from the outbox, or another file has taken its name."""
        path = self._roots.absolute(o.target)
        with suppress(OSError):
            if not o.target.startswith("outbox/") or (o.verb is Verb.MOVE and look_up(self._roots.absolute(o.source))):
                return False
            if (there := look_up(path)) is None:
                return True
            is_same = there.st_ino == self._journal.known.inodes[o.number] and there.st_size == o.size
            return not (is_same and is_stamped(there, stamp_of(o))) and sha256_of(path) != o.sha256
        return False

    def _with_source(self, o: Operation, stuck: Result) -> Result:
        """Return how an operation ends whose source stays: without its new name, or with both."""
        placed = self._journal.known.result(o.number)
        if placed is None or not self._placer.roll_back(o, placed.inode):
            return stuck
        return replace(placed, message=f"{stuck.message}; it may still be there, as its new name is")

    def _is_placed(self, o: Operation) -> bool:
        if o.row is not None and o.verb is Verb.LEAVE:  # it equals what lies there
            return os.path.lexists(self._roots.absolute(f"outbox/{o.row.destination}"))
        return self._journal.known.is_there(o.number)

    def _put_off_all(self, operations: Iterable[Operation]) -> None:
        """Leave operations to a resume, and with them what would remove their sources, or the folders of either."""
        for o in operations:
            places = {place for place in (o.source, o.target) if place}
            self._put_off |= places | self._folders.chains(places)

    def _is_put_off(self, o: Operation) -> bool:
        return o.source in self._put_off or (bool(o.kept) and o.kept in self._put_off)

    def _refuse(self, message: str) -> None:
        """Fail because the disk refused: at once, or after all else was tried."""
        if not self._tries_all:
            raise PlacingFailed(message)
        self._refused = self._refused or message
        self._refusals += 1

    def _place(self, waiting: list[Operation]) -> None:
        absent, refused = self._folders.absent_and_refused(waiting)
        stays = [o.number for o in waiting if o.source in self._not_whole]
        refused |= {number: Result(number, Outcome.SKIPPED, NOT_WHOLE) for number in stays}
        check = lambda o: self._placer.check(o, fresh=parent(o.target) in absent)
        found = self._each(check, waiting, at_once=_kind(waiting[0]) == "remove")  # which compares every byte
        checked = [result or refused.get(o.number) for o, result in zip(waiting, found, strict=True)]
        for o, result in zip(waiting, found, strict=True):
            if result is None and o.number in refused and o.number in self._journal.known.begun:
                with suppress(OSError):
                    self._placer.parts.discard(o)  # it had a new name, and is not placed after all
        endings = [(o, outcome) for o, outcome in zip(waiting, checked, strict=True) if outcome is not None]
        ready = [o for o, result in zip(waiting, checked, strict=True) if result is None]
        self._journal.begin([o.number for o in ready], missing := needed(ready, absent))
        unmade = self._folders.make(missing)
        if unmade:
            endings += self._unmade_endings(ready, unmade)
            ready = [o for o in ready if folder_of(o) not in unmade]
        self._watch_for_errors(ready)
        acted = self._each(self._placer.apply, ready, at_once=self._moves_bytes(ready))
        self._end([*endings, *zip(ready, acted, strict=True)])

    def _watch_for_errors(self, operations: Iterable[Operation]) -> None:
        """Hear of errors on the file systems of new names from before their first byte on; the flush asks for them."""
        for o in operations:
            with suppress(OSError):  # which the flush meets too
                if o.target and (device := self._folders.device(o.target)) not in self._watched:
                    self._open.enter_context(self._files.watching_errors(self._flushable(o.target)))
                    self._watched.add(device)

    def _end(self, endings: Sequence[tuple[Operation, Result | Fatal]]) -> None:
        """Make new names durable, then journal how operations ended.

        Operations that the disk refused get no end, nor do those that would remove what these need: the kept copy of a
        duplicate.
        """
        results = [(o, r) for o, r in endings if isinstance(r, Result)]
        refused = [(o, r) for o, r in endings if isinstance(r, Fatal)]
        self._put_off_all(o for o, _ in refused)
        self._make_durable([o for o, r in results if r.outcome is Outcome.DONE and o.target])
        if self._put_off:
            self._put_off_all([o for o, _ in results if self._is_put_off(o)])
        self._journal.end([r for o, r in results if not self._is_put_off(o)])
        for _, reason in refused:
            self._refuse(reason.message)

    def _unmade_endings(
        self, operations: Iterable[Operation], unmade: dict[str, NotMade]
    ) -> list[tuple[Operation, Result | Fatal]]:
        """Return how those operations end whose folder cannot be made."""
        stuck = [o for o in operations if folder_of(o) in unmade]
        return [(o, unmade[folder_of(o)].outcome(o, is_retried=self._tries_all)) for o in stuck]

    def _folder_batch(self, batch: list[Operation]) -> None:
        waiting = [o for o in batch if not self._journal.known.has_ended(o.number) and o.source not in self._put_off]
        if not waiting:
            return
        absent, refused = self._folders.absent_and_refused(waiting)
        self._journal.begin([o.number for o in waiting], missing := needed(waiting, absent))
        unmade = self._folders.make(missing)
        refused |= {o.number: result for o, result in self._unmade_endings(waiting, unmade)}
        self._end([(o, refused.get(o.number) or self._folders.change(o)) for o in waiting])

    def _make_durable(self, operations: Sequence[Operation]) -> None:
        """Flush new names and what they name."""
        by_device: dict[int, list[Operation]] = {}  # a folder of the outbox may be a mount of its own
        for operation in operations:
            try:
                by_device.setdefault(self._folders.device(operation.target), []).append(operation)
            except OSError as error:
                self._not_durable(error, [operation])
        for those in by_device.values():
            try:
                if not self._files.flush_system(self._flushable(those[0].target)):
                    self._flush_each(those)
            except OSError as error:
                self._not_durable(error, those)

    def _flushable(self, target: str) -> str:
        """Return a folder on a target's file system that can be opened: its root, unless that is on another."""
        folder, root = parent(target), target.partition("/")[0]
        return self._roots.absolute(
            root if self._folders.device(f"{root}/x") == self._folders.device(target) else folder
        )

    def _flush_each(self, operations: list[Operation]) -> None:
        """Flush each folder, and each file that was not flushed when it was written.

        For where the file system has no other way, or promises little.
        """
        targets = [o.target for o in operations]
        files = [o.target for o in operations if o.number not in self._placer.flushed]
        self._placer.flushed.difference_update(o.number for o in operations)
        for path in sorted({*files, *self._folders.chains(targets)}):
            try:
                flush_path(self._files, self._roots.absolute(path))
            except OSError as error:
                self._not_durable(error, [o for o in operations if f"{o.target}/".startswith(f"{path}/")])

    def _not_durable(self, error: OSError, operations: list[Operation]) -> None:
        self._put_off_all(operations)
        self._refuse(f"flushing to disk: expected success, received {error.strerror}; sources are untouched")

    def _each(self, function: Callable[[Operation], R], operations: Sequence[Operation], *, at_once: bool) -> list[R]:
        """Map, in threads if ``at_once``: on a local disk, a stat or link costs less than its way to a thread.

        After an interruption each thread ends with the operation at hand.
        """
        over: list[bool] = []

        def in_turn(part: Sequence[Operation]) -> list[R]:
            with self._placer.kept_open():  # neighbours lie in the same folders
                return [function(o) for o in part if not over]

        if not (at_once or self._is_far):
            return in_turn(operations)
        try:
            mapped = self._pool.map(in_turn, _slices(operations, self._threads))
            return [result for part in mapped for result in part]
        finally:
            over.append(True)

    def _moves_bytes(self, operations: Sequence[Operation]) -> bool:
        """Whether placing or removing these reads or writes files, which threads do at the same time."""
        return self._placer.copies or any(o.verb is Verb.COPY or o.verb is Verb.REMOVE for o in operations)


def _slices(operations: Sequence[Operation], threads: int) -> Iterator[Sequence[Operation]]:
    """Yield neighbours together, as threads in one folder wait for each other: four slices a thread, of equal work."""
    work = sum(o.size + _WORK for o in operations)
    start, done = 0, 0
    for end, operation in enumerate(operations, 1):
        done += operation.size + _WORK
        if done * 4 * threads >= work or end == len(operations):
            yield operations[start:end]
            start, done = end, 0


def _needs_inbox(o: Operation) -> bool:
    return "inbox" in {place.partition("/")[0] for place in (o.source, o.target)}


def _kind(operation: Operation) -> str:
    """Return the kind, one a batch: a duplicate is removed after what it equals was placed, an archive moved after all.

    An undo moves archives back before it removes what came out of them.
    """
    verb = operation.verb
    if verb is Verb.MAKE_FOLDER or verb is Verb.REMOVE_FOLDER:
        return "folder"
    if operation.target.startswith(ARCHIVED) or operation.source.startswith(ARCHIVED):
        return "archive"
    return "remove" if verb is Verb.REMOVE else "place"


def _batches(items: Iterable[Operation]) -> Iterator[list[Operation]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
