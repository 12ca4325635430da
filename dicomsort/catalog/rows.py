"""Records as cells of the spool, and back; its tables and queries. No text of a query comes from outside."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

from dicomsort.jsonlines import dump, number_cell, parse
from dicomsort.records import (
    DecidedBy,
    Examined,
    Found,
    FramePrediction,
    Group,
    Grouping,
    Header,
    Kind,
    Placement,
    SeriesPrediction,
    Status,
    Verdict,
)

_HEADER_CELLS: Final = attrgetter(*(f.name for f in fields(Header)))
_FOUND_CELLS: Final = attrgetter(*(f.name for f in fields(Found)))
_LOOK_CELLS: Final = attrgetter(*(f.name for f in fields(FramePrediction)))
_VOTE_CELLS: Final = attrgetter(*(f.name for f in fields(SeriesPrediction)))
_VERDICT_CELLS: Final = attrgetter(*(f.name for f in fields(Verdict)))
_NUMBER: Final = re.compile(r"[+-]?\d{1,12}")
_SIGN: Final = 1 << 63  # SQLite's integers end at 63 bits; inode and device numbers may not


def file_cells(ordinal: int, group: int, e: Examined, frames: int, *, has_uids: bool) -> tuple[Any, ...]:
    """A row of ``files``."""
    path, size, mtime, device, inode, mode, ctime, met = _FOUND_CELLS(e.found)
    number = e.header.instance_number
    instance = int(number) if _NUMBER.fullmatch(number) else 0
    times = (number_cell(mtime), number_cell(ctime), met)
    sop = e.header.sop_uid if has_uids else ""
    header = dump(_HEADER_CELLS(e.header))
    facts = (os.fsencode(path), size, _signed(device), _signed(inode), mode, *times)
    return (ordinal, *facts, header, e.sha256, e.failed, group, sop, instance, frames)


def examined(cells: list[Any]) -> Examined:
    """The inverse, from path to ``failed``."""
    *facts, header, sha256, failed = cells
    kind, *rest = parse(header)
    return Examined(found(facts), Header(Kind(kind), *rest), sha256, failed)


def found(cells: list[Any]) -> Found:
    """A file as the walk met it."""
    path, size, device, inode, mode, mtime, ctime, met = cells
    numbers = (device % (2 * _SIGN), inode % (2 * _SIGN), mode, int(ctime), met)
    return Found(os.fsdecode(path), size, int(mtime), *numbers)


def _signed(number: int) -> int:
    return number - 2 * _SIGN if number >= _SIGN else number


def group(row: tuple[Any, ...]) -> Group:
    """A group from its number, study, series, evidence, members, newest and the sample's cells."""
    number, study, series, evidence, members, newest, *sample = row
    return Group(number, Grouping(study, os.fsdecode(series), evidence), members, newest, examined(sample))


def placement_cells(p: Placement) -> tuple[Any, ...]:
    """A row of ``placements``."""
    return (p.study, p.series, p.sop, p.class_, p.status, p.reason, os.fsencode(p.destination), p.sha256)


def placement(row: tuple[Any, ...]) -> Placement:
    """The inverse."""
    study, series, sop, class_, status, reason, destination, sha256 = row
    return Placement(study, series, sop, class_, status, reason, os.fsdecode(destination), sha256)


def look_cell(look: FramePrediction) -> bytes:
    """What the model saw in a frame."""
    return dump(_LOOK_CELLS(look))


def look(cell: bytes) -> FramePrediction:
    """The inverse."""
    probabilities, *rest = parse(cell)
    return FramePrediction(tuple(probabilities), *rest)


def vote_cell(vote: SeriesPrediction) -> bytes:
    """The model's vote on a group."""
    return dump(_VOTE_CELLS(vote))


def vote(cell: bytes | None) -> SeriesPrediction:
    """The inverse; an empty vote where there is none."""
    if cell is None:
        return SeriesPrediction()
    probabilities, *rest = parse(cell)
    return SeriesPrediction(tuple(probabilities), *rest)


def verdict_cell(verdict: Verdict) -> bytes:
    """The verdict on a group."""
    return dump(_VERDICT_CELLS(verdict))


def verdict(cell: bytes) -> Verdict:
    """The inverse."""
    status, folder, class_, reason, decided_by, *rest = parse(cell)
    return Verdict(Status(status), folder, class_, reason, DecidedBy(decided_by), *rest)


