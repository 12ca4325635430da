"""Take away the state of old runs, as far as no ``resume`` and no ``undo`` that was cut short needs it.

A run's plan goes first and its summary last: what a crash leaves of it is no run that could be carried out, and is
known as pruned. An undo goes after the run that it undoes, for without it that one would seem unfinished.
"""

from __future__ import annotations

import calendar
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from dicomsort.files import Files, flush_path, look_up
from dicomsort.journal import JOURNAL, PLAN, Plan, runs_folder
from dicomsort.report import MANIFEST, SUMMARY, read_summary
from dicomsort.sorting.outbox import STAMP, absolute, all_runs, held, was_pruned

_ORDER = (PLAN, JOURNAL, MANIFEST, SUMMARY)
_DAY = 86400.0


@dataclass
class Pruned:
    """What was taken away, and what stays for a reason: run -> why."""

    removed: list[str] = field(default_factory=list)
    bytes: int = 0
    kept: int = 0
    needed: dict[str, str] = field(default_factory=dict)


def prune(outbox: str, files: Files, days: float | None = None, count: int | None = None) -> Pruned:
    """Take away the runs that began more than ``days`` days ago and are none of the newest ``count``.

    The newest run stays, and so does each one that is unfinished or that an unfinished undo is about. What was sorted,
    and the outbox's manifest, are not touched. OutboxLocked where a run holds the outbox.
    """
    outbox = absolute(outbox)
    pruned = Pruned()
    with held(files, outbox, create=False):
        runs = [_Run(outbox, name) for name in all_runs(outbox)]
        old = {run.name for run in _old(runs, days, count)}
        for run in _undos_last([run for run in runs if run.name in old or run.half_pruned]):
            if why := run.strange or _needed(run, runs, pruned.removed):
                pruned.needed[run.name] = why
                continue
            pruned.bytes += _remove(files, run.folder)
            pruned.removed.append(run.name)
        flush_path(files, runs_folder(outbox))
    pruned.removed.sort()
    pruned.kept = len(runs) - len(pruned.removed)
    return pruned


class _Run:
    """One run as far as pruning asks."""

    def __init__(self, outbox: str, name: str) -> None:
        self.name, self.folder = name, f"{runs_folder(outbox)}/{name}"
        plan, summary = Plan.peek(self.folder), read_summary(outbox, name)
        self.undoes = str(plan.head["undoes"]) if plan and plan.head["verb"] == "undo" else ""
        self.finished = summary is not None
        self.whole = summary is not None and not summary.needs_person
        self.half_pruned = was_pruned(outbox, name, is_there=True)
        self.unsealed = plan is None
        there = {*os.listdir(self.folder)}
        self.strange = "".join(f"it holds {other!r}, which is none of ours" for other in sorted(there - {*_ORDER})[:1])
        if self.unsealed and not self.half_pruned and JOURNAL in there:
            self.strange = "its plan cannot be read, and its journal tells of changes"

    @property
    def began(self) -> float:
        """When, in seconds since 1970; never, where its name tells no time."""
        with suppress(ValueError):
            return calendar.timegm(time.strptime(self.name[:16], STAMP))
        return float("inf")


def _old(runs: list[_Run], days: float | None, count: int | None) -> list[_Run]:
    before = time.time() - days * _DAY if days is not None else float("inf")
    return [run for run in runs[: -max(count or 1, 1)] if run.began < before]


def _undos_last(runs: list[_Run]) -> Iterator[_Run]:
    yield from (run for run in runs if not run.undoes)
    yield from (run for run in runs if run.undoes)


def _needed(run: _Run, runs: list[_Run], removed: list[str]) -> str:
    """What a run must stay for, or nothing."""
    if run.undoes:
        if not run.finished:
            return "it is an undo that was cut short"
        undone_stays = any(other.name == run.undoes for other in runs) and run.undoes not in removed
        return f"it tells that run {run.undoes} was undone" if undone_stays else ""
    undoings = [other for other in runs if other.undoes == run.name]
    if any(not other.finished for other in undoings):
        return "an undo of it was cut short"
    return "" if run.finished or run.unsealed or any(other.whole for other in undoings) else "it was cut short"


def _remove(files: Files, folder: str) -> int:
    """Remove a run's folder, its plan first; how many bytes that frees."""
    freed = 0
    for name in _ORDER:
        path = f"{folder}/{name}"
        if (status := look_up(path)) is None:
            continue
        files.unlink(path)
        freed += status.st_size
        if name == PLAN:
            flush_path(files, folder)
    files.remove_folder(folder)
    return freed
