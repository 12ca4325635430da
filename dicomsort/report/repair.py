"""Make a damaged ``manifest.csv`` whole: the rows that can be read, and those that the runs still have of their own.

The damaged file is kept beside the new one, under the name ``manifest.csv.damaged-<time>``.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from dicomsort.errors import DicomsortError
from dicomsort.files import NO_LINK, Files, closing, copy, flush_path, look_up, opened_file
from dicomsort.journal import STATE, runs_folder
from dicomsort.metadata import keep, metadata_of
from dicomsort.report.manifest import MANIFEST, line_of
from dicomsort.report.reading import COLUMNS, HEAD, Damages, order_of, read_head, read_records, read_rows

_BUFFER = 1 << 20
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


def repair(files: Files, outbox: str, reported: Iterable[str]) -> Repaired:
    """Make the manifest of an outbox whose lock is held whole; ``reported`` are the runs whose rows it should have.

    Rows of runs that were pruned are kept as they are. DicomsortError where the disk refuses; the manifest is then as
    before.
    """
    path, repaired = f"{outbox}/{MANIFEST}", Repaired()
    present, last = _survey(path, repaired)
    missing: dict[str, list[bytes]] = {}
    for run in sorted(reported):
        try:
            if rows := _missing(outbox, run, present):
                missing[run] = rows
        except DicomsortError as error:
            repaired.skipped.append(f"run {run}: {error}")
    repaired.added = sum(map(len, missing.values()))
    if repaired.added or repaired.damages.count:
        try:
            _replace(files, path, _merged(path, missing, last), repaired)
        except OSError as error:
            received = f"{error.strerror}; the manifest is as it was"
            raise DicomsortError(f"{path}: expected a disk that takes a new manifest, received {received}") from error
    return repaired


def _survey(path: str, repaired: Repaired) -> tuple[Counter[int], dict[str, int]]:
    """How often each row is there, by the hash of its bytes; and the last record of each run."""
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
    """The rows of a run's own manifest that the outbox's does not have; DicomsortError where it cannot be read."""
    own, rows = Counter[int](), []
    for each in read_rows(f"{runs_folder(outbox)}/{run}/{MANIFEST}"):
        own[key := hash(each)] += 1
        if each.run == run and own[key] > present[key]:
            rows.append(line_of(run, each.row))
    return rows


def _merged(path: str, missing: dict[str, list[bytes]], last: dict[str, int]) -> Iterator[bytes]:
    """The head, then all rows: those that were missing behind the rest of their run, else before the next run's."""
    head, order = (found := read_head(path)), order_of(found)
    keeps_head = order is not None and order[: len(COLUMNS)] == COLUMNS
    keeps_rows = keeps_head or order is None  # else the columns are in another order
    yield _whole(head) if keeps_head else HEAD + b"\n"
    ahead, place = sorted(missing.keys() - last.keys()), 0
    for number, record in enumerate(read_records(path)):
        if record.row is None or record.damage:
            continue
        run = record.row.run
        while place < len(ahead) and ahead[place] < run:
            yield from missing[ahead[place]]
            place += 1
        yield _whole(record.content) if keeps_rows else line_of(run, record.row.row)
        if last[run] == number:
            yield from missing.get(run, ())
    for each in ahead[place:]:
        yield from missing[each]


def _replace(files: Files, path: str, pieces: Iterable[bytes], repaired: Repaired) -> None:
    """Write the new manifest beside the old one, keep that under another name, and put the new one in its place."""
    folder = os.path.dirname(path)
    part = f"{folder}/{STATE}/{MANIFEST}.part"
    before, kept = look_up(path), ""
    if look_up(part) is not None:
        files.unlink(part)
    try:
        with closing(files.create(part, _MODE if before is None else _MODE_SO_FAR)) as descriptor:
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
                repaired.message = keep(files, descriptor, wanted, os.fstat(descriptor).st_mtime_ns).message
            files.flush(descriptor)
        kept = _keep(files, path, before)
        files.replace(part, path)
    except OSError:
        for left in filter(None, (part, kept)):
            with suppress(OSError):
                files.unlink(left)
        raise
    flush_path(files, folder)
    repaired.damaged_as = os.path.basename(kept)


def _keep(files: Files, path: str, before: os.stat_result | None) -> str:
    """Give the damaged file a second name, or make a copy where links are refused; its path."""
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
