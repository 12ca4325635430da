"""The outbox as a run holds it: its state folder, its lock, its runs."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from dicomsort.errors import DicomsortError, OutboxLocked, UsageError
from dicomsort.files import Files, closing, look_up, missing_folders
from dicomsort.journal import JOURNAL, PLAN, STATE, Plan, runs_folder
from dicomsort.report import SUMMARY, is_told_of, read_summary

RESERVE, RESERVE_LIMIT = "reserve", 1 << 30  # bytes; 500,000 files need about as many
_ROOM, _BLOCK = 256 << 10, 4 << 10  # bytes: for what does not grow with a run; for a folder that is made again
REVIEW_VERB = "review"  # of a plan that carries out a person's decision
STAMP = "%Y%m%dT%H%M%SZ"  # in the id of a run, UTC
_RUN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+\+*$")
_README = """\
This folder is the memory of dicomsort for the outbox around it: do not delete it while a run is not finished.

lock                      held by a running dicomsort; the system frees it when that process ends
reserve                   room on the disk that `dicomsort undo` needs where the disk is full; it holds nothing
runs/<run-id>/plan.jsonl  what the run decided to do, sealed before the first file was placed
             journal.jsonl  what it began and what it finished; `dicomsort resume` goes on from here
             manifest.csv   its rows of the manifest
             summary.json   its counts
sent/<destination>.jsonl  what a PACS acknowledged; `dicomsort send` sends the rest
corrections/              what persons decided, as images that `dicomsort train --from` learns from

`dicomsort runs OUTBOX` lists the runs, `dicomsort undo OUTBOX` takes the newest back.
"""


def absolute(outbox: str) -> str:
    """The outbox's real path; UsageError where it is no folder that ``sort`` has written to."""
    if not outbox or not os.path.isdir(f"{outbox}/{STATE}"):
        raise UsageError(f"expected an outbox of dicomsort (with a folder {STATE}), received {outbox!r}")
    return os.path.realpath(outbox)


@contextmanager
def held(files: Files, outbox: str, *, create: bool) -> Iterator[None]:
    """Hold the outbox for the time of the context; OutboxLocked where another run holds it."""
    if create:
        _make(files, outbox)
    try:
        descriptor = files.open_append(f"{outbox}/{STATE}/lock", 0o600)
    except OSError as error:
        message = f"outbox {outbox!r}: expected write permission, received {error.strerror}"
        raise DicomsortError(message) from error
    with closing(descriptor):
        if not files.lock(descriptor):
            raise OutboxLocked(_holder(descriptor, outbox))
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        try:
            files.truncate(descriptor, 0)
            files.write(descriptor, json.dumps(mine).encode())
        except OSError:
            if create:  # a sort needs room for more than this; what frees room must go on without
                raise
        yield


def _holder(descriptor: int, outbox: str) -> str:
    """Who holds the lock by its own word, and what to do where that one is gone: the lock itself is the system's."""
    advice = "wait for it to end"
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        pid, host = int(told["pid"]), str(told["host"])
        who = f"process {pid} on host {host} since {told['since']}"
        if host != socket.gethostname():
            advice = (
                f"wait for it to end, or look on {host} whether it still runs; the file server frees a dead one's lock"
            )
        elif not _is_alive(pid):
            advice = (
                "that process is gone, so one that it started, or the file server, holds the lock: `fuser` names it"
            )
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"outbox {outbox!r} is held by {who}; {advice} (the lock of a dead process frees itself)"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _make(files: Files, outbox: str) -> None:
    state = f"{outbox}/{STATE}"
    try:
        new = [(path, 0o777) for path in missing_folders(outbox)]
        for path, mode in [*new, (state, 0o700), (f"{state}/runs", 0o700)]:
            with suppress(FileExistsError):  # perhaps since a moment: the lock tells which run goes first
                files.make_folder(path, mode)
        with suppress(FileExistsError), closing(files.create(f"{state}/README", 0o600)) as descriptor:
            files.write(descriptor, _README.encode())
    except OSError as error:
        message = f"outbox {outbox!r}: expected a folder that can be written, received {error.strerror}"
        raise DicomsortError(message) from error


def new_run(files: Files, outbox: str) -> str:
    """Make the folder of a new run and return its id, which sorts after those of all earlier runs."""
    run = f"{time.strftime(STAMP, time.gmtime())}-{secrets.token_hex(3)}"
    newest = max(all_runs(outbox), default="")
    if run <= newest:  # the clock went backwards, or not on
        stamp, _, token = newest.rstrip("+").partition("-")
        following = f"{int(token, 16) + 1:0{len(token)}x}"
        run = f"{stamp}-{following}" if len(following) == len(token) else f"{newest}+"
    files.make_folder(f"{runs_folder(outbox)}/{run}", 0o700)
    return run


def room_for_undo(plan_bytes: int, folders: int = 0) -> int:
    """How many bytes an undo may write below the outbox: of a run whose plan has so many, and prunes so many folders.

    It has a plan, a journal, and its rows twice: 2.7 times the run's plan at most, as measured.
    """
    return _ROOM + 3 * plan_bytes + _BLOCK * folders


