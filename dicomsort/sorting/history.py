"""What an outbox remembers: its runs, and whether what they placed is still whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dicomsort.errors import DicomsortError, UsageError
from dicomsort.files import look_up, sha256_of
from dicomsort.journal import STATE, Plan, runs_folder
from dicomsort.records import Placement
from dicomsort.report import NEEDS_PERSON, SUMMARY, history, printable
from dicomsort.sorting.outbox import all_runs
from dicomsort.sorting.progress import Progress


def list_runs(outbox: str) -> list[dict[str, Any]]:
    """The runs of an outbox, oldest first: id, verb, state (finished, unfinished, unsealed), counts, mode."""
    _must_be_outbox(outbox)
    return [_described(outbox, run) for run in all_runs(outbox)]


def _described(outbox: str, run: str) -> dict[str, Any]:
    folder = f"{runs_folder(outbox)}/{run}"
    told: dict[str, Any] = {"run_id": run, "verb": "sort", "mode": "", "found": 0, "sorted": 0, "held": 0}
    try:
        plan = Plan.open(folder)
    except DicomsortError:
        return told | {"state": "unsealed"}
    told |= {"verb": plan.head["verb"], "mode": plan.head.get("mode", ""), "started": plan.head["started"]}
    path = Path(folder) / SUMMARY
    if not path.is_file():
        return told | {"state": "unfinished", "found": plan.count}
    counts = json.loads(path.read_text(encoding="utf-8"))
    held = sum(counts["statuses"].get(status, 0) for status in NEEDS_PERSON)
    done = counts["statuses"].get("sorted", 0)
    return told | {"state": "finished", "found": counts["found"], "sorted": done, "held": held}


def verify(outbox: str, progress: Progress) -> dict[str, Any]:
    """Hash every file that the manifest says is placed: how many are whole, which are missing or different."""
    _must_be_outbox(outbox)
    placed: dict[str, Placement] = {}
    for is_there, placement in history(outbox):
        if is_there:
            placed[placement.destination] = placement
        else:
            placed.pop(placement.destination, None)
    progress.stage("hashing", len(placed))
    result: dict[str, Any] = {"whole": 0, "missing": [], "different": []}
    for destination, placement in placed.items():
        path = f"{os.path.realpath(outbox)}/{destination}"
        if look_up(path) is None:
            result["missing"].append(printable(destination))
        elif sha256_of(path) != placement.sha256:
            result["different"].append(printable(destination))
        else:
            result["whole"] += 1
        progress.advance()
    return result


def _must_be_outbox(outbox: str) -> None:
    if not os.path.isdir(f"{outbox}/{STATE}"):
        message = f"expected an outbox of dicomsort (with a folder {STATE}), received {outbox!r}"
        raise UsageError(message)
