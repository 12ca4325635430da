"""``manifest.csv``: a run's own, written while it goes on, and the outbox's, to which its rows are appended once.

Repairing a damaged one keeps the rows that can be read, and adds those that the runs still have. The damaged file stays
beside the new one as ``manifest.csv.damaged-<time>``.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import BinaryIO

from dicomsort.errors import DicomsortError, StateDamaged, counted
from dicomsort.files import NO_LINK, Files, closing_descriptor, flush_path, look_up, opened_file
from dicomsort.files.copying import copy
from dicomsort.journal import Journal, run_folder
from dicomsort.metadata import apply_metadata, metadata_of
from dicomsort.records import (
    ARCHIVE,
    ARCHIVE_LIMIT,
    NOT_WHOLE,
    OPENED,
    Action,
    Placement,
    Row,
    Status,
    possible_archives,
)
from dicomsort.report.manifest_reader import (
    COLUMNS,
    HEAD,
    Damages,
    Record,
    RunRow,
    binds,
    decided_from,
    order_of,
    read_head,
    read_records,
    read_rows,
)
from dicomsort.report.text import cell, is_plain

MANIFEST = "manifest.csv"
PLACED = frozenset({Action.COPIED, Action.MOVED, Action.LINKED})
_ROW_CELLS = attrgetter(*(f.name for f in fields(Row)))
NEW = ".new"  # what a manifest that is being written is called beside its name
_BUFFER = 1 << 20


class RunManifest:
    """The run's own ``manifest.csv``: written beside it, and put in its place when it is whole.

    So it is whole also while a resume writes it anew: another run may append it to the outbox's.
    """

    def __init__(self, files: Files, outbox: str, run: str) -> None:
        """Remove what an earlier attempt has left, and begin with the head."""
        self._path = _own(outbox, run)
        self._part = f"{self._path}{NEW}"
        if look_up(self._part) is not None:
            files.unlink(self._part)
        self._files = files
        self._run = run
        self._descriptor = files.create(self._part, 0o600)
        self._buffer = bytearray(HEAD + b"\n")

    def add(self, row: Row) -> None:
        """Append a final row."""
        self._buffer += line_of(self._run, row)
        if len(self._buffer) >= _BUFFER:
            self._write_out()

    def flush(self) -> None:
        """Make all rows durable, and put the file in its place."""
        self._write_out()
        self._files.flush(self._descriptor)
        self._files.replace(self._part, self._path)
        flush_path(self._files, os.path.dirname(self._path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write_out(self) -> None:
        self._files.write(self._descriptor, bytes(self._buffer))
        self._buffer.clear()


def line_of(run: str, row: Row) -> bytes:
    """Return a row as a line of a manifest."""
    cells = [str(value) for value in _ROW_CELLS(row)]
    line = ",".join((run, *cells))
    if is_plain(line) and line.count(",") == len(cells):  # as nearly every row is
        return f"{line}\n".encode()
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow((run, *map(cell, cells)))
    return buffer.getvalue().encode()


def _own(outbox: str, run: str) -> str:
    return f"{run_folder(outbox, run)}/{MANIFEST}"


def append_manifest(files: Files, outbox: str, run: str, journal: Journal) -> None:
    """Append the run's rows to the outbox's manifest, once.

    The journal holds where the append began. One that a crash cut short is continued byte by byte, and rows of other
    runs are never cut off. StateDamaged where the run's own manifest cannot be read.
    """
    with _own_rows(outbox, run) as rows, closing_descriptor(files.open_append(f"{outbox}/{MANIFEST}")) as descriptor:
        begun, size = journal.known.marks.get("manifest"), os.fstat(descriptor).st_size
        if begun is None:
            begun = size
            if begun and os.pread(descriptor, 1, begun - 1) != b"\n":  # as an editor may leave it
                files.write(descriptor, b"\n")
                begun += 1
            journal.mark("manifest", begun)
        if not _skip_appended(descriptor, begun, rows, size) and size and os.pread(descriptor, 1, size - 1) != b"\n":
            files.write(descriptor, b"\n")  # behind half a row of an earlier attempt
        while piece := rows.read(_BUFFER):
            files.write(descriptor, piece)
        files.flush(descriptor)
    journal.mark("reported", True)


@contextmanager
def _own_rows(outbox: str, run: str) -> Iterator[BinaryIO]:
    try:
        with opened_file(_own(outbox, run)) as rows:
            if not rows.readline().startswith(HEAD):
                raise StateDamaged(f"run {run}, {MANIFEST}: expected the head of a manifest, received another line")
            rows.seek(0)
            yield rows
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StateDamaged(f"run {run}, {MANIFEST}: expected the rows of the run, received no file") from error


def _skip_appended(descriptor: int, begun: int, rows: BinaryIO, size: int) -> bool:
    """Leave ``rows`` behind what the manifest has of them already; at their beginning where it has something else.

    The head is for an empty manifest alone. Return whether what it has is a beginning of these rows.
    """
    if begun:
        rows.readline()
    offset = begun
    while there := os.pread(descriptor, _BUFFER, offset):
        mine = rows.read(len(there))
        if there.startswith(mine) and len(mine) < len(there):  # all of ours, then other runs' rows
            return True
        if mine != there:
            break
        offset += len(there)
    else:
        if size or not begun:
            return True
    rows.seek(0)
    if size:
        rows.readline()
    return False


def history(outbox: str, on_damage: Callable[[Record], None] | None = None) -> Iterator[tuple[bool, Placement]]:
    """Yield where earlier runs put files, in their order; False where one has left: undone, or decided by a person.

    ``on_damage`` is given each line of the manifest that cannot be read.
    """
    for each in read_rows(f"{outbox}/{MANIFEST}", on_damage):
        row = each.row
        is_undone = row.action == Action.UNDONE
        if was := decided_from(row):
            yield is_undone, _placement(row, was, Status.REVIEW, "", was.split("/")[1])
        if row.destination and (row.action in PLACED or is_undone):
            reason = binds(row.reason, was) if was else row.reason
            yield not is_undone, _placement(row, row.destination, row.status, row.class_, reason)


@dataclass(slots=True)
class EarlierArchives:
    """Archives of earlier runs by their SHA-256.

    ``opened``: whole, and nothing was undone. ``refused``: with the reason, which their bytes give. ``limited``: those
    that were beyond a limit.
    """

    opened: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    limited: set[str] = field(default_factory=set)


_NOT_PLACED = frozenset({Status.SETTLING, Status.FAILED, Status.CHANGED, Status.CONFLICT})


def earlier_archives(outbox: str) -> EarlierArchives:
    """Return what earlier runs did with archives; a run's rows hold each archive after its members."""
    earlier, paths = EarlierArchives(), dict[str, set[str]]()
    unfinished, leaning = set[tuple[str, str]](), set[tuple[str, str]]()  # archives by run and path
    lean = set[str]()  # archives with members that equal what another run placed
    for each in read_rows(f"{outbox}/{MANIFEST}"):
        row = each.row
        inside = {(each.run, path) for path in possible_archives(row.source)}
        if row.action == Action.UNDONE:
            for path in (row.source, *possible_archives(row.source)):
                earlier.opened -= paths.pop(path, set())
            earlier.opened -= lean
        elif row.reason == ARCHIVE and OPENED in row.message:
            key = each.run, row.source
            if key not in unfinished and NOT_WHOLE not in row.message:
                earlier.opened.add(row.sha256)
                paths.setdefault(row.source, set()).add(row.sha256)
            if key not in unfinished and key in leaning:
                lean.add(row.sha256)
        elif row.status == Status.UNREADABLE and row.sha256 and row.reason == ARCHIVE_LIMIT:
            earlier.limited.add(row.sha256)
        elif row.status == Status.UNREADABLE and row.sha256 and row.reason.startswith("archive-"):
            earlier.refused[row.sha256] = row.reason
        elif row.action == Action.LEFT and row.status in _NOT_PLACED:
            unfinished |= inside
        elif row.status == Status.DUPLICATE:
            leaning |= inside
    return earlier


