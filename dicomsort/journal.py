"""The sealed plan and the append-only log of a run, as JSON lines below ``OUTBOX/.dicomsort/runs/<run-id>/``.

``plan.jsonl`` holds a head, a line an operation, and a seal (count and SHA-256 of the lines before it); without its
seal it is no plan. ``journal.jsonl`` gets ``begin`` lines before, and ``end`` lines after, what they speak of. A torn
last line is cut off when the journal is opened again: it was never flushed, so nothing relied on it. When its lines are
flushed, among what else is written, ``execute.executor`` says.

Types, ranges and paths are checked here when the files are read: another program, or a disk, may have changed them.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

from dicomsort.errors import DicomsortError, StateDamaged, counted
from dicomsort.files import Files, flush_path, look_up, opened_file
from dicomsort.jsonlines import dump, number_cell, parse, whole_lines
from dicomsort.records import Lost, Operation, Outcome, Result, Row, Verb

STATE = ".dicomsort"
PLAN, JOURNAL = "plan.jsonl", "journal.jsonl"
FORMAT = 1
_OUTCOMES = tuple(Outcome)
_DONE = _OUTCOMES.index(Outcome.DONE) + 1
_FIELDS = attrgetter(*(f.name for f in fields(Operation)))
_CELLS_OF_MOST = len(fields(Operation)) - 2  # all but the owner, and the SHA-256 of an archive
_CELLS = attrgetter(*(f.name for f in fields(Row)))
_NAMES = [f.name for f in fields(Operation)]
_MTIME, _STAMP = _NAMES.index("mtime_ns"), _NAMES.index("stamp_ns")
_BUFFER = 1 << 20
_LONGEST_LINE = 64 << 20  # a batch of operations with the longest paths stays below it
_TAIL = 256  # bytes that hold the seal
_MAX_64 = (1 << 64) - 1
_MAX_TIME = 1 << 93  # nanoseconds: what 64 bits of seconds hold
_MAX_ID = 1 << 32
_MAX_OFFSET = 1 << 62
_MODES = 0o7777
_TYPES = [(int, Verb, str, str, str, *[int] * 5, str, stamp) for stamp in (int, type(None))]  # row, owner left out
_CELL_TYPES = tuple(int if f.name == "size" else str for f in fields(Row))
_OF_VERB = {"sort": ("mode", "model"), "undo": ("undoes",), "review": ()}  # texts that the head of such a run has
_TEXTS = (
    "verb", "inbox", "outbox", "mount", "started", "mode", "layout", "model", "undoes", "class", "reviewer",
    "corrections",
)  # fmt: skip
_RUN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{1,64}\+{0,64}", re.ASCII)  # files are named after it: within 255 bytes
_PLACE = re.compile(r"(?:inbox|outbox)(?:(?:/(?!\.\.?(?:/|\Z))[^/\0]+)*/?|/\./)")  # an unreadable folder ends in /
_ENTRIES = (b'["begin",', b'["end",', b'["mark",')
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")


def runs_folder(outbox: str) -> str:
    """Return the folder that holds the folders of all runs."""
    return f"{outbox}/{STATE}/runs"


def run_folder(outbox: str, run: str) -> str:
    """Return the folder that holds the plan, the journal and the manifest of a run."""
    return f"{runs_folder(outbox)}/{run}"


def is_run(name: str) -> bool:
    """Whether a name is the id of a run."""
    return _RUN.fullmatch(name) is not None


def is_place(path: object) -> bool:
    """Whether a value is a path below ``inbox/`` or ``outbox/`` that cannot lead out of it."""
    return type(path) is str and _PLACE.fullmatch(path) is not None


def _line(value: object) -> bytes:
    return dump(value) + b"\n"


def pack(operation: Operation) -> list[Any]:
    """Return an operation as a JSON list; a stamp of 0 means none, so the year 1970 itself is written as text."""
    *cells, row, owner, archive_sha256 = _FIELDS(operation)
    cells[_MTIME] = number_cell(operation.mtime_ns)
    cells[_STAMP] = 0 if operation.stamp_ns is None else number_cell(operation.stamp_ns) or "0"
    rest = [owner, archive_sha256] if archive_sha256 else [] if owner is None else [owner]
    return [*cells, None if row is None else _CELLS(row), *rest]


def unpack(cells: list[Any]) -> Operation:
    """Return the operation; ValueError or TypeError where the cells are not what ``pack`` makes."""
    number, verb, *middle, row = cells[:_CELLS_OF_MOST]
    rest = cells[_CELLS_OF_MOST:]
    owner, archive_sha256 = rest + [None, ""][len(rest) :]
    values: list[Any] = [number, Verb(verb), *middle, None if row is None else Row(*row)]
    values += [None if owner is None else tuple(owner), archive_sha256]
    for place in (_MTIME, _STAMP):
        if type(values[place]) is str:
            values[place] = int(values[place])
        elif place == _STAMP and values[place] == 0:
            values[place] = None
    operation = Operation(*values)
    _check_operation(operation)
    return operation


def _check_operation(o: Operation) -> None:
    if tuple(map(type, _FIELDS(o)))[:-3] not in _TYPES or (o.row and tuple(map(type, _CELLS(o.row))) != _CELL_TYPES):
        raise ValueError("a value of another type")
    if not (0 <= o.size <= _MAX_64 and 0 <= o.device <= _MAX_64 and 0 <= o.inode <= _MAX_64 and 0 <= o.mode <= _MODES):
        raise ValueError("a number out of its range")
    if abs(o.mtime_ns) > _MAX_TIME or abs(o.stamp_ns or 0) > _MAX_TIME:
        raise ValueError("a time out of its range")
    if not (is_place(o.source) and all(place == "" or is_place(place) for place in (o.target, o.kept))):
        raise ValueError("a path that leads out of inbox and outbox")
    if not (_SHA256.fullmatch(o.sha256) and type(o.archive_sha256) is str and _SHA256.fullmatch(o.archive_sha256)):
        raise ValueError("an invalid SHA-256")
    if o.owner is not None and not (len(o.owner) == 2 and _are_ids(*o.owner)):  # noqa: PLR2004
        raise ValueError("an invalid owner")


def _are_ids(*values: object) -> bool:
    return all(type(value) is int and 0 <= value < _MAX_ID for value in values)


def _unpack_lost(cell: Any) -> Lost:
    """Return the last cell of an ``end`` line, where it has one; ValueError or TypeError where that is not valid."""
    lost = Lost(*cell)
    if not (_are_ids(lost.owner, lost.group, lost.attributes) and type(lost.mode) is int and 0 <= lost.mode <= _MODES):
        raise ValueError("an invalid record of lost metadata")
    return lost


class PlanWriter:
    """Creates ``plan.jsonl`` in a run's folder, writes it line by line and seals it; only then files may be placed."""

    def __init__(self, files: Files, folder: str, head: dict[str, Any]) -> None:
        self._files = files
        self._folder = folder
        self._descriptor = files.create(f"{folder}/{PLAN}", 0o600)
        self._digest = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.count = 0
        self._head = {"format": FORMAT, **head}
        self._put(_line(self._head))

    def add(self, operation: Operation) -> None:
        """Append an operation; numbers count up from 0."""
        self._put(_line(pack(operation)))
        self.count += 1

    def seal(self) -> None:
        """Write the seal and make the plan durable; from here on ``resume`` can carry it out."""
        self._write_out()
        self._files.write(self._descriptor, _line({"sealed": self.count, "sha256": self._digest.hexdigest()}))
        self._files.flush(self._descriptor)
        flush_path(self._files, self._folder)

    @property
    def plan(self) -> Plan:
        """The plan on disk, once it is sealed."""
        return Plan(Path(self._folder) / PLAN, self._head, self.count)

    def close(self) -> None:
        """Close the file, sealed or not."""
        os.close(self._descriptor)

    def _put(self, line: bytes) -> None:
        self._digest.update(line)
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes >= _BUFFER:
            self._write_out()

    def _write_out(self) -> None:
        self._files.write(self._descriptor, b"".join(self._waiting))
        self._waiting, self._waiting_bytes = [], 0


