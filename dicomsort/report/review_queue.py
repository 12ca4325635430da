"""What is for review in an outbox, by its manifest: files, and the items that are decided about as one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dicomsort.files import look_up, opened_file
from dicomsort.records import Action, Row, Status
from dicomsort.report.manifest import MANIFEST, PLACED
from dicomsort.report.manifest_reader import LONGEST, RunRow, decided_from, is_in_review, read_rows, records, skip_head

WAITING = frozenset({Status.REVIEW, Status.CONFLICT})  # what lies below REVIEW, for a person to decide about
_KEY = 16
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Item:
    """What is decided about as one: the files of a series in review for one reason, or one file without UIDs.

    ``key``: 16 hex digits that stay when files of the series join it; ``version`` changes with the files. ``files``
    are in natural order of their paths.
    """

    key: str
    files: tuple[RunRow, ...]
    version: str

    @property
    def row(self) -> Row:
        """The row of its first file: what all of them have in common."""
        return self.files[0].row

    @property
    def reason(self) -> str:
        """Why it is for review: a file that joined the series later has another reason of its own."""
        return _reason(self.row)

    @property
    def study(self) -> str:
        """The Study Instance UID, else nothing."""
        return self.row.study_uid


def grouped(rows: Iterable[RunRow]) -> list[Item]:
    """Return files as items: those of a study beside each other, in the order of their first file's path."""
    by_key: dict[str, list[RunRow]] = {}
    for each in rows:
        by_key.setdefault(_key(each.row), []).append(each)
    items = []
    for key, files in by_key.items():
        files.sort(key=_natural)
        contents = "\0".join(f"{each.row.destination}\0{each.row.sha256}" for each in files)
        items.append(Item(key, tuple(files), _hash(contents)))
    items.sort(key=lambda item: _natural(item.files[0]))
    first: dict[str, int] = {}
    for place, item in enumerate(items):
        first.setdefault(item.study or item.key, place)
    return sorted(items, key=lambda item: first[item.study or item.key])


def _key(row: Row) -> str:
    has_uids = row.study_uid and row.series_uid
    # A name may come again with another content: that is another item.
    parts = (row.study_uid, row.series_uid, _reason(row)) if has_uids else (row.destination, row.sha256)
    return _hash("\0".join(parts))


def _reason(row: Row) -> str:
    return row.destination.split("/")[1] if is_in_review(row.destination) else row.reason


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_KEY]


def _natural(each: RunRow) -> list[tuple[int, str]]:
    """Numbers by their values, as digits: a name may hold more of them than ``int`` takes."""
    parts = _DIGITS.split(each.row.destination)
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


class ReviewQueue:
    """What is for review in an outbox now; ``refresh`` reads on where the manifest has grown.

    Memory grows with what is for review or was decided about, not with what was sorted; time with what was appended.
    """

    def __init__(self, outbox: str) -> None:
        self._path = f"{outbox}/{MANIFEST}"
        self._offset = 0
        self._inode = 0
        self._files: dict[str, dict[str, RunRow]] = {}  # by the item's key, then by where it lies
        self._keys: dict[str, str] = {}  # of the item, by where a file lies
        self._stale: set[str] = set()  # keys of items whose files have changed
        self.items: dict[str, Item] = {}
        # By place and SHA-256, the rows by which a file came into review and was decided about.
        self._decided: dict[tuple[str, str], tuple[RunRow, RunRow]] = {}
        self._relying: dict[str, set[str]] = {}  # by place, the runs that removed duplicates of what lies there

    def refresh(self) -> bool:
        """Read the rows that were appended since; return whether anything for review has changed."""
        status = look_up(self._path)
        if status is None or (status.st_ino, status.st_size) == (self._inode, self._offset):
            return False
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._offset, self._inode = 0, status.st_ino
            self._stale.update(self._files)
            self._files, self._keys, self._decided, self._relying = {}, {}, {}, {}
            next(read_rows(self._path), None)  # an error where this is no manifest
        for each in self._appended():
            self._take(each)
        changed, self._stale = self._stale, set()
        for key in changed - self._files.keys():
            self.items.pop(key, None)
        waiting = (each for key in changed & self._files.keys() for each in self._files[key].values())
        self.items |= {item.key: item for item in grouped(waiting)}
        return bool(changed)

    def _appended(self) -> Iterator[RunRow]:
        """Yield the rows behind what was read; the last row only when it is whole."""
        with opened_file(self._path) as stream:
            order = skip_head(stream)
            stream.seek(self._offset or stream.tell())
            self._offset = stream.tell()
            for record in records(stream, 0, order):
                if not record.content.endswith(b"\n") and len(record.content) < LONGEST:  # it is being written
                    return
                if record.row is not None and not record.damage:
                    yield record.row
                self._offset += len(record.content)

    def decision(self, file: RunRow) -> RunRow | None:
        """Return the row by which a person decided about a file that was for review, where that stands."""
        pair = self._decided.get((file.row.destination, file.row.sha256))
        return pair[1] if pair else None

    def runs_about(self, file: RunRow) -> set[str]:
        """Return the runs whose undo needs a file where it lies: they placed it, or removed a duplicate of it."""
        return {file.run} | self._relying.get(file.row.destination, set())

    def _take(self, each: RunRow) -> None:
        row = each.row
        was = decided_from(row)
        if row.action == Action.UNDONE:
            self._discard(row.destination)
            if back := self._decided.pop((was, row.sha256), None):
                self._add(back[0])
        elif was:
            if before := self._discard(was):
                self._decided[was, row.sha256] = (before, each)
        elif not is_in_review(row.destination):
            return
        elif row.status in WAITING and row.action in PLACED:
            self._add(each)
        elif row.action == Action.REMOVED:
            self._relying.setdefault(row.destination, set()).add(each.run)

    def _add(self, file: RunRow) -> None:
        place, key = file.row.destination, _key(file.row)
        self._discard(place)  # somebody moved away what lay there
        self._files.setdefault(key, {})[place] = file
        self._keys[place] = key
        self._stale.add(key)

    def _discard(self, place: str) -> RunRow | None:
        """Remove and return what was for review at a place, if anything was."""
        if (key := self._keys.pop(place, None)) is None:
            return None
        self._stale.add(key)
        file = self._files[key].pop(place)
        if not self._files[key]:
            del self._files[key]
        return file
