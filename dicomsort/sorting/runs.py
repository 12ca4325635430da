"""The runs of an outbox: what is read of each, and in which state it is; the ids and plans of new ones."""

from __future__ import annotations

import calendar
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dicomsort.errors import DicomsortError, StateDamaged, UsageError, command, counted
from dicomsort.files import Files, look_up
from dicomsort.journal import JOURNAL, PLAN, Journal, Plan, PlanWriter, Replay, is_run, replay, run_folder, runs_folder
from dicomsort.records import Action, Operation, Verb
from dicomsort.report import MANIFEST, SUMMARY, Summary, has_rows, read_summary, visible
from dicomsort.report.manifest import append_manifest
from dicomsort.sorting.outbox import RunContext, inbox_of, make_reserve, require_mounts, room_for_undo

AFTER = "after"  # the mark in the journal of a run that was resumed after later ones had ended: the last of them
BEGUN = "begun"  # the mark in the journal of an undo that was resumed or closed: the operations that it had begun
UNDONE_BY = "undone_by"  # the mark in the journal of a run that was cut short and then undone
STAMP = "%Y%m%dT%H%M%SZ"  # in the id of a run, UTC


class RunState(StrEnum):
    """The state of a run."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    UNSEALED = "unsealed"  # it died before its plan was sealed, and has moved nothing
    PRUNED = "pruned"  # its plan was taken away
    DAMAGED = "damaged"  # a file of its state cannot be read: nothing of it is touched


@dataclass(frozen=True, slots=True)
class Run:
    """One run as read from its folder; ``plan`` where it is sealed, ``summary`` where the run came to its end.

    ``damage`` says why a damaged run cannot be read; such a run has neither plan nor summary here.
    """

    name: str
    state: RunState
    plan: Plan | None = None
    summary: Summary | None = None
    damage: str = ""
    undone_by: str = ""  # from its own journal, where it did not come to its end

    @property
    def verb(self) -> str:
        """``sort``, ``undo`` or ``review``, from its plan; empty where it has none."""
        return str(self.plan.head["verb"]) if self.plan else ""

    @property
    def undoes(self) -> str:
        """The run that it undoes, if it is an undo."""
        return str(self.plan.head["undoes"]) if self.plan and self.verb == "undo" else ""

    @property
    def is_whole(self) -> bool:
        """Whether it came to its end and left nothing for a person."""
        return self.summary is not None and not self.summary.needs_person


def load_run(outbox: str, name: str, *, deep: bool = False) -> Run:
    """Read the state of a run; one that cannot be read is ``damaged``, with the reason.

    ``deep``: also every line of the plan and the journal of a run that came to its end, which only undoing needs.
    """
    folder = run_folder(outbox, name)
    try:
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode):
            return Run(name, RunState.DAMAGED, damage=f"run {name}: expected a folder, received a file or a link")
        plan, summary, undone_by = Plan.peek(folder), read_summary(outbox, name), ""
        _require_file(f"{folder}/{MANIFEST}", name)
        if plan is None:
            rest = (JOURNAL, SUMMARY)
            is_pruned = look_up(f"{folder}/{PLAN}") is None and any(look_up(f"{folder}/{each}") for each in rest)
            return Run(name, RunState.PRUNED if is_pruned else RunState.UNSEALED, summary=summary)
        if summary is None or deep:
            undone_by = str(read_all(folder, summary)[1].marks.get(UNDONE_BY, ""))
    except (StateDamaged, OSError) as error:
        reason = str(error) if isinstance(error, StateDamaged) else f"run {name}: {error.strerror}"
        return Run(name, RunState.DAMAGED, damage=reason)
    state = RunState.UNFINISHED if summary is None else RunState.FINISHED
    return Run(name, state, plan, summary, undone_by=undone_by)


def _require_file(path: str, run: str) -> None:
    """StateDamaged where something else than a regular file has the name of one."""
    status = look_up(path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise StateDamaged(f"run {run}, {os.path.basename(path)}: expected a regular file, received something else")


def read_all(folder: str, summary: Summary | None) -> tuple[Plan, Replay]:
    """Return plan and journal of a run, every line of them read; StateDamaged where they are not as the run left them.

    The journal of a run that came to its end must hold all the files that its summary counts.
    """
    plan = Plan.open(folder)
    known = journal_of(plan)
    # Without a summary too: this reads each operation, and so checks it.
    done = sum(known.is_done(o.number) for o in plan.operations() if o.row is not None and o.verb is not Verb.LEAVE)
    actions = summary.actions if summary is not None else {}
    ended = sum(count for action, count in actions.items() if action != Action.LEFT)
    if summary is not None and done != ended:
        files = counted(ended, "file that was", "files that were")
        message = f"expected {files} placed or removed, received {done:,}"
        raise StateDamaged(f"run {os.path.basename(folder)}, {JOURNAL}: {message}")
    return plan, known


def journal_of(plan: Plan) -> Replay:
    """Return what the journal of a plan's run says; StateDamaged where it cannot be read."""
    return replay(str(plan.path.parent), plan.count)