def make_reserve(files: Files, outbox: str, size: int) -> None:
    """Keep so many bytes of the disk for an undo, up to a limit; go on without where it has them not, or cannot."""
    path, size = f"{outbox}/{STATE}/{RESERVE}", min(size, RESERVE_LIMIT)
    there = look_up(path)
    if there is not None and there.st_blocks * 512 >= size:
        return
    with suppress(OSError), closing(files.open_append(path, 0o600)) as descriptor:
        before = os.fstat(descriptor).st_size
        try:
            files.allocate(descriptor, size)
        except OSError:
            files.truncate(descriptor, before)  # what it got of the last room is needed more by the run
            raise


def free_reserve(files: Files, outbox: str) -> None:
    """Give back what ``make_reserve`` keeps."""
    with suppress(OSError):
        files.unlink(f"{outbox}/{STATE}/{RESERVE}")


def all_runs(outbox: str, since: str = "") -> list[str]:
    """The ids of all runs after ``since``, oldest first."""
    try:
        with os.scandir(runs_folder(outbox)) as found:
            return sorted(e.name for e in found if e.name > since and _RUN.match(e.name) and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_run(name: str) -> bool:
    """Whether a name is one of a run."""
    return _RUN.match(name) is not None


def unfinished(outbox: str, since: str = "") -> str | None:
    """The newest run with a sealed plan that neither came to its end nor was undone since, or None.

    Runs up to ``since`` are not looked at, here and below: who knows that they are settled need not read them all.
    """
    return max(cut_short(outbox, all_runs(outbox, since)), default=None)


def cut_short(outbox: str, runs: Iterable[str]) -> dict[str, Plan]:
    """Those of some runs with a sealed plan that neither came to their end nor were undone since, with their plans."""
    plans = {run: Plan.peek(f"{runs_folder(outbox)}/{run}") for run in runs}
    undone = {plan.head["undoes"] for plan in plans.values() if plan and plan.head["verb"] == "undo"}
    ended = {run for run in plans if run in undone or read_summary(outbox, run) is not None}
    return {run: plan for run, plan in plans.items() if plan and run not in ended}


def inbox_of(head: Mapping[str, Any], outbox: str) -> str:
    """The inbox of a run; that of a decision is the outbox itself, by whatever path it is reached now."""
    return outbox if head["inbox"] == head["outbox"] else str(head["inbox"])


def inboxes(outbox: str) -> set[str]:
    """The inboxes of the runs whose plans are kept."""
    plans = (Plan.peek(f"{runs_folder(outbox)}/{run}") for run in all_runs(outbox))
    return {os.path.realpath(found) for plan in plans if plan and (found := inbox_of(plan.head, outbox)) != outbox}


def corrections_of(head: Mapping[str, Any], outbox: str) -> str:
    """The folder in which a decision left what models learn from; empty where it left nothing."""
    folder = head.get("corrections")
    return os.path.join(outbox, str(folder)) if folder else ""


def undoings(outbox: str, since: str = "") -> dict[str, str]:
    """The runs that are undos, each with the run that it undoes, oldest first."""
    plans = ((run, Plan.peek(f"{runs_folder(outbox)}/{run}")) for run in all_runs(outbox, since))
    return {run: plan.head["undoes"] for run, plan in plans if plan and plan.head["verb"] == "undo"}


def wholly_undone(outbox: str, since: str = "") -> set[str]:
    """The runs that an undo after ``since`` took back, all of each."""
    summaries = ((run, read_summary(outbox, undoing)) for undoing, run in undoings(outbox, since).items())
    return {run for run, summary in summaries if summary is not None and not summary.needs_person}


def decisions_about(outbox: str, run: str) -> list[str]:
    """The runs by which persons decided about what a run had held, and that are not wholly undone, oldest first."""
    later = {name: Plan.peek(f"{runs_folder(outbox)}/{name}") for name in all_runs(outbox, run)}
    undone = wholly_undone(outbox, run)
    return [name for name, plan in later.items() if plan and run in plan.head.get("of", ()) and name not in undone]


def chosen(outbox: str, run: str | None, default: str | None, what: str) -> str:
    """The folder's name of the run that a command is about; UsageError where there is none such."""
    runs = all_runs(outbox)
    name = run or default
    if name and was_pruned(outbox, name, is_there=name in runs):
        advice = "what it placed stays, and it can be neither resumed nor undone any more"
        raise UsageError(f"expected a run whose plan is kept, received {name}, which was pruned: {advice}")
    if name is None or name not in runs:
        received = f"{run!r}" if run else f"none {what}"
        message = f"expected one of the runs that `dicomsort runs {outbox}` lists, received {received}"
        raise UsageError(message)
    return name


def was_pruned(outbox: str, run: str, *, is_there: bool) -> bool:
    """Whether a run's state, or its plan alone, was taken away since."""
    if not is_there:
        return is_told_of(outbox, run)
    folder = f"{runs_folder(outbox)}/{run}"
    return look_up(f"{folder}/{PLAN}") is None and any(look_up(f"{folder}/{name}") for name in (JOURNAL, SUMMARY))


def now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
