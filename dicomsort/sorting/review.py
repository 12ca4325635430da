"""A person's decisions about what is for review: each is a run with its own sealed plan, journal and undo."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from dicomsort.classify import folder_of, has_uids
from dicomsort.engines.engine import Engine, batched, map_in_order
from dicomsort.errors import DicomsortError, OutboxLocked, Outdated, UsageError, WorkerLost, command, counted
from dicomsort.files import is_straight, look_up
from dicomsort.journal import is_run
from dicomsort.plan import Decided, Layout, decide, parse_layout
from dicomsort.records import REVIEW, Examined, Found, Header, Kind
from dicomsort.report import Summary, write_summary
from dicomsort.report.manifest_reader import RunRow, message_of
from dicomsort.report.review_queue import Item, ReviewQueue
from dicomsort.sorting.corrections import Corrections
from dicomsort.sorting.examine import hashed_here
from dicomsort.sorting.later_runs import look_for
from dicomsort.sorting.outbox import REVIEW_VERB, RunContext, holds, locked, mounts_below, now, passable
from dicomsort.sorting.resume import carry_out, complete_reports, finish
from dicomsort.sorting.runs import (
    Run,
    Runs,
    all_runs,
    load_run,
    load_runs,
    new_run,
    require_outbox_mounts,
    seal_plan,
)
from dicomsort.sorting.undo import undo
from dicomsort.tasks import examine

T = TypeVar("T")
PATIENCE = 5.0  # seconds to wait for a run that holds the outbox
BATCH = 64


@dataclass
class Decision:
    """The result of a decision: the run that carried it out, files moved, and notes about the others."""

    run: str
    moved: int
    notes: list[str] = field(default_factory=list)


class ReviewService:
    """Where decisions about one outbox are made; safe to use from several threads, beside other processes."""

    def __init__(self, context: RunContext, corrections: Corrections | None, engine: Engine) -> None:
        """UsageError where this is no outbox; nothing is read yet."""
        self._context = context.located()
        self.outbox = self._context.outbox
        self.queue = ReviewQueue(self.outbox)
        self.corrections = corrections
        self._engine = engine
        self._turn = threading.RLock()
        self._newest = ""  # of the runs that were read
        self._open: dict[str, Run] = {}  # of these, those that have not come to their end

    def open(self) -> list[str]:
        """Finish what was cut short, read what is for review, and return notes about both."""
        with self._turn, self._locked():
            notes = self._catch_up()
            notes += load_runs(self.outbox).damages()
            if self.corrections is not None:
                notes += self.corrections.mend(self.outbox, self._engine)
            for run in sorted(self._open):
                notes.append(f"run {run} was cut short: {command('resume', self.outbox, run)} finishes it")
        return notes

    def refresh(self) -> bool:
        """Read on in the manifest; return whether what is for review has changed."""
        with self._turn:
            return self.queue.refresh()

    def decide(self, key: str, version: str, class_: str, who: str) -> Decision:
        """Move an item's files to a class, or OTHER; Outdated where it is decided already, or not as it was shown.

        OutboxLocked where a run holds the outbox for longer than a few seconds.
        """
        with self._turn, self._locked():
            self._catch_up()
            for run, found in sorted(self._open.items()):
                if found.undoes:  # it may move what is to be decided about
                    advice = f"{command('resume', self.outbox, run)} finishes it; then decide"
                    raise DicomsortError(f"expected no undo that was cut short, received run {run}: {advice}")
            item = self.queue.items.get(key)
            if item is None:
                raise Outdated("expected something that is held, received what was decided or taken away meanwhile")
            if item.version != version:
                raise Outdated("expected the files that were shown, received others or more of them: look again")
            decision = self._carry_out(item, class_, who)
            if self.corrections is not None:
                decision.notes += self.corrections.record(self.outbox, decision.run, self._engine)
        return decision

    def undo(self, run: str) -> Summary:
        """Take a decision back, whoever made it; Outdated where it is taken back already, or cannot be wholly."""
        with self._turn:
            with self._locked():
                self._catch_up()
            if not self._is_review(run):
                raise UsageError(f"expected the run of a decision, received {run!r}")
            summary = self._patiently(lambda: undo(self._context, run))
            self.queue.refresh()
        if summary.needs_person:
            left = summary.found - summary.actions["undone"]
            raise Outdated(
                f"expected the files where run {run} put them; {_files(left)} gone or changed, and not undone"
            )
        return summary

    def _catch_up(self) -> list[str]:
        """Under the lock: carry out decisions and their undos that were cut short, then read on; return notes."""
        names = [*sorted(self._open), *all_runs(self.outbox, self._newest)]
        runs = Runs(self.outbox, names)
        complete_reports(self._context, runs.values())
        notes, pending = [], runs.unfinished()
        self._newest, self._open = max([*names, self._newest]), dict(pending)
        for run, found in pending.items():
            if found.verb == REVIEW_VERB or self._is_review(found.undoes):
                finish(self._context, run)
                del self._open[run]
                notes.append(f"run {run}, a decision or its undo, was cut short, and is carried out now")
        self.queue.refresh()
        return notes

    def _is_review(self, run: str) -> bool:
        return is_run(run) and load_run(self.outbox, run).verb == REVIEW_VERB

    def _carry_out(self, item: Item, class_: str, who: str) -> Decision:
        require_outbox_mounts(self.outbox)
        ready, notes = self._ready(item)
        if not ready:
            raise Outdated(f"expected the files as they were held, received none: {'; '.join(notes)}")
        layouts, layout_notes = self._layouts(h.run for h, _ in ready)
        decided = [
            Decided(
                e, h.row, folder_of(class_, e.header), has_uids(e.header), layouts[h.run],
                message_of(who, h.row.destination),
            )
            for h, e in ready
        ]  # fmt: skip
        of = sorted({run for h, _ in ready for run in self.queue.runs_about(h)})
        run = new_run(self._context)
        head: dict[str, object] = {
            "verb": REVIEW_VERB, "inbox": self.outbox, "outbox": self.outbox, "mode": "move", "class": class_,
            "reviewer": who, "started": now(), "of": of,
            "corrections": self.corrections.named(self.outbox) if self.corrections else "",
            "mounts": mounts_below(self.outbox, self.outbox),
        }  # fmt: skip
        operations = decide(decided, self._folders, _Names(self.outbox))
        summary = carry_out(self._context, run, seal_plan(self._context, run, head, operations))
        write_summary(self._context.files, self.outbox, summary)
        self.queue.refresh()
        moved = summary.actions["moved"] + summary.actions["removed"]
        if moved < len(ready):
            notes.append(f"{_files(len(ready) - moved)} left in {REVIEW}; manifest.csv says why")
        return Decision(run, moved, notes + layout_notes)

    def _ready(self, item: Item) -> tuple[list[tuple[RunRow, Examined]], list[str]]:
        """Return the files that lie there as they were placed, examined anew; and notes about the others."""
        paths = [h.row.destination for h in item.files]
        there = [
            replace(f, path=path)
            for path in paths
            if is_straight(self.outbox, path) and (f := look_for(f"{self.outbox}/{path}")) is not None
        ]
        batches = map_in_order(self._engine, partial(examine, self.outbox), batched(there, BATCH), _lost)
        examined = {e.found.path: hashed_here(self.outbox, e) for batch in batches for e in batch}
        ready = [(h, e) for h in item.files if (e := examined.get(h.row.destination)) and e.sha256 == h.row.sha256]
        gone, changed = len(paths) - len(there), len(there) - len(ready)
        notes = [f"{_files(gone)} gone from {REVIEW}"] if gone else []
        if changed:
            notes.append(f"{_files(changed)} not what was held any more, and left there")
        return ready, notes

    def _layouts(self, runs: Iterable[str]) -> tuple[dict[str, Layout], list[str]]:
        """Return the layouts by which runs placed, and notes; ``uid`` where that is not known any more."""
        layouts, notes = dict[str, Layout](), list[str]()
        for run in dict.fromkeys(runs):
            plan = load_run(self.outbox, run).plan
            try:
                layouts[run] = parse_layout(str(plan.head.get("layout", "uid")) if plan else "uid")
            except UsageError:  # of another version
                layouts[run] = parse_layout("uid")
            if plan is None:
                notes.append(f"run {run} was pruned and its layout with it, so files are named by their UIDs")
        return layouts, notes

    def _folders(self, paths: set[str]) -> Iterator[tuple[str, int, int]]:
        for path in sorted(paths, key=lambda path: (-path.count("/"), path)):
            status = look_up(f"{self.outbox}/{path}")
            if status is not None and stat.S_ISDIR(status.st_mode):
                yield path, stat.S_IMODE(status.st_mode), status.st_mtime_ns

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._patiently(lambda: stack.enter_context(locked(self._context, create=False)))
            yield

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do what needs the outbox; OutboxLocked only where another run holds it for long."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return act()
            except OutboxLocked:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)


@dataclass
class _Names:
    """Which names are free in an outbox that is locked."""

    outbox: str
    given: set[str] = field(default_factory=set)

    def claim(self, name: str) -> bool:
        """Give a name out once."""
        is_free = name not in self.given
        self.given.add(name)
        return is_free

    def holds(self, destination: str, content: Examined) -> bool | None:
        """Whether the file there has this content; None where nothing is there."""
        return holds(f"{self.outbox}/{destination}", content)

    def passable(self, path: str) -> str:
        """Return the path with a suffix for each of its folders whose name a file has."""
        return passable(self.outbox, path)


def _files(count: int) -> str:
    return counted(count, "file is", "files are")


def _lost(found: Found, error: WorkerLost) -> Examined:
    return Examined(found, Header(Kind.UNKNOWN), failed=str(error))