# Nothing here outlives the run, so nothing is flushed or rolled back. Times have no type: one beyond 64 bits is text,
# which SQLite would make a rounded number of. The cache, 32 MiB, holds what a million files
# need at random: the names given out.
SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -32768;
CREATE TABLE files (ordinal INTEGER PRIMARY KEY, path BLOB, size INT, device INT, inode INT, mode INT,
    mtime_ns, ctime_ns, met_ns INT, header BLOB, sha256 TEXT, failed TEXT, grp INT, sop TEXT, instance INT, frames INT);
CREATE INDEX shown ON files (grp, instance, ordinal) WHERE frames > 0;
CREATE TABLE groups (number INTEGER PRIMARY KEY, study TEXT, series BLOB, evidence TEXT, sample INT,
    members INT DEFAULT 0, showable INT DEFAULT 0, newest INT DEFAULT 0, early INT DEFAULT 0, vote BLOB, verdict BLOB,
    UNIQUE (study, series, evidence));
CREATE TABLE folders (path BLOB, mode INT, mtime_ns);
CREATE TABLE looks (path BLOB, frame INT, look BLOB, PRIMARY KEY (path, frame)) WITHOUT ROWID;
CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE placements (study TEXT, series TEXT, sop TEXT, class TEXT, status TEXT, reason TEXT, destination BLOB
    PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE INDEX placements_by_study ON placements (study);
CREATE INDEX placements_by_instance ON placements (sop, sha256);
CREATE INDEX placements_reviewed ON placements (sha256) WHERE reason IN ('reviewed', 'reviewed-file');
CREATE TABLE repeated (sop TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE given (number INTEGER PRIMARY KEY, sop TEXT, sha256 TEXT, destination BLOB);
CREATE INDEX given_by_instance ON given (sop, sha256);
CREATE TABLE deferred (number INTEGER PRIMARY KEY, queue TEXT, operation BLOB);
"""
COMPLETE: Final = (
    "CREATE INDEX by_instance ON files (sop) WHERE sop <> ''",
    "INSERT INTO repeated SELECT sop FROM files WHERE sop <> '' GROUP BY sop HAVING COUNT(*) > 1",
)
ADD: Final = "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
NUMBER: Final = """INSERT INTO groups (study, series, evidence, sample) VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET sample = sample RETURNING number"""
COUNT: Final = """UPDATE groups SET members = members + ?, showable = showable + ?, newest = MAX(newest, ?)
    WHERE number = ?"""
SHOWN: Final = """SELECT path, frames FROM files WHERE grp = ? AND frames > 0 ORDER BY instance, ordinal
    LIMIT 1 OFFSET ?"""
CONCERNS: Final = """SELECT EXISTS (SELECT 1 FROM groups WHERE study = ?)
    OR EXISTS (SELECT 1 FROM files WHERE sop <> '' AND sop = ?)"""
DECIDED: Final = """SELECT * FROM placements WHERE reason IN ('reviewed', 'reviewed-file') AND sha256 = ?
    ORDER BY destination"""
GIVEN: Final = "SELECT destination FROM given WHERE sop = ? AND (?2 IS NULL OR sha256 = ?2) ORDER BY number LIMIT 1"

_FOUND: Final = "f.path, f.size, f.device, f.inode, f.mode, f.mtime_ns, f.ctime_ns, f.met_ns"
DATED_AHEAD: Final = f"SELECT f.grp, {_FOUND} FROM files f WHERE f.met_ns > 0"
UNSETTLE: Final = f"UPDATE groups SET newest = {2**63 - 1} WHERE number = ?"
_FILE: Final = f"{_FOUND}, f.header, f.sha256, f.failed"
_GROUP: Final = f"""SELECT g.number, g.study, g.series, g.evidence, g.members,
    (SELECT MAX(newest) FROM groups s WHERE s.study = g.study AND s.series = g.series), {_FILE}, g.vote
    FROM groups g JOIN files f ON f.ordinal = g.sample """
GROUP: Final = f"{_GROUP} WHERE g.number = ?"
STUDIES: Final = f"{_GROUP} ORDER BY g.study, g.series, g.sample"
JUDGED: Final = f"""SELECT g.study, g.series, g.evidence, g.number, g.verdict, {_FILE}
    FROM files f JOIN groups g ON g.number = f.grp ORDER BY f.ordinal"""