def _placement(row: Row, destination: str, status: str, class_: str, reason: str) -> Placement:
    return Placement(row.study_uid, row.series_uid, row.sop_uid, class_, status, reason, destination, row.sha256)


def has_rows(outbox: str, run: str) -> bool:
    """Whether the manifest has rows of a run."""
    return any(each.run == run for each in read_rows(f"{outbox}/{MANIFEST}", doubtful=True))


def rows_of(
    outbox: str, run: str, on_damage: Callable[[Record], None] | None = None, *, doubtful: bool = False
) -> Iterator[Row]:
    """Yield the rows of a run that came to its end: from its own manifest or, where that was pruned, the outbox's.

    ``on_damage`` and ``doubtful`` as for ``read_rows``.
    """
    own = _own(outbox, run)
    is_own = look_up(own) is not None
    rows = read_rows(own if is_own else f"{outbox}/{MANIFEST}", on_damage, doubtful=doubtful)
    yield from (each.row for each in rows if is_own or each.run == run)


def count_rows(outbox: str, run: str, expected: int | None) -> tuple[int, str]:
    """Return how many rows ``rows_of`` yields, and a message where others may be lost, else "".

    Rows may be lost where a line is damaged, or where their number is not the ``expected`` one, if that is known.
    """
    damages = Damages()
    try:
        count = sum(1 for _ in rows_of(outbox, run, damages.add))
    except DicomsortError as error:
        return 0, str(error)
    if not (damages.count and expected != 0) and expected in {None, count}:
        return count, ""
    wanted = "rows" if expected is None else counted(expected, "row")
    lines = "; ".join(("", *damages.lines))
    return count, f"run {run}, {MANIFEST}: expected {wanted} that can be read, received {count:,}{lines}"


