"""``manifest.csv``: a run's own, written while it goes on, and the outbox's, to which its rows are appended once."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from typing import BinaryIO

from dicomsort.errors import StateDamaged
from dicomsort.files import Files, closing, flush_path, look_up, opened_file
from dicomsort.journal import Journal, runs_folder
from dicomsort.records import Action, Placement, Row, Status
from dicomsort.report.reading import HEAD, Record, read_rows
from dicomsort.report.reviewed import binds, decided_from
from dicomsort.report.text import cell, is_plain

MANIFEST = "manifest.csv"
PLACED = frozenset({Action.COPIED, Action.MOVED, Action.LINKED})
_ROW_CELLS = attrgetter(*(f.name for f in fields(Row)))
NEW = ".new"  # what a manifest that is being written is called beside its name
_BUFFER = 1 << 20


class RunManifest:
    """The run's own ``manifest.csv``: written beside it, and put in its place when it is whole.

    So what is there is whole, also while a resume writes it anew: another run may append it to the outbox's.
    """

    def __init__(self, files: Files, outbox: str, run: str) -> None:
        """Take away what an attempt cut short has left, and begin with the head."""
        self._path = _own(outbox, run)
        self._part = f"{self._path}{NEW}"
        if look_up(self._part) is not None:
            files.unlink(self._part)
        self._files = files
        self._run = run
        self._descriptor = files.create(self._part, 0o600)
        self._buffer = bytearray(HEAD + b"\n")

    def add(self, row: Row) -> None:
        """Append a final row."""
        self._buffer += line_of(self._run, row)
        if len(self._buffer) >= _BUFFER:
            self._write_out()

    def flush(self) -> None:
        """Make all rows durable, and put the file in its place."""
        self._write_out()
        self._files.flush(self._descriptor)
        self._files.replace(self._part, self._path)
        flush_path(self._files, os.path.dirname(self._path))

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
    runs are never cut off. StateDamaged where the run's own manifest cannot be read.
    """
    with _own_rows(outbox, run) as rows, closing(files.open_append(f"{outbox}/{MANIFEST}")) as descriptor:
        begun, size = journal.known.marks.get("manifest"), os.fstat(descriptor).st_size
        if begun is None:
            begun = size
            if begun and os.pread(descriptor, 1, begun - 1) != b"\n":  # as an editor may leave it
                files.write(descriptor, b"\n")
                begun += 1
            journal.mark("manifest", begun)
        _skip_appended(descriptor, begun, rows, size)
        while piece := rows.read(_BUFFER):
            files.write(descriptor, piece)
        files.flush(descriptor)
    journal.mark("reported", True)


@contextmanager
def _own_rows(outbox: str, run: str) -> Iterator[BinaryIO]:
    try:
        with opened_file(_own(outbox, run)) as rows:
            if not rows.readline().startswith(HEAD):
                raise StateDamaged(f"run {run}, {MANIFEST}: expected the head of a manifest, received another line")
            rows.seek(0)
            yield rows
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StateDamaged(f"run {run}, {MANIFEST}: expected the rows of the run, received no file") from error


def _skip_appended(descriptor: int, begun: int, rows: BinaryIO, size: int) -> None:
    """Leave ``rows`` behind what stands in the manifest already; at its beginning where something else does.

    The head is for an empty manifest alone.
    """
    if begun:
        rows.readline()
    offset = begun
    while there := os.pread(descriptor, _BUFFER, offset):
        mine = rows.read(len(there))
        if there.startswith(mine) and len(mine) < len(there):  # all of ours, then other runs' rows
            return
        if mine != there:
            break
        offset += len(there)
    else:
        if size or not begun:
            return
    rows.seek(0)
    if size:
        rows.readline()


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
