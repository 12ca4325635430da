"""Executes a sealed plan and reports on it: the second half of ``sort`` and of ``undo``; resumes what was cut short.

Each run keeps room on the disk for its undo: bytes, and inodes, which a disk may lack while it has bytes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from functools import cache

from dicomsort.engines.engine import batched
from dicomsort.errors import DicomsortError, StateDamaged, UsageError, command
from dicomsort.execute import BATCH, Executor, PartFiles, Resolver, Roots
from dicomsort.files import is_network, look_up
from dicomsort.journal import Journal, Plan, Replay, run_folder
from dicomsort.records import Operation, Row, Verb
from dicomsort.report import Summary, final_row, needs_person, printable, read_summary, write_summary
from dicomsort.report.manifest import RunManifest
from dicomsort.sorting.archives import clear_placed, unpack_again
from dicomsort.sorting.corrections import retracted
from dicomsort.sorting.later_runs import LaterRuns
from dicomsort.sorting.outbox import (
    RunContext,
    explaining_full_disk,
    free_reserve,
    inbox_of,
    locked,
    require_inbox,
    require_mounts,
    room_for_undo,
)
from dicomsort.sorting.runs import (
    BEGUN,
    Run,
    RunState,
    append_rows,
    journal_of,
    load_run,
    load_runs,
)

# Threads that place: a local disk answers sooner than the interpreter switches between many, a network does not.
LOCAL_THREADS, NETWORK_THREADS = 2, 8
_log = logging.getLogger("dicomsort")


def carry_out(context: RunContext, run: str, plan: Plan, *, needs_inbox: bool = True) -> Summary:
    """Execute the plan as far as it is not done, write the manifest; idempotent.

    DicomsortError where the inbox is not there, if it ``needs_inbox``.
    """
    started = time.monotonic()
    files, outbox = context.files, context.outbox
    inbox = require_inbox(plan.head, outbox, run, "resume") if needs_inbox else inbox_of(plan.head, outbox)
    summary = Summary(run, plan.head["verb"], undoes=plan.head.get("undoes", ""))
    with (
        _explain_full_disk_of(outbox, run, plan),
        closing(open_journal(context, plan)) as journal,
        closing(RunManifest(files, outbox, run)) as manifest,
    ):

        def report(batch: list[Operation]) -> None:
            for row in _rows(batch, journal.known):
                manifest.add(row)
                _count(row, summary)
                context.on_row(row)
            context.progress.advance(len(batch))

        context.progress.stage("placing files", plan.count)
        if "reported" in journal.known.marks:  # the rows are final, whatever somebody took away since
            for batch in batched(plan.operations(), BATCH):
                report(batch)
        else:
            executor_for(context, run, plan, journal, inbox, gives_up=not needs_inbox).run(plan, report)
        manifest.flush()
        if summary.undoes:
            _report_undone(context, summary.undoes)
        append_rows(files, outbox, run, journal)
        summary.notes = list(plan.head.get("notes", []))
        for each in filter(None, (run, summary.undoes)):
            summary.notes += clear_placed(context, each, inbox)
    summary.seconds = time.monotonic() - started
    return summary


def executor_for(
    context: RunContext, run: str, plan: Plan, journal: Journal, inbox: str, *, gives_up: bool = False
) -> Executor:
    """Return what executes a plan; ``gives_up``: without the inbox, as far as that goes."""
    undoes, threads = plan.head["verb"] == "undo", NETWORK_THREADS if is_network(context.outbox) else LOCAL_THREADS
    roots = Roots(inbox, context.outbox)
    later = cache(lambda: LaterRuns(load_runs(context.outbox), run, inbox))  # read when it is asked
    is_needed = lambda place, sha256: later().needed_by(place, sha256)
    return Executor(
        context.files, roots, journal, run, threads, tries_all=undoes, is_needed=is_needed, gives_up=gives_up
    )


def _rows(operations: Iterable[Operation], known: Replay) -> Iterator[Row]:
    return (final_row(o.row, o, known.result(o.number)) for o in operations if o.row is not None)


def _report_undone(context: RunContext, run: str) -> None:
    """Write the rows of a run that was undone before it ended: what the undo leaves is known by them."""
    with suppress(StateDamaged):
        if read_summary(context.outbox, run) is not None:
            return
        plan = Plan.open(run_folder(context.outbox, run))
        summary = Summary(run, plan.head["verb"], notes=[f"run {run} was cut short, and then undone"])
        with (
            closing(open_journal(context, plan)) as journal,
            closing(RunManifest(context.files, context.outbox, run)) as manifest,
        ):
            for row in _rows(plan.operations(), journal.known):
                manifest.add(row)
                summary.count(row)
            manifest.flush()
            append_rows(context.files, context.outbox, run, journal)
        write_summary(context.files, context.outbox, summary)


def open_journal(context: RunContext, plan: Plan) -> Journal:
    """Open the journal of a plan's run; the caller closes it."""
    return Journal(context.files, str(plan.path.parent), plan.count)


