"""A disposable SQLite spool of a run's records in a temporary folder: memory stays flat however large the inbox.

It holds what was examined, the groups, the model's predictions, the verdicts, and (``Ledger``) earlier placements and
the names given out. It lies on a local disk and is thrown away; nothing that must survive a crash is in it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

from dicomsort.catalog import rows
from dicomsort.errors import DicomsortError
from dicomsort.journal import pack, unpack
from dicomsort.jsonlines import dump, number_cell, parse
from dicomsort.memory import file_limit
from dicomsort.records import (
    REVIEWED,
    REVIEWED_FILE,
    Examined,
    Found,
    FramePrediction,
    Group,
    Grouping,
    Operation,
    Placement,
    SeriesPrediction,
    Verdict,
)

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["Catalog", "Ledger"]


class Ledger:
    """The part of the spool that planning asks and fills."""

    def __init__(self, base: Connection) -> None:
        """Share the catalog's base, all of whose files are there."""
        self._base = base
        self._any_repeated = bool(self._one("SELECT EXISTS (SELECT 1 FROM repeated)"))

    def concerns(self, placement: Placement) -> bool:
        """Whether an earlier placement matters: of a study or an instance at hand, of no study, or a person's."""
        if not placement.study or placement.reason in {REVIEWED, REVIEWED_FILE}:
            return True
        return bool(self._one(rows.CONCERNS, placement.study, placement.sop))

    def place(self, placement: Placement) -> None:
        """Keep where an earlier run put a file."""
        query = "INSERT OR REPLACE INTO placements VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        self._base.execute(query, rows.placement_cells(placement))

    def displace(self, destination: str) -> None:
        """Forget a placement that was undone."""
        self._base.execute("DELETE FROM placements WHERE destination = ?", (os.fsencode(destination),))

    def placements(self, study: str) -> list[Placement]:
        """Where earlier runs put the files of a study."""
        if not study:
            return []
        found = self._base.execute("SELECT * FROM placements WHERE study = ? ORDER BY destination", (study,))
        return [rows.placement(row) for row in found]

    def decided(self, sha256: str) -> list[Placement]:
        """Where a person's decisions put files of this content."""
        return [rows.placement(row) for row in self._base.execute(rows.DECIDED, (sha256,))]

    def remembers(self) -> bool:
        """Whether earlier runs placed anything that matters to this one."""
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM placements)"))

    def placed_instances(self, sop: str, sha256: str | None) -> Iterator[Placement]:
        """Where earlier runs put files with this SOP Instance UID: those with this content, or with any (None)."""
        query = "SELECT * FROM placements WHERE sop = ?1 AND (?2 IS NULL OR sha256 = ?2)"
        for row in self._base.execute(query, (sop, sha256)):
            yield rows.placement(row)

    def placed_at(self, destination: str) -> Placement | None:
        """What an earlier run put there."""
        found = self._base.execute("SELECT * FROM placements WHERE destination = ?", (os.fsencode(destination),))
        return next((rows.placement(row) for row in found), None)

    def is_repeated(self, sop: str) -> bool:
        """Whether more than one file of this run has this SOP Instance UID."""
        return self._any_repeated and bool(self._one("SELECT EXISTS (SELECT 1 FROM repeated WHERE sop = ?)", sop))

    def give(self, sop: str, sha256: str, destination: str) -> None:
        """Keep where this run will put a file with this SOP Instance UID and content."""
        cells = (sop, sha256, os.fsencode(destination))
        self._base.execute("INSERT INTO given (sop, sha256, destination) VALUES (?, ?, ?)", cells)

    def given(self, sop: str, sha256: str | None) -> str | None:
        """Where this run will put the first file with this SOP Instance UID, of this content or (None) of any."""
        found = self._base.execute(rows.GIVEN, (sop, sha256)).fetchone() if self._any_repeated else None
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

    def _one(self, query: str, *values: object) -> Any:
        return self._base.execute(query, values).fetchone()[0]


