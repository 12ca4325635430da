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

from dicomsort.files import NO_LINK, Files, closing, copy, flush_path, look_up
from dicomsort.journal import STATE, runs_folder
from dicomsort.report.manifest import MANIFEST, line_of
from dicomsort.report.reading import HEAD, MARK, Damages, read_head, read_records, read_rows

_BUFFER = 1 << 20
_MODE = 0o666


@dataclass
class Repaired:
    """What a repair did: rows kept and added, lines that could not be read, and where the damaged file is kept.

    ``damaged_as`` is a name in the outbox, empty where nothing was damaged or missing, and nothing was changed.
    """

    kept: int = 0
    added: int = 0
    damages: Damages = field(default_factory=Damages)
    damaged_as: str = ""


def repair(files: Files, outbox: str, reported: Iterable[str]) -> Repaired:
    """Make the manifest of an outbox whose lock is held whole; ``reported`` are the runs whose rows it should have.

    Rows of runs that were pruned are kept as they are. OSError where the disk refuses; the manifest is then as before.
    """
    path, repaired = f"{outbox}/{MANIFEST}", Repaired()
    present, last = _survey(path, repaired)
    missing = {run: rows for run in sorted(reported) if (rows := _missing(outbox, run, present))}
    repaired.added = sum(map(len, missing.values()))
    if repaired.added or repaired.damages.count:
        repaired.damaged_as = _replace(files, path, _merged(path, missing, last))
    return repaired


def _survey(path: str, repaired: Repaired) -> tuple[Counter[int], dict[str, int]]:
    """How often each row is there, by the hash of its bytes; and the last record of each run."""
    present, last = Counter[int](), dict[str, int]()
    for number, record in enumerate(read_records(path)):
        if record.row is None:
            repaired.damages.add(record)
            continue
        repaired.kept += 1
        present[hash(record.row)] += 1
        last[record.row.run] = number
    return present, last


def _missing(outbox: str, run: str, present: Counter[int]) -> list[bytes]:
    """The rows of a run's own manifest that the outbox's does not have."""
    own, rows = Counter[int](), []
    for each in read_rows(f"{runs_folder(outbox)}/{run}/{MANIFEST}"):
        own[key := hash(each)] += 1
        if each.run == run and own[key] > present[key]:
            rows.append(line_of(run, each.row))
    return rows


def _merged(path: str, missing: dict[str, list[bytes]], last: dict[str, int]) -> Iterator[bytes]:
    """The head, then all rows: those that were missing behind the rest of their run, else before the next run's."""
    waiting, head = dict(missing), read_head(path)
    keeps = head.removeprefix(MARK).startswith(HEAD)  # else the columns are in another order, or the head is damaged
    yield head if keeps else HEAD + b"\n"
    for number, record in enumerate(read_records(path)):
        if record.row is None:
            continue
        for run in [run for run in waiting if run < record.row.run and run not in last]:
            yield from waiting.pop(run)
        yield _whole(record.content) if keeps else line_of(record.row.run, record.row.row)
        if last[record.row.run] == number:
            yield from waiting.pop(record.row.run, ())
    for rows in waiting.values():
        yield from rows


def _replace(files: Files, path: str, pieces: Iterable[bytes]) -> str:
    """Write the new manifest beside the old one, keep that under another name, and put the new one in its place."""
    folder = os.path.dirname(path)
    part = f"{folder}/{STATE}/{MANIFEST}.part"
    before = look_up(path)
    if look_up(part) is not None:
        files.unlink(part)
    try:
        with closing(files.create(part, _MODE)) as descriptor:
            if before is not None:
                files.set_mode(descriptor, stat.S_IMODE(before.st_mode))
            buffer = bytearray()
            for piece in pieces:
                buffer += piece
                if len(buffer) >= _BUFFER:
                    files.write(descriptor, bytes(buffer))
                    buffer.clear()
            files.write(descriptor, bytes(buffer))
            files.flush(descriptor)
        name = _keep(files, path, before)
        files.replace(part, path)
    except OSError:
        with suppress(OSError):
            files.unlink(part)
        raise
    flush_path(files, folder)
    return name


def _keep(files: Files, path: str, before: os.stat_result | None) -> str:
    """Give the damaged file a second name, or make a copy where links are refused; the new name."""
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
    return os.path.basename(name)


def _whole(content: bytes) -> bytes:
    return content if content.endswith(b"\n") else content + b"\n"
