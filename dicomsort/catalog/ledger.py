"""What planning remembers of a run: earlier placements, the names and places given out, what it puts off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dicomsort.catalog import rows, schema
from dicomsort.journal import pack, unpack
from dicomsort.jsonlines import dump, parse
from dicomsort.records import REVIEWED, REVIEWED_FILE, Operation, Placement

if TYPE_CHECKING:
    from sqlite3 import Connection


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
        return bool(self._one(schema.CONCERNS, placement.study, placement.sop))

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
        return [rows.placement(row) for row in self._base.execute(schema.DECIDED, (sha256,))]

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
        found = self._base.execute(schema.GIVEN, (sop, sha256)).fetchone() if self._any_repeated else None
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
