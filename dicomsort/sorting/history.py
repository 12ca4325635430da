"""What an outbox remembers: its runs, and whether what they placed is still whole."""

from __future__ import annotations

from typing import Any

from dicomsort.files import look_up, sha256_of
from dicomsort.journal import Plan, runs_folder
from dicomsort.records import Placement
from dicomsort.report import NEEDS_PERSON, history, printable, read_summary
from dicomsort.sorting.outbox import absolute, all_runs, was_pruned
from dicomsort.sorting.progress import Progress


def list_runs(outbox: str) -> list[dict[str, Any]]:
    """The runs of an outbox, oldest first: id, verb, state (finished, unfinished, unsealed, pruned), counts, mode."""
    outbox = absolute(outbox)
    return [_described(outbox, run) for run in all_runs(outbox)]


def _described(outbox: str, run: str) -> dict[str, Any]:
    told: dict[str, Any] = {"run_id": run, "verb": "sort", "mode": "", "found": 0, "sorted": 0, "held": 0}
    plan = Plan.peek(f"{runs_folder(outbox)}/{run}")
    if plan is None:
        return told | {"state": "pruned" if was_pruned(outbox, run, is_there=True) else "unsealed"}
    told |= {"verb": plan.head["verb"], "mode": plan.head.get("mode", ""), "started": plan.head["started"]}
    summary = read_summary(outbox, run)
    if summary is None:
        return told | {"state": "unfinished", "found": plan.count}
    held = sum(summary.statuses[status] for status in NEEDS_PERSON)
    return told | {"state": "finished", "found": summary.found, "sorted": summary.statuses["sorted"], "held": held}


def verify(outbox: str, progress: Progress) -> dict[str, Any]:
    """Hash every file that the manifest says is placed: how many are whole, which are missing or different."""
    outbox = absolute(outbox)
    placed: dict[str, Placement] = {}
    for is_there, placement in history(outbox):
        if is_there:
            placed[placement.destination] = placement
        else:
            placed.pop(placement.destination, None)
    progress.stage("hashing", len(placed))
    result: dict[str, Any] = {"whole": 0, "missing": [], "different": []}
    for destination, placement in placed.items():
        path = f"{outbox}/{destination}"
        if look_up(path) is None:
            result["missing"].append(printable(destination))
        elif sha256_of(path) != placement.sha256:
            result["different"].append(printable(destination))
        else:
            result["whole"] += 1
        progress.advance()
    return result
