"""``undo``: a run of its own, whose plan is the reverse of what another run did; and its rehearsal, ``--dry-run``.

Decisions about what the run put up for review may be undone first. The reverse plan is made by ``plan.reverse``; what
later runs need, or placed since, is told by ``later_runs``. ``resume.end_run`` carries the plan out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from dicomsort.errors import Outdated, StateDamaged, UsageError, command, counted
from dicomsort.execute import Placer, Roots
from dicomsort.files import look_up
from dicomsort.journal import JOURNAL, Plan, Replay, run_folder
from dicomsort.plan import reverse
from dicomsort.records import ARCHIVED, Action, Found, Operation, Outcome, Result, Verb
from dicomsort.report import Summary, final_row
from dicomsort.report.manifest import PLACED
from dicomsort.sorting.later_runs import LaterRuns, look_for
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
    room_for_undo,
)
from dicomsort.sorting.resume import clear_unfinished, complete_reports, end_run, executor_for, open_journal
from dicomsort.sorting.runs import (
    BEGUN,
    UNDONE_BY,
    Run,
    Runs,
    journal_of,
    load_run,
    load_runs,
    new_run,
    read_all,
    seal_plan,
)

NOTHING_TO_UNDO = "no run that changed anything is left to undo"
_FOLDERS = frozenset({Verb.MAKE_FOLDER, Verb.REMOVE_FOLDER})
Show = Callable[[Operation, Result | None], None]


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
                    notes += clear_unfinished(context, closed.plan, later.roots, begun)
        mine, sealed = _seal_undo(context, name, plan, later)
    try:
        return end_run(context, mine, sealed, [*later.notes, *notes])
    finally:
        runs[mine] = load_run(outbox, mine)


def _seal_undo(context: RunContext, run: str, plan: Plan, later: LaterRuns) -> tuple[str, Plan]:
    """Find out how far a run came, and seal the plan that undoes it; return the undo's run and that plan."""
    roots = later.roots
    with closing(open_journal(context, plan)) as journal:
        is_left = lambda o: later.hides(o) or bool(later.filled_by(o.target))
        notes = executor_for(context, run, plan, journal, roots.inbox).reconcile(plan, is_left)
        known = journal.known
    mine = new_run(context)
    head = {
        "verb": "undo", "undoes": run, "inbox": roots.inbox, "outbox": context.outbox, "started": now(), "notes": notes,
        "mount": plan.head.get("mount", "/"), "mounts": later.mounts,
    }  # fmt: skip
    sealed = seal_plan(context, mine, head, reverse(lambda: _done(plan, known, later), known.folders, later))
    with suppress(OSError), closing(open_journal(context, plan)) as journal:
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


@dataclass
class Rehearsal:
    """What undos of decisions would change: by absolute path, what would lie there, with the path where it lies now."""

    undone: set[str] = field(default_factory=set)  # decisions that would be taken back wholly
    back: dict[str, set[str]] = field(default_factory=dict)  # decision -> the places that its undo would take back
    _moved: dict[str, tuple[Found, str] | None] = field(default_factory=dict)  # with the SHA-256; None: it would go

    def look_for(self, path: str) -> Found | None:
        """Return what would lie at an absolute path; see ``later_runs.look_for``."""
        if path not in self._moved:
            return look_for(path)
        there = self._moved[path]
        return there[0] if there else None

    def sha256_at(self, path: str) -> str:
        """Return the SHA-256 of what would be put at an absolute path; empty where nothing would."""
        there = self._moved.get(path)
        return there[1] if there else ""

    def check(self, placer: Placer, roots: Roots, o: Operation) -> Result | None:
        """Return how an operation would end where that is known before, else None."""
        if o.verb in _FOLDERS:
            return None
        if o.verb is Verb.LEAVE:
            return Result(o.number, Outcome.CHANGED, o.row.message if o.row else "")
        source, target, kept = (roots.absolute(place) if place else "" for place in (o.source, o.target, o.kept))
        if source in self._moved and self._moved[source] is None:
            return Result(o.number, Outcome.CHANGED, "the file is gone")
        if self.sha256_at(target):
            return Result(o.number, Outcome.CONFLICT, "another file would stand at the destination")
        here = replace(o, source=self._place_now(o.source, source, roots), kept=self._place_now(o.kept, kept, roots))
        refused = placer.check(here, fresh=target in self._moved)
        if refused is None and o.source.startswith(ARCHIVED) and (found := self.look_for(source)):
            self._moved[target] = found, o.sha256  # what came out of the archive is removed once it is back
        return refused

    def _place_now(self, place: str, path: str, roots: Roots) -> str:
        """Return the place where what would lie at ``place`` lies now: decisions move files within the outbox."""
        there = self._moved.get(path)
        return f"outbox{there[0].path.removeprefix(roots.outbox)}" if there else place

    def take_back(self, decision: str, roots: Roots, operations: Iterable[Operation], *, is_whole: bool) -> None:
        """Let the operations of a decision's undo that would succeed count as done."""
        for o in operations:
            source, target = roots.absolute(o.source), roots.absolute(o.target) if o.target else ""
            found, places = self.look_for(source), self.back.setdefault(decision, set())
            if o.verb is not Verb.COPY:
                self._moved[source] = None
            if target and found is not None:
                self._moved[target] = found, o.sha256
            places.add(o.target if o.verb is Verb.COPY else o.source)
        if is_whole:
            self.undone.add(decision)

    def later_runs(self, runs: Runs, name: str, inbox: str) -> LaterRuns:
        """Return the later runs of a run, as they would be then."""
        return _Rehearsed(self, runs, name, inbox)


class _Rehearsed(LaterRuns):
    def __init__(self, rehearsal: Rehearsal, runs: Runs, name: str, inbox: str) -> None:
        super().__init__(runs, name, inbox)
        self._rehearsal = rehearsal

    def look_up(self, place: str) -> Found | None:
        return self._rehearsal.look_for(self.roots.absolute(place))

    def is_same(self, place: str, sha256: str) -> bool:
        would_be = self._rehearsal.sha256_at(self.roots.absolute(place))
        return would_be == sha256 if would_be else super().is_same(place, sha256)

    def _undone(self) -> set[str]:
        return super()._undone() | self._rehearsal.undone

    def _taken_back(self, name: str) -> set[str]:
        return super()._taken_back(name) | self._rehearsal.back.get(name, set())
