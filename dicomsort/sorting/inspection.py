"""The runs of an outbox: their list, one of them for a report, and whether what they placed is still whole."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dicomsort.errors import DicomsortError, StateDamaged, UsageError, command
from dicomsort.files import look_up, sha256_of
from dicomsort.records import UNREADABLE, Placement
from dicomsort.report import MANIFEST, NEEDS_PERSON, Damages, Summary, has_rows, history, printable
from dicomsort.report.manifest import PLACED, Repaired, count_rows, plan_repair, rows_of
from dicomsort.report.manifest import repair as repair_manifest
from dicomsort.sorting.outbox import RunContext, absolute, count_waiting, held_by, locked, waiting_in
from dicomsort.sorting.resume import complete_reports
from dicomsort.sorting.runs import AFTER, Run, Runs, RunState, journal_of, load_runs

_DECISION = "a person's decision"


def list_runs(outbox: str) -> list[dict[str, Any]]:
    """Return the runs of an outbox, oldest first: id, verb, state, counts, mode, what it undoes, what undid it.

    The state is a ``RunState``, or ``undone`` or ``partly undone``. A damaged run has the reason as ``damage``.
    """
    runs = load_runs(absolute(outbox), deep=True)
    undone_by = {run.undoes: name for name, run in runs.items() if run.undoes and run.summary}
    wholly, listed = runs.wholly_undone(), list[dict[str, Any]]()
    for name, run in runs.items():
        listed.append(_described(run) | {"undoes": run.undoes, "undone_by": undone_by.get(name, "")})
        if name in undone_by:
            listed[-1]["state"] = "undone" if name in wholly else "partly undone"
    return listed


def _described(run: Run) -> dict[str, Any]:
    plan, summary = run.plan, run.summary if run.plan else None
    described = {
        "run_id": run.name, "verb": "" if run.damage else run.verb or "sort",
        "mode": plan.head.get("mode", "") if plan else "",
        "found": summary.found if summary else plan.count if plan else 0,
        "sorted": summary.statuses["sorted"] if summary else 0,
        "held": sum(summary.statuses[status] for status in NEEDS_PERSON) if summary else 0, "state": str(run.state),
    }  # fmt: skip
    damage = {"damage": run.damage} if run.damage else {}
    return described | damage | ({"started": plan.head["started"]} if plan else {})


def verify(context: RunContext) -> dict[str, Any]:
    """Hash every file that was placed by the manifest, and read the state of every run.

    Return how many files are ``whole``; which are ``missing``, ``different`` or ``unreadable`` (paths); what of the
    manifests is ``damaged`` or lost, and which ``runs`` (sentences).
    """
    outbox, progress = absolute(context.outbox), context.progress
    placed, damages = dict[str, Placement](), Damages()
    for is_there, placement in history(outbox, damages.add):
        if is_there:
            placed[placement.destination] = placement
        else:
            placed.pop(placement.destination, None)
    progress.stage("hashing", len(placed))
    result: dict[str, Any] = {"whole": 0, "missing": [], "different": [], "unreadable": []}
    for destination, placement in placed.items():
        state = _compare(f"{outbox}/{destination}", placement.sha256)
        if state == "whole":
            result["whole"] += 1
        else:
            result[state].append(printable(destination))
        progress.advance()
    runs = load_runs(outbox, deep=True)
    broken = [run.damage for run in runs.values() if run.damage]
    names = runs.unfinished()
    state = _unfinished(outbox) if names else ""  # asked once: the lock is probed for it
    unfinished = [f"run {name} {state}" for name in names]
    damaged = [*damages.notes(outbox), *_lost_rows(outbox, runs)]
    return result | {"damaged": damaged, "runs": broken, "unfinished": unfinished}


def _unfinished(outbox: str) -> str:
    """Return how a run stands that has no summary: another process may be at it, or it was cut short."""
    if holder := held_by(outbox):
        return f"has not ended, and files that it moves may be listed as missing: {holder}"
    return f"was cut short and is not finished: {command('resume', outbox)} finishes it"


def _lost_rows(outbox: str, runs: Runs) -> Iterator[str]:
    """Yield a sentence for each run that has rows which the manifest lacks, or whose own manifest is not whole."""
    reported = {name: run for name, run in runs.items() if _is_reported(run)}
    for name, rows in plan_repair(outbox, reported)[1].items():
        advice = f"{command('verify', outbox, '--repair')} adds them"
        yield f"{MANIFEST} lacks {len(rows):,} of the rows of run {name}; {advice}"
    for name, run in reported.items():
        _, problem = count_rows(outbox, name, run.summary.found if run.summary else None)
        if problem and run.plan is not None and not runs.undos_of(name):
            problem += "; move summary.json of the run away, and "
            problem += f"{command('resume', outbox, name)} writes its rows anew"
        if problem:
            yield problem


def _compare(path: str, sha256: str) -> str:
    try:
        status = look_up(path)
        if status is not None and stat.S_ISREG(status.st_mode) and sha256_of(path) == sha256:
            return "whole"
        return "missing" if status is None else "different"
    except FileNotFoundError:  # it went meanwhile
        return "missing"
    except OSError:
        return "unreadable"


def repair(context: RunContext) -> Repaired:
    """Lock the outbox and make a damaged manifest whole, from its readable rows and those that the runs have."""
    context = context.located()
    outbox = context.outbox
    with locked(context, create=False):
        runs = load_runs(outbox)
        complete_reports(context, runs.values())
        repaired = repair_manifest(context.files, outbox, _in_order_of_ends(runs))
        repaired.skipped += [run.damage for run in runs.values() if run.damage]
        return repaired


def _in_order_of_ends(runs: Runs) -> list[str]:
    """Return the runs whose rows the manifest should have, in their order: one may be resumed after later ones."""
    found = [run for run in runs.values() if _is_reported(run)]
    return [run.name for run in sorted(found, key=lambda run: (_after(run), runs.ended_ns(run.name)))]


def _after(run: Run) -> tuple[str, bool]:
    """Return the run after which the rows of a run come, and whether that is another."""
    after = ""
    with suppress(StateDamaged):
        after = str(journal_of(run.plan).marks.get(AFTER, "")) if run.plan else ""
    return after or run.name, bool(after)


def _is_reported(run: Run) -> bool:
    """Whether the manifest should have the rows of a run."""
    if run.state is RunState.UNFINISHED and run.plan is not None:
        return "reported" in journal_of(run.plan).marks
    return run.state in {RunState.FINISHED, RunState.PRUNED}


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """A run that sorted and came to its end.

    ``head`` is its plan's, empty where that was pruned; ``summary`` is None where that is gone too; ``undone_by`` is
    the id of its undo, ``is_undone`` whether that took all of it back.
    """

    outbox: str
    run: str
    head: Mapping[str, Any] = field(default_factory=dict)
    summary: Summary | None = None
    undone_by: str = ""
    is_undone: bool = False


def reported_run(outbox: str, run: str | None) -> ReportedRun:
    """Return the requested run, by default the newest that sorted; an error says why it cannot be reported."""
    outbox = absolute(outbox)
    runs = load_runs(outbox)
    newest = max((known for known, each in runs.items() if each.verb == "sort"), default="")
    name = newest if run is None else run
    found = runs.get(name)
    if not name or (found is None and not has_rows(outbox, name)):
        received = "none that sorted" if run is None else repr(run)
        raise UsageError(f"expected one of the runs that {command('runs', outbox)} lists, received {received}")
    if found is None or found.state is RunState.PRUNED:
        _require_sorted(name, _kind_of_pruned(outbox, name))
        return ReportedRun(outbox, name, summary=found.summary if found else None)
    if found.damage:
        raise StateDamaged(found.damage)
    if found.plan is None:
        received = f"{name}, which died before its plan was sealed: it has moved nothing"
        raise DicomsortError(f"expected a run that came to its end, received {received}")
    kinds = {"sort": "", "undo": f"an undo of {found.undoes}"}
    _require_sorted(name, kinds.get(found.verb, _DECISION))
    undos = runs.undos_of(name)
    if found.summary is None and not undos:
        state = f"was cut short: {command('resume', outbox, name)} finishes it"
        if holder := held_by(outbox):
            state = f"has not ended: {holder}"
        raise DicomsortError(f"expected a run that came to its end, received {name}, which {state}")
    undone_by, is_undone = (undos[-1].name, undos[-1].is_whole) if undos else ("", False)
    return ReportedRun(outbox, name, found.plan.head, found.summary, undone_by, is_undone)


def waiting_after(run: ReportedRun) -> Summary:
    """Return a summary of what waits now: in REVIEW, of that from other runs, and in UNREADABLE."""
    waiting = set(waiting_in(run.outbox))
    rows = rows_of(run.outbox, run.run, doubtful=True) if waiting else ()
    own = sum(row.action in PLACED and row.destination in waiting for row in rows)
    unreadable = count_waiting(run.outbox, UNREADABLE)
    others = max(len(waiting) - own, 0)
    return Summary(run.run, waiting=len(waiting), waiting_from_other_runs=others, unreadable=unreadable)


def _require_sorted(run: str, kind: str) -> None:
    if kind:
        raise UsageError(f"expected a run that sorted, received {run}, which is {kind}")


def _kind_of_pruned(outbox: str, run: str) -> str:
    """What a run is that did not sort, by its rows; empty where it sorted."""
    first = next(rows_of(outbox, run, doubtful=True), None)
    if first is not None and first.action == "undone":
        return "an undo"
    return _DECISION if first is not None and first.reason == "reviewed" else ""
