"""A disposable SQLite spool of a run's records in a temporary folder: memory stays flat however large the inbox.

It holds what was examined, the groups, the looks of the model, the verdicts, earlier placements and the names given
out. It lies on a local disk and is thrown away; nothing that must survive a crash is in it.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import fields
from itertools import groupby
from operator import attrgetter
from typing import Any, Self

from dicomsort.errors import DicomsortError
from dicomsort.records import (
    DecidedBy,
    Examined,
    Found,
    Group,
    Grouping,
    Header,
    Kind,
    Placement,
    Status,
    Verdict,
    Vote,
)

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE files (ordinal INTEGER PRIMARY KEY, path BLOB, size INT, mtime_ns INT, device INT, inode INT, mode INT,
    header TEXT, sha256 TEXT, failed TEXT, study TEXT, series BLOB, evidence TEXT, sop TEXT, instance INT, frames INT);
CREATE TABLE folders (path BLOB, mode INT, mtime_ns INT);
CREATE TABLE groups (number INTEGER PRIMARY KEY, study TEXT, series BLOB, evidence TEXT, members INT, sample INT,
    newest INT, vote TEXT, verdict TEXT);
CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE placements (study TEXT, series TEXT, sop TEXT, class TEXT, status TEXT, reason TEXT, destination BLOB
    PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE INDEX placements_by_study ON placements (study);
CREATE INDEX placements_by_instance ON placements (sop, sha256);
CREATE TABLE repeated (sop TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_GROUP = """
CREATE INDEX by_group ON files (study, series, evidence, instance, ordinal);
INSERT INTO groups (study, series, evidence, members, sample, newest)
    SELECT study, series, evidence, COUNT(*), MIN(ordinal), MAX(mtime_ns) FROM files GROUP BY study, series, evidence;
