"""``manifest.csv``: a run's own, written while it goes on, and the outbox's, to which its rows are appended once."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from dicomsort.errors import DicomsortError
from dicomsort.files import Files, closing, look_up
from dicomsort.journal import Journal, runs_folder
from dicomsort.records import Action, Placement, Row, Status
from dicomsort.report.reviewed import binds, decided_from
from dicomsort.report.text import cell, is_plain, restored, uncelled

MANIFEST = "manifest.csv"
COLUMNS = ("run_id", *(f.name.rstrip("_") for f in fields(Row)))
PLACED = frozenset({Action.COPIED, Action.MOVED, Action.LINKED})
_FIELDS = tuple(f.name for f in fields(Row))
_ROW_CELLS = attrgetter(*_FIELDS)
_BUFFER = 1 << 20


class RunManifest:
    """The run's own ``manifest.csv``; after a crash it is begun anew."""

    def __init__(self, files: Files, outbox: str, run: str) -> None:
        """Take away what an attempt cut short has left, and begin with the head."""
        path = _own(outbox, run)
        if look_up(path) is not None:
            files.unlink(path)
        self._files = files
        self._run = run
        self._descriptor = files.create(path, 0o600)
        self._buffer = io.StringIO(newline="")
        self._writer = csv.writer(self._buffer, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def add(self, row: Row) -> None:
        """Append a final row."""
        cells = [str(value) for value in _ROW_CELLS(row)]
        line = ",".join((self._run, *cells))
        if is_plain(line) and line.count(",") == len(cells):  # as nearly every row is
            self._buffer.write(f"{line}\n")
        else:
            self._writer.writerow((self._run, *map(cell, cells)))
        if self._buffer.tell() >= _BUFFER:
            self._write_out()

    def flush(self) -> None:
        """Make all rows so far durable."""
        self._write_out()
        self._files.flush(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write_out(self) -> None:
        self._files.write(self._descriptor, self._buffer.getvalue().encode())
        self._buffer.seek(0)
        self._buffer.truncate()


def _own(outbox: str, run: str) -> str:
    return f"{runs_folder(outbox)}/{run}/{MANIFEST}"


def append_manifest(files: Files, outbox: str, run: str, journal: Journal) -> None:
    """Append the run's rows to the outbox's manifest, once.

    The journal holds where the append began; what a crash left of it is gone on with, byte by byte, and rows of other
    runs are never cut off.
    """
    with closing(files.open_append(f"{outbox}/{MANIFEST}")) as descriptor:
        begun = journal.known.marks.get("manifest")
        if begun is None:
            begun = os.fstat(descriptor).st_size
            if begun and os.pread(descriptor, 1, begun - 1) != b"\n":  # as an editor may leave it
                files.write(descriptor, b"\n")
                begun += 1
            journal.mark("manifest", begun)
        with Path(_own(outbox, run)).open("rb") as rows:
            if begun:
                rows.readline()
            _skip_appended(descriptor, begun, rows)
            while piece := rows.read(_BUFFER):
                files.write(descriptor, piece)
        files.flush(descriptor)
    journal.mark("reported", True)


def _skip_appended(descriptor: int, begun: int, rows: io.BufferedReader) -> None:
    """Leave ``rows`` behind what stands in the manifest already; at its beginning where something else does."""
    first, offset = rows.tell(), begun
    while there := os.pread(descriptor, _BUFFER, offset):
        mine = rows.read(len(there))
        if there.startswith(mine) and len(mine) < len(there):  # all of ours, then other runs' rows
            return
        if mine != there:
            rows.seek(first)
            return
        offset += len(there)


def history(outbox: str) -> Iterator[tuple[bool, Placement]]:
    """What earlier runs put where, in their order; False where it is there no more: undone, or decided by a person."""
    for row in _rows(outbox):
        action, destination = row["action"], row["destination"]
        is_undone = action == Action.UNDONE
        if was := decided_from(action, row["reason"], restored(row["message"])):
            yield is_undone, _held_again(row, was)
        if destination and (action in PLACED or is_undone):
            reason = binds(row["reason"], was) if was else row["reason"]
            yield not is_undone, _placement(row, row["status"], row["class"], reason, restored(destination))


def _placement(row: dict[str, str], status: str, class_: str, reason: str, destination: str) -> Placement:
    uids = (row["study_uid"], row["series_uid"], row["sop_uid"])
    return Placement(*uids, class_, status, reason, destination, row["sha256"])


def _held_again(row: dict[str, str], was: str) -> Placement:
    return _placement(row, Status.REVIEW, "", was.split("/")[1], was)


def row_of(cells: Sequence[str]) -> Row:
    """A row from its cells, in the order of ``COLUMNS``, as it was before it was written."""
    values: dict[str, Any] = dict(zip(_FIELDS, map(uncelled, cells[1:]), strict=False))
    return Row(**(values | {"size": int(values["size"] or 0)}))


def told(outbox: str) -> Iterator[tuple[str, str, str]]:
    """Of each row the cells that tell whether it speaks of the same file as another: source, size, SHA-256."""
    return ((row["source"], row["size"], row["sha256"]) for row in _rows(outbox))


def is_told_of(outbox: str, run: str) -> bool:
    """Whether the manifest has rows of a run."""
    return any(row["run_id"] == run for row in _rows(outbox))


def _rows(outbox: str) -> Iterator[dict[str, str]]:
    path = Path(outbox) / MANIFEST
    if not path.is_file():
        return
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        if not {*COLUMNS} <= {*(reader.fieldnames or COLUMNS)}:
            raise DicomsortError(f"{path}: expected the columns {','.join(COLUMNS)}, received {reader.fieldnames}")
        yield from reader
