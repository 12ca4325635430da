"""What the manifests tell of one run: its rows, and what became since of the files that it placed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dicomsort.errors import DicomsortError
from dicomsort.files import look_up
from dicomsort.journal import runs_folder
from dicomsort.records import Action, Row
from dicomsort.report.held import Held
from dicomsort.report.manifest import COLUMNS, MANIFEST, row_of
from dicomsort.report.reviewed import decided_from


def rows_of(outbox: str, run: str) -> Iterator[Row]:
    """Yield the rows of a run that came to its end: from its own manifest or, where that was pruned, the outbox's."""
    own = f"{runs_folder(outbox)}/{run}/{MANIFEST}"
    if look_up(own) is not None:
        yield from (each.row for each in _read(own, lambda _: True))
        return
    yield from (each.row for each in _read(f"{outbox}/{MANIFEST}", lambda other: other == run))


@dataclass(slots=True)
class Since:
    """What later runs did with files, each by where it lay below the outbox: undid them, or carried out a decision."""

    undone: dict[str, str] = field(default_factory=dict)  # -> the run that undid it
    decided: dict[tuple[str, str], Row] = field(default_factory=dict)  # with its SHA-256 -> the row of the decision


def since(outbox: str, run: str) -> Since:
    """What became of files after a run; grows with what was undone or decided, not with what was sorted."""
    told = Since()
    for each in _read(f"{outbox}/{MANIFEST}", lambda other: other > run):
        row = each.row
        was = decided_from(row.action, row.reason, row.message)
        if row.action == Action.UNDONE:
            if was:
                told.decided.pop((was, row.sha256), None)
            elif row.destination:
                told.undone[row.destination] = each.run
        elif was:
            told.decided[was, row.sha256] = row
    return told


def _read(path: str, is_wanted: Callable[[str], bool]) -> Iterator[Held]:
    """Yield the whole rows of those runs that are wanted; none where there is no manifest."""
    if look_up(path) is None:
        return
    with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines)
        head = next(reader, list(COLUMNS))
        if tuple(head[: len(COLUMNS)]) != COLUMNS:
            raise DicomsortError(f"{path}: expected the columns {','.join(COLUMNS)}, received {head}")
        for cells in reader:
            if len(cells) < len(COLUMNS) or not is_wanted(cells[0]):  # fewer: a row that is being appended
                continue
            try:
                yield Held(cells[0], row_of(cells))
            except ValueError as error:
                where = f"{path}: line {reader.line_num}"
                raise DicomsortError(f"{where}: expected a number in the column size, received another text") from error
