"""Carry out a sealed plan and report on it: the second half of ``sort``, all of ``resume``, and of ``undo``."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from dicomsort.errors import DicomsortError, Outdated, UsageError
from dicomsort.execute import Executor, Roots
from dicomsort.files import Files, is_network, look_up
from dicomsort.journal import Journal, Plan, PlanWriter, Replay, replay, runs_folder
from dicomsort.plan import reverse
from dicomsort.records import Found, Operation, Outcome, Result, Row, Verb
from dicomsort.report import (
    RunManifest,
    Summary,
    append_manifest,
    final_row,
    needs_person,
    printable,
    read_summary,
    write_summary,
)
from dicomsort.sorting.corrections import retract
from dicomsort.sorting.outbox import (
    REVIEW_VERB,
    absolute,
    all_runs,
    chosen,
    corrections_of,
    decisions_about,
    held,
    inbox_of,
    new_run,
    now,
    undoings,
    unfinished,
    wholly_undone,
)
from dicomsort.sorting.progress import Progress

# Threads that place: a local disk answers sooner than the interpreter switches between many, a network does not.
LOCAL_THREADS, NETWORK_THREADS = 2, 8
_log = logging.getLogger("dicomsort")


def carry_out(
    files: Files,
    outbox: str,
    run: str,
    plan: Plan,
    progress: Progress,
    on_row: Callable[[Row], None] | None = None,
) -> Summary:
    """Execute the plan as far as it is not done, write the manifest; idempotent. ``on_row`` is given each final row."""
    started = time.monotonic()
    if not os.path.isdir(inbox := inbox_of(plan.head, outbox)):
        raise DicomsortError(f"run {run}: expected its inbox {inbox!r}, received nothing there; mount it, then resume")
    summary = Summary(run, plan.head["verb"])
    journal = Journal(files, f"{runs_folder(outbox)}/{run}", plan.count)
    with closing(journal), closing(RunManifest(files, outbox, run)) as manifest:

        def report(batch: list[Operation]) -> None:
            for operation in batch:
                if operation.row is not None:
                    row = final_row(operation.row, operation, journal.known.result(operation.number))
                    manifest.add(row)
                    _count(row, summary)
                    if on_row is not None:
                        on_row(row)
            progress.advance(len(batch))

        progress.stage("placing files", plan.count)
        undoes = plan.head["verb"] == "undo"
        Executor(files, Roots(inbox, outbox), journal, run, _threads(outbox), tries_all=undoes).run(plan, report)
        manifest.flush()
        if "reported" not in journal.known.marks:
            append_manifest(files, outbox, run, journal)
    summary.seconds = time.monotonic() - started
    summary.notes = list(plan.head.get("notes", []))
    return summary


def _threads(outbox: str) -> int:
    return NETWORK_THREADS if is_network(outbox) else LOCAL_THREADS


def _count(row: Row, summary: Summary) -> None:
    summary.count(row)
    if needs_person(row):
        facts = {"source": printable(row.source), "status": row.status, "reason": row.reason}
        _log.warning("needs a person", extra={"facts": facts})


def resume(
    outbox: str, run: str | None, progress: Progress, files: Files, on_row: Callable[[Row], None] | None = None
) -> Summary:
    """Go on with a run that was cut short; the newest unfinished one by default."""
    outbox = absolute(outbox)
    with held(files, outbox, create=False):
        runs = all_runs(outbox)
        name = chosen(outbox, run, unfinished(outbox) or (runs[-1] if runs else None), "to resume")
        for undoing, undone in undoings(outbox).items():
            if undone == name:
                raise UsageError(f"expected a run to go on with, received {name}, which {undoing} has undone")
        if ended := read_summary(outbox, name):
            ended.notes.append(f"run {name} had ended before; there was nothing to resume")
            return ended
        return finish(files, outbox, name, progress, on_row)


def finish(
    files: Files, outbox: str, run: str, progress: Progress, on_row: Callable[[Row], None] | None = None
) -> Summary:
    """Carry out a sealed plan to its end, in an outbox that is held already."""
    plan = Plan.open(f"{runs_folder(outbox)}/{run}")
    summary = carry_out(files, outbox, run, plan, progress, on_row)
    write_summary(files, outbox, summary)
    _unlearn(files, outbox, plan, summary)
    return summary


def _unlearn(files: Files, outbox: str, plan: Plan, summary: Summary) -> None:
    """Take back what a decision gave models to learn from, where an undo took back all of it."""
    undone = Plan.peek(f"{runs_folder(outbox)}/{plan.head.get('undoes', '')}") if "undoes" in plan.head else None
    if undone and not summary.needs_person and (folder := corrections_of(undone.head, outbox)):
        retract(files, folder, plan.head["undoes"])


def complete_reports(files: Files, outbox: str, runs: Iterable[str]) -> None:
    """Finish what a crash left of appending rows of these runs to the manifest, before another run appends to it."""
    for run in runs:
        plan = Plan.peek(folder := f"{runs_folder(outbox)}/{run}")
        if plan is None or read_summary(outbox, run) is not None:
            continue
        marks = replay(folder, plan.count).marks
        if "manifest" in marks and "reported" not in marks:
            with closing(Journal(files, folder, plan.count)) as journal:
                append_manifest(files, outbox, run, journal)


def undo(outbox: str, run: str | None, progress: Progress, files: Files, *, with_decisions: bool = False) -> Summary:
    """Take a run back, the newest that is not undone by default, as a run of its own.

    ``with_decisions``: those that persons made about what it held are taken back first, the newest first; else a run
    with such decisions is refused by UsageError, for what it placed lies elsewhere.
    """
    outbox = absolute(outbox)
    if with_decisions:
        _undo_decisions(outbox, run, progress, files)
    with held(files, outbox, create=False):
        name = chosen(outbox, run, _newest_undoable(outbox), "to undo")
        plan = _undoable(outbox, name)
        complete_reports(files, outbox, all_runs(outbox))
        roots = Roots(inbox_of(plan.head, outbox), outbox)
        with closing(Journal(files, f"{runs_folder(outbox)}/{name}", plan.count)) as journal:
            notes = Executor(files, roots, journal, name, LOCAL_THREADS).settle(plan)
            known = journal.known
        mine = new_run(files, outbox)
        head = {
            "verb": "undo",
            "undoes": name,
            "inbox": roots.inbox,
            "outbox": outbox,
            "started": now(),
            "notes": notes,
        }
        operations = reverse(lambda: _done(plan, known), known.folders, lambda path: look_for(roots.absolute(path)))
        sealed = seal_plan(files, outbox, mine, head, operations)
        summary = carry_out(files, outbox, mine, sealed, progress)
        write_summary(files, outbox, summary)
        _unlearn(files, outbox, sealed, summary)
        return summary


def _undo_decisions(outbox: str, run: str | None, progress: Progress, files: Files) -> None:
    """Take back what persons decided about what a run had held, the newest first; an error where one stays in part."""
    if run is None:
        raise UsageError("--with-decisions: expected the RUN that is to be undone, received none")
    for decision in reversed(decisions_about(outbox, run)):
        summary = undo(outbox, decision, progress, files)
        if summary.needs_person:
            message = f"decision {decision}: expected its files where it had put them, received others, or none"
            raise DicomsortError(f"{message}; so run {run} was not undone (manifest.csv, run {summary.run_id}, tells)")


def seal_plan(files: Files, outbox: str, run: str, head: dict[str, Any], operations: Iterator[Operation]) -> Plan:
    """Write operations as the run's plan and seal it."""
    writer = PlanWriter(files, f"{runs_folder(outbox)}/{run}", head)
    with closing(writer):
        for operation in operations:
            writer.add(operation)
        writer.seal()
    return writer.plan


