"""A disposable SQLite spool of a run's records in a temporary folder: memory stays flat however large the inbox.

It holds what was examined, the groups, the model's predictions, the verdicts, and (``Ledger``) earlier placements and
the names given out. It lies on a local disk and is thrown away; nothing that must survive a crash is in it. No text of
a query comes from outside.
"""

from __future__ import annotations

import os
import pickle
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, Self

from dicomsort.journal import pack, unpack
from dicomsort.jsonlines import dump, number_cell, parse
from dicomsort.memory import no_temporary_room
from dicomsort.records import (
    REVIEWED,
    REVIEWED_FILE,
    DecidedBy,
    Examined,
    Found,
    Group,
    Grouping,
    Header,
    Kind,
    Operation,
    Placement,
    Prediction,
    Status,
    Verdict,
)

# Nothing here outlives the run, so nothing is flushed or rolled back. Times have no type: one beyond 64 bits is text,
# which SQLite would make a rounded number of. The cache, 32 MiB, holds what a million files
# need at random: the names given out.
_SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -32768;
CREATE TABLE files (ordinal INTEGER PRIMARY KEY, path BLOB, size INT, device INT, inode INT, mode INT,
    mtime_ns, ctime_ns, met_ns INT, archive BLOB, unpacked BLOB, header BLOB,
    sha256 TEXT, failed TEXT, grp INT, sop TEXT, instance INT, frames INT);
CREATE INDEX shown ON files (grp, instance, ordinal) WHERE frames > 0;
CREATE TABLE groups (number INTEGER PRIMARY KEY, study TEXT, series BLOB, evidence TEXT, sample INT,
    members INT DEFAULT 0, showable INT DEFAULT 0, newest INT DEFAULT 0, early INT DEFAULT 0, prediction BLOB,
    verdict BLOB, UNIQUE (study, series, evidence));
