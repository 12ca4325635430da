"""Stage 1: walk the inbox in path order; what cannot be opened or is no regular file is a result, too."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice

from dicomsort.files import PROBE, closing_descriptor
from dicomsort.journal import STATE, runs_folder
from dicomsort.memory import no_temporary_room
from dicomsort.records import Found

IN_MEMORY = 65_536  # names of one folder; those of a larger one are sorted on disk
RECEIVING = ".dicomsort-receive-"  # the beginning of names of instances that are still being received
_PARTS = {  # what a file is whose name begins so
    RECEIVING: "an instance that is being received; one that a crash left goes when `dicomsort receive` starts",
    PROBE: "an empty file by which two mounts were compared, and which a crash left: remove it",
    ".dicomsort-": "a temporary copy of the run that its name tells; `dicomsort resume OUTBOX RUN` removes it",
}


@dataclass(frozen=True, slots=True)
class Passed:
    """Something that will not be opened; ``reason`` is symlink, special-file, unreadable-folder, or such."""

    path: str
    reason: str
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether files may lie unseen behind it."""
        return self.reason in {"unreadable", "unreadable-folder"}


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder below the inbox as the walk found it, for ``--prune-empty`` and its undo."""

    path: str
    mode: int
    mtime_ns: int


def walk(
    inbox: str, is_left_out: Callable[[os.stat_result], bool], clock: Callable[[], int] = time.time_ns
) -> Iterator[Found | Passed | Folder]:
    """Yield every entry below ``inbox``, depth first, names in byte order; links are not followed, so loops end.

    ``is_left_out`` is called for each folder (the outbox may lie inside the inbox); the state of any outbox is left
    out, too. Temporary copies of an interrupted undo, which ``resume`` removes, and instances that are being received
    are ``Passed``. ``clock`` returns nanoseconds since 1970: a file may be dated in the future.
    """
    waiting: list[tuple[str, os.stat_result | None]] = [("", None)]
    while waiting:
        folder, found = waiting.pop()
        below: list[tuple[str, os.stat_result]] = []
        try:
            with closing_descriptor(_opened(inbox, folder, found)) as descriptor:
                for name, status in _listed(descriptor):
                    path = f"{folder}/{name}" if folder else name
                    if isinstance(status, OSError):
                        gone = isinstance(status, FileNotFoundError)
                        yield Passed(path, "vanished" if gone else "unreadable", status.strerror or str(status))
                        continue
                    entry = _entry_of(path, status, clock)
                    if isinstance(entry, Folder):
                        if is_left_out(status) or (name == STATE and os.path.isdir(runs_folder(f"{inbox}/{folder}"))):
                            continue
                        below.append((path, status))
                    yield entry
        except OSError as error:
            yield Passed(f"{folder}/" if folder else "./", "unreadable-folder", error.strerror or str(error))
        waiting.extend(reversed(below))


def _opened(inbox: str, folder: str, found: os.stat_result | None) -> int:
    """Open a folder of the inbox that the walk ``found``; OSError where something else took its place meanwhile.

    A link in its place, or in that of a folder above it, would lead elsewhere. What is mounted when somebody looks
    (autofs) is another folder, too, but no link leads to it.
    """
    if found is None:
        return os.open(inbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    path = f"{inbox}/{folder}"
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.path.samestat(there := os.fstat(descriptor), found):
        return descriptor
    with suppress(OSError):
        is_linked = os.path.realpath(path) != f"{os.path.realpath(inbox)}/{folder}"
        if not is_linked and os.path.samestat(os.lstat(path), there):
            return descriptor
    os.close(descriptor)
    raise OSError(errno.ELOOP, "another folder, or a link, took its place")


def _listed(descriptor: int) -> Iterator[tuple[str, os.stat_result | OSError]]:
    """Yield the names in an open folder, in byte order, with their status or why it cannot be told."""
    for name in _names(descriptor):
        try:
            yield name, os.lstat(name, dir_fd=descriptor)
        except OSError as error:
            yield name, error


def _names(descriptor: int) -> Iterator[str]:
    """Read a folder's names, then yield them in byte order; OSError where it cannot be read."""
    with os.scandir(descriptor) as entries:
        names = (os.fsencode(entry.name) for entry in entries)
        first = sorted(islice(names, IN_MEMORY))
        if len(first) == IN_MEMORY:
            return _sorted_on_disk(chain(first, names))
    return map(os.fsdecode, first)


def _sorted_on_disk(names: Iterable[bytes]) -> Iterator[str]:
    with _needing_room():
        database = sqlite3.connect("")  # a temporary file, removed when it is closed
        database.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")
        # The system may list a name twice that is renamed meanwhile.
        database.executemany("INSERT OR IGNORE INTO names VALUES (?)", ((name,) for name in names))

    def read() -> Iterator[str]:
        with closing(database), _needing_room():
            for (name,) in database.execute("SELECT name FROM names ORDER BY name"):
                yield os.fsdecode(name)

    return read()


@contextmanager
def _needing_room() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise no_temporary_room("the names of a large folder", error) from error


def _entry_of(path: str, status: os.stat_result, clock: Callable[[], int]) -> Found | Passed | Folder:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return Folder(path, stat.S_IMODE(mode), status.st_mtime_ns)
    if stat.S_ISLNK(mode):
        return Passed(path, "symlink", "links are not followed")
    if not stat.S_ISREG(mode):
        return Passed(path, "special-file", "not a regular file")
    name = path.rpartition("/")[2]
    if name.startswith(".dicomsort-") and name.endswith(".part"):
        messages = (message for start, message in _PARTS.items() if name.startswith(start))
        return Passed(path, "part-file", next(messages))
    now = clock()
    times = (status.st_ctime_ns, now) if status.st_mtime_ns > now else ()
    return Found(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, stat.S_IMODE(mode), *times)
