"""Stage 1: walk the inbox in path order; what cannot be entered or is no regular file is a result, not silence."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dicomsort.records import Found


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


def walk(inbox: str, is_left_out: Callable[[os.stat_result], bool]) -> Iterator[Found | Passed | Folder]:
    """Yield every entry below ``inbox``, depth first, names in byte order; links are not followed, so loops end.

    ``is_left_out`` is asked for each folder (the outbox may lie inside the inbox). Temporary copies of an undo that was
    cut short are passed over; their run's ``resume`` takes them away.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        entries, error = _entries(f"{inbox}/{folder}" if folder else inbox)
        if error:
            yield Passed(f"{folder}/" if folder else "./", "unreadable-folder", error)
        below: list[str] = []
        for name in entries:
            path = f"{folder}/{name}" if folder else name
            try:
                status = os.lstat(f"{inbox}/{path}")
            except OSError as failure:
                gone = isinstance(failure, FileNotFoundError)
                yield Passed(path, "vanished" if gone else "unreadable", failure.strerror or str(failure))
                continue
            seen = _judge(path, status)
            if isinstance(seen, Folder):
                if is_left_out(status):
                    continue
                below.append(path)
            yield seen
        waiting.extend(reversed(below))


def _entries(path: str) -> tuple[list[str], str]:
    try:
        return sorted(os.listdir(path), key=os.fsencode), ""
    except OSError as error:
        return [], error.strerror or str(error)


def _judge(path: str, status: os.stat_result) -> Found | Passed | Folder:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return Folder(path, stat.S_IMODE(mode), status.st_mtime_ns)
    if stat.S_ISLNK(mode):
        return Passed(path, "symlink", "links are not followed")
    if not stat.S_ISREG(mode):
        return Passed(path, "special-file", "not a regular file")
    if path.rpartition("/")[2].startswith(".dicomsort-") and path.endswith(".part"):
        return Passed(path, "part-file", "a temporary copy of a run that was cut short; `dicomsort resume` removes it")
    return Found(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, stat.S_IMODE(mode))
