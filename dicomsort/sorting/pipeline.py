"""``sort``: from an inbox to a sealed plan, and on to its end."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, filterfalse

from dicomsort.bundle import Bundle, default_path, load
from dicomsort.catalog import Catalog, Ledger
from dicomsort.classify import Criteria, classify_study
from dicomsort.config import SortSettings
from dicomsort.engines.engine import Engine
from dicomsort.engines.worker_check import difference, snapshot
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.execute import CANNOT_LEAVE, LINK_REFUSED, Leaving
from dicomsort.files import look_up
from dicomsort.journal import STATE, Plan, run_folder
from dicomsort.plan import Layout, Options, parse_layout, plan
from dicomsort.progress import Timed
from dicomsort.records import ARCHIVES, OTHER, REVIEW, UNREADABLE, Operation, Outcome, Result, Verb
from dicomsort.report import Damages, Summary, final_row, history, write_summary
from dicomsort.sorting.archives import ArchiveOpener, clear_unsealed, discard, is_archive, staging_of
from dicomsort.sorting.examine import Arrivals, examine_inbox, walk_inbox
from dicomsort.sorting.outbox import (
    OutboxState,
    RunContext,
    check_state,
    count_waiting,
    locked,
    mount_of,
    mounts_below,
    nearest_folder,
    now,
    with_room,
)
from dicomsort.sorting.pixel_sampling import PixelSampler
from dicomsort.sorting.resume import carry_out, complete_reports, finish_first
from dicomsort.sorting.runs import Runs, load_runs, new_run, require_outbox_mounts, seal_plan
from dicomsort.sorting.settling import SETTLE, Clock, SecondLook, as_one, settled_before

_VERBS = {"copy": Verb.COPY, "move": Verb.MOVE, "link": Verb.LINK}


@dataclass(frozen=True, slots=True)
class SortRequest:
    """A checked request; nothing was changed on disk for it."""

    inbox: str
    outbox: str | None
    settings: SortSettings
    bundle: Bundle
    layout: Layout
    criteria: Criteria
    settle: float  # seconds; 0: nothing settles
    clock: Clock


def check(inbox: str, outbox: str | None, settings: SortSettings, clock: Clock | None = None) -> SortRequest:
    """Return a request that can be carried out; UsageError or BundleError where it cannot."""
    layout, bundle = check_settings(settings)
    if "" in {inbox, outbox}:
        raise UsageError("expected an INBOX and an OUTBOX, received an empty name")
    source, target = os.path.realpath(inbox), outbox and os.path.realpath(outbox)
    _check_inbox(inbox, source)
    if target is None and not settings.dry_run:
        raise UsageError("expected an OUTBOX, received none (only --dry-run works without)")
    if target is not None:
        check_places(source, target, bundle)
    settle = settings.settle if settings.settle is not None else SETTLE if settings.mode == "move" else 0.0
    clock = clock or Clock()
    before = settled_before(clock.now_ns(), int(settle * 1e9))
    classes, thresholds = bundle.header_classes, (bundle.decide, bundle.contradict)
    criteria = Criteria(bundle.labels, classes, *thresholds, settings.evidence, before, bundle.distance)
    return SortRequest(source, target, settings, bundle, layout, criteria, settle, clock)


def check_settings(settings: SortSettings) -> tuple[Layout, Bundle]:
    """Check what needs no folder, and return the layout and the model."""
    layout = parse_layout(settings.layout)
    bundle = load(settings.model or default_path())
    if settings.duplicates == "remove" and settings.mode != "move":
        raise UsageError(f"--duplicates remove: expected --move with it, received --{settings.mode}")
    return layout, bundle


def _check_inbox(inbox: str, source: str) -> None:
    if not os.path.isdir(source):
        what = "a file" if os.path.exists(source) else "nothing there"
        raise UsageError(f"INBOX: expected a folder, received {inbox!r} ({what})")
    if not os.access(source, os.R_OK | os.X_OK):
        raise UsageError(f"INBOX: expected a folder that can be read, received {inbox!r} (permission denied)")


def check_places(source: str, target: str, bundle: Bundle) -> None:
    """Raise UsageError where an outbox is no folder, is the inbox, or holds it; both are real paths."""
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UsageError(f"expected an OUTBOX other than the INBOX, received {target!r} for both")
    if os.path.exists(target) and not os.path.isdir(target):
        raise UsageError(f"OUTBOX: expected a folder, received {target!r} (a file)")
    check_state(target)
    inside = os.path.relpath(source, target).split("/")[0]
    own = {*bundle.labels, OTHER, REVIEW, UNREADABLE, ARCHIVES, STATE}
    if inside in own or (inside != ".." and any(p.destination.split("/")[0] == inside for _, p in history(target))):
        raise UsageError(f"expected an INBOX outside what the OUTBOX holds, received its folder {inside!r}")


def sort_inbox(request: SortRequest, context: RunContext, engine: Engine, show: Callable[[Operation], None]) -> Summary:
    """Sort an inbox; ``show`` is given each operation of a dry run, which changes nothing on disk."""
    started, timed = time.monotonic(), Timed(context.progress)
    job = Job(request, replace(context, progress=timed), engine)
    job.check_workers()
    with Catalog() as catalog:
        if request.settings.dry_run:
            summary = job.rehearse(catalog, show)
            summary.seconds = time.monotonic() - started
        else:
            with locked(context, create=True):
                summary = job.carry_out(catalog)
                summary.seconds, summary.stages = time.monotonic() - started, timed.seconds()
                write_summary(context.files, context.outbox, summary)
    return summary


@dataclass
class Job:
    """One run, from the inbox to the sealed plan and its end; ``arrivals`` belong to a round of ``watch``."""

    request: SortRequest
    context: RunContext
    engine: Engine
    arrivals: Arrivals | None = None
    notes: list[str] = field(default_factory=list)
    run: str = ""  # made when it is needed first

    def check_workers(self) -> None:
        """Raise DicomsortError where a worker sees another inbox, or another model, than this process."""
        request = self.request
        model = request.bundle.reference.folder if request.settings.evidence != "header" else ""
        self.engine.check_workers(partial(snapshot, request.inbox, request.outbox, model), difference)

    def carry_out(self, catalog: Catalog) -> Summary:
        """Sort everything."""
        runs = load_runs(self.context.outbox)
        runs.require_mounted(self.request.inbox)
        require_outbox_mounts(self.context.outbox)
        self.notes += runs.damages()
        complete_reports(self.context, runs.values())
        finished, left = self._finish_first(runs)
        clear_unsealed(self.context, runs.values())
        with self.discarding():
            self.run = new_run(self.context)
            operations = self.operations(catalog, self.classify(catalog, self.staging))
            summary = self.place(operations)
        summary.finished, summary.unfinished = finished, left
        summary.damaged = [*runs.maybe_unfinished().values()]
        return summary

    def _finish_first(self, runs: Runs) -> tuple[list[Summary], list[str]]:
        """Finish what was cut short and comes before a run of this inbox; return the summaries, and the rest."""
        first, left = runs.cut_short(self.request.inbox)
        finished = list[Summary]()
        for name in first:
            try:
                finished.append(finish_first(self.context, name))
                counts = ", ".join(f"{count:,} {status}" for status, count in finished[-1].statuses.most_common())
                self.notes.append(f"run {name}, which was cut short, was finished first: {counts}")
            except (DicomsortError, OSError, ValueError) as error:
                if runs[name].undoes:  # what this run would rely on may go
                    raise
                left.append(name)
                self.notes.append(f"run {name} was cut short and could not be finished: {error}")
        return finished, left

    @contextmanager
    def discarding(self) -> Iterator[None]:
        """Remove what was unpacked where no plan is sealed."""
        try:
            yield
        except (Exception, KeyboardInterrupt):
            if self.run and Plan.peek(run_folder(self.context.outbox, self.run)) is None:
                discard(self.context.files, self.context.outbox, self.run)
            raise

    def staging(self) -> str:
        """Return the folder that archives are unpacked into; make it where it is missing."""
        self.run = self.run or new_run(self.context)
        folder = staging_of(self.context.outbox, self.run)
        with suppress(FileExistsError):
            self.context.files.make_folder(folder, 0o700)
        return folder

    def place(self, operations: Iterator[Operation]) -> Summary:
        """Seal the operations as the run's plan, and carry it out."""
        run = self.run = self.run or new_run(self.context)
        settings = self.request.settings
        head: dict[str, object] = {
            "verb": "sort", "inbox": self.request.inbox, "outbox": self.context.outbox, "mode": settings.mode,
            "layout": settings.layout, "model": self.request.bundle.model_sha256, "started": now(), "notes": self.notes,
            "mount": mount_of(self.request.inbox), "mounts": mounts_below(self.request.inbox, self.context.outbox),
        }  # fmt: skip
        sealed = seal_plan(self.context, run, head, with_room(self.context, self.request.inbox, operations))
        summary = carry_out(self.context, run, sealed)
        summary.waiting = count_waiting(self.context.outbox)
        summary.waiting_from_other_runs = max(summary.waiting - summary.in_review, 0)
        summary.unreadable = count_waiting(self.context.outbox, UNREADABLE)
        return summary

    def rehearse(self, catalog: Catalog, show: Callable[[Operation], None]) -> Summary:
        """Plan everything, and return the counts."""
        with tempfile.TemporaryDirectory(prefix="dicomsort-") as folder:  # for what is unpacked
            return self._rehearse(catalog, show, folder)

    def _rehearse(self, catalog: Catalog, show: Callable[[Operation], None], folder: str) -> Summary:
        outbox, summary, leaving = self.request.outbox, Summary(dry_run=True), Leaving()
        operations = self.operations(catalog, self.classify(catalog, lambda: folder))
        for operation in with_room(self.context, self.request.inbox, operations) if outbox else operations:
            show(rehearsed := self._rehearsed(operation, leaving))
            if rehearsed.row is not None:
                summary.count(rehearsed.row)
        if outbox and os.path.isdir(f"{outbox}/{STATE}"):
            runs = load_runs(outbox)
            runs.require_mounted(self.request.inbox)
            require_outbox_mounts(outbox)
            summary.damaged = [*runs.maybe_unfinished().values()]
            note = "was cut short, and a sort would finish it first, which is not shown here"
            first, summary.unfinished = runs.cut_short(self.request.inbox)
            self.notes += [f"run {name} {note}" for name in first]
        summary.notes = self.notes
        return summary

    def _rehearsed(self, operation: Operation, leaving: Leaving) -> Operation:
        """Return an operation as it would end by the rights of the process."""
        if operation.row is None:
            return operation
        reason, path = "", f"{self.request.inbox}/{operation.row.source}"
        if operation.verb in {Verb.MOVE, Verb.REMOVE}:
            if (status := look_up(path)) is not None and not leaving.may_leave(path, status):
                reason = CANNOT_LEAVE
        elif operation.verb is Verb.LINK and self.request.outbox:
            target = f"{self.request.outbox}/{operation.target.partition('/')[2]}"
            if os.stat(nearest_folder(target)).st_dev != operation.device:
                reason = LINK_REFUSED.format(os.strerror(errno.EXDEV))
        if not reason:
            return operation
        failed = Result(operation.number, Outcome.FAILED, reason)
        return replace(operation, verb=Verb.LEAVE, row=final_row(operation.row, operation, failed))

    def classify(self, catalog: Catalog, staging: Callable[[], str]) -> Ledger:
        """Do everything up to the verdicts; archives are unpacked into the folder that ``staging`` returns."""
        request, progress, arrivals = self.request, self.context.progress, self.arrivals
        model = request.bundle.reference
        sampler = PixelSampler(request.inbox, model, request.criteria, self.engine, catalog, progress)
        uses_pixels = request.settings.evidence != "header"
        entries = walk_inbox(request.inbox, request.outbox, request.clock.now_ns)
        second_look = SecondLook(request.inbox, request.settle, request.clock)
        if arrivals is not None:
            entries = filterfalse(arrivals.is_known, entries)
        elif request.settle > 0:
            entries = second_look.watch(entries)
        puts_off = is_archive if request.settings.archives == "open" else lambda _: False
        opener = ArchiveOpener(
            request.inbox, request.outbox, request.settings, request.criteria.settled_before_ns, self.engine, catalog,
            progress, self.context.files, staging,
        )  # fmt: skip
        files = examine_inbox(request.inbox, entries, self.engine, catalog, progress, puts_off)
        for added in chain(files, opener.run()):
            if uses_pixels:
                sampler.files_added(added)
        ledger = catalog.complete()
        self._add_placements(ledger)
        if uses_pixels:
            sampler.run()
        second_look.take(catalog, progress)
        progress.stage("deciding", None)
        for study in catalog.studies():
            first = study[0][0]
            uid = first.grouping.study
            placements = ledger.placements(uid) if uid else ledger.decided(first.sample.sha256)
            together = study if arrivals is None else as_one(study)
            for group, verdict in classify_study(together, placements, request.criteria):
                catalog.set_verdict(group.number, verdict)
        if not request.bundle.header_classes:
            labels = ", ".join(request.bundle.labels)
            self.notes.append(f"the model's classes ({labels}) have no header counterpart: sorted by pixels alone")
        return ledger

    def operations(self, catalog: Catalog, ledger: Ledger) -> Generator[Operation]:
        """Plan."""
        settings = self.request.settings
        remove = settings.duplicates == "remove"
        outbox = self.request.outbox or ""
        options = Options(_VERBS[settings.mode], self.request.layout, remove, settings.prune_empty, outbox)
        state = OutboxState(ledger, self.request.outbox)
        return plan(catalog.verdicts(), catalog.folders_deepest_first, options, state)

    def _add_placements(self, ledger: Ledger) -> None:
        """Read from the manifest what earlier runs did with the studies at hand, and with files of no study."""
        if self.request.outbox is None:
            return
        unreadable = Damages()
        for is_there, placement in history(self.request.outbox, unreadable.add):
            if not ledger.concerns(placement):
                continue
            if is_there:
                ledger.place(placement)
            else:
                ledger.displace(placement.destination)
        self.notes += unreadable.notes(self.request.outbox)
