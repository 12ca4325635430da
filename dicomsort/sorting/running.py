"""Executes a sealed plan and reports on it: the second half of ``sort``, all of ``resume`` and of ``undo``.

Each run keeps room on the disk for its undo: bytes, and inodes, which a disk may lack while it has bytes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from functools import cache, partial

from dicomsort.engines.engine import batched
from dicomsort.errors import DicomsortError, Outdated, StateDamaged, UsageError, command, counted
from dicomsort.execute import BATCH, Executor, PartFiles, Placer, Resolver, Roots
from dicomsort.files import is_network, look_up
from dicomsort.journal import JOURNAL, Journal, Plan, Replay, run_folder
from dicomsort.plan import reverse
from dicomsort.records import Action, Operation, Outcome, Result, Row, Verb
from dicomsort.report import Summary, final_row, needs_person, printable, read_summary, write_summary
from dicomsort.report.manifest import PLACED, RunManifest
from dicomsort.sorting.archives import clear_placed, unpack_again
from dicomsort.sorting.corrections import retracted
from dicomsort.sorting.later_runs import LaterRuns
from dicomsort.sorting.outbox import (
    REVIEW_VERB,
    RunContext,
    absolute,
    explaining_full_disk,
    free_reserve,
    inbox_of,
    locked,
    now,
    require_inbox,
    require_mounts,
    room_for_undo,
)
from dicomsort.sorting.rehearsal import Rehearsal, Show
from dicomsort.sorting.runs import (
    BEGUN,
    UNDONE_BY,
    Run,
    Runs,
    RunState,
    append_rows,
    journal_of,
    load_run,
    load_runs,
    new_run,
    read_all,
    seal_plan,
)

NOTHING_TO_UNDO = "no run that changed anything is left to undo"
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
        closing(_journal(context, plan)) as journal,
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
            _executor(context, run, plan, journal, inbox, gives_up=not needs_inbox).run(plan, report)
        manifest.flush()
        if summary.undoes:
            _report_undone(context, summary.undoes)
        append_rows(files, outbox, run, journal)
        summary.notes = list(plan.head.get("notes", []))
        for each in filter(None, (run, summary.undoes)):
            summary.notes += clear_placed(context, each, inbox)
    summary.seconds = time.monotonic() - started
    return summary


def _executor(
    context: RunContext, run: str, plan: Plan, journal: Journal, inbox: str, *, gives_up: bool = False
) -> Executor:
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
            closing(_journal(context, plan)) as journal,
            closing(RunManifest(context.files, context.outbox, run)) as manifest,
        ):
            for row in _rows(plan.operations(), journal.known):
                manifest.add(row)
                summary.count(row)
            manifest.flush()
            append_rows(context.files, context.outbox, run, journal)
        write_summary(context.files, context.outbox, summary)


def _journal(context: RunContext, plan: Plan) -> Journal:
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
            stays = _clear(context, found.plan, Roots(inbox_of(found.plan.head, outbox), outbox))
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
            _clear(context, plan, roots, ended, among=ended)
        with suppress(OSError):  # a full disk, which this undo may relieve
            _mark_begun(context, plan)
    return _end(context, run, plan)


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
    with closing(_journal(context, plan)) as journal:
        notes = _executor(context, run, plan, journal, roots.inbox, gives_up=True).give_up(plan, message)
    return _end(context, run, plan, notes, needs_inbox=False)


def _mark_begun(context: RunContext, plan: Plan, stays: Iterable[int] = ()) -> None:
    """Note what an undo had begun, and not finished, and of what the source ``stays``: the next undo looks there."""
    with closing(_journal(context, plan)) as journal:
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


def _end(context: RunContext, run: str, plan: Plan, notes: Iterable[str] = (), *, needs_inbox: bool = True) -> Summary:
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
            with suppress(StateDamaged), closing(_journal(context, run.plan)) as journal:
                append_rows(context.files, context.outbox, run.name, journal)  # its own resume makes its rows anew


def undo(context: RunContext, run: str | None = None, *, with_decisions: bool = False) -> Summary:
    """Undo a run, by default the newest that is not undone, by a run of its own.

    ``with_decisions``: decisions about what it put up for review are undone first, the newest first, and what one of
    them moved and cannot put back stays. Without it a run with such decisions is refused by UsageError.
    """
    context = context.located()
    with locked(context, create=False):
        runs = load_runs(context.outbox)
        notes = _without_decisions(runs, run, partial(_undo_decision, context, runs)) if with_decisions else []
        if (name := _to_undo(runs, run)) is None:
            return _nothing_to_undo(runs, run)
        summary = _undo(context, runs, name, with_decisions=with_decisions)
        summary.notes += notes
        return summary


def _undo(context: RunContext, runs: Runs, name: str, *, with_decisions: bool = False) -> Summary:
    """Undo a run in an outbox that is locked already; ``runs`` are all of it, and get the undo."""
    outbox = context.outbox
    plan = _undoable(runs, name, with_decisions=with_decisions)
    free_reserve(context)
    room = room_for_undo(os.stat(plan.path).st_size)
    with explaining_full_disk(lambda: (outbox, room), f"{command('undo', outbox, name)} again"):
        complete_reports(context, runs.values())
        later = LaterRuns(runs, name, inbox_of(plan.head, outbox))
        notes = list[str]()
        for closed in runs.undos_of(name):
            with suppress(StateDamaged):
                if closed.plan and (begun := journal_of(closed.plan).marks.get(BEGUN)) is not None:
                    notes += _clear(context, closed.plan, later.roots, begun)
        mine, sealed = _seal_undo(context, name, plan, later)
    try:
        return _end(context, mine, sealed, [*later.notes, *notes])
    finally:
        runs[mine] = load_run(outbox, mine)


def _clear(
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


def _seal_undo(context: RunContext, run: str, plan: Plan, later: LaterRuns) -> tuple[str, Plan]:
    """Find out how far a run came, and seal the plan that undoes it; return the undo's run and that plan."""
    roots = later.roots
    with closing(_journal(context, plan)) as journal:
        is_left = lambda o: later.hides(o) or bool(later.filled_by(o.target))
        notes = _executor(context, run, plan, journal, roots.inbox).reconcile(plan, is_left)
        known = journal.known
    mine = new_run(context)
    head = {
        "verb": "undo", "undoes": run, "inbox": roots.inbox, "outbox": context.outbox, "started": now(), "notes": notes,
        "mount": plan.head.get("mount", "/"), "mounts": later.mounts,
    }  # fmt: skip
    sealed = seal_plan(context, mine, head, reverse(lambda: _done(plan, known, later), known.folders, later))
    with suppress(OSError), closing(_journal(context, plan)) as journal:
        journal.mark(UNDONE_BY, mine)  # for when the undo's own plan cannot be read
    return mine, sealed


