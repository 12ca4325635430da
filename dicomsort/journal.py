"""The sealed plan and the append-only log of a run, as JSON lines below ``OUTBOX/.dicomsort/runs/<run-id>/``.

``plan.jsonl`` holds a head, a line an operation, and a seal (count and SHA-256 of the lines before it); without its
seal it is no plan. ``journal.jsonl`` gets ``begin`` lines before, and ``end`` lines after, what they speak of. A torn
last line is cut off when the journal is opened again: it was never flushed, so nothing relied on it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from dicomsort.errors import DicomsortError
from dicomsort.files import Files, look_up, opened, whole_lines
from dicomsort.jsonlines import dump, parse
from dicomsort.records import Lost, Operation, Outcome, Result, Row, Verb

STATE = ".dicomsort"
PLAN, JOURNAL = "plan.jsonl", "journal.jsonl"
FORMAT = 1
_OUTCOMES = tuple(Outcome)
_DONE = _OUTCOMES.index(Outcome.DONE) + 1
_FIELDS = attrgetter(*(f.name for f in fields(Operation)))
_CELLS_OF_MOST = len(fields(Operation)) - 1  # all but the owner
_CELLS = attrgetter(*(f.name for f in fields(Row)))
_BUFFER = 1 << 20


def runs_folder(outbox: str) -> str:
    """The folder that holds a folder a run."""
    return f"{outbox}/{STATE}/runs"


def _line(value: object) -> bytes:
    return dump(value) + b"\n"


def pack(operation: Operation) -> list[Any]:
    """An operation as a JSON list."""
    *cells, row, owner = _FIELDS(operation)
    return [*cells, None if row is None else _CELLS(row), *([] if owner is None else [owner])]


def unpack(cells: list[Any]) -> Operation:
    """The inverse of ``pack``."""
    number, verb, *middle, row = cells[:_CELLS_OF_MOST]
    owner = [tuple(cell) for cell in cells[_CELLS_OF_MOST:]]
    values: list[Any] = [number, Verb(verb), *middle, None if row is None else Row(*row), *owner]
    return Operation(*values)


def _lost(result: Result) -> list[list[int]]:
    """The last cell of an ``end`` line, which only those have that could not keep all."""
    return [] if result.lost is None else [[*result.lost]]


class PlanWriter:
    """Writes a plan line by line and seals it; until then nothing may be placed."""

    def __init__(self, files: Files, folder: str, head: dict[str, Any]) -> None:
        """Create ``plan.jsonl`` in the run's folder, which must not hold one."""
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
        with opened(self._folder) as folder:
            self._files.flush(folder)

    @property
    def plan(self) -> Plan:
        """The plan as it was written, once it is sealed."""
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
        """Read head and seal and check them; DicomsortError where the plan was never sealed or was changed since."""
        path = Path(folder) / PLAN
        run = path.parent.name
        digest, head, last = hashlib.sha256(), b"", b""
        try:
            with path.open("rb") as lines:
                for line in lines:
                    digest.update(last)
                    head, last = head or line, line
            seal, values = parse(last), parse(head)
        except (FileNotFoundError, ValueError):
            seal, values = {}, {}
        if not isinstance(seal, dict) or "sealed" not in seal:
            message = f"run {run} died before its plan was sealed: it has moved nothing; run `dicomsort sort` again"
            raise DicomsortError(message)
        if seal["sha256"] != digest.hexdigest() or values.get("format") != FORMAT:
            message = f"plan of run {run}: expected SHA-256 {seal['sha256'][:12]}…, received {digest.hexdigest()[:12]}…"
            raise DicomsortError(message)
        return cls(path, values, seal["sealed"])

    @classmethod
    def peek(cls, folder: str) -> Self | None:
        """Head and count of a plan that looks sealed, its hash unchecked; None where there is none such."""
        path = Path(folder) / PLAN
        try:
            with path.open("rb") as lines:
                head = parse(next(lines, b""))
                lines.seek(max(0, path.stat().st_size - 256))
                seal = parse(lines.read().splitlines()[-1])
            return cls(path, head, seal["sealed"])
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def operations(self) -> Iterator[Operation]:
        """Yield the operations in their order."""
        with self.path.open("rb") as lines:
            next(lines)
            for _, line in zip(range(self.count), lines, strict=False):
                yield unpack(parse(line))