CREATE INDEX by_instance ON files (sop);
CREATE INDEX groups_by_key ON groups (study, series, evidence);
INSERT INTO repeated SELECT sop FROM files WHERE sop <> '' GROUP BY sop HAVING COUNT(*) > 1;
"""
_COLUMNS = "f.path, f.size, f.mtime_ns, f.device, f.inode, f.mode, f.header, f.sha256, f.failed"
_ADD = "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_STUDIES = (  # constants only: nothing from outside is in the text of a query
    "SELECT g.number, g.study, g.series, g.evidence, g.members, (SELECT MAX(newest) FROM groups s"
    f" WHERE s.study = g.study AND s.series = g.series), g.vote, {_COLUMNS}"
    " FROM groups g JOIN files f ON f.ordinal = g.sample ORDER BY g.study, g.series, g.sample"
)
_JUDGED = (
    f"SELECT f.study, f.series, f.evidence, g.verdict, {_COLUMNS}"
    " FROM files f JOIN groups g USING (study, series, evidence) ORDER BY f.ordinal"
)
_HEADER_CELLS = attrgetter(*(f.name for f in fields(Header)))
_FOUND_CELLS = attrgetter(*(f.name for f in fields(Found)))
_VOTE_CELLS = attrgetter(*(f.name for f in fields(Vote)))
_VERDICT_CELLS = attrgetter(*(f.name for f in fields(Verdict)))
_dump = json.JSONEncoder(separators=(",", ":")).encode
_NUMBER = re.compile(r"[+-]?\d{1,12}")


class Catalog:
    """One run's spool; use it as a context, from one thread."""

    def __init__(self) -> None:
        """Make the base in a temporary folder and take its name away at once, so that not even a crash leaves it."""
        with tempfile.TemporaryDirectory(prefix="dicomsort-") as folder:
            self._base = sqlite3.connect(os.path.join(folder, "catalog.sqlite"), isolation_level=None)
            self._base.executescript(_SCHEMA)
        self._base.execute("BEGIN")
        self._count = 0
        self._any_repeated = False

    def __enter__(self) -> Self:
        """Return the catalog itself."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Throw everything away; DicomsortError where the temporary folder was the trouble."""
        self._base.close()
        if isinstance(error, sqlite3.Error):
            where = tempfile.gettempdir()
            raise DicomsortError(
                f"temporary folder {where}: expected room for the catalog, received: {error}"
            ) from error

    def add(self, batch: Iterable[tuple[Examined, Grouping, int]]) -> None:
        """Spool examined files in path order; the number is how many frames may be shown to the model."""
        rows = [self._file(*item) for item in batch]
        self._base.executemany(_ADD, rows)

    def _file(self, e: Examined, g: Grouping, frames: int) -> tuple[Any, ...]:
        self._count += 1
        header = _dump(_HEADER_CELLS(e.header))
        number = e.header.instance_number
        instance = int(number) if _NUMBER.fullmatch(number) else 0
        path, *facts = _FOUND_CELLS(e.found)
        sop = e.header.sop_uid if g.study else ""
        keys = (g.study, os.fsencode(g.series), g.evidence, sop, instance, frames)
        return (self._count, os.fsencode(path), *_unsigned(facts), header, e.sha256, e.failed, *keys)

    def add_folders(self, folders: Iterable[tuple[str, int, int]]) -> None:
        """Spool the inbox's folders: path, mode, mtime in nanoseconds."""
        self._base.executemany("INSERT INTO folders VALUES (?, ?, ?)", ((os.fsencode(p), m, t) for p, m, t in folders))

    def folders_deepest_first(self) -> Iterator[tuple[str, int, int]]:
        """Yield the inbox's folders so that each comes after those within it."""
        for path, mode, mtime in self._base.execute("SELECT path, mode, mtime_ns FROM folders ORDER BY path DESC"):
            yield os.fsdecode(path), mode, mtime

    def group(self) -> int:
        """Form the groups, once every file is there; return how many there are."""
        for statement in _GROUP.split(";"):
            self._base.execute(statement)
        self._any_repeated = bool(self._one("SELECT EXISTS (SELECT 1 FROM repeated)"))
        return int(self._one("SELECT COUNT(*) FROM groups"))

    def studies(self) -> Iterator[list[tuple[Group, Vote]]]:
        """Yield the groups of each study, and of each file that belongs to none."""
        with closing(self._base.execute(_STUDIES)) as rows:
            for _, same in groupby(rows, key=lambda r: (r[1], r[2] if not r[1] else b"")):
                yield [(_group(row), _vote(row[6])) for row in same]

    def showable(self, group: int) -> int:
        """How many files of a group can be shown to the model."""
        query = """SELECT COUNT(*) FROM groups g JOIN files f USING (study, series, evidence)
            WHERE g.number = ? AND f.frames > 0"""
        return int(self._one(query, group))

    def shown(self, group: int, place: int) -> tuple[str, int]:
        """Path and frame count of one showable file, by its place in the order of Instance Number (0020,0013)."""
        query = """SELECT f.path, f.frames FROM groups g JOIN files f USING (study, series, evidence)
            WHERE g.number = ? AND f.frames > 0 ORDER BY f.instance, f.ordinal LIMIT 1 OFFSET ?"""
        path, frames = self._base.execute(query, (group, place)).fetchone()
        return os.fsdecode(path), frames

    def vote(self, group: int, vote: Vote) -> None:
        """Keep the model's vote on a group."""
        self._base.execute("UPDATE groups SET vote = ? WHERE number = ?", (_dump(_VOTE_CELLS(vote)), group))

    def judge(self, group: int, verdict: Verdict) -> None:
        """Keep the verdict on a group."""
        self._base.execute("UPDATE groups SET verdict = ? WHERE number = ?", (_dump(_VERDICT_CELLS(verdict)), group))

    def judged(self) -> Iterator[tuple[Examined, Grouping, Verdict]]:
        """Yield every file with its verdict, in path order."""
        last, verdict = "", None
        with closing(self._base.execute(_JUDGED)) as rows:
            for study, series, evidence, judged, *file in rows:
                if verdict is None or judged != last:
                    last, verdict = judged, _verdict(judged)
                yield _examined(file), Grouping(study, os.fsdecode(series), evidence), verdict

    def concerns(self, placement: Placement) -> bool:
        """Whether an earlier placement matters: of a study or an instance at hand, or of a file of no study."""
        if not placement.study:
            return True
        known = "SELECT EXISTS (SELECT 1 FROM groups WHERE study = ?) OR EXISTS (SELECT 1 FROM files WHERE sop = ?)"
        return bool(self._one(known, placement.study, placement.sop))

    def place(self, placement: Placement) -> None:
        """Keep where an earlier run put a file."""
        p = placement
        row = (p.study, p.series, p.sop, p.class_, p.status, p.reason, os.fsencode(p.destination), p.sha256)
        self._base.execute("INSERT OR REPLACE INTO placements VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def displace(self, destination: str) -> None:
        """Forget a placement that was undone."""
        self._base.execute("DELETE FROM placements WHERE destination = ?", (os.fsencode(destination),))

    def placements(self, study: str) -> list[Placement]:
        """Where earlier runs put the files of a study."""
        if not study:
            return []
        rows = self._base.execute("SELECT * FROM placements WHERE study = ? ORDER BY destination", (study,))
        return [_placement(row) for row in rows]

    def remembers(self) -> bool:
        """Whether earlier runs placed anything that matters to this one."""
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM placements)"))

    def placed_instances(self, sop: str, sha256: str | None) -> Iterator[Placement]:
        """Where earlier runs put files with this SOP Instance UID: those with this content, or with any (None)."""
        condition, values = ("sop = ?", [sop]) if sha256 is None else ("sop = ? AND sha256 = ?", [sop, sha256])
        for row in self._base.execute(f"SELECT * FROM placements WHERE {condition}", values):
            yield _placement(row)

    def placed_at(self, destination: str) -> Placement | None:
        """What an earlier run put there."""
        rows = self._base.execute("SELECT * FROM placements WHERE destination = ?", (os.fsencode(destination),))
        return next((_placement(row) for row in rows), None)

    def is_repeated(self, sop: str) -> bool:
        """Whether more than one file of this run has this SOP Instance UID."""
        return self._any_repeated and bool(self._one("SELECT EXISTS (SELECT 1 FROM repeated WHERE sop = ?)", sop))

    def claim(self, name: str) -> bool:
        """Give out a name once; False where it is taken."""
        changed = self._base.execute("INSERT OR IGNORE INTO names VALUES (?)", (os.fsencode(name),))
        return changed.rowcount == 1

    def _one(self, query: str, *values: object) -> Any:
        return self._base.execute(query, values).fetchone()[0]


