"""Remove the state of old runs, as far as no ``resume`` and no ``undo`` that was cut short needs it.

A run's plan goes first and its summary last: what a crash leaves of it is no run that could be carried out, and is
known as pruned. An undo goes after the run that it undoes, for without it that one would seem unfinished.
"""

from __future__ import annotations

import calendar
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

from dicomsort.errors import StateDamaged, command
from dicomsort.files import Files, flush_path, look_up
from dicomsort.journal import JOURNAL, PLAN, Replay, run_folder, runs_folder
from dicomsort.records import Outcome
from dicomsort.report import MANIFEST, SUMMARY
from dicomsort.report.manifest import NEW
from dicomsort.sorting.archives import STAGING, clear_unsealed
from dicomsort.sorting.outbox import RunContext, locked
from dicomsort.sorting.runs import BEGUN, STAMP, Run, Runs, RunState, journal_of, load_runs

_ORDER = (PLAN, JOURNAL, MANIFEST, f"{MANIFEST}{NEW}", SUMMARY)
_DAY = 86400.0


@dataclass
class Pruned:
    """What was removed, and what stays for a reason: run -> why."""

    removed: list[str] = field(default_factory=list)
    bytes: int = 0
    kept: int = 0
    needed: dict[str, str] = field(default_factory=dict)


def prune(context: RunContext, days: float | None = None, count: int | None = None) -> Pruned:
    """Remove the runs that began more than ``days`` days ago and are not among the newest ``count``.

    The newest run stays, and so does each one that is unfinished, or that an unfinished undo is about. Of a run that
    stays those stay that ended after it had begun: its resume and its undo ask what they placed and need. What was
    sorted, and the outbox's manifest, are not touched. OutboxLocked where a run holds the outbox.
    """
    context = context.located()
    folder, pruned = runs_folder(context.outbox), Pruned()
    with locked(context, create=False):
        runs = load_runs(context.outbox)
        clear_unsealed(context, runs.values())
        before = time.time() - days * _DAY if days is not None else float("inf")
        old = {name for name in [*runs][: -max(count or 1, 1)] if _began(name) < before}
        chosen = [run for run in runs.values() if run.name in old or run.state is RunState.PRUNED]
        needs, going = _Needs(runs), {run.name for run in chosen}
        needs.keep(going, pruned)
        for run in sorted(chosen, key=lambda run: bool(run.undoes)):  # undos last
            if run.name not in going:
                continue
            try:
                pruned.bytes += _remove(context.files, f"{folder}/{run.name}")
                pruned.removed.append(run.name)
            except OSError as error:
                pruned.needed[run.name] = f"it cannot be removed: {error.strerror}"
                going.remove(run.name)
                needs.keep(going, pruned)
        if runs:  # a sort may have died before it made the folder
            flush_path(context.files, folder)
    pruned.removed.sort()
    pruned.kept = len(runs) - len(pruned.removed)
    return pruned


def _began(run: str) -> float:
    """Return when a run began, in seconds since 1970; infinity, where its name is no time."""
    with suppress(ValueError):
        return calendar.timegm(time.strptime(run[:16], STAMP))
    return float("inf")


def _is_foreign(folder: str) -> str:
    """Return what in a run's folder is not ours, or keeps it from being removed; else nothing."""
    if os.path.ismount(folder):
        return "its folder is a mount point"
    try:
        with os.scandir(folder) as found:
            others = sorted(e.name for e in found if not _is_ours(e))
    except OSError as error:
        return f"its folder cannot be read: {error.strerror}"
    if STAGING in others:
        return f"it holds, in {STAGING}, what was unpacked from an archive that is gone: move that away"
    return f"it holds {others[0]!r}, which dicomsort did not write" if others else ""


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return entry.name in _ORDER and entry.is_file(follow_symlinks=False)


class _Needs:
    """Why runs must stay; what tells of each is read once."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._undone = runs, runs.wholly_undone()
        self._undos: dict[str, list[Run]] = {}
        for run in runs.values():
            self._undos.setdefault(run.undoes, []).append(run)
        self._own = cache(self._needed_by_its_own)
        self._ended = cache(runs.ended_ns)

    def keep(self, going: set[str], pruned: Pruned) -> None:
        """Take out of ``going`` what must stay, and what must stay for that."""
        while True:
            asking = self._asking(going)
            left = [self._runs[name] for name in sorted(going.difference(pruned.removed))]
            needed = {run.name: why for run in left if (why := self._needed(run, going, asking))}
            if not needed:
                return
            pruned.needed |= needed
            going.difference_update(needed)

    def _needed(self, run: Run, going: set[str], asking: Sequence[tuple[str, int]]) -> str:
        """Return why a run must stay where others are ``going``, or nothing."""
        if why := self._own(run.name):
            return why
        if run.undoes:
            undone_stays = run.undoes in self._runs and run.undoes not in going
            return f"it tells that run {run.undoes} was undone" if undone_stays else ""
        decided = run.plan.head.get("of", ()) if run.plan else ()
        if stays := [each for each in decided if each in self._runs and each not in going]:
            return f"it decided about files of run {stays[0]}, which its undo needs"
        for name, begun in asking if run.plan else ():
            if run.name > name or self._ended(run.name) > begun:
                return f"run {name} stays, and its undo asks what later runs did"
        return ""

    def _needed_by_its_own(self, name: str) -> str:
        """Return why a run must stay whatever becomes of others, or nothing."""
        run, undos = self._runs[name], self._undos.get(name, [])
        if run.damage or (run.undoes and run.summary is None):
            return run.damage or "it is an undo that was cut short"
        if not run.undoes and any(undo.summary is None for undo in undos):
            return "an undo of it was cut short"
        if name not in self._undone and any(map(_may_have_left, undos)):
            return (
                f"an undo of it was closed, and may have left files: {command('undo', self._runs.outbox, name)} looks"
            )
        if run.summary is None and run.plan is not None and name not in self._undone:
            return "it was cut short"
        return _is_foreign(run_folder(self._runs.outbox, name))

    def _asking(self, going: set[str]) -> list[tuple[str, int]]:
        """Return the first run that stays, and the one of those that began first, and when these began.

        As it is resumed or undone, a run asks what those did that are later or ended later. One that cannot be read now
        may be read some day.
        """
        stay = [
            (name, self._begun(name))
            for name, run in self._runs.items()
            if name not in going and name not in self._undone and not run.undoes and (run.plan or run.damage)
        ]
        return sorted({min(stay), min(stay, key=lambda each: each[1])}) if stay else []

    def _begun(self, name: str) -> int:
        try:
            return self._runs.begun_ns(name)
        except OSError:
            return 0


def _may_have_left(undo: Run) -> bool:
    """Whether an undo had begun operations that failed as it was closed, or nobody can tell."""
    try:
        known = journal_of(undo.plan) if undo.plan else Replay.empty(0)
    except StateDamaged:
        return True
    results = (known.result(number) for number in known.marks.get(BEGUN, ()))
    return any(result is None or result.outcome is Outcome.FAILED for result in results)


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