def rehearse_undo(context: RunContext, run: str | None, show: Show, *, with_decisions: bool = False) -> Summary:
    """Return what ``undo`` would do now; nothing is changed on disk.

    ``show`` is given each operation, those on decisions too, with how it would end where that is known before.
    """
    runs, rehearsal = load_runs(absolute(context.outbox)), Rehearsal()
    take_back = partial(_rehearse_decision, context, runs, show, rehearsal)
    notes = _without_decisions(runs, run, take_back) if with_decisions else []
    if (name := _to_undo(runs, run)) is None:
        return _nothing_to_undo(runs, run, dry_run=True)
    plan = _undoable(runs, name, with_decisions=with_decisions)
    summary, _, _ = _rehearse(context, runs, plan, show, rehearsal)
    summary.notes += notes
    return summary


def _rehearse(
    context: RunContext, runs: Runs, plan: Plan, show: Show, rehearsal: Rehearsal
) -> tuple[Summary, Roots, list[Operation]]:
    """Return what the undo of one run would do, its roots, and its operations that would succeed on files."""
    name, done = plan.path.parent.name, list[Operation]()
    later = rehearsal.later_runs(runs, name, inbox_of(plan.head, runs.outbox))
    known, placer = journal_of(plan), Placer(context.files, later.roots, name, Replay.empty(0))
    summary = Summary(verb="undo", dry_run=True, undoes=name)
    for operation in reverse(lambda: _done(plan, known, later), known.folders, later):
        refused = rehearsal.check(placer, later.roots, operation)
        show(operation, refused)
        if operation.row is not None:
            summary.count(final_row(operation.row, operation, refused or Result(operation.number, Outcome.DONE)))
            if refused is None and plan.head["verb"] == REVIEW_VERB:
                done.append(operation)
    summary.notes += later.notes
    if known.begun:
        files = counted(len(known.begun), "file more is", "files more are")
        summary.notes.append(f"run {name} was cut short: {files} looked at by the undo itself")
    return summary, later.roots, done


