"""A disposable SQLite spool of a run's records in a temporary folder: memory stays flat however large the inbox.

It holds what was examined, the groups, the looks of the model, the verdicts, and (``ledger``) earlier placements and
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
from typing import Any, Self

from dicomsort.catalog import rows, schema
from dicomsort.catalog.ledger import Ledger
from dicomsort.errors import DicomsortError
from dicomsort.jsonlines import number_cell
from dicomsort.memory import file_limit
from dicomsort.records import Examined, Found, Group, Grouping, Look, Verdict, Vote

__all__ = ["Catalog", "Ledger"]

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
                self._base.executescript(schema.SCHEMA)
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
        self._base.executemany(schema.ADD, cells)
        self._base.executemany(schema.COUNT, [(*counts, number) for number, counts in added.items()])
        return {number: counts[0] for number, counts in added.items()}

    def _number(self, grouping: Grouping) -> int:
        """The number of a group; a group that is new has the file at hand as its sample."""
        number = self._numbers.get(grouping)
        if number is None:
            if len(self._numbers) >= _KNOWN:
                self._numbers.clear()
            g = grouping
            cells = (g.study, os.fsencode(g.series), g.evidence, self._count)
            ((number,),) = self._base.execute(schema.NUMBER, cells).fetchall()
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
        for group, *cells in self._rows(schema.DATED_AHEAD):
            if (found := rows.found(cells)).is_ahead:
                yield group, found

    def unsettle(self, group: int) -> None:
        """Note that files of a group still change."""
        self._base.execute(schema.UNSETTLE, (group,))

    def complete(self) -> Ledger:
        """Every file is there: return what planning asks."""
        for statement in schema.COMPLETE:
            self._base.execute(statement)
        return Ledger(self._base)

    def studies(self) -> Iterator[list[tuple[Group, Vote]]]:
        """Yield the groups of each study, and of each file that belongs to none."""
        for _, same in groupby(self._rows(schema.STUDIES), key=lambda r: (r[1], r[2] if not r[1] else b"")):
            yield [(rows.group(row[:-1]), rows.vote(row[-1])) for row in same]

    def group(self, number: int) -> Group:
        """A group by its number, as it is now."""
        return rows.group(self._base.execute(schema.GROUP, (number,)).fetchone()[:-1])

    def showable(self, group: int) -> int:
        """How many files of a group can be shown to the model."""
        return int(self._one("SELECT showable FROM groups WHERE number = ?", group))

    def shown(self, group: int, place: int) -> tuple[str, int]:
        """Path and frame count of one showable file, by its place in the order of Instance Number (0020,0013)."""
        path, frames = self._base.execute(schema.SHOWN, (group, place)).fetchone()
        return os.fsdecode(path), frames

    def begin_early(self, group: int) -> bool:
        """Note that a group's frames are asked for before it is known to be whole; False the second time."""
        return self._base.execute("UPDATE groups SET early = 1 WHERE number = ? AND NOT early", (group,)).rowcount == 1

    def remember(self, path: str, frame: int | None, look: Look) -> None:
        """Keep what the model saw in a frame (None: the middle one)."""
        cells = (os.fsencode(path), -1 if frame is None else frame, rows.look_cell(look))
        self._base.execute("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", cells)

    def recall(self, path: str, frame: int | None) -> Look | None:
        """What the model saw in a frame, None where it was not shown yet."""
        key = (os.fsencode(path), -1 if frame is None else frame)
        found = self._base.execute("SELECT look FROM looks WHERE path = ? AND frame = ?", key).fetchone()
        return rows.look(found[0]) if found else None

    def vote(self, group: int, vote: Vote) -> None:
        """Keep the model's vote on a group."""
        self._base.execute("UPDATE groups SET vote = ? WHERE number = ?", (rows.vote_cell(vote), group))

    def judge(self, group: int, verdict: Verdict) -> None:
        """Keep the verdict on a group."""
        self._base.execute("UPDATE groups SET verdict = ? WHERE number = ?", (rows.verdict_cell(verdict), group))

    def judged(self) -> Iterator[tuple[Examined, Grouping, Verdict]]:
        """Yield every file with its verdict, in path order."""
        last = 0
        for study, series, evidence, number, judged, *file in self._rows(schema.JUDGED):
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
