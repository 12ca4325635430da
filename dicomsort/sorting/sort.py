"""``sort``: from an inbox to a sealed plan, and on to its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from dicomsort.agreement import amiss, view
from dicomsort.bundle import Bundle, default_path, load
from dicomsort.catalog import Catalog
from dicomsort.classify import Judge, classify_study
from dicomsort.config import SortSettings
from dicomsort.engine import Engine
from dicomsort.errors import UsageError
from dicomsort.files import Files
from dicomsort.journal import STATE
from dicomsort.plan import Layout, Options, parse_layout, plan
from dicomsort.records import OTHER, RENDERING_VERSION, REVIEW, UNREADABLE, Operation, Verb
from dicomsort.report import Summary, history, write_summary
from dicomsort.sorting.examining import examine_inbox
from dicomsort.sorting.looking import Looker
from dicomsort.sorting.outbox import held, new_run, now, unfinished
from dicomsort.sorting.progress import Progress
from dicomsort.sorting.running import carry_out, complete_reports, seal_plan
from dicomsort.sorting.surroundings import Around

SETTLE = 60.0
_VERBS = {"copy": Verb.COPY, "move": Verb.MOVE, "link": Verb.LINK}


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request: nothing was changed on disk to come so far."""

    inbox: str
    outbox: str | None
    settings: SortSettings
    bundle: Bundle
    layout: Layout
    judge: Judge


def check(inbox: str, outbox: str | None, settings: SortSettings) -> Request:
    """Prove that a request can be carried out; UsageError or BundleError otherwise."""
    layout = parse_layout(settings.layout)
    bundle = load(settings.model or default_path(), RENDERING_VERSION)
    if "" in {inbox, outbox}:
        raise UsageError("expected an INBOX and an OUTBOX, received an empty name")
    source, target = os.path.realpath(inbox), outbox and os.path.realpath(outbox)
    _check_inbox(inbox, source)
    if target is None and not settings.dry_run:
        message = "expected an OUTBOX, received none (only --dry-run works without)"
        raise UsageError(message)
    if target is not None:
        _check_outbox(source, target, bundle)
    if settings.duplicates == "remove" and settings.mode != "move":
        message = f"--duplicates remove: expected --move with it, received --{settings.mode}"
        raise UsageError(message)
    settle = settings.settle if settings.settle is not None else SETTLE if settings.mode == "move" else 0.0
    before = time.time_ns() - int(settle * 1e9) if settle > 0 else None
    classes, thresholds = bundle.header_classes, (bundle.decide, bundle.contradict)
    judge = Judge(bundle.labels, classes, *thresholds, settings.evidence, before, bundle.distance)
    return Request(source, target, settings, bundle, layout, judge)


def _check_inbox(inbox: str, source: str) -> None:
    if not os.path.isdir(source):
        what = "a file" if os.path.exists(source) else "nothing there"
        message = f"INBOX: expected a folder, received {inbox!r} ({what})"
        raise UsageError(message)
    if not os.access(source, os.R_OK | os.X_OK):
        message = f"INBOX: expected a folder that can be read, received {inbox!r} (permission denied)"
        raise UsageError(message)


def _check_outbox(source: str, target: str, bundle: Bundle) -> None:
    if os.path.exists(target) and os.path.samefile(source, target):
        message = f"expected an OUTBOX other than the INBOX, received {target!r} for both"
        raise UsageError(message)
    if os.path.exists(target) and not os.path.isdir(target):
        message = f"OUTBOX: expected a folder, received {target!r} (a file)"
        raise UsageError(message)
    inside = os.path.relpath(source, target).split("/")[0]
    own = {*bundle.labels, OTHER, REVIEW, UNREADABLE, STATE}
    if inside in own or (inside != ".." and any(p.destination.split("/")[0] == inside for _, p in history(target))):
        message = f"expected an INBOX outside what the OUTBOX holds, received its folder {inside!r}"
        raise UsageError(message)


