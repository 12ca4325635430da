"""The runs of an outbox: the list of them, one as a report tells it, and whether what they placed is still whole."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dicomsort.errors import DicomsortError, StateDamaged, UsageError, command
from dicomsort.files import look_up, sha256_of
from dicomsort.journal import replay, runs_folder
from dicomsort.records import Placement
from dicomsort.report import NEEDS_PERSON, Damages, Summary, has_rows, history, printable
from dicomsort.report.manifest import Repaired, rows_of
from dicomsort.report.manifest import repair as mend
from dicomsort.sorting.outbox import (
    Run,
    RunContext,
    RunState,
    absolute,
    load_runs,
    locked,
    undoings,
    unfinished,
    wholly_undone,
)
from dicomsort.sorting.running import complete_reports


def list_runs(outbox: str) -> list[dict[str, Any]]:
    """The runs of an outbox, oldest first: id, verb, state, counts, mode, what it undoes, what undid it.

    The state is a ``RunState``, or ``undone`` or ``partly undone``. A damaged run has the reason as ``damage``.
    """
    runs = load_runs(absolute(outbox), deep=True)
    undone_by = {undone: undo for undo, undone in undoings(runs).items() if runs[undo].summary}
    wholly = wholly_undone(runs)
    return [_described(run) | _undone(run, undone_by.get(run.name, ""), wholly) for run in runs.values()]


def _undone(run: Run, undone_by: str, wholly: set[str]) -> dict[str, Any]:
    """What of the description tells of undoing."""
    told = {"undoes": run.undoes, "undone_by": undone_by}
    return told | ({"state": "undone" if run.name in wholly else "partly undone"} if undone_by else {})


def _described(run: Run) -> dict[str, Any]:
    told: dict[str, Any] = {"run_id": run.name, "verb": run.verb or "sort", "mode": "", "found": 0, "sorted": 0}
    told |= {"held": 0, "state": str(run.state)}
    if run.damage:
        return told | {"verb": "", "damage": run.damage}
    if run.plan is None:
        return told
    told |= {"mode": run.plan.head.get("mode", ""), "started": run.plan.head["started"]}
    if (summary := run.summary) is None:
        return told | {"found": run.plan.count}
    held = sum(summary.statuses[status] for status in NEEDS_PERSON)
    return told | {"found": summary.found, "sorted": summary.statuses["sorted"], "held": held}


def verify(context: RunContext) -> dict[str, Any]:
    """Hash every file that the manifest says is placed, and read the state of every run.

    How many files are ``whole``; which are ``missing``, ``different`` or ``unreadable`` (paths); which lines of the
    manifest are ``damaged``, and which ``runs`` (sentences).
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
        result_of = _compare(f"{outbox}/{destination}", placement.sha256)
        if result_of == "whole":
            result["whole"] += 1
        else:
            result[result_of].append(printable(destination))
        progress.advance()
    runs = load_runs(outbox, deep=True)
    broken = [run.damage for run in runs.values() if run.damage]
    advice = f"{command('resume', outbox)} finishes it"
    cut_short = [f"run {name} was cut short and is not finished: {advice}" for name in unfinished(runs)]
    return result | {"damaged": damages.notes(outbox), "runs": broken, "unfinished": cut_short}


def _compare(path: str, sha256: str) -> str:
    try:
        status = look_up(path)
        if status is None:
            return "missing"
        if not stat.S_ISREG(status.st_mode):
            return "different"
        return "whole" if sha256_of(path) == sha256 else "different"
    except FileNotFoundError:  # it went meanwhile
        return "missing"
    except OSError:
        return "unreadable"


def repair(context: RunContext) -> Repaired:
    """Make a damaged manifest whole, from what of it can be read and from what the runs have; under the lock."""
    context = context.located()
    outbox = context.outbox
    with locked(context, create=False):
        runs = load_runs(outbox)
        complete_reports(context, runs.values())
        repaired = mend(context.files, outbox, [run.name for run in runs.values() if _is_reported(outbox, run)])
        repaired.skipped += [run.damage for run in runs.values() if run.damage]
        return repaired


def _is_reported(outbox: str, run: Run) -> bool:
    """Whether the manifest should have the rows of a run."""
    if run.state is RunState.UNFINISHED and run.plan is not None:
        return "reported" in replay(f"{runs_folder(outbox)}/{run.name}", run.plan.count).marks
    return run.state in {RunState.FINISHED, RunState.PRUNED}


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """A run that sorted and came to its end.

    ``head`` is its plan's, empty where that was pruned; ``summary`` what the run said of itself, None where that is
    gone too; ``undone_by`` the id of its undo, ``is_undone`` whether that took all of it back.
    """

    outbox: str
    run: str
    head: Mapping[str, Any] = field(default_factory=dict)
    summary: Summary | None = None
    undone_by: str = ""
    is_undone: bool = False


def reported_run(outbox: str, run: str | None) -> ReportedRun:
    """The run that is asked for, by default the newest that sorted; an error says why it cannot be told of."""
    outbox = absolute(outbox)
    runs = load_runs(outbox)
    newest = max((known for known, each in runs.items() if each.verb == "sort"), default="")
    name = newest if run is None else run
    found = runs.get(name)
    if not name or (found is None and not has_rows(outbox, name)):
        received = "none that sorted" if run is None else repr(run)
        raise UsageError(f"expected one of the runs that {command('runs', outbox)} lists, received {received}")
    if found is None or found.state is RunState.PRUNED:
        return _pruned(outbox, name, found.summary if found else None)
    if found.plan is None:
        raise _unreadable(found)
    _check_sorted(name, found.plan.head)
    undone_by = next((undo for undo, undone in reversed(undoings(runs).items()) if undone == name), "")
    if found.summary is None and not undone_by:
        raise DicomsortError(
            f"expected a run that came to its end, received {name}, which was cut short: "
            f"{command('resume', outbox, name)} finishes it"
        )
    is_undone = undone_by != "" and runs[undone_by].is_whole
    return ReportedRun(outbox, name, found.plan.head, found.summary, undone_by, is_undone)


def _unreadable(run: Run) -> DicomsortError:
    if run.damage:
        return StateDamaged(run.damage)
    return DicomsortError(
        f"expected a run that came to its end, received {run.name}, which died before its plan was sealed: "
        "it has moved nothing"
    )


def _check_sorted(run: str, head: Mapping[str, Any]) -> None:
    if head["verb"] == "undo":
        raise UsageError(f"expected a run that sorted, received {run}, which is an undo of {head['undoes']}")
    if head["verb"] != "sort":
        raise UsageError(f"expected a run that sorted, received {run}, which is a person's decision")


def _pruned(outbox: str, run: str, summary: Summary | None) -> ReportedRun:
    first = next(rows_of(outbox, run, doubtful=True), None)
    if first is not None and first.action == "undone":
        raise UsageError(f"expected a run that sorted, received {run}, which is an undo")
    if first is not None and first.reason == "reviewed":
        raise UsageError(f"expected a run that sorted, received {run}, which is a person's decision")
    return ReportedRun(outbox, run, {}, summary)