_KNOWN = 4096  # numbers of groups that are kept in memory: those of the files that came last


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
                self._base.executescript(rows.SCHEMA)
            self._base.execute("BEGIN")
        except (sqlite3.Error, OSError) as error:
            raise _no_room(error) from error
        self._count = 0
        self._numbers: dict[Grouping, int] = {}

    def __enter__(self) -> Self:
        """Return the catalog itself."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Throw everything away; DicomsortError where the temporary folder was the trouble."""
        self._base.close()
        if isinstance(error, sqlite3.Error):
            raise _no_room(error) from error

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
            cells.append(rows.file_cells(self._count, number, e, frames, has_uids=bool(grouping.study)))
        self._base.executemany(rows.ADD, cells)
        self._base.executemany(rows.COUNT, [(*counts, number) for number, counts in added.items()])
        return {number: counts[0] for number, counts in added.items()}

    def _number(self, grouping: Grouping) -> int:
        """The number of a group; a group that is new has the file at hand as its sample."""
        number = self._numbers.get(grouping)
        if number is None:
            if len(self._numbers) >= _KNOWN:
                self._numbers.clear()
            g = grouping
            cells = (g.study, os.fsencode(g.series), g.evidence, self._count)
            ((number,),) = self._base.execute(rows.NUMBER, cells).fetchall()
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
        for group, *cells in self._rows(rows.DATED_AHEAD):
            if (found := rows.found(cells)).is_ahead:
                yield group, found

    def unsettle(self, group: int) -> None:
        """Note that files of a group still change."""
        self._base.execute(rows.UNSETTLE, (group,))

    def complete(self) -> Ledger:
        """Every file is there: return what planning asks."""
        for statement in rows.COMPLETE:
            self._base.execute(statement)
        return Ledger(self._base)

    def studies(self) -> Iterator[list[tuple[Group, SeriesPrediction]]]:
        """Yield the groups of each study, and of each file that belongs to none."""
        for _, same in groupby(self._rows(rows.STUDIES), key=lambda r: (r[1], r[2] if not r[1] else b"")):
            yield [(rows.group(row[:-1]), rows.vote(row[-1])) for row in same]

    def group(self, number: int) -> Group:
        """A group by its number, as it is now."""
        return rows.group(self._base.execute(rows.GROUP, (number,)).fetchone()[:-1])

    def showable(self, group: int) -> int:
        """How many files of a group can be shown to the model."""
        return int(self._one("SELECT showable FROM groups WHERE number = ?", group))

    def shown(self, group: int, place: int) -> tuple[str, int]:
        """Path and frame count of one showable file, by its place in the order of Instance Number (0020,0013)."""
        path, frames = self._base.execute(rows.SHOWN, (group, place)).fetchone()
        return os.fsdecode(path), frames

    def begin_early(self, group: int) -> bool:
        """Note that a group's frames are asked for before it is known to be whole; False the second time."""
        return self._base.execute("UPDATE groups SET early = 1 WHERE number = ? AND NOT early", (group,)).rowcount == 1

    def add_prediction(self, path: str, frame: int | None, look: FramePrediction) -> None:
        """Keep what the model saw in a frame (None: the middle one)."""
        cells = (os.fsencode(path), -1 if frame is None else frame, rows.look_cell(look))
        self._base.execute("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", cells)

    def prediction(self, path: str, frame: int | None) -> FramePrediction | None:
        """What the model saw in a frame, None where it was not shown yet."""
        key = (os.fsencode(path), -1 if frame is None else frame)
        found = self._base.execute("SELECT look FROM looks WHERE path = ? AND frame = ?", key).fetchone()
        return rows.look(found[0]) if found else None

    def set_series_prediction(self, group: int, vote: SeriesPrediction) -> None:
        """Keep the model's vote on a group."""
        self._base.execute("UPDATE groups SET vote = ? WHERE number = ?", (rows.vote_cell(vote), group))

    def set_verdict(self, group: int, verdict: Verdict) -> None:
        """Keep the verdict on a group."""
        self._base.execute("UPDATE groups SET verdict = ? WHERE number = ?", (rows.verdict_cell(verdict), group))

    def verdicts(self) -> Iterator[tuple[Examined, Grouping, Verdict]]:
        """Yield every file with its verdict, in path order."""
        last = 0
        for study, series, evidence, number, judged, *file in self._rows(rows.JUDGED):
            if number != last:
                last = number
                verdict, grouping = rows.verdict(judged), Grouping(study, os.fsdecode(series), evidence)
            yield rows.examined(file), grouping, verdict

    def _rows(self, query: str) -> Iterator[Any]:
        """Yield a query's rows; one that is left in the middle may outlive the base."""
        cursor = self._base.execute(query)
        try:
            for row in cursor:  # noqa: UP028 - "yield from" would close the cursor itself, and raise
                yield row
        finally:
            with suppress(sqlite3.ProgrammingError):
                cursor.close()

    def _one(self, query: str, *values: object) -> Any:
        return self._base.execute(query, values).fetchone()[0]


def _no_room(error: Exception) -> DicomsortError:
    try:
        where = tempfile.gettempdir()
    except OSError:
        where = "(none)"
    name = getattr(error, "sqlite_errorname", "")
    is_limit = name.startswith("SQLITE_IOERR") or where == "(none)"  # as a file that became too large is told of, too
    advice = (is_limit and file_limit()) or "free some, or set TMPDIR"
    return DicomsortError(f"temporary folder {where}: expected room for the catalog, received: {error}; {advice}")
