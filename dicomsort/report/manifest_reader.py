"""The one reader of ``manifest.csv``, the outbox's and those of runs: an unreadable line costs itself alone.

The format is RFC 4180 with line feeds, as ``csv.writer`` makes it. A spreadsheet may have added a byte order mark or
carriage returns, or changed the order of the columns. A person's decision is one row a file, whose message says by
whom, and where the file lay.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import BinaryIO

from dicomsort.errors import DicomsortError, command
from dicomsort.files import PATH_MAX, look_up, opened_file
from dicomsort.journal import is_run
from dicomsort.records import OF_ONE_FILE, REVIEW, REVIEWED, REVIEWED_FILE, Action, Row
from dicomsort.report.text import uncelled, visible

COLUMNS = ("run_id", *(f.name.rstrip("_") for f in fields(Row)))
HEAD = ",".join(COLUMNS).encode()
MARK = b"\xef\xbb\xbf"  # of UTF-8, as spreadsheets write it
_SIZE = COLUMNS.index("size")
LONGEST = 1 << 20  # bytes of a row; the longest paths, escaped, need a tenth of it
_MOST_LINES = 4 * PATH_MAX  # of a row: names of files may hold line feeds, and a message may name a path
_LONGEST_CELL = 1 << 17  # characters, the limit of ``csv``
_MOST = 1 << 63  # bytes of a file
_NAMED = 10  # damaged lines that are named
_SHOWN = 80  # characters of what is not a head
_ACTIONS = frozenset(Action)
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
_NO_NAMES = frozenset({"", ".", ".."})
_is_run = lru_cache(is_run)  # rows of a run lie beside each other


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of the manifest with its run; the cells are as before a manifest escaped them, paths as on disk."""

    run: str
    row: Row


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it is in the file, or one line that cannot be read.

    ``line`` is its first, counted from 1; ``content`` its bytes, with line feeds. ``damage`` is empty, or says why the
    line cannot be read. Where there is a ``row`` all the same, it says why dicomsort would not have written that.
    """

    line: int
    content: bytes
    row: RunRow | None = None
    damage: str = ""


@dataclass(slots=True)
class Damages:
    """The damaged lines of a manifest: a sentence for each of the first ones, and how many there are."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, record: Record) -> None:
        """Count a damaged line."""
        self.count += 1
        if self.count <= _NAMED:
            self.lines.append(f"line {record.line:,}: {record.damage}")

    def notes(self, outbox: str) -> list[str]:
        """Return a sentence for a person: which lines are damaged, and what to do."""
        if not self.count:
            return []
        more = f"; and {self.count - _NAMED:,} more" if self.count > _NAMED else ""
        advice = f"other lines were read; {command('verify', outbox, '--repair')} mends the manifest"
        return [f"manifest.csv is damaged: {'; '.join(self.lines)}{more}; {advice}"]


def read_rows(
    path: str, on_damage: Callable[[Record], None] | None = None, *, doubtful: bool = False
) -> Iterator[RunRow]:
    """Yield the rows of a manifest, none where there is no file; ``on_damage`` is given what is damaged.

    ``doubtful``: also the rows that dicomsort would not write. These may be shown, and nothing may rely on them.
    DicomsortError where the file has neither the head nor any row of a manifest.
    """
    for record in read_records(path):
        if record.row is not None and (doubtful or not record.damage):
            yield record.row
        elif on_damage is not None:
            on_damage(record)


def read_head(path: str) -> bytes:
    """Return the first line of a manifest, with its line feed; empty where there is no file."""
    if look_up(path) is None:
        return b""
    with opened_file(path) as stream:
        return stream.readline(LONGEST)


