"""The manifest, the summary and the history of runs; derived from plan and journal, so they can be made again."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from dicomsort.errors import DicomsortError
from dicomsort.files import Files, closing, look_up
from dicomsort.journal import Journal, runs_folder
from dicomsort.records import Action, Operation, Outcome, Placement, Result, Row, Status, Verb

MANIFEST, SUMMARY = "manifest.csv", "summary.json"
COLUMNS = ("run_id", *(f.name.rstrip("_") for f in fields(Row)))
NEEDS_PERSON = frozenset({Status.REVIEW, Status.UNREADABLE, Status.CONFLICT, Status.CHANGED, Status.FAILED})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ENDED = {Outcome.DUPLICATE: Status.DUPLICATE, Outcome.CONFLICT: Status.CONFLICT, Outcome.CHANGED: Status.CHANGED}
_ROW_CELLS = attrgetter(*(f.name for f in fields(Row)))
_BUFFER = 1 << 20


@dataclass
class Summary:
    """What a run did, for people, for ``--json`` and for the exit code."""

    run_id: str = ""
    verb: str = "sort"
    dry_run: bool = False
    found: int = 0
    bytes: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)  # of what was placed in a class folder or OTHER
    actions: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)  # by reason
    archives: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, row: Row) -> None:
        """Count one final row."""
        self.found += 1
        self.bytes += row.size
        self.actions[row.action] += 1
        if row.action == Action.UNDONE:
            self.statuses[row.action] += 1
            return
        self.statuses[row.status] += 1
        if row.status in {Status.SORTED, Status.OTHER}:
            self.classes[row.class_] += 1
        if needs_person(row):
            self.held[row.reason] += 1
        if row.reason == "archive":
            self.archives.append(row.source)

    @property
    def needs_person(self) -> bool:
        """Whether the run newly found something that a person must look at."""
        return any(self.statuses[status] for status in NEEDS_PERSON)

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON values."""
        seconds, archives = round(self.seconds, 3), [printable(archive) for archive in self.archives]
        return {**vars(self), "seconds": seconds, "archives": archives}


def needs_person(row: Row) -> bool:
    """Whether this row is one that a person must look at."""
    return row.status in NEEDS_PERSON and row.action != Action.UNDONE


def final_row(row: Row, operation: Operation, result: Result | None) -> Row:
    """The planned row, corrected by what really happened."""
    if operation.verb is Verb.LEAVE or (result and result.outcome is Outcome.DONE):
        return row
    outcome, message = (result.outcome, result.message) if result else (Outcome.FAILED, "not carried out")
    status = _ENDED.get(outcome, Status.FAILED)
    destination = row.destination if outcome is Outcome.DUPLICATE else ""
    notes = "; ".join(note for note in (message, row.message) if note)
    return replace(row, status=status, action=Action.LEFT, destination=destination, message=notes)


class RunManifest:
    """The run's own ``manifest.csv``, written while the run goes on; after a crash it is begun anew."""

    def __init__(self, files: Files, outbox: str, run: str) -> None:
        """Take away what an attempt cut short has left, and begin with the head."""
        path = f"{runs_folder(outbox)}/{run}/{MANIFEST}"
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
        self._writer.writerow((self._run, *_cells(row)))
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


def append_manifest(files: Files, outbox: str, run: str, journal: Journal) -> None:
    """Append the run's rows to the outbox's ``manifest.csv``, once; what a crash left half-done is cut off first."""
    own = f"{runs_folder(outbox)}/{run}/{MANIFEST}"
    with closing(files.open_append(f"{outbox}/{MANIFEST}")) as descriptor:
        end = os.fstat(descriptor).st_size
        begun = journal.known.marks.get("manifest")
        if begun is None:
            journal.mark("manifest", end)
        elif end > begun:
            files.truncate(descriptor, begun)
            end = begun
        with Path(own).open("rb") as source:
            if end:
                source.readline()
            while piece := source.read(_BUFFER):
                files.write(descriptor, piece)
        files.flush(descriptor)
    journal.mark("reported", True)


def _cells(row: Row) -> Iterator[str]:
    for cell in _ROW_CELLS(row):
        text = printable(str(cell))
        yield f"'{text}" if text.startswith(_FORMULA) else text


def printable(text: str) -> str:
    r"""The text as UTF-8 can hold it; bytes of a name that are no UTF-8 become ``\xNN``."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    """The text for a terminal: control characters, which could drive it, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(text))


def history(outbox: str) -> Iterator[tuple[bool, Placement]]:
    """What earlier runs put where, in their order; False where it was undone since."""
    path = Path(outbox) / MANIFEST
    if not path.is_file():
        return
    placed = {Action.COPIED, Action.MOVED, Action.LINKED}
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if not {*COLUMNS} <= {*(reader.fieldnames or COLUMNS)}:
            raise DicomsortError(f"{path}: expected the columns {','.join(COLUMNS)}, received {reader.fieldnames}")
        for row in reader:
            if row["action"] in placed or row["action"] == Action.UNDONE:
                yield row["action"] != Action.UNDONE, Placement(
                    row["study_uid"], row["series_uid"], row["sop_uid"], row["class"], row["status"], row["reason"],
                    row["destination"], row["sha256"],
                )  # fmt: skip


def write_summary(files: Files, outbox: str, summary: Summary) -> None:
    """Write the run's ``summary.json``."""
    path = f"{runs_folder(outbox)}/{summary.run_id}/{SUMMARY}"
    if look_up(path) is not None:
        files.unlink(path)
    with closing(files.create(path, 0o600)) as descriptor:
        files.write(descriptor, json.dumps(summary.as_json(), indent=1).encode() + b"\n")
        files.flush(descriptor)
