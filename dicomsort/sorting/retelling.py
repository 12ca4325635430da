"""Which run a report is about, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dicomsort.errors import DicomsortError, StateDamaged, UsageError, command
from dicomsort.report import Summary, is_told_of
from dicomsort.report.retold import rows_of
from dicomsort.sorting.outbox import Run, RunState, absolute, load_runs, undoings


@dataclass(frozen=True, slots=True)
class Told:
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


def told_of(outbox: str, run: str | None) -> Told:
    """The run that is asked for, by default the newest that sorted; an error says why it cannot be told of."""
    outbox = absolute(outbox)
    runs = load_runs(outbox)
    newest = max((known for known, each in runs.items() if each.verb == "sort"), default="")
    name = newest if run is None else run
    found = runs.get(name)
    if not name or (found is None and not is_told_of(outbox, name)):
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
    return Told(outbox, name, found.plan.head, found.summary, undone_by, is_undone)


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


def _pruned(outbox: str, run: str, summary: Summary | None) -> Told:
    first = next(rows_of(outbox, run, doubtful=True), None)
    if first is not None and first.action == "undone":
        raise UsageError(f"expected a run that sorted, received {run}, which is an undo")
    if first is not None and first.reason == "reviewed":
        raise UsageError(f"expected a run that sorted, received {run}, which is a person's decision")
    return Told(outbox, run, {}, summary)