def read_records(path: str) -> Iterator[Record]:
    """Yield the records of a manifest behind its head, in order; a damaged head is the first record.

    DicomsortError as for ``read_rows``.
    """
    if look_up(path) is None:
        return
    try:
        with opened_file(path) as stream:
            head = stream.readline(LONGEST)
            order = order_of(head)
            is_ours = order is not None or HEAD.startswith(head)  # or a head that was cut short
            if order is None:
                stream.seek(0)
            for record in records(stream, 1 if order is None else 2, order or COLUMNS):
                is_ours = is_ours or record.row is not None
                if order is None and record.line == 1:
                    yield from _in_place_of_head(record)
                else:
                    yield record
    except OSError as error:
        raise DicomsortError(f"{path}: expected a manifest that can be read, received {error.strerror}") from error
    if not is_ours:
        received = visible(head.decode("utf-8", "replace").strip()[:_SHOWN])
        advice = "move it away, and `dicomsort verify OUTBOX --repair` writes the manifest anew"
        raise DicomsortError(f"{path}: expected the columns {','.join(COLUMNS)}, received {received}; {advice}")


def _in_place_of_head(first: Record) -> Iterator[Record]:
    """Yield the first record of a manifest whose head is damaged, or is gone so that a row stands there."""
    if first.row is None:
        yield replace(first, damage="it is not the head of a manifest")
    else:
        yield from (Record(1, b"", damage="the head is missing"), first)


def skip_head(stream: BinaryIO) -> tuple[str, ...]:
    """Return the order of a manifest's columns; the stream is left behind the head, or without one at line 1."""
    if (order := order_of(stream.readline(LONGEST))) is None:
        stream.seek(0)
    return order or COLUMNS


def order_of(head: bytes) -> tuple[str, ...] | None:
    """Return the columns of a manifest's first line, in their order; None where one of ``COLUMNS`` is missing."""
    try:
        text = head.removeprefix(MARK).decode().rstrip("\r\n")
        names = tuple(next(csv.reader([text], strict=True), ()))
    except (UnicodeDecodeError, csv.Error):
        return None
    return names if {*COLUMNS} <= {*names} else None


def records(stream: BinaryIO, line: int, order: Sequence[str]) -> Iterator[Record]:
    """Yield the records of a stream that is at the beginning of ``line``.

    A quote without its counterpart would swallow the rows behind it: where what it encloses is no row, it costs one
    line, and reading goes on with the next.
    """
    places = None if tuple(order[: len(COLUMNS)]) == COLUMNS else [order.index(name) for name in COLUMNS]
    waiting: deque[bytes] = deque()

    def next_line() -> bytes:
        return waiting.popleft() if waiting else stream.readline(LONGEST)

    while first := next_line():
        lines, size, is_open = [first], len(first), _is_odd(first)
        while is_open and size < LONGEST and len(lines) < _MOST_LINES and (more := next_line()):
            lines.append(more)
            size += len(more)
            is_open ^= _is_odd(more)
        content = b"".join(lines)
        row, damage = _parsed(content, places)
        if damage and len(lines) > 1:  # each line is read again once at most: the next odd one ends what is open
            waiting.extendleft(reversed(lines[1:]))
            content = first
            row, damage = _parsed(content, places)
        yield Record(line, content, row, damage)
        line += content.count(b"\n")


def _is_odd(content: bytes) -> bool:
    return content.count(b'"') % 2 == 1


def _parsed(content: bytes, places: list[int] | None) -> tuple[RunRow | None, str]:
    """Return the row of some lines, and why they hold none, or none that dicomsort writes."""
    text = content.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    if '"' in text:
        try:
            cells = next(csv.reader([text], strict=True), [])
        except csv.Error as error:
            return None, f"its quotes do not close, or a cell is too long ({error})"
    else:
        cells = text.split(",")
    if len(text) > _LONGEST_CELL and any(len(cell) > _LONGEST_CELL for cell in cells):
        return None, f"a cell is longer than {_LONGEST_CELL:,} characters"
    try:
        if places is not None:
            cells = [cells[place] for place in places]
        found = parse_row(cells)
        return found, _doubt(found.row)
    except IndexError:
        return None, f"it has fewer than {len(COLUMNS)} cells"
    except ValueError as error:
        return None, str(error)