def _without_decisions(runs: Runs, run: str | None, take_back: Callable[[str], str]) -> list[str]:
    """Take back the decisions about what a run put up for review, the newest first; return notes on what stays.

    ``take_back`` returns why some of a decision's files stay, or nothing.
    """
    notes = []
    for decision in _decisions_to_undo(runs, run):
        try:
            reason = take_back(decision)
        except StateDamaged as error:
            reason = str(error)
        if reason:
            notes.append(f"decision {decision} cannot be taken back wholly: {reason}")
    return notes


def _rehearse_decision(context: RunContext, runs: Runs, show: Show, rehearsal: Rehearsal, decision: str) -> str:
    summary, roots, done = _rehearse(context, runs, _undoable(runs, decision), show, rehearsal)
    rehearsal.take_back(decision, roots, done, is_whole=not summary.needs_person)
    return "some of its files would stay, as listed" if summary.needs_person else ""


def _undo_decision(context: RunContext, runs: Runs, decision: str) -> str:
    summary = _undo(context, runs, decision)
    return f"manifest.csv, run {summary.run_id}, tells why" if summary.needs_person else ""


def _decisions_to_undo(runs: Runs, run: str | None) -> list[str]:
    """Return the decisions about what a run put up for review, the newest first; UsageError where no run is named."""
    if run is None:
        raise UsageError("--with-decisions: expected the RUN that is to be undone, received none")
    return runs.decisions_about(run)[::-1]


def _undoable(runs: Runs, name: str, *, with_decisions: bool = False) -> Plan:
    """Return the plan of a run that can be undone now; UsageError or DicomsortError where it cannot."""
    outbox = runs.outbox
    plan, _ = read_all(run_folder(outbox, name), runs[name].summary)
    if plan.head["verb"] == "undo":
        raise UsageError(f"expected a run that sorted, received {name}, which is an undo of {plan.head['undoes']}")
    require_inbox(plan.head, outbox, name, "undo")
    if not with_decisions and (decisions := runs.decisions_about(name)):
        advice = f"{command('undo', '--with-decisions', outbox, name)} takes them back first"
        raise UsageError(
            f"run {name} held what persons decided about since, {counted(len(decisions), 'time')}: {advice}"
        )
    for other in runs.undos_of(name):
        if other.summary is None:
            raise UsageError(f"run {other.name}, which undoes {name}, was cut short: `dicomsort resume` finishes it")
        if plan.head["verb"] == REVIEW_VERB and other.is_whole:  # its files may be anybody's by now
            raise Outdated(f"expected a decision that stands, received {name}, which run {other.name} has undone")
    return plan


def _to_undo(runs: Runs, run: str | None) -> str | None:
    """Return the requested run, by default the newest that can be undone; None where nothing is left to undo."""
    if run is not None or not runs:
        name = runs.chosen(run, None, "to undo").name
        is_over = name in runs.wholly_undone() and runs[name].verb != REVIEW_VERB  # a decision says so as an error
        return None if is_over else name
    undone = runs.wholly_undone()
    undoable = [each for name, each in runs.items() if each.plan and not each.undoes and name not in undone]
    newest = next((each.name for each in reversed(undoable) if _has_changed(each)), None)
    damaged = max((name for name, each in runs.items() if each.damage), default="")
    if damaged > (newest or ""):
        raise StateDamaged(f"{runs[damaged].damage}; to take an earlier run back, name it")
    return newest


def _nothing_to_undo(runs: Runs, run: str | None, *, dry_run: bool = False) -> Summary:
    note = NOTHING_TO_UNDO if run is None else f"run {run} is undone already, by run {runs.undos_of(run)[-1].name}"
    return Summary(verb="undo", dry_run=dry_run, notes=[note])


def _has_changed(run: Run) -> bool:
    """Whether a run placed or removed files, or may have begun to."""
    if run.summary is not None:
        return any(run.summary.actions[action] for action in (*PLACED, Action.REMOVED))
    return run.plan is not None and look_up(f"{run.plan.path.parent}/{JOURNAL}") is not None


def _done(plan: Plan, known: Replay, later: LaterRuns) -> Iterator[tuple[Operation, Result]]:
    """Yield what a run did, and what it may have done where nothing is mounted now."""
    for operation in plan.operations():
        result = known.result(operation.number)
        if operation.number in known.begun and later.hides(operation):
            result = Result(operation.number, Outcome.DONE)
        if result is not None and result.outcome is Outcome.DONE and operation.verb is not Verb.LEAVE:
            yield operation, result
