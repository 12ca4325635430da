"""``manifest.csv``: a run's own, written while it goes on, and the outbox's, to which its rows are appended once."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from operator import attrgetter
from typing import BinaryIO

from dicomsort.files import Files, closing, look_up, opened_file
from dicomsort.journal import Journal, runs_folder
from dicomsort.records import Action, Placement, Row, Status
from dicomsort.report.reading import HEAD, Record, read_rows
from dicomsort.report.reviewed import binds, decided_from
from dicomsort.report.text import cell, is_plain

MANIFEST = "manifest.csv"
PLACED = frozenset({Action.COPIED, Action.MOVED, Action.LINKED})
_ROW_CELLS = attrgetter(*(f.name for f in fields(Row)))
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
        self._buffer = bytearray(HEAD + b"\n")

    def add(self, row: Row) -> None:
        """Append a final row."""
        self._buffer += line_of(self._run, row)
        if len(self._buffer) >= _BUFFER:
            self._write_out()

    def flush(self) -> None:
        """Make all rows so far durable."""
        self._write_out()
        self._files.flush(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write_out(self) -> None:
        self._files.write(self._descriptor, bytes(self._buffer))
        self._buffer.clear()


def line_of(run: str, row: Row) -> bytes:
    """A row as it stands in a manifest."""
    cells = [str(value) for value in _ROW_CELLS(row)]
    line = ",".join((run, *cells))
    if is_plain(line) and line.count(",") == len(cells):  # as nearly every row is
        return f"{line}\n".encode()
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow((run, *map(cell, cells)))
    return buffer.getvalue().encode()


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
        with opened_file(_own(outbox, run)) as rows:
            if begun:
                rows.readline()
            _skip_appended(descriptor, begun, rows)
            while piece := rows.read(_BUFFER):
                files.write(descriptor, piece)
        files.flush(descriptor)
    journal.mark("reported", True)


def _skip_appended(descriptor: int, begun: int, rows: BinaryIO) -> None:
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


def history(outbox: str, on_damage: Callable[[Record], None] | None = None) -> Iterator[tuple[bool, Placement]]:
    """What earlier runs put where, in their order; False where it is there no more: undone, or decided by a person.

    ``on_damage`` is given each line of the manifest that cannot be read.
    """
    for each in read_rows(f"{outbox}/{MANIFEST}", on_damage):
        row = each.row
        is_undone = row.action == Action.UNDONE
        if was := decided_from(row.action, row.reason, row.message):
            yield is_undone, _placement(row, was, Status.REVIEW, "", was.split("/")[1])
        if row.destination and (row.action in PLACED or is_undone):
            reason = binds(row.reason, was) if was else row.reason
            yield not is_undone, _placement(row, row.destination, row.status, row.class_, reason)


def _placement(row: Row, destination: str, status: str, class_: str, reason: str) -> Placement:
    return Placement(row.study_uid, row.series_uid, row.sop_uid, class_, status, reason, destination, row.sha256)


def is_told_of(outbox: str, run: str) -> bool:
    """Whether the manifest has rows of a run."""
    return any(each.run == run for each in read_rows(f"{outbox}/{MANIFEST}", doubtful=True))