@dataclass(frozen=True)
class Plan:
    """A sealed plan on disk: its head and the number of its operations."""

    path: Path
    head: dict[str, Any]
    count: int

    @classmethod
    def open(cls, folder: str) -> Self:
        """Read head and seal and check them, and the hash of all lines.

        StateDamaged where the plan was changed after it was sealed, DicomsortError where it was not sealed.
        """
        run, plan = os.path.basename(folder), cls.peek(folder)
        if plan is None:
            message = f"run {run} died before its plan was sealed: it has moved nothing; run `dicomsort sort` again"
            raise DicomsortError(message)
        digest, count, last = hashlib.sha256(), -2, b""  # neither head nor seal is an operation
        with _read_state(plan.path) as stream:
            for line in _lines(stream):
                digest.update(last)
                count, last = count + 1, line
        sealed = parse(last)["sha256"]
        if sealed != digest.hexdigest():
            _refuse(plan.path, f"SHA-256 {sealed[:12]}…", f"{digest.hexdigest()[:12]}…")
        if count != plan.count:
            _refuse(plan.path, counted(plan.count, "operation"), f"{count:,}")
        return plan

    @classmethod
    def peek(cls, folder: str) -> Self | None:
        """Read head and count of a sealed plan without checking the hash; None where there is no plan, or no seal.

        StateDamaged where head or seal are not what ``PlanWriter`` makes, or the plan's name is not a file's.
        """
        path = Path(folder) / PLAN
        if look_up(str(path)) is None:
            return None
        with _read_state(path) as stream:
            first = next(_lines(stream), b"")
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL))
            last = stream.read().splitlines()[-1:]
        seal = _parsed(b"".join(last))
        if not isinstance(seal, dict) or "sealed" not in seal:
            if look_up(f"{folder}/{JOURNAL}") is not None:  # which is begun when the plan is sealed
                _refuse(path, "its seal at the end", "another line")
            return None
        head = _checked_head(path, _parsed(first))
        count, sha256 = seal["sealed"], seal.get("sha256")
        if type(count) is not int or not 0 <= count <= size or not (type(sha256) is str and _SHA256.fullmatch(sha256)):
            _refuse(path, "its seal at the end", "another line")
        return cls(path, head, count)

    def operations(self) -> Iterator[Operation]:
        """Yield the operations in their order; StateDamaged where a line is no operation."""
        with _read_state(self.path) as stream:
            lines = _lines(stream)
            next(lines, None)
            for number, line in zip(range(self.count), lines, strict=False):
                try:
                    operation = unpack(parse(line))
                except (ValueError, TypeError) as error:
                    _refuse(self.path, f"operation {number:,}", f"something else ({error})")
                if operation.number != number:
                    _refuse(self.path, f"operation {number:,}", f"operation {operation.number:,}")
                yield operation