@dataclass
class Replay:
    """What a journal says: what was begun, how it ended, in a few bytes an operation."""

    outcomes: bytearray
    inodes: array[int]
    begun: set[int] = field(default_factory=set)  # begun and not ended
    messages: dict[int, str] = field(default_factory=dict)
    lost: dict[int, Lost] = field(default_factory=dict)  # of those that could not keep all that they had
    alike: dict[Lost, Lost] = field(default_factory=dict)  # a million files may have one owner
    folders: list[str] = field(default_factory=list)  # made in the outbox or inbox, parents first
    marks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> Self:
        """A journal in which nothing happened yet, for ``count`` operations."""
        return cls(bytearray(count), array("Q", bytes(8 * count)))

    def result(self, number: int) -> Result | None:
        """How an operation ended; None where it did not."""
        code = self.outcomes[number]
        if not code:
            return None
        told = self.messages.get(number, ""), self.inodes[number], self.lost.get(number)
        return Result(number, _OUTCOMES[code - 1], *told)

    def has_ended(self, number: int) -> bool:
        """Whether an operation ended, well or not."""
        return bool(self.outcomes[number])

    def is_done(self, number: int) -> bool:
        """Whether an operation ended well."""
        return self.outcomes[number] == _DONE

    def take(self, result: Result) -> None:
        """Note how an operation ended."""
        self.outcomes[result.number] = _OUTCOMES.index(result.outcome) + 1
        self.inodes[result.number] = result.inode
        if result.message:
            self.messages[result.number] = sys.intern(result.message)  # a million files may fail for one reason
        if result.lost is not None:
            self.lost[result.number] = self.alike.setdefault(result.lost, result.lost)
        self.begun.discard(result.number)

    def apply(self, entry: list[Any]) -> None:
        """Note one line of the journal."""
        match entry:
            case ["begin", numbers, folders]:
                self.begun.update(n for n in numbers if not self.outcomes[n])
                self.folders.extend(folders)
            case ["end", number, outcome, message, inode, *lost]:
                self.take(Result(number, Outcome(outcome), message, inode, *(Lost(*cell) for cell in lost)))
            case ["mark", name, value]:
                self.marks[name] = value
            case _:
                message = f"unknown entry {entry[:1]!r}"
                raise ValueError(message)


def replay(folder: str, count: int) -> Replay:
    """Read a run's journal; a torn last line is passed over, an unreadable one before it is an error."""
    known = Replay.empty(count)
    path = Path(folder) / JOURNAL
    if not path.exists():
        return known
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                known.apply(parse(line))
            except (ValueError, IndexError, TypeError) as error:
                message = f"journal of run {path.parent.name}: line {number} is damaged ({error}); nothing was changed"
                raise DicomsortError(message) from error
    return known


class Journal:
    """The append-only log of one run, with what it says so far in ``known``."""

    def __init__(self, files: Files, folder: str, count: int) -> None:
        """Open or create ``journal.jsonl``, cutting off a torn last line."""
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
            with opened(folder) as descriptor:
                files.flush(descriptor)

    def begin(self, numbers: Sequence[int], folders: Sequence[str]) -> None:
        """Say, durably, what is about to be done and which folders will be made for it."""
        entry = ["begin", list(numbers), list(folders)]
        self._append([entry])
        self.known.apply(entry)

    def end(self, results: Sequence[Result]) -> None:
        """Say, durably, how operations ended."""
        self._append([["end", r.number, r.outcome, r.message, r.inode, *_lost(r)] for r in results])
        for result in results:
            self.known.take(result)

    def mark(self, name: str, value: object) -> None:
        """Say, durably, how far the work after placing has come."""
        self._append([["mark", name, value]])
        self.known.marks[name] = value

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _append(self, entries: list[list[Any]]) -> None:
        self._files.write(self._descriptor, b"".join(_line(entry) for entry in entries))
        self._files.flush(self._descriptor)
