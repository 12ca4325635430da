"""The spool's tables and queries; nothing from outside is in the text of a query."""

from __future__ import annotations

from typing import Final

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
