"""Which run a report is about, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dicomsort.errors import DicomsortError, UsageError
from dicomsort.journal import Plan, runs_folder
from dicomsort.report import Summary, read_summary
from dicomsort.report.retold import rows_of
from dicomsort.sorting.outbox import absolute, all_runs, undoings, was_pruned


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
    name = run or _newest_sort(outbox)
    is_there = name in all_runs(outbox)
    if not name or not (is_there or was_pruned(outbox, name, is_there=False)):
        received = repr(run) if run else "none that sorted"
        raise UsageError(f"expected one of the runs that `dicomsort runs {outbox}` lists, received {received}")
    plan = Plan.peek(f"{runs_folder(outbox)}/{name}") if is_there else None
    if plan is None and not was_pruned(outbox, name, is_there=is_there):
        raise DicomsortError(
            f"expected a run that came to its end, received {name}, which died before its plan was sealed: "
            "it has moved nothing"
        )
    summary = read_summary(outbox, name) if is_there else None
    if plan is None:
        return _pruned(outbox, name, summary)
    _check_sorted(name, plan.head)
    undone_by = next((undo for undo, undone in reversed(undoings(outbox).items()) if undone == name), "")
    if summary is None and not undone_by:
        raise DicomsortError(
            f"expected a run that came to its end, received {name}, which was cut short: "
            f"`dicomsort resume {outbox} {name}` finishes it"
        )
    undo = read_summary(outbox, undone_by) if undone_by else None
    return Told(outbox, name, plan.head, summary, undone_by, undo is not None and not undo.needs_person)


def _newest_sort(outbox: str) -> str:
    for run in reversed(all_runs(outbox)):
        plan = Plan.peek(f"{runs_folder(outbox)}/{run}")
        if plan is not None and plan.head["verb"] == "sort":
            return run
    return ""


def _check_sorted(run: str, head: Mapping[str, Any]) -> None:
    if head["verb"] == "undo":
        raise UsageError(f"expected a run that sorted, received {run}, which is an undo of {head['undoes']}")
    if head["verb"] != "sort":
        raise UsageError(f"expected a run that sorted, received {run}, which is a person's decision")


def _pruned(outbox: str, run: str, summary: Summary | None) -> Told:
    first = next(rows_of(outbox, run), None)
    if first is not None and first.action == "undone":
        raise UsageError(f"expected a run that sorted, received {run}, which is an undo")
    if first is not None and first.reason == "reviewed":
        raise UsageError(f"expected a run that sorted, received {run}, which is a person's decision")
    return Told(outbox, run, {}, summary)