class Runs(dict[str, Run]):
    """Runs of an outbox by their ids, oldest first."""

    def __init__(self, outbox: str, names: Iterable[str], *, deep: bool = False) -> None:
        super().__init__({name: load_run(outbox, name, deep=deep) for name in names})
        self.outbox = outbox

    def unfinished(self) -> dict[str, Run]:
        """Return those with a sealed plan that neither came to their end nor were undone."""
        undone = {run.undoes for run in self.values()} | {name for name, run in self.items() if run.undone_by in self}
        return {name: run for name, run in self.items() if run.state is RunState.UNFINISHED and name not in undone}

    def cut_short(self, inbox: str) -> tuple[list[str], list[str]]:
        """Return the unfinished runs that one of an inbox finishes first, and those of other inboxes.

        First come undos, on which others build, then decisions and runs of the inbox.
        """
        first, others, ours = list[str](), list[str](), {inbox, self.outbox}
        for name, run in self.unfinished().items():
            is_first = run.undoes or (run.plan and inbox_of(run.plan.head, self.outbox) in ours)
            (first if is_first else others).append(name)
        return sorted(first, key=lambda name: not self[name].undoes), others

    def ended_ns(self, name: str) -> int:
        """Return when a run ended (nanoseconds since 1970): the time of its summary; beyond all where it has none."""
        there = look_up(f"{run_folder(self.outbox, name)}/{SUMMARY}")
        return sys.maxsize if there is None else there.st_mtime_ns

    def begun_ns(self, name: str) -> int:
        """Return when a run began to place (nanoseconds since 1970): the time of its plan, 0 where it has none."""
        there = look_up(f"{run_folder(self.outbox, name)}/{PLAN}")
        return 0 if there is None else there.st_mtime_ns

    def undos_of(self, name: str) -> list[Run]:
        """Return the runs that undo a run."""
        return [run for run in self.values() if run.undoes == name]

    def wholly_undone(self) -> set[str]:
        """Return the runs that an undo took back wholly."""
        return {run.undoes for run in self.values() if run.undoes and run.is_whole}

    def decisions_about(self, name: str) -> list[str]:
        """Return the decisions about what a run put up for review that are not wholly undone."""
        undone = self.wholly_undone()
        return [
            later
            for later, run in self.items()
            if later > name and run.plan and name in run.plan.head.get("of", ()) and later not in undone
        ]

    def damages(self) -> list[str]:
        """Return a sentence for each run that cannot be read."""
        return [f"{run.damage}; the run is left alone" for run in self.values() if run.damage]

    def maybe_unfinished(self) -> dict[str, str]:
        """Return a sentence for each run that cannot be read and has no summary: files of it may have no row."""
        sentences = {}
        for name, run in self.items():
            if run.damage and not _has_ended(self.outbox, name):
                advice = f"look at what it placed, then move {visible(run_folder(self.outbox, name))} away"
                problem = "it may have been cut short, and is neither finished nor undone"
                sentences[name] = f"{run.damage}; {problem}: {advice}"
        return sentences

    def require_mounted(self, inbox: str) -> None:
        """DicomsortError where an inbox is empty, and the mount point of its newest run is not mounted now."""
        heads = [run.plan.head for run in self.values() if run.plan is not None and run.plan.head["inbox"] == inbox]
        mount = str(heads[-1].get("mount") or "/") if heads else "/"
        if os.path.ismount(mount):
            return
        with os.scandir(inbox) as entries:
            if all(entry.name.startswith(".") for entry in entries):  # what marks a folder to mount on
                received = f"an empty folder, and nothing is mounted at {mount!r}, where it was"
                raise DicomsortError(f"INBOX: expected the files of {inbox!r}, received {received}; mount it")

    def chosen(self, name: str | None, default: str | None, what: str) -> Run:
        """Return the run that a command is about; UsageError where there is none, StateDamaged for a damaged one."""
        name = default if name is None else name
        run = self.get(name or "")
        if run is not None and run.damage:
            raise StateDamaged(run.damage)
        if name and (run.state is RunState.PRUNED if run else has_rows(self.outbox, name)):
            advice = "what it placed stays, and it can be neither resumed nor undone any more"
            raise UsageError(f"expected a run whose plan is kept, received {name}, which was pruned: {advice}")
        if run is None:
            received = f"none {what}" if name is None else f"{name!r}"
            raise UsageError(f"expected one of the runs that {command('runs', self.outbox)} lists, received {received}")
        return run


