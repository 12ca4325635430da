"""What an outbox holds back for a person, as its manifest tells: files, and the items that are decided about as one."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dicomsort.errors import DicomsortError
from dicomsort.files import look_up, opened
from dicomsort.records import Action, Row, Status
from dicomsort.report.manifest import COLUMNS, MANIFEST, PLACED, row_of
from dicomsort.report.reviewed import decided_from

WAITING = frozenset({Status.REVIEW, Status.CONFLICT})  # what lies below REVIEW, for a person to decide about
_KEY = 16
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Held:
    """A file that a run held back; its row is as it was before a manifest escaped it, paths as they are on disk."""

    run: str
    row: Row


@dataclass(frozen=True, slots=True)
class Item:
    """What is decided about as one: the files of a series that were held for one reason, or one file without UIDs.

    ``key`` is 16 hex digits that stay the same as long as the item does. ``files`` are in natural order of their paths.
    """

    key: str
    files: tuple[Held, ...]

    @property
    def row(self) -> Row:
        """The row of its first file: what all of them have in common."""
        return self.files[0].row

    @property
    def study(self) -> str:
        """What its neighbours are known by: the Study Instance UID, else nothing."""
        return self.row.study_uid


def grouped(held: Iterable[Held]) -> list[Item]:
    """Put files together to items: those of a study beside each other, in the order of their first file's path."""
    by_key: dict[str, list[Held]] = {}
    for each in held:
        by_key.setdefault(_key(each.row), []).append(each)
    items = [Item(key, tuple(sorted(files, key=_natural))) for key, files in by_key.items()]
    items.sort(key=lambda item: _natural(item.files[0]))
    first: dict[str, int] = {}
    for place, item in enumerate(items):
        first.setdefault(item.study or item.key, place)
    return sorted(items, key=lambda item: first[item.study or item.key])


def _key(row: Row) -> str:
    parts = (row.study_uid, row.series_uid, row.reason) if row.study_uid and row.series_uid else (row.destination,)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:_KEY]


def _natural(held: Held) -> list[tuple[int, str]]:
    parts = _DIGITS.split(held.row.destination)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


class Holdings:
    """What an outbox holds back now; ``refresh`` reads on where the manifest has grown.

    Memory grows with what is held or was decided about, not with what was sorted; time with what was appended.
    """

    def __init__(self, outbox: str) -> None:
        """Nothing is read yet."""
        self._path = f"{outbox}/{MANIFEST}"
        self._offset = 0
        self._inode = 0
        self._held: dict[str, dict[str, Held]] = {}  # by the item's key, then by where it lies
        self._keys: dict[str, str] = {}  # of the item, by where a file lies
        self._stale: set[str] = set()  # keys of items whose files have changed
        self.items: dict[str, Item] = {}
        self.decided: dict[str, tuple[Held, Held]] = {}  # by where it lay: as it was held, and as it was decided about

    def refresh(self) -> bool:
        """Read the rows that were appended since; whether anything that is held has changed."""
        status = look_up(self._path)
        if status is None or (status.st_ino, status.st_size) == (self._inode, self._offset):
            return False
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._offset, self._inode = 0, status.st_ino
            self._stale.update(self._held)
            self._held, self._keys, self.decided = {}, {}, {}
        for each in self._appended():
            self._take(each)
        changed, self._stale = self._stale, set()
        for key in changed - self._held.keys():
            self.items.pop(key, None)
        there = (held for key in changed & self._held.keys() for held in self._held[key].values())
        self.items |= {item.key: item for item in grouped(there)}
        return bool(changed)

    def _appended(self) -> Iterator[Held]:
        """Yield what the manifest tells beyond what was read, as far as its rows are whole."""
        with opened(self._path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
            head = next(csv.reader([stream.readline().decode("utf-8-sig")]), [])
            if tuple(head[: len(COLUMNS)]) != COLUMNS:
                raise DicomsortError(f"{self._path}: expected the columns {','.join(COLUMNS)}, received {head}")
            stream.seek(self._offset or stream.tell())
            self._offset = stream.tell()
            row = b""
            for line in stream:
                row += line
                if not line.endswith(b"\n") or row.count(b'"') % 2:
                    continue  # the row goes on, or is being written
                self._offset += len(row)
                cells = next(csv.reader([row.decode("utf-8", "surrogateescape")]))
                row = b""
                if len(cells) >= len(COLUMNS):
                    yield Held(cells[0], row_of(cells))

    def _take(self, each: Held) -> None:
        row = each.row
        was = decided_from(row.action, row.reason, row.message)
        if row.action == Action.UNDONE:
            self._let_go(row.destination)
            if back := self.decided.pop(was, None):
                self._hold(back[0])
        elif was:
            if before := self._let_go(was):
                self.decided[was] = (before, each)
        elif row.status in WAITING and row.action in PLACED:
            self._hold(each)

    def _hold(self, held: Held) -> None:
        key = _key(held.row)
        self._held.setdefault(key, {})[held.row.destination] = held
        self._keys[held.row.destination] = key
        self._stale.add(key)

    def _let_go(self, place: str) -> Held | None:
        """Take out what was held at a place, if anything was."""
        if (key := self._keys.pop(place, None)) is None:
            return None
        self._stale.add(key)
        found = self._held[key].pop(place)
        if not self._held[key]:
            del self._held[key]
        return found