def _checked_head(path: Path, head: Any) -> dict[str, Any]:
    """Return the head of a plan; StateDamaged where a value is not one that ``PlanWriter`` writes."""
    if not isinstance(head, dict):
        _refuse(path, "a head", "another line")
    if head.get("format") != FORMAT:
        _refuse(path, f"format {FORMAT}", f"{str(head.get('format'))[:40]}: another version of dicomsort wrote it")
    for name in _TEXTS:
        if not isinstance(value := head.get(name, ""), str) or "\0" in value:
            _refuse(path, f"a text as {name!r}", "another value")
    for name in ("notes", "of", "mounts"):
        values = head.get(name, [])
        if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
            _refuse(path, f"a list of texts as {name!r}", "another value")
    if head.get("verb") not in _OF_VERB:
        _refuse(path, f"one of {', '.join(sorted(_OF_VERB))} as 'verb'", "another value")
    if missing := [name for name in ("inbox", "outbox", "started", *_OF_VERB[head["verb"]]) if not head.get(name)]:
        _refuse(path, f"a text as {missing[0]!r}", "none")
    if not all(map(is_run, [*head.get("of", []), *filter(None, [head.get("undoes")])])):
        _refuse(path, "the ids of runs as 'of' and 'undoes'", "another text")
    if not (head["inbox"].startswith("/") and head["outbox"].startswith("/")):
        _refuse(path, "absolute paths of inbox and outbox", "others")
    return head


