"""Carry out a sealed plan and report on it: the second half of ``sort``, all of ``resume``, and of ``undo``."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from dicomsort.errors import DicomsortError, UsageError
from dicomsort.execute import Executor, Roots
from dicomsort.files import Files, look_up
from dicomsort.journal import Journal, Plan, PlanWriter, Replay, replay, runs_folder
from dicomsort.plan import reverse
from dicomsort.records import Found, Operation, Outcome, Result, Row, Verb
from dicomsort.report import (
    SUMMARY,
    RunManifest,
    Summary,
    append_manifest,
    final_row,
    needs_person,
    printable,
    write_summary,
)
from dicomsort.sorting.outbox import all_runs, chosen, held, new_run, now, unfinished
from dicomsort.sorting.progress import Progress

THREADS = 4
_log = logging.getLogger("dicomsort")


def carry_out(files: Files, outbox: str, run: str, plan: Plan, progress: Progress) -> Summary:
    """Execute the plan as far as it is not done, write manifest and summary; idempotent."""
    started = time.monotonic()
    summary = Summary(run, plan.head["verb"])
    journal = Journal(files, f"{runs_folder(outbox)}/{run}", plan.count)
    with closing(journal), closing(RunManifest(files, outbox, run)) as manifest:

        def report(batch: list[Operation]) -> None:
            for operation in batch:
                if operation.row is not None:
                    row = final_row(operation.row, operation, journal.known.result(operation.number))
                    manifest.add(row)
                    _count(row, summary)
            progress.advance(len(batch))

        progress.stage("placing files", plan.count)
        Executor(files, Roots(plan.head["inbox"], outbox), journal, run, THREADS).run(plan, report)
        manifest.flush()
        if "reported" not in journal.known.marks:
            append_manifest(files, outbox, run, journal)
    summary.seconds = time.monotonic() - started
    summary.notes = list(plan.head.get("notes", []))
    return summary


def _count(row: Row, summary: Summary) -> None:
    summary.count(row)
    if needs_person(row):
        facts = {"source": printable(row.source), "status": row.status, "reason": row.reason}
        _log.warning("needs a person", extra={"facts": facts})


def resume(outbox: str, run: str | None, progress: Progress, files: Files) -> Summary:
    """Go on with a run that was cut short; the newest unfinished one by default."""
    outbox = os.path.realpath(outbox)
    with held(files, outbox, create=False):
        runs = all_runs(outbox)
        name = chosen(outbox, run, unfinished(outbox) or (runs[-1] if runs else None), "to resume")
        plan = Plan.open(f"{runs_folder(outbox)}/{name}")
        had_ended = look_up(f"{runs_folder(outbox)}/{name}/{SUMMARY}") is not None
        summary = carry_out(files, outbox, name, plan, progress)
        if had_ended:
            summary.notes.append(f"run {name} had ended before; there was nothing to resume")
        write_summary(files, outbox, summary)
        return summary


def undo(outbox: str, run: str | None, progress: Progress, files: Files) -> Summary:
    """Take a run back, the newest that is not undone by default, as a run of its own."""
    outbox = os.path.realpath(outbox)
    with held(files, outbox, create=False):
        name = chosen(outbox, run, _newest_undoable(outbox), "to undo")
        folder = f"{runs_folder(outbox)}/{name}"
        plan = Plan.open(folder)
        if plan.head["verb"] == "undo":
            message = f"expected a run that sorted, received {name}, which is an undo of {plan.head['undoes']}"
            raise UsageError(message)
        known = replay(folder, plan.count)
        mine = new_run(files, outbox)
        head = {"verb": "undo", "undoes": name, "inbox": plan.head["inbox"], "outbox": outbox, "started": now()}
        roots = Roots(plan.head["inbox"], outbox)
        operations = reverse(lambda: _done(plan, known), known.folders, lambda path: _found(roots.absolute(path)))
        sealed = seal_plan(files, outbox, mine, head, operations)
        summary = carry_out(files, outbox, mine, sealed, progress)
        write_summary(files, outbox, summary)
        return summary


def seal_plan(files: Files, outbox: str, run: str, head: dict[str, Any], operations: Iterator[Operation]) -> Plan:
    """Write operations as the run's plan and seal it."""
    writer = PlanWriter(files, f"{runs_folder(outbox)}/{run}", head)
    with closing(writer):
        for operation in operations:
            writer.add(operation)
        writer.seal()
    return writer.plan


def _newest_undoable(outbox: str) -> str | None:
    undone = set()
    for run in reversed(all_runs(outbox)):
        try:
            head = Plan.open(f"{runs_folder(outbox)}/{run}").head
        except DicomsortError:  # a run without a sealed plan placed nothing
            continue
        if head["verb"] == "undo":
            undone.add(head["undoes"])
        elif run not in undone:
            return run
    return None


def _done(plan: Plan, known: Replay) -> Iterator[tuple[Operation, Result]]:
    for operation in plan.operations():
        result = known.result(operation.number)
        if result is not None and result.outcome is Outcome.DONE and operation.verb is not Verb.LEAVE:
            yield operation, result


def _found(path: str) -> Found | None:
    status = look_up(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return Found(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, stat.S_IMODE(status.st_mode))
