"""Remove the state of old runs, as far as no ``resume`` and no ``undo`` that was cut short needs it.

A run's plan goes first and its summary last: what a crash leaves of it is no run that could be carried out, and is
known as pruned. An undo goes after the run that it undoes, for without it that one would seem unfinished.
"""

from __future__ import annotations

import calendar
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field

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
        going = {run.name for run in chosen}
        for run in sorted(chosen, key=lambda run: bool(run.undoes)):  # undos last
            _keep_needed(going, runs, pruned)
            if run.name not in going:
                continue
            try:
                pruned.bytes += _remove(context.files, f"{folder}/{run.name}")
                pruned.removed.append(run.name)
            except OSError as error:
                pruned.needed[run.name] = f"it cannot be removed: {error.strerror}"
                going.remove(run.name)
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


def _keep_needed(going: set[str], runs: Runs, pruned: Pruned) -> None:
    """Take out of ``going`` what must stay, and what must stay for that."""
    while True:
        left = [runs[name] for name in sorted(going.difference(pruned.removed))]
        needed = {run.name: why for run in left if (why := _needed(run, runs, going))}
        if not needed:
            return
        pruned.needed |= needed
        going.difference_update(needed)


def _needed(run: Run, runs: Runs, going: set[str]) -> str:
    """Return why a run must stay where others are ``going``, or nothing."""
    if run.undoes:
        if run.summary is None:
            return "it is an undo that was cut short"
        undone_stays = run.undoes in runs and run.undoes not in going
        why = f"it tells that run {run.undoes} was undone" if undone_stays else ""
    elif not (why := _needed_by_its_own(run, runs)):
        decided = run.plan.head.get("of", ()) if run.plan else ()
        if stays := [each for each in decided if each in runs and each not in going]:
            why = f"it decided about files of run {stays[0]}, which its undo needs"
        elif asking := next((name for name in runs if name not in going and _asks(runs, name, run)), ""):
            why = f"run {asking} stays, and its undo asks what later runs did"
    return run.damage or why or _is_foreign(run_folder(runs.outbox, run.name))


def _needed_by_its_own(run: Run, runs: Runs) -> str:
    """Return why a run must stay whatever becomes of others, or nothing."""
    undos = runs.undos_of(run.name)
    if any(undo.summary is None for undo in undos):
        return "an undo of it was cut short"
    is_undone = any(undo.is_whole for undo in undos)
    if not is_undone and any(map(_may_have_left, undos)):
        return f"an undo of it was closed, and may have left files: {command('undo', runs.outbox, run.name)} looks"
    is_over = run.summary is not None or run.plan is None or is_undone
    return "" if is_over else "it was cut short"


def _asks(runs: Runs, name: str, run: Run) -> bool:
    """Whether a run, as it is resumed or undone, asks what another did: one that is later, or ended later."""
    plan = runs[name].plan
    if plan is None or run.plan is None or runs[name].undoes or name == run.name:
        return False
    if run.name < name and runs.ended_ns(run.name) <= runs.begun_ns(name):
        return False
    if name in runs.wholly_undone():
        return False
    with suppress(StateDamaged):  # else it can be neither
        journal_of(plan)
        return True
    return False


def _may_have_left(undo: Run) -> bool:
    """Whether an undo had begun operations that failed as it was closed, or nobody can tell."""
    try:
        known = journal_of(undo.plan) if undo.plan else Replay.empty(0)
    except StateDamaged:
        return True
    results = (known.result(number) for number in known.marks.get(BEGUN, ()))
    return any(result is None or result.outcome is Outcome.FAILED for result in results)


def _asked(run: Run, runs: Runs, removed: list[str]) -> str:
    """Return why a run must stay that one which stays may ask, as it is finished or undone, or nothing."""
    gone = {*removed, *runs.wholly_undone(), run.name}
    for name, other in runs.items():
        is_asking = name not in gone and other.plan is not None and not (other.undoes and other.summary)
        if is_asking and not run.undoes and (run.name > name or runs.ended_ns(run.name) > runs.begun_ns(name)):
            return f"run {name} stays, and its undo asks what later runs did"
    return ""


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