@contextmanager
def _read_state(path: Path) -> Iterator[BinaryIO]:
    """Open a file of a run's state; StateDamaged where it cannot be read or is no regular file."""
    try:
        with opened_file(str(path)) as stream:
            yield stream
    except OSError as error:
        _refuse(path, "a file that can be read", error.strerror or str(error))


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines; one that is too long to be ours comes in pieces, which are not valid."""
    return iter(partial(stream.readline, _LONGEST_LINE), b"")


def _parsed(line: bytes) -> Any:
    """Return a JSON value, None where the bytes are not JSON."""
    try:
        return parse(line)
    except ValueError:
        return None


def _refuse(path: Path, expected: str, received: str) -> NoReturn:
    raise StateDamaged(f"run {path.parent.name}, {path.name}: expected {expected}, received {received}")


@dataclass
class Replay:
    """The state of each operation by the journal, in a few bytes an operation."""

    outcomes: bytearray
    inodes: array[int]
    begun: set[int] = field(default_factory=set)  # begun and not ended
    messages: dict[int, str] = field(default_factory=dict)
    lost: dict[int, Lost] = field(default_factory=dict)  # metadata that moved files could not keep
    alike: dict[Lost, Lost] = field(default_factory=dict)  # a million files may have one owner
    folders: list[str] = field(default_factory=list)  # made in the outbox or inbox, parents first
    marks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> Self:
        """Return the state before anything was done, for ``count`` operations."""
        return cls(bytearray(count), array("Q", bytes(8 * count)))

    @property
    def is_empty(self) -> bool:
        """Whether no operation has begun or ended."""
        return not self.begun and not any(self.outcomes)

    def result(self, number: int) -> Result | None:
        """Return how an operation ended; None where it has not."""
        code = self.outcomes[number]
        if not code:
            return None
        message = self.messages.get(number, "")
        return Result(number, _OUTCOMES[code - 1], message, self.inodes[number], self.lost.get(number))

    def has_ended(self, number: int) -> bool:
        """Whether an operation ended, well or not."""
        return bool(self.outcomes[number])

    def is_done(self, number: int) -> bool:
        """Whether an operation ended well."""
        return self.outcomes[number] == _DONE

    def is_there(self, number: int) -> bool:
        """Whether the bytes of an operation are at its target: placed, or there already."""
        result = self.result(number)
        return result is not None and result.is_there

    def take(self, result: Result) -> None:
        """Record how an operation ended."""
        self.outcomes[result.number] = _OUTCOMES.index(result.outcome) + 1
        self.inodes[result.number] = result.inode
        if result.message:
            self.messages[result.number] = sys.intern(result.message)  # a million files may fail for one reason
        if result.lost is not None:
            self.lost[result.number] = self.alike.setdefault(result.lost, result.lost)
        self.begun.discard(result.number)

    def apply(self, entry: Any) -> None:
        """Record one line of the journal; ValueError where it is not valid, or names an operation beyond the plan."""
        match entry:
            case ["begin", list(numbers), list(folders)]:
                if not all(map(is_place, folders)):
                    raise ValueError("a folder outside inbox and outbox")
                self.begun.update(n for n in numbers if not self.outcomes[self._checked(n)])
                self.folders.extend(folders)
            case ["end", number, outcome, str(message), int(inode), *lost] if 0 <= inode <= _MAX_64 and len(lost) < 2:  # noqa: PLR2004
                self.take(Result(self._checked(number), Outcome(outcome), message, inode, *map(_unpack_lost, lost)))
            case ["mark", "manifest", int(value)] if 0 <= value <= _MAX_OFFSET:
                self.marks["manifest"] = value
            case ["mark", "begun", list(numbers)]:
                self.marks["begun"] = [self._checked(number) for number in numbers]
            case ["mark", str(name), value] if name not in {"manifest", "begun"}:
                self.marks[name] = value
            case _:
                raise ValueError("an entry of another kind")

    def _checked(self, number: Any) -> int:
        if type(number) is not int or not 0 <= number < len(self.outcomes):
            raise ValueError("an operation that the plan does not have")
        return number


def replay(folder: str, count: int) -> Replay:
    """Read a run's journal; a torn last line is ignored, a damaged one before it is StateDamaged."""
    known = Replay.empty(count)
    path = Path(folder) / JOURNAL
    if look_up(str(path)) is None:
        return known
    with _read_state(path) as stream:
        for number, line in enumerate(_lines(stream), 1):
            if not line.endswith(b"\n"):
                if not any(line.startswith(kind[: len(line)]) for kind in _ENTRIES):  # not torn, but somebody else's
                    raise StateDamaged(
                        f"run {path.parent.name}, {path.name}: line {number:,} was not written by dicomsort"
                    )
                break
            try:
                known.apply(parse(line))
            except (ValueError, TypeError) as error:
                where = f"run {path.parent.name}, {path.name}"
                raise StateDamaged(f"{where}: line {number:,} is damaged ({error}); nothing was changed") from error
    return known


class Journal:
    """The append-only log of one run, without a torn last line; ``known`` is its content."""

    def __init__(self, files: Files, folder: str, count: int) -> None:
        self._files = files
        self.known = replay(folder, count)
        path = f"{folder}/{JOURNAL}"
        fresh = look_up(path) is None
        self._descriptor = files.open_append(path, 0o600)
        size = os.fstat(self._descriptor).st_size
        whole = whole_lines(self._descriptor, size)
        if whole != size:
            files.truncate(self._descriptor, whole)
        if fresh:
            files.flush(self._descriptor)
            flush_path(files, folder)

    def begin(self, numbers: Sequence[int], folders: Sequence[str]) -> None:
        """Record, durably, which operations begin and which folders will be made for them."""
        entry = ["begin", list(numbers), list(folders)]
        self._append([entry])
        self.known.apply(entry)

    def end(self, results: Sequence[Result]) -> None:
        """Record, durably, how operations ended."""
        self._append(
            [["end", r.number, r.outcome, r.message, r.inode, *([[*r.lost]] if r.lost else [])] for r in results]
        )
        for result in results:
            self.known.take(result)

    def mark(self, name: str, value: object) -> None:
        """Record, durably, how far the work after placing has come."""
        self._append([["mark", name, value]])
        self.known.marks[name] = value

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _append(self, entries: list[list[Any]]) -> None:
        self._files.write(self._descriptor, b"".join(_line(entry) for entry in entries))
        self._files.flush(self._descriptor)
