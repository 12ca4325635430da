"""What the manifests tell of one run: its rows, and what became since of the files that it placed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dicomsort.files import look_up
from dicomsort.journal import runs_folder
from dicomsort.records import Action, Row
from dicomsort.report.manifest import MANIFEST
from dicomsort.report.reading import read_rows
from dicomsort.report.reviewed import decided_from


def rows_of(outbox: str, run: str, *, doubtful: bool = False) -> Iterator[Row]:
    """Yield the rows of a run that came to its end: from its own manifest or, where that was pruned, the outbox's.

    ``doubtful`` as for ``read_rows``.
    """
    own = f"{runs_folder(outbox)}/{run}/{MANIFEST}"
    if look_up(own) is not None:
        yield from (each.row for each in read_rows(own, doubtful=doubtful))
        return
    yield from (each.row for each in read_rows(f"{outbox}/{MANIFEST}", doubtful=doubtful) if each.run == run)


@dataclass(slots=True)
class Since:
    """What later runs did with files, each by where it lay below the outbox: undid them, or carried out a decision."""

    undone: dict[str, str] = field(default_factory=dict)  # -> the run that undid it
    decided: dict[tuple[str, str], Row] = field(default_factory=dict)  # with its SHA-256 -> the row of the decision


def since(outbox: str, run: str) -> Since:
    """What became of files after a run; grows with what was undone or decided, not with what was sorted."""
    told = Since()
    for each in read_rows(f"{outbox}/{MANIFEST}"):
        row = each.row
        if each.run <= run:
            continue
        was = decided_from(row.action, row.reason, row.message)
        if row.action == Action.UNDONE:
            if was:
                told.decided.pop((was, row.sha256), None)
            elif row.destination:
                told.undone[row.destination] = each.run
        elif was:
            told.decided[was, row.sha256] = row
    return told
