"""One round of ``watch``: go on with what was cut short, sort what is new, and make no run where nothing is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from dicomsort.catalog import Catalog, Ledger
from dicomsort.engines.engine import Engine
from dicomsort.errors import DicomsortError, OutboxLocked
from dicomsort.journal import STATE, run_folder
from dicomsort.progress import Timed
from dicomsort.records import Action, Operation, Row, Status, Verb
from dicomsort.report import MANIFEST, Summary, cell, read_rows, write_summary
from dicomsort.sorting.archives import clear_unsealed, discard
from dicomsort.sorting.examine import Arrivals
from dicomsort.sorting.outbox import RunContext, locked
from dicomsort.sorting.pipeline import Job, SortRequest
from dicomsort.sorting.resume import complete_reports
from dicomsort.sorting.runs import RunState, all_runs, load_run, load_runs, require_outbox_mounts

_UNDECIDED = "undecided"  # the queue of operations that wait until one of them is new


@dataclass(frozen=True, slots=True)
class NewRuns:
    """The newer runs of an outbox: their newest, those that sorted and stand, whether any is of the inbox at hand.

    ``cut_short`` is an unfinished run to finish first; if none is, ``of_another`` are those of other inboxes.
    """

    newest: str
    sorted: tuple[str, ...]
    is_ours: bool
    cut_short: str
    of_another: tuple[str, ...]
    damaged: Mapping[str, str]  # run -> a sentence, of those that cannot be read and may be unfinished


def newest_run(outbox: str, since: str) -> str:
    """Return the newest run of an outbox, or ``since`` if none is newer; DicomsortError where there is no outbox."""
    if not os.path.isdir(f"{outbox}/{STATE}"):
        raise DicomsortError(f"outbox {outbox!r}: expected its folder {STATE}, received nothing there; is it mounted?")
    return max(all_runs(outbox, since), default=since)


def read_new_runs(context: RunContext, inbox: str, since: str) -> NewRuns:
    """Lock an outbox and return the state of its runs after ``since``; OutboxLocked where another run has locked it."""
    with locked(context, create=False):
        runs = load_runs(context.outbox, since)
        if not since:  # at the start of a service; later it sees that its inbox is another folder
            runs.require_mounted(inbox)
        complete_reports(context, runs.values())
        clear_unsealed(context, runs.values())
        inboxes = {name: found.plan.head["inbox"] for name, found in runs.items() if found.plan is not None}
        first, others = runs.cut_short(inbox)
        undone = runs.wholly_undone()
        damaged = runs.maybe_unfinished()
    return NewRuns(
        max(runs, default=since),
        tuple(n for n, run in runs.items() if run.summary and run.summary.found and not run.undoes and n not in undone),
        inbox in inboxes.values(),
        next(iter(first), ""),
        () if first else tuple(others),
        damaged,
    )


def recheck_runs(outbox: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return those of some runs that are unfinished, or cannot be read, now, and those that sorted and have ended."""
    runs = [load_run(outbox, name) for name in names if os.path.lexists(run_folder(outbox, name))]
    left = [run.name for run in runs if run.state in {RunState.UNFINISHED, RunState.DAMAGED} and not run.undone_by]
    ended = [run.name for run in runs if run.state is RunState.FINISHED and not run.undoes]
    undone = load_runs(outbox, min(ended)).wholly_undone() if ended else set()
    return left, [name for name in ended if name not in undone]


def sort_new_files(
    request: SortRequest, context: RunContext, engine: Engine, arrivals: Arrivals, newest: str
) -> Summary | None:
    """Sort what no earlier round has dealt with; None where nothing is to be placed, or is new to the manifest.

    OutboxLocked where another run has locked the outbox, or came after ``newest``, the last that was read: one that was
    cut short must be finished first.
    """

    def note(row: Row) -> None:
        arrivals.note(row)
        context.on_row(row)

    started, timed = time.monotonic(), Timed(context.progress)
    job = Job(request, replace(context, progress=timed, on_row=note), engine, arrivals)
    job.check_workers()
    with Catalog(arrivals.changed_ns) as catalog, locked(context, create=False):
        if newest_run(context.outbox, newest) != newest:
            raise OutboxLocked("another run came in between; the next round looks at it first")
        require_outbox_mounts(context.outbox)
        with job.discarding():
            ledger = job.classify(catalog, job.staging)
            planned = _without_settling(job.operations(catalog, ledger), arrivals)
            new = _if_new(planned, ledger, arrivals, context.outbox, moves=request.settings.mode == "move")
            if new is None:
                if job.run:
                    discard(context.files, context.outbox, job.run)
                return None
            summary = job.place(new)
        summary.seconds, summary.stages = time.monotonic() - started, timed.seconds()
        write_summary(context.files, context.outbox, summary)
    return summary


def _without_settling(operations: Iterator[Operation], arrivals: Arrivals) -> Iterator[Operation]:
    """Leave out what settles: a study that arrives for long would fill the manifest with rows that say so."""
    number = 0
    for operation in operations:
        if operation.row is not None and operation.row.status == Status.SETTLING:
            arrivals.note(operation.row)
        else:
            yield operation if operation.number == number else replace(operation, number=number)
            number += 1


def _if_new(
    operations: Iterator[Operation], ledger: Ledger, arrivals: Arrivals, outbox: str, *, moves: bool
) -> Iterator[Operation] | None:
    """Return the operations, where anything is placed, or left for a reason that the manifest lacks; else None.

    Until that is known they are spooled. Where files move away, one that is there again under its old name gets a row
    again.
    """
    left: set[int] = set()
    for operation in operations:
        ledger.defer(operation, _UNDECIDED)
        row = operation.row
        if operation.verb is not Verb.LEAVE or row is None:
            return chain(ledger.deferred(_UNDECIDED), operations)
        arrivals.note(row)
        left.add(_key(row))
    known = set[int]()
    for each in read_rows(f"{outbox}/{MANIFEST}") if left else ():
        has_moved = moves and each.row.action != Action.LEFT
        (known.discard if has_moved else known.add)(_key(each.row))
    return ledger.deferred(_UNDECIDED) if left - known else None


def _key(row: Row) -> int:
    """Return what is equal for rows of one file, as a manifest holds them."""
    return hash((cell(row.source), row.size, row.sha256))