def _undoable(outbox: str, name: str) -> Plan:
    """The plan of a run that can be undone now; UsageError or DicomsortError says why it cannot."""
    plan = Plan.open(f"{runs_folder(outbox)}/{name}")
    if plan.head["verb"] == "undo":
        raise UsageError(f"expected a run that sorted, received {name}, which is an undo of {plan.head['undoes']}")
    if not os.path.isdir(inbox := inbox_of(plan.head, outbox)):
        raise DicomsortError(f"run {name}: expected its inbox {inbox!r}, received nothing there; mount it, then undo")
    if decisions := decisions_about(outbox, name):
        advice = f"`dicomsort undo --with-decisions {outbox} {name}` takes them back first"
        raise UsageError(f"run {name} held what persons decided about since, {len(decisions):,} times: {advice}")
    for undoing, undone in undoings(outbox).items():
        if undone != name:
            continue
        if (ended := read_summary(outbox, undoing)) is None:
            raise UsageError(f"run {undoing}, which undoes {name}, was cut short: `dicomsort resume` finishes it")
        if plan.head["verb"] == REVIEW_VERB and not ended.needs_person:  # its files may be anybody's by now
            raise Outdated(f"expected a decision that stands, received {name}, which run {undoing} has undone")
    return plan


def _newest_undoable(outbox: str) -> str | None:
    """The newest run that sorted and is not wholly undone."""
    undone = wholly_undone(outbox)
    for run in reversed(all_runs(outbox)):
        plan = Plan.peek(f"{runs_folder(outbox)}/{run}")
        if plan and plan.head["verb"] != "undo" and run not in undone:
            return run
    return None


def _done(plan: Plan, known: Replay) -> Iterator[tuple[Operation, Result]]:
    for operation in plan.operations():
        result = known.result(operation.number)
        if result is not None and result.outcome is Outcome.DONE and operation.verb is not Verb.LEAVE:
            yield operation, result


def look_for(path: str) -> Found | None:
    """The regular file at an absolute path, or None; one of inode 0 where that cannot be told."""
    try:
        status = look_up(path)
    except OSError:
        return Found(path, 0, 0, 0, 0)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return Found(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, stat.S_IMODE(status.st_mode))