def load_runs(outbox: str, since: str = "", *, deep: bool = False) -> Runs:
    """Read the runs after ``since``; see ``load_run``."""
    return Runs(outbox, all_runs(outbox, since), deep=deep)


def require_outbox_mounts(outbox: str) -> None:
    """DicomsortError where a folder was a mount when the newest sort or decision began, and is empty and none now."""
    for name in reversed(all_runs(outbox)):
        plan = load_run(outbox, name).plan
        if plan is not None and plan.head["verb"] != "undo":  # an undo goes on without
            require_mounts(plan.head, outbox, "outbox/")
            return


def all_runs(outbox: str, since: str = "") -> list[str]:
    """Return the ids of all runs after ``since``, oldest first."""
    try:
        with os.scandir(runs_folder(outbox)) as found:
            return sorted(e.name for e in found if e.name > since and is_run(e.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def append_rows(files: Files, outbox: str, run: str, journal: Journal) -> None:
    """Append the rows of a run to the outbox's manifest, once; after later runs that have ended, it notes the last."""
    marks = journal.known.marks
    if "reported" in marks:
        return
    ended = [name for name in all_runs(outbox, run) if look_up(f"{run_folder(outbox, name)}/{SUMMARY}")]
    if ended and "manifest" not in marks:
        journal.mark(AFTER, ended[-1])
    append_manifest(files, outbox, run, journal)


def _has_ended(outbox: str, run: str) -> bool:
    """Whether a run came to its end, by its summary, or by its journal where the summary cannot be read."""
    folder = run_folder(outbox, run)
    with suppress(StateDamaged, OSError):
        return read_summary(outbox, run) is not None
    with suppress(StateDamaged, OSError):
        return look_up(f"{folder}/{PLAN}") is None or "reported" in read_all(folder, None)[1].marks
    return False


def new_run(context: RunContext) -> str:
    """Make the folder of a new run and return its id, which sorts after those of all earlier runs."""
    run = f"{time.strftime(STAMP, time.gmtime())}-{secrets.token_hex(3)}"
    newest = max(all_runs(context.outbox), default="")
    if run <= newest:  # the clock went backwards, or not on
        stamp, _, token = newest.rstrip("+").partition("-")
        following = f"{int(token, 16) + 1:0{len(token)}x}"
        run = f"{stamp}-{following}" if len(following) == len(token) else _a_second_later(stamp, token) or f"{newest}+"
        if not is_run(run):  # nor is there another that sorts after it
            message = f"expected runs after which others can come, received {newest}, the last that there can be"
            raise DicomsortError(f"{runs_folder(context.outbox)}: {message}; move that folder away")
    context.files.make_folder(run_folder(context.outbox, run), 0o700)
    return run


def _a_second_later(stamp: str, token: str) -> str:
    """The first id of the next second; empty where the calendar ends."""
    try:
        moment = calendar.timegm(time.strptime(stamp, STAMP)) + 1
        later = time.strftime(STAMP, time.gmtime(moment))
    except (ValueError, OverflowError, OSError):
        return ""
    return f"{later}-{'0' * len(token)}" if is_run(f"{later}-0") else ""


def seal_plan(context: RunContext, run: str, head: dict[str, Any], operations: Iterable[Operation]) -> Plan:
    """Write operations as the run's plan and seal it; then keep room for an undo of it."""
    files, folder, pruned = context.files, run_folder(context.outbox, run), 0
    try:
        with closing(PlanWriter(files, folder, head)) as writer:
            for operation in operations:
                writer.add(operation)
                pruned += operation.verb is Verb.REMOVE_FOLDER
            writer.seal()
    except (OSError, DicomsortError):
        for remove, path in ((files.unlink, f"{folder}/{PLAN}"), (files.remove_folder, folder)):
            with suppress(OSError):  # an unsealed plan is useless, and takes room
                remove(path)
        raise
    if head["verb"] != "undo":
        make_reserve(context, room_for_undo(os.stat(f"{folder}/{PLAN}").st_size, pruned))
    return writer.plan


def inboxes(outbox: str) -> set[str]:
    """Return the inboxes of the runs whose plans are there."""
    plans = (run.plan for run in load_runs(outbox).values())
    return {os.path.realpath(found) for plan in plans if plan and (found := inbox_of(plan.head, outbox)) != outbox}
