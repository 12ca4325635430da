"""Stage 1: walk the inbox in path order; what cannot be entered or is no regular file is a result, not silence."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice

from dicomsort.records import Found

IN_MEMORY = 65_536  # names of one folder; those of a larger one are sorted on disk
RECEIVING = ".dicomsort-receive-"  # how names begin of instances that are still being received


@dataclass(frozen=True, slots=True)
class Passed:
    """Something found that will not be opened; ``reason`` is symlink, special-file, unreadable-folder, or such."""

    path: str
    reason: str
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether files may lie unseen behind it."""
        return self.reason in {"unreadable", "unreadable-folder"}


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder below the inbox as the walk met it, for ``--prune-empty`` and its undo."""

    path: str
    mode: int
    mtime_ns: int


def walk(
    inbox: str, is_left_out: Callable[[os.stat_result], bool], clock: Callable[[], int] = time.time_ns
) -> Iterator[Found | Passed | Folder]:
    """Yield every entry below ``inbox``, depth first, names in byte order; links are not followed, so loops end.

    ``is_left_out`` is asked for each folder (the outbox may lie inside the inbox). Passed over are temporary copies of
    an undo that was cut short, which their run's ``resume`` takes away, and instances that are being received.
    ``clock`` tells nanoseconds since 1970: a file may be dated in the future.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = _names(f"{inbox}/{folder}" if folder else inbox)
        except OSError as error:
            yield Passed(f"{folder}/" if folder else "./", "unreadable-folder", error.strerror or str(error))
            continue
        below: list[str] = []
        for name in entries:
            path = f"{folder}/{name}" if folder else name
            try:
                status = os.lstat(f"{inbox}/{path}")
            except OSError as failure:
                gone = isinstance(failure, FileNotFoundError)
                yield Passed(path, "vanished" if gone else "unreadable", failure.strerror or str(failure))
                continue
            seen = _entry_of(path, status, clock)
            if isinstance(seen, Folder):
                if is_left_out(status):
                    continue
                below.append(path)
            yield seen
        waiting.extend(reversed(below))


def _names(path: str) -> Iterator[str]:
    """Read a folder's names, then yield them in byte order; OSError where it cannot be read."""
    with os.scandir(path) as entries:
        names = (os.fsencode(entry.name) for entry in entries)
        first = sorted(islice(names, IN_MEMORY))
        if len(first) == IN_MEMORY:
            return _sorted_on_disk(chain(first, names))
    return map(os.fsdecode, first)


def _sorted_on_disk(names: Iterable[bytes]) -> Iterator[str]:
    base = sqlite3.connect("")  # a temporary file that ends with it
    base.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")
    base.executemany("INSERT INTO names VALUES (?)", ((name,) for name in names))

    def read() -> Iterator[str]:
        with closing(base):
            for (name,) in base.execute("SELECT name FROM names ORDER BY name"):
                yield os.fsdecode(name)

    return read()


def _entry_of(path: str, status: os.stat_result, clock: Callable[[], int]) -> Found | Passed | Folder:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return Folder(path, stat.S_IMODE(mode), status.st_mtime_ns)
    if stat.S_ISLNK(mode):
        return Passed(path, "symlink", "links are not followed")
    if not stat.S_ISREG(mode):
        return Passed(path, "special-file", "not a regular file")
    if path.rpartition("/")[2].startswith(".dicomsort-") and path.endswith(".part"):
        return Passed(path, "part-file", _whose(path.rpartition("/")[2]))
    now = clock()
    times = (status.st_ctime_ns, now) if status.st_mtime_ns > now else ()
    return Found(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, stat.S_IMODE(mode), *times)


def _whose(name: str) -> str:
    if name.startswith(RECEIVING):
        return "an instance that is being received; one that a crash left goes when `dicomsort receive` starts"
    return "a temporary copy of a run that was cut short; `dicomsort resume` removes it"