@dataclass(slots=True)
class Since:
    """What later runs did with files, by where these lay below the outbox: undid them, or carried out a decision."""

    undone: dict[str, str] = field(default_factory=dict)  # -> the run that undid it
    decided: dict[tuple[str, str], RunRow] = field(default_factory=dict)  # with its SHA-256 -> the decision's row


def since(outbox: str, run: str) -> Since:
    """Return what became of files after a run; grows with what was undone or decided, not with what was sorted."""
    later = Since()
    for each in read_rows(f"{outbox}/{MANIFEST}"):
        row = each.row
        if each.run <= run:
            continue
        was = decided_from(row)
        if row.action == Action.UNDONE:
            if was:
                later.decided.pop((was, row.sha256), None)
            elif row.destination:
                later.undone[row.destination] = each.run
        elif was:
            later.decided[was, row.sha256] = each
    return later


_MODE, _MODE_SO_FAR = 0o666, 0o600  # of a new manifest; of one until it gets the old one's


@dataclass
class Repaired:
    """What a repair did: rows kept and added, lines that could not be read, and where the damaged file is kept.

    ``damaged_as`` is a name in the outbox, empty where nothing was damaged or missing, and nothing was changed.
    ``skipped`` has a sentence for each run whose own manifest cannot be read; ``message`` says what of the old file's
    owner, mode and attributes the new one could not keep.
    """

    kept: int = 0
    added: int = 0
    damages: Damages = field(default_factory=Damages)
    damaged_as: str = ""
    skipped: list[str] = field(default_factory=list)
    message: str = ""


def repair(files: Files, outbox: str, reported: Sequence[str]) -> Repaired:
    """Make the manifest of a locked outbox whole; ``reported`` are the runs whose rows it should have, in their order.

    Rows of runs that were pruned stay as they are. DicomsortError where the disk refuses; the manifest is then as
    before.
    """
    path = f"{outbox}/{MANIFEST}"
    repaired, missing, last = plan_repair(outbox, reported)
    repaired.added = sum(map(len, missing.values()))
    if repaired.added or repaired.damages.count:
        try:
            _replace(files, path, _merged(path, missing, last, reported), repaired)
        except OSError as error:
            received = f"{error.strerror}; the manifest is as it was"
            raise DicomsortError(f"{path}: expected a disk that takes a new manifest, received {received}") from error
    return repaired


def plan_repair(outbox: str, reported: Iterable[str]) -> tuple[Repaired, dict[str, list[bytes]], dict[str, int]]:
    """Return what a repair would keep and skip, the rows that it would add by their runs, and each run's last record.

    Changes nothing.
    """
    repaired = Repaired()
    present, last = _survey(f"{outbox}/{MANIFEST}", repaired)
    missing: dict[str, list[bytes]] = {}
    for run in reported:
        try:
            if rows := _missing(outbox, run, present):
                missing[run] = rows
        except DicomsortError as error:
            repaired.skipped.append(f"run {run}: {error}")
    return repaired, missing, last