def _explain_full_disk_of(outbox: str, run: str, plan: Plan) -> AbstractContextManager[None]:
    return explaining_full_disk(lambda: _unwritten(outbox, plan), f"{command('resume', outbox, run)} goes on")


def _unwritten(outbox: str, plan: Plan) -> tuple[str, int]:
    """Return where a run has still to write files, and how many bytes, its own plan and journal included."""
    known, inbox = journal_of(plan), inbox_of(plan.head, outbox)
    there = look_up(inbox)
    is_across = there is None or there.st_dev != os.stat(outbox).st_dev
    verbs = {Verb.COPY, Verb.MOVE} if is_across else {Verb.COPY}
    size = sum(o.size for o in plan.operations() if o.verb in verbs and not known.has_ended(o.number))
    if is_across and size and plan.head["verb"] == "undo":
        return inbox, size
    return outbox, size + room_for_undo(os.stat(plan.path).st_size)


def _count(row: Row, summary: Summary) -> None:
    summary.count(row)
    if needs_person(row):
        facts = {"source": printable(row.source), "status": row.status, "reason": row.reason}
        _log.warning("needs a person", extra={"facts": facts})


def resume(
    context: RunContext, run: str | None = None, *, before_another: bool = False, gives_up: bool = False
) -> Summary:
    """Finish a run that was cut short; the newest unfinished one by default.

    ``before_another``: another run follows; see ``finish_first``. ``gives_up``: end it as it stands; UsageError where
    no run is named.
    """
    if gives_up and run is None:
        raise UsageError("--give-up: expected the RUN that is to be given up, received none")
    context = context.located()
    outbox = context.outbox
    with locked(context, create=False):
        runs = load_runs(outbox)
        unfinished = runs.unfinished()
        begun = max(unfinished, default=max(runs, default=None))
        if run is None and begun and runs[begun].summary:
            if damaged := [*runs.maybe_unfinished().values()]:
                raise StateDamaged(damaged[-1])
            return Summary(verb="resume", notes=["no run was cut short: there is nothing to resume"])
        found = runs.chosen(run, begun, "to resume")
        stays = []
        if found.plan and (found.summary or runs.undos_of(found.name)):
            stays = clear_unfinished(context, found.plan, Roots(inbox_of(found.plan.head, outbox), outbox))
        if undos := runs.undos_of(found.name):
            problem = f"expected a run to go on with, received {found.name}, which {undos[0].name} has undone"
            raise UsageError("; ".join([problem, *stays]))
        if ended := found.summary:
            ended.notes += [*stays, f"run {found.name} had ended before; there was nothing to resume"]
            return ended
        complete_reports(context, (each for name, each in runs.items() if name != found.name))
        if not found.undoes:
            for undo_ in unfinished.values():
                if undo_.undoes:
                    finish_first(context, undo_.name)
        if gives_up:
            return _close(context, found.name)
        return finish_first(context, found.name) if before_another else finish(context, found.name)


def finish(context: RunContext, run: str) -> Summary:
    """Carry out a sealed plan to its end, in an outbox that is locked already."""
    plan = Plan.open(run_folder(context.outbox, run))
    require_mounts(plan.head, context.outbox)
    roots = Roots(inbox_of(plan.head, context.outbox), context.outbox)
    known = journal_of(plan)
    unpack_again(context.files, roots, plan, known)
    if "undoes" in plan.head:
        free_reserve(context)
        if begun := known.marks.get(BEGUN):  # closing it was cut short
            ended = {n for n in begun if known.has_ended(n) and not known.is_done(n)}
            clear_unfinished(context, plan, roots, ended, among=ended)
        with suppress(OSError):  # a full disk, which this undo may relieve
            _mark_begun(context, plan)
    return end_run(context, run, plan)