CREATE TABLE folders (path BLOB, mode INT, mtime_ns);
CREATE TABLE predictions (path BLOB, frame INT, prediction BLOB, PRIMARY KEY (path, frame)) WITHOUT ROWID;
CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE placements (study TEXT, series TEXT, sop TEXT, class TEXT, status TEXT, reason TEXT, destination BLOB
    PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE INDEX placements_by_study ON placements (study);
CREATE INDEX placements_by_instance ON placements (sop, sha256);
CREATE INDEX placements_reviewed ON placements (sha256) WHERE reason IN ('reviewed', 'reviewed-file');
CREATE TABLE repeated (sop TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE given (number INTEGER PRIMARY KEY, sop TEXT, sha256 TEXT, destination BLOB);
CREATE INDEX given_by_instance ON given (sop, sha256);
CREATE TABLE archives (number INTEGER PRIMARY KEY, cells BLOB);
CREATE TABLE deferred (number INTEGER PRIMARY KEY, queue TEXT, operation BLOB);
"""
_FOUND: Final = "f.path, f.size, f.device, f.inode, f.mode, f.mtime_ns, f.ctime_ns, f.met_ns, f.archive, f.unpacked"
_FILE: Final = f"{_FOUND}, f.header, f.sha256, f.failed"
_GROUP: Final = f"""SELECT g.number, g.study, g.series, g.evidence, g.members,
    (SELECT MAX(newest) FROM groups s WHERE s.study = g.study AND s.series = g.series), {_FILE}, g.prediction
    FROM groups g JOIN files f ON f.ordinal = g.sample """

_KNOWN = 4096  # numbers of groups that are kept in memory: those of the files that came last
_NUMBER: Final = re.compile(r"[+-]?\d{1,12}")
_SIGN: Final = 1 << 63  # SQLite's integers end at 63 bits; inode and device numbers may not

_HEADER_CELLS, _FOUND_CELLS, _PLACEMENT_CELLS, _PREDICTION_CELLS, _VERDICT_CELLS = (
    attrgetter(*(f.name for f in fields(kind))) for kind in (Header, Found, Placement, Prediction, Verdict)
)


class Ledger:
    """The part of the spool that planning reads and fills."""

    def __init__(self, base: sqlite3.Connection) -> None:
        """Share the catalog's base, all of whose files are there."""
        self._base = base
        self._any_repeated = self._is_any("SELECT 1 FROM repeated")

    def concerns(self, placement: Placement) -> bool:
        """Whether an earlier placement matters: of a study or an instance at hand, of no study, or a person's."""
        if not placement.study or placement.reason in {REVIEWED, REVIEWED_FILE}:
            return True
        query = "SELECT 1 FROM groups WHERE study = ? UNION ALL SELECT 1 FROM files WHERE sop <> '' AND sop = ?"
        return self._is_any(query, placement.study, placement.sop)

    def place(self, placement: Placement) -> None:
        """Keep where an earlier run put a file."""
        *cells, destination, sha256 = _PLACEMENT_CELLS(placement)
        query = "INSERT OR REPLACE INTO placements VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        self._base.execute(query, (*cells, os.fsencode(destination), sha256))

    def displace(self, destination: str) -> None:
        """Forget a placement that was undone."""
        self._base.execute("DELETE FROM placements WHERE destination = ?", (os.fsencode(destination),))

    def placements(self, study: str) -> list[Placement]:
        """Where earlier runs put the files of a study."""
        return [*self._placements("study = ? ORDER BY destination", study)] if study else []

    def decided(self, sha256: str) -> list[Placement]:
        """Where a person's decisions put files of this content."""
        condition = "reason IN ('reviewed', 'reviewed-file') AND sha256 = ? ORDER BY destination"
        return [*self._placements(condition, sha256)]

    def remembers(self) -> bool:
        """Whether earlier runs placed anything that matters to this one."""
        return self._is_any("SELECT 1 FROM placements")

    def placed_instances(self, sop: str, sha256: str | None) -> Iterator[Placement]:
        """Where earlier runs put files with this SOP Instance UID: those with this content, or with any (None)."""
        return self._placements("sop = ?1 AND (?2 IS NULL OR sha256 = ?2)", sop, sha256)

    def placed_at(self, destination: str) -> Placement | None:
        """What an earlier run put there."""
        return next(self._placements("destination = ?", os.fsencode(destination)), None)

    def is_repeated(self, sop: str) -> bool:
        """Whether more than one file of this run has this SOP Instance UID."""
        return self._any_repeated and self._is_any("SELECT 1 FROM repeated WHERE sop = ?", sop)

    def give(self, sop: str, sha256: str, destination: str) -> None:
        """Keep where this run will put a file with this SOP Instance UID and content."""
        cells = (sop, sha256, os.fsencode(destination))
        self._base.execute("INSERT INTO given (sop, sha256, destination) VALUES (?, ?, ?)", cells)

    def given(self, sop: str, sha256: str | None) -> str | None:
        """Where this run will put the first file with this SOP Instance UID, of this content or (None) of any."""
        query = "SELECT destination FROM given WHERE sop = ? AND (?2 IS NULL OR sha256 = ?2) ORDER BY number LIMIT 1"
        found = self._base.execute(query, (sop, sha256)).fetchone() if self._any_repeated else None
        return os.fsdecode(found[0]) if found else None

    def claim(self, name: str) -> bool:
        """Give out a name once; False where it is taken."""
        return self._base.execute("INSERT OR IGNORE INTO names VALUES (?)", (os.fsencode(name),)).rowcount == 1

    def defer(self, operation: Operation, queue: str = "") -> None:
        """Put an operation off; whoever asks for a queue of its own gets no others."""
        cells = (queue, dump(pack(operation)))
        self._base.execute("INSERT INTO deferred (queue, operation) VALUES (?, ?)", cells)

    def deferred(self, queue: str = "") -> Iterator[Operation]:
        """Yield what was put off, in its order."""
        query = "SELECT operation FROM deferred WHERE queue = ? ORDER BY number"
        for (cell,) in self._base.execute(query, (queue,)):
            yield unpack(parse(cell))

    def _placements(self, condition: str, *values: object) -> Iterator[Placement]:
        return map(_placement, self._base.execute(f"SELECT * FROM placements WHERE {condition}", values))

    def _is_any(self, query: str, *values: object) -> bool:
        return self._base.execute(query, values).fetchone() is not None


def _placement(row: tuple[Any, ...]) -> Placement:
    *cells, destination, sha256 = row
    return Placement(*(*cells, os.fsdecode(destination), sha256))


class Catalog:
    """One run's spool; use it as a context, from one thread."""

    def __init__(self, changed_ns: Callable[[Found], int] = attrgetter("changed_ns")) -> None:
        """Make the base in a temporary folder and take its name away at once, so that not even a crash leaves it.

        ``changed_ns`` tells when a file last changed, which groups are settled by.
        """
        self._changed_ns = changed_ns
        try:
            with tempfile.TemporaryDirectory(prefix="dicomsort-") as folder:
                self._base = sqlite3.connect(os.path.join(folder, "catalog.sqlite"), isolation_level=None)
                self._base.executescript(_SCHEMA)
            self._base.execute("BEGIN")
        except (sqlite3.Error, OSError) as error:
            raise no_temporary_room("the catalog", error) from error
        self._count = 0
        self._numbers: dict[Grouping, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Throw everything away; DicomsortError where the temporary folder was the trouble."""
        self._base.close()
        if isinstance(error, sqlite3.Error):
            raise no_temporary_room("the catalog", error) from error

    def add(self, batch: Iterable[tuple[Examined, Grouping, int]]) -> dict[int, int]:
        """Spool examined files in path order, each with how many of its frames may be shown to the model.

        Returns how many files each group got, by the group's number.
        """
        added: dict[int, list[int]] = {}
        cells = []
        for e, grouping, frames in batch:
            self._count += 1
            number = self._number(grouping)
            count = added.setdefault(number, [0, 0, 0])
            count[0] += 1
            count[1] += frames > 0
            count[2] = max(count[2], self._changed_ns(e.found))
            cells.append(_file_cells(self._count, number, e, frames, has_uids=bool(grouping.study)))
        self._base.executemany(f"INSERT INTO files VALUES ({', '.join('?' * 18)})", cells)
        query = "UPDATE groups SET members = members + ?, showable = showable + ?, newest = MAX(newest, ?)"
        self._base.executemany(f"{query} WHERE number = ?", [(*counts, number) for number, counts in added.items()])
        return {number: counts[0] for number, counts in added.items()}

    def put_off(self, archive: Examined) -> None:
        """Keep an archive apart, until the files of the inbox are all there."""
        self._base.execute("INSERT INTO archives (cells) VALUES (?)", (pickle.dumps(archive),))

    def archives(self) -> Iterator[Examined]:
        """Yield the archives that were kept apart, in their order."""
        for (cells,) in self._rows("SELECT cells FROM archives ORDER BY number"):
            yield pickle.loads(cells)  # noqa: S301 - it was made above, in a file without a name

    def changed_ns(self, found: Found) -> int:
        """Return when a file last changed, by which it is settled."""
        return self._changed_ns(found)

    def _number(self, grouping: Grouping) -> int:
        """The number of a group; a group that is new has the file at hand as its sample."""
        number = self._numbers.get(grouping)
        if number is None:
            if len(self._numbers) >= _KNOWN:
                self._numbers.clear()
            query = """INSERT INTO groups (study, series, evidence, sample) VALUES (?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET sample = sample RETURNING number"""
            cells = (grouping.study, os.fsencode(grouping.series), grouping.evidence, self._count)
            ((number,),) = self._base.execute(query, cells).fetchall()
            self._numbers[grouping] = number
        return number

    def add_folders(self, folders: Iterable[tuple[str, int, int]]) -> None:
        """Spool the inbox's folders: path, mode, mtime in nanoseconds."""
        cells = ((os.fsencode(path), mode, number_cell(mtime_ns)) for path, mode, mtime_ns in folders)
        self._base.executemany("INSERT INTO folders VALUES (?, ?, ?)", cells)

    def folders_deepest_first(self) -> Iterator[tuple[str, int, int]]:
        """Yield the inbox's folders so that each comes after those within it."""
        for path, mode, mtime in self._base.execute("SELECT path, mode, mtime_ns FROM folders ORDER BY path DESC"):
            yield os.fsdecode(path), mode, int(mtime)

    def dated_ahead(self) -> Iterator[tuple[int, Found]]:
        """Yield the files whose mtime and ctime both lay ahead of the clock, each with the number of its group."""
        for group, *cells in self._rows(f"SELECT f.grp, {_FOUND} FROM files f WHERE f.met_ns > 0"):
            if (found := _found(cells)).is_ahead:
                yield group, found

    def unsettle(self, group: int) -> None:
        """Note that files of a group still change."""
        self._base.execute("UPDATE groups SET newest = ? WHERE number = ?", (_SIGN - 1, group))

    def complete(self) -> Ledger:
        """Return the ledger, when every file is there."""
        self._base.execute("CREATE INDEX by_instance ON files (sop) WHERE sop <> ''")
        query = "INSERT INTO repeated SELECT sop FROM files WHERE sop <> '' GROUP BY sop HAVING COUNT(*) > 1"
        self._base.execute(query)
        return Ledger(self._base)

    def studies(self) -> Iterator[list[tuple[Group, Prediction]]]:
        """Yield the groups of each study, and of each file that belongs to none."""
        found = self._rows(f"{_GROUP} ORDER BY g.study, g.series, g.sample")
        for _, same in groupby(found, key=lambda r: (r[1], r[2] if not r[1] else b"")):
            yield [(_group(row), Prediction() if row[-1] is None else _prediction(row[-1])) for row in same]

    def group(self, number: int) -> Group:
        """A group by its number, as it is now."""
        return _group(self._base.execute(f"{_GROUP} WHERE g.number = ?", (number,)).fetchone())

    def showable(self, group: int) -> int:
        """How many files of a group can be shown to the model."""
        return int(self._base.execute("SELECT showable FROM groups WHERE number = ?", (group,)).fetchone()[0])

    def shown(self, group: int, place: int) -> tuple[str, int]:
        """Path and frame count of one showable file, by its place in the order of Instance Number (0020,0013).

        The path is absolute where the file was unpacked from an archive.
        """
        lies = "CASE unpacked WHEN x'' THEN path ELSE unpacked END"
        query = f"SELECT {lies}, frames FROM files WHERE grp = ? AND frames > 0 ORDER BY instance, ordinal"
        path, frames = self._base.execute(f"{query} LIMIT 1 OFFSET ?", (group, place)).fetchone()
        return os.fsdecode(path), frames

    def begin_early(self, group: int) -> bool:
        """Note that a group's frames are predicted before it is known to be whole; False the second time."""
        return self._base.execute("UPDATE groups SET early = 1 WHERE number = ? AND NOT early", (group,)).rowcount == 1

    def add_prediction(self, path: str, frame: int | None, prediction: Prediction) -> None:
        """Keep what the model saw in a frame (None: the middle one)."""
        cells = (os.fsencode(path), -1 if frame is None else frame, dump(_PREDICTION_CELLS(prediction)))
        self._base.execute("INSERT OR REPLACE INTO predictions VALUES (?, ?, ?)", cells)

    def prediction(self, path: str, frame: int | None) -> Prediction | None:
        """What the model saw in a frame, None where it was not shown yet."""
        key = (os.fsencode(path), -1 if frame is None else frame)
        query = "SELECT prediction FROM predictions WHERE path = ? AND frame = ?"
        found = self._base.execute(query, key).fetchone()
        return _prediction(found[0]) if found else None

    def set_series_prediction(self, group: int, prediction: Prediction) -> None:
        """Keep the model's prediction for a group."""
        cells = (dump(_PREDICTION_CELLS(prediction)), group)
        self._base.execute("UPDATE groups SET prediction = ? WHERE number = ?", cells)

    def set_verdict(self, group: int, verdict: Verdict) -> None:
        """Keep the verdict on a group."""
        self._base.execute("UPDATE groups SET verdict = ? WHERE number = ?", (dump(_VERDICT_CELLS(verdict)), group))

    def verdicts(self) -> Iterator[tuple[Examined, Grouping, Verdict]]:
        """Yield every file with its verdict, in path order."""
        last = 0
        query = f"""SELECT g.study, g.series, g.evidence, g.number, g.verdict, {_FILE}
            FROM files f JOIN groups g ON g.number = f.grp ORDER BY f.ordinal"""
        for study, series, evidence, number, cell, *file in self._rows(query):
            if number != last:
                last = number
                verdict, grouping = _verdict(cell), Grouping(study, os.fsdecode(series), evidence)
            yield _examined(file), grouping, verdict

    def _rows(self, query: str) -> Iterator[Any]:
        """Yield a query's rows; one that is left in the middle may outlive the base."""
        cursor = self._base.execute(query)
        try:
            for row in cursor:  # noqa: UP028 - "yield from" would close the cursor itself, and raise
                yield row
        finally:
            with suppress(sqlite3.ProgrammingError):
                cursor.close()


def _file_cells(ordinal: int, group: int, e: Examined, frames: int, *, has_uids: bool) -> tuple[Any, ...]:
    path, size, mtime, device, inode, mode, ctime, met, *archive = _FOUND_CELLS(e.found)
    number = e.header.instance_number
    instance = int(number) if _NUMBER.fullmatch(number) else 0
    rest = (number_cell(mtime), number_cell(ctime), met, *map(os.fsencode, archive))
    sop = e.header.sop_uid if has_uids else ""
    header = dump(_HEADER_CELLS(e.header))
    facts = (os.fsencode(path), size, _signed(device), _signed(inode), mode, *rest)
    return (ordinal, *facts, header, e.sha256, e.failed, group, sop, instance, frames)


def _examined(cells: list[Any]) -> Examined:
    # The columns are those of ``_FILE``.
    *facts, header, sha256, failed = cells
    kind, *rest = parse(header)
    return Examined(_found(facts), Header(Kind(kind), *rest), sha256, failed)


def _found(cells: list[Any]) -> Found:
    path, size, device, inode, mode, mtime, ctime, met, *archive = cells
    numbers = (device % (2 * _SIGN), inode % (2 * _SIGN), mode, int(ctime), met)
    return Found(os.fsdecode(path), size, int(mtime), *numbers, *map(os.fsdecode, archive))


def _signed(number: int) -> int:
    return number - 2 * _SIGN if number >= _SIGN else number


def _group(row: tuple[Any, ...]) -> Group:
    # The columns are those of ``_GROUP``.
    number, study, series, evidence, members, newest, *sample, _ = row
    return Group(number, Grouping(study, os.fsdecode(series), evidence), members, newest, _examined(sample))


def _prediction(cell: bytes) -> Prediction:
    probabilities, *rest = parse(cell)
    return Prediction(tuple(probabilities), *rest)


def _verdict(cell: bytes) -> Verdict:
    status, folder, class_, reason, decided_by, *rest = parse(cell)
    return Verdict(Status(status), folder, class_, reason, DecidedBy(decided_by), *rest)