def _survey(path: str, repaired: Repaired) -> tuple[Counter[int], dict[str, int]]:
    """Return how often each row is there, by its hash; and the number of each run's last record."""
    present, last = Counter[int](), dict[str, int]()
    for number, record in enumerate(read_records(path)):
        if record.row is None or record.damage:
            repaired.damages.add(record)
            continue
        repaired.kept += 1
        present[hash(record.row)] += 1
        last[record.row.run] = number
    return present, last


def _missing(outbox: str, run: str, present: Counter[int]) -> list[bytes]:
    """Return the rows of a run's own manifest that the outbox's lacks; DicomsortError where it cannot be read."""
    own, rows = Counter[int](), []
    for each in read_rows(_own(outbox, run)):
        own[key := hash(each)] += 1
        if each.run == run and own[key] > present[key]:
            rows.append(line_of(run, each.row))
    return rows


def _merged(
    path: str, missing: dict[str, list[bytes]], last: dict[str, int], order_of_runs: Sequence[str]
) -> Iterator[bytes]:
    """Yield the head, then all rows: missing ones behind the rest of their run, else before the next run's."""
    head = read_head(path)
    order = order_of(head)
    keeps_head = order is not None and order[: len(COLUMNS)] == COLUMNS
    keeps_rows = keeps_head or order is None  # else the columns are in another order
    yield _whole(head) if keeps_head else HEAD + b"\n"
    ahead = deque(run for run in missing if run not in last)
    places = {run: place for place, run in enumerate(order_of_runs)}
    for number, record in enumerate(read_records(path)):
        if record.row is None or record.damage:
            continue
        run = record.row.run
        while ahead and (places[ahead[0]] < places[run] if run in places else ahead[0] < run):
            yield from missing[ahead.popleft()]
        yield _whole(record.content) if keeps_rows else line_of(run, record.row.row)
        if last[run] == number:
            yield from missing.get(run, ())
    for each in ahead:
        yield from missing[each]


def _replace(files: Files, path: str, pieces: Iterable[bytes], repaired: Repaired) -> None:
    """Write the new manifest beside the old one, keep that under another name, and put the new one in its place."""
    folder = os.path.dirname(path)
    part = f"{folder}/.dicomsort-{MANIFEST}.part"  # the state folder may be a mount of its own
    before, kept = look_up(path), ""
    if look_up(part) is not None:
        files.unlink(part)
    try:
        with closing_descriptor(files.create(part, _MODE if before is None else _MODE_SO_FAR)) as descriptor:
            buffer = bytearray()
            for piece in pieces:
                buffer += piece
                if len(buffer) >= _BUFFER:
                    files.write(descriptor, bytes(buffer))
                    buffer.clear()
            files.write(descriptor, bytes(buffer))
            if before is not None:
                with opened_file(path) as old:
                    wanted = metadata_of(old.fileno())
                repaired.message = apply_metadata(files, descriptor, wanted, os.fstat(descriptor).st_mtime_ns).message
            files.flush(descriptor)
        kept = _keep_damaged(files, path, before)
        files.replace(part, path)
    except OSError:
        for left in filter(None, (part, kept)):
            with suppress(OSError):
                files.unlink(left)
        raise
    flush_path(files, folder)
    repaired.damaged_as = os.path.basename(kept)


def _keep_damaged(files: Files, path: str, before: os.stat_result | None) -> str:
    """Give the damaged file a second name, or copy it where links are refused; return the path."""
    if before is None:
        return ""
    stamp = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    name = next(free for n in range(1, 1000) if look_up(free := stamp if n == 1 else f"{stamp}-{n}") is None)
    try:
        files.link(path, name)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        copy(files, path, name, stat.S_IMODE(before.st_mode), before.st_mtime_ns)
        flush_path(files, name)
    return name


def _whole(content: bytes) -> bytes:
    return content if content.endswith(b"\n") else content + b"\n"