def finish_first(context: RunContext, run: str) -> Summary:
    """Finish a run before another one changes the outbox; an undo that cannot be finished is closed.

    It must not go on later by a plan of today: then others may need what it would take away. A new undo of the same run
    plans anew for what is left.
    """
    try:
        return finish(context, run)
    except (DicomsortError, OSError, ValueError):
        if "undoes" not in Plan.open(run_folder(context.outbox, run)).head:
            raise
        return _close(context, run)


def _close(context: RunContext, run: str) -> Summary:
    """End a run as it stands, without its inbox: what it has not done gets a row that says so."""
    plan = Plan.open(run_folder(context.outbox, run))
    require_mounts(plan.head, context.outbox, "outbox/")
    roots = Roots(inbox_of(plan.head, context.outbox), context.outbox)
    message = "not placed before the run was given up"
    if undone := plan.head.get("undoes"):
        message = f"not taken back before the undo was closed; {command('undo', context.outbox, undone)} tries again"
        known = journal_of(plan)
        done = (o for o in plan.operations() if o.target and known.is_done(o.number))
        _mark_begun(context, plan, (o.number for o in done if _may_be_there(roots.absolute(o.source))))
    with closing(open_journal(context, plan)) as journal:
        notes = executor_for(context, run, plan, journal, roots.inbox, gives_up=True).give_up(plan, message)
    return end_run(context, run, plan, notes, needs_inbox=False)


def _mark_begun(context: RunContext, plan: Plan, stays: Iterable[int] = ()) -> None:
    """Note what an undo had begun, and not finished, and of what the source ``stays``: the next undo looks there."""
    with closing(open_journal(context, plan)) as journal:
        known = journal.known
        before = known.marks.get(BEGUN, [])
        begun = sorted({*before, *known.begun, *stays})
        if begun != before:
            journal.mark(BEGUN, begun)


def _may_be_there(path: str) -> bool:
    try:
        return look_up(path) is not None
    except OSError:
        return True


def end_run(
    context: RunContext, run: str, plan: Plan, notes: Iterable[str] = (), *, needs_inbox: bool = True
) -> Summary:
    """Carry out a sealed plan, and write the run's summary, with ``notes`` more."""
    undone = str(plan.head.get("undoes", ""))
    summary = carry_out(context, run, plan, needs_inbox=needs_inbox)
    summary.notes += notes
    with _explain_full_disk_of(context.outbox, run, plan):
        write_summary(context.files, context.outbox, summary)
    found = load_run(context.outbox, undone).plan if undone and not summary.needs_person else None
    if found and (folder := found.head.get("corrections")):
        summary.notes += retracted(context.files, os.path.join(context.outbox, folder), undone)
    return summary


def complete_reports(context: RunContext, runs: Iterable[Run]) -> None:
    """Finish what a crash left of appending rows of these runs to the manifest, before another run appends to it."""
    for run in runs:
        if run.plan is None or run.state is not RunState.UNFINISHED:
            continue
        marks = journal_of(run.plan).marks
        if "manifest" in marks and "reported" not in marks:
            with suppress(StateDamaged), closing(open_journal(context, run.plan)) as journal:
                append_rows(context.files, context.outbox, run.name, journal)  # its own resume makes its rows anew


def clear_unfinished(
    context: RunContext, plan: Plan, roots: Roots, begun: Iterable[int] = (), among: Container[int] | None = None
) -> list[str]:
    """Remove the temporary copies that a run has left, and new names that it had ``begun`` and not finished.

    ``among`` are the operations that are looked at; None: all. Return a note on each copy that stays.
    """
    known = Replay.empty(plan.count)
    known.begun.update(begun)
    name = plan.path.parent.name
    parts = PartFiles(context.files, Resolver(roots), name, known, is_resumed=True)
    stays = list[str]()
    for o in plan.operations():
        if among is not None and o.number not in among:
            continue
        if o.number in known.begun and parts.is_there(o):
            with suppress(OSError):
                parts.discard(o)
        if refusal := parts.remove(o):
            stays.append(refusal.message)
    return stays