def parse_row(cells: Sequence[str]) -> RunRow:
    """Return a row from its cells, in the order of ``COLUMNS``; IndexError, ValueError where they make none."""
    size = cells[_SIZE]
    values = cells[1 : len(COLUMNS)]
    if len(values) < len(COLUMNS) - 1:
        raise IndexError(len(cells))
    if not (size == "" or (size.isascii() and size.isdecimal() and len(size) < 20 and int(size) < _MOST)):  # noqa: PLR2004
        raise ValueError("expected a number in the column size, received another text")
    if any("\\" in value or value[:1] == "'" for value in values):
        values = [uncelled(value) for value in values]
    if not _is_run(cells[0]):
        raise ValueError("expected the id of a run in the first column, received another text")
    _check_text(values)
    row: list[str | int] = [*values]
    row[_SIZE - 1] = int(size or 0)
    return RunRow(cells[0], Row(*row))  # type: ignore[arg-type]


def _check_text(values: Sequence[str]) -> None:
    """ValueError where a cell holds what none may: a NUL, or bytes that are no UTF-8 beside paths and the message."""
    text = "".join(values)
    if "\0" in text:
        raise ValueError("a cell holds a NUL")
    if not text.isascii():
        try:
            "".join(values[2:-1]).encode()
        except UnicodeEncodeError:
            raise ValueError("a cell that is no path and no message holds bytes that are no UTF-8") from None


def _doubt(row: Row) -> str:
    """Return why dicomsort would not write a row; empty where it may have."""
    if row.action not in _ACTIONS:
        return f"expected an action ({', '.join(Action)}), received another text"
    if not _SHA256.fullmatch(row.sha256):
        return "expected a SHA-256 of 64 hex digits or none, received another text"
    if row.action == Action.LEFT:  # nothing was placed: nobody goes by its paths
        return ""
    if not _NO_NAMES.isdisjoint(row.source.split("/")):
        return "its source is no path below an inbox"
    folder, *rest = row.destination.split("/")
    if row.destination and not (rest and folder[:1] != "." and _NO_NAMES.isdisjoint((folder, *rest))):
        return "its destination is no path below a folder of an outbox"  # our own is hidden, and no class's is
    return ""


_WAS = "; was "
_NO_NAME = re.compile(r"[^\w.@ +-]+")
MAX_NAME = 64


def message_of(who: str, was: str) -> str:
    """Return the message of a decided file's row; ``was`` is where it lay below the outbox."""
    return f"by {who}{_WAS}{was}"


def who_of(message: str) -> str:
    """Return who decided, from the message of a decided file's row; what the move could not keep stands before it."""
    return message.partition(_WAS)[0].rpartition("; ")[2].removeprefix("by ")


def reviewer(name: str) -> str:
    """Return a person's name as it may stand in a message: letters, digits, blanks and ``.@_+-``, at most 64."""
    return _NO_NAME.sub("", name).strip()[:MAX_NAME].strip() or "unknown"


def decided_from(row: Row) -> str:
    """Return where a row's file lay before a person decided about it; empty where the row is of no such move.

    Its message is as it was before a manifest escaped it.
    """
    if row.reason != REVIEWED or row.action == Action.LEFT:
        return ""
    was = row.message.partition(_WAS)[2]
    return was if is_in_review(was) else ""


def is_in_review(path: str) -> bool:
    """Whether a path below an outbox is one of a file in review: a manifest may have been edited."""
    parts = path.split("/")
    return len(parts) > 2 and parts[0] == REVIEW and _NO_NAMES.isdisjoint(parts) and "\0" not in path  # noqa: PLR2004


def binds(reason: str, was: str) -> str:
    """Return the reason of a decision's placement: it binds the series or, for a reason of one file, that file."""
    return REVIEWED_FILE if reason == REVIEWED and was.split("/")[1] in OF_ONE_FILE else reason