def _unsigned(cells: list[Any]) -> list[Any]:
    """SQLite's integers end at 63 bits; inode and device numbers may not."""
    return [c - (1 << 64) if c >= 1 << 63 else c for c in cells]


def _examined(cells: list[Any]) -> Examined:
    path, size, mtime, device, inode, mode, header, sha256, failed = cells
    found = Found(os.fsdecode(path), size, mtime, device % (1 << 64), inode % (1 << 64), mode)
    kind, *rest = json.loads(header)
    return Examined(found, Header(Kind(kind), *rest), sha256, failed)


def _group(row: tuple[Any, ...]) -> Group:
    number, study, series, evidence, members, newest, _, *file = row
    return Group(number, Grouping(study, os.fsdecode(series), evidence), members, newest, _examined(file))


def _placement(row: tuple[Any, ...]) -> Placement:
    study, series, sop, class_, status, reason, destination, sha256 = row
    return Placement(study, series, sop, class_, status, reason, os.fsdecode(destination), sha256)


def _vote(cell: str | None) -> Vote:
    if cell is None:
        return Vote()
    probabilities, *rest = json.loads(cell)
    return Vote(tuple(probabilities), *rest)


def _verdict(cell: str) -> Verdict:
    status, folder, class_, reason, decided_by, *rest = json.loads(cell)
    return Verdict(Status(status), folder, class_, reason, DecidedBy(decided_by), *rest)