def sort_inbox(
    request: Request, engine: Engine, progress: Progress, files: Files, show: Callable[[Operation], None]
) -> Summary:
    """Sort an inbox; ``show`` is given each operation of a dry run, which changes nothing on disk."""
    started = time.monotonic()
    model = str(request.bundle.folder.resolve()) if request.settings.evidence != "header" else ""
    engine.require(partial(view, request.inbox, request.outbox, model), amiss)
    job = _Job(request, engine, progress)
    with Catalog() as catalog:
        if request.settings.dry_run:
            summary = job.rehearse(catalog, show)
        else:
            outbox = request.outbox or ""
            with held(files, outbox, create=True):
                summary = job.carry_out(catalog, files, outbox)
                summary.seconds = time.monotonic() - started
                write_summary(files, outbox, summary)
    summary.seconds = time.monotonic() - started
    return summary


@dataclass
class _Job:
    request: Request
    engine: Engine
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def carry_out(self, catalog: Catalog, files: Files, outbox: str) -> Summary:
        if cut_short := unfinished(outbox):
            self.notes.append(f"run {cut_short} was cut short: `dicomsort resume {outbox} {cut_short}` finishes it")
        complete_reports(files, outbox)
        run = new_run(files, outbox)
        operations = self._operations(catalog)
        settings = self.request.settings
        head: dict[str, object] = {
            "verb": "sort", "inbox": self.request.inbox, "outbox": outbox, "mode": settings.mode,
            "layout": settings.layout, "model": self.request.bundle.model_sha256, "started": now(), "notes": self.notes,
        }  # fmt: skip
        sealed = seal_plan(files, outbox, run, head, operations)
        return carry_out(files, outbox, run, sealed, self.progress)

    def rehearse(self, catalog: Catalog, show: Callable[[Operation], None]) -> Summary:
        summary = Summary(dry_run=True)
        for operation in self._operations(catalog):
            show(operation)
            if operation.row is not None:
                summary.count(operation.row)
        summary.notes = self.notes
        return summary

    def _operations(self, catalog: Catalog) -> Iterator[Operation]:
        """Everything up to the plan."""
        request, progress = self.request, self.progress
        examine_inbox(request.inbox, _is_state_of(request.outbox), self.engine, catalog, progress)
        catalog.group()
        self._recall(catalog)
        if request.settings.evidence != "header":
            folder = str(request.bundle.folder.resolve())
            Looker(request.inbox, folder, request.judge, self.engine, catalog, progress).run()
        progress.stage("deciding", None)
        for study in catalog.studies():
            placements = catalog.placements(study[0][0].grouping.study)
            for group, verdict in classify_study(study, placements, request.judge):
                catalog.judge(group.number, verdict)
        self._remark()
        settings = request.settings
        remove = settings.duplicates == "remove"
        options = Options(_VERBS[settings.mode], request.layout, remove, settings.prune_empty)
        return plan(catalog.judged(), catalog.folders_deepest_first, options, Around(catalog, request.outbox))

    def _recall(self, catalog: Catalog) -> None:
        """Take from the manifest what earlier runs did with the studies at hand, and with files of no study."""
        if self.request.outbox is None:
            return
        for is_there, placement in history(self.request.outbox):
            if not catalog.concerns(placement):
                continue
            if is_there:
                catalog.place(placement)
            else:
                catalog.displace(placement.destination)

    def _remark(self) -> None:
        if not self.request.bundle.header_classes:
            labels = ", ".join(self.request.bundle.labels)
            self.notes.append(f"the model's classes ({labels}) have no header counterpart: sorted by pixels alone")


def _is_state_of(outbox: str | None) -> Callable[[os.stat_result], bool]:
    """Whether a folder of the walk is the outbox itself."""
    try:
        there = os.stat(outbox) if outbox else None
    except FileNotFoundError:
        there = None
    if there is None:
        return lambda _: False
    return lambda status: (status.st_dev, status.st_ino) == (there.st_dev, there.st_ino)
