"""The one gate for outputs that an option names: a log, metrics, a page, a journal, a folder of results.

A path is refused where it would damage what the command reads, what an outbox holds, or a file of somebody else's.
Links are resolved first. ``own_files.Replaced`` and the log check again when they write. The log's file is here, too:
``cli.logs`` makes its lines.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from dicomsort.errors import DicomsortError, UsageError, quoted
from dicomsort.files import Files, look_up
from dicomsort.journal import STATE
from dicomsort.own_files import DEVICES, LOG, LOG_BEGINS, FileKind
from dicomsort.records import ARCHIVES, OTHER, REVIEW, UNREADABLE
from dicomsort.report import MANIFEST, history

_CLASSES = frozenset({"CT", "MRI", "XRAY"})
_OWN = frozenset({STATE, MANIFEST, OTHER, REVIEW, UNREADABLE, ARCHIVES, *_CLASSES})


@dataclass(frozen=True, slots=True)
class Gate:
    """What a command reads, and where it places files: no output may lie in either.

    ``reads`` are files and folders by their names in the help; ``outbox`` is the command's own, ``labels`` are its
    model's classes.
    """

    reads: Mapping[str, str]
    outbox: str | None = None
    labels: Collection[str] = ()
    _options: dict[str, str] = field(default_factory=dict)  # real path -> the option that names it

    def check_file(self, option: str, path: Path, kind: FileKind, *, devices: bool = True) -> str:
        """Return the real path of a file that may be written or replaced; UsageError where it may not.

        Where ``devices``, the standard streams and ``/dev/null`` are accepted by their names.
        """
        if str(path) in DEVICES and devices:
            return str(path)
        target = self._resolved(option, path, "file")
        if (other := self._options.setdefault(target, option)) != option:
            raise UsageError(f"{option}: expected another file than {other} names, received {quoted(path)}")
        parent = os.path.dirname(target)
        if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"{option}: expected a file in a folder that can be written, received {quoted(path)}")
        there = look_up(target)
        if there and stat.S_ISREG(there.st_mode) and there.st_nlink > 1:
            raise UsageError(f"{option}: expected a file of one name, received {str(path)!r}: it has other names")
        if problem := kind.problem(target):
            raise UsageError(f"{option}: expected a new file or {kind.name}, received {quoted(path)}: {problem}")
        return target

    def check_folder(self, option: str, path: Path, problem: Callable[[str], str] = lambda _: "") -> str:
        """Return the real path of a folder that may be made or added to; UsageError where it may not.

        ``problem`` returns what is wrong with a folder that exists.
        """
        target = self._resolved(option, path, "folder")
        nearest = target
        while look_up(nearest) is None:
            nearest = os.path.dirname(nearest)
        if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK | os.X_OK):
            raise UsageError(f"{option}: expected a folder that can be written, received {quoted(path)}")
        if nearest == target and (wrong := problem(target)):
            raise UsageError(
                f"{option}: expected a new folder or one of earlier results, received {quoted(path)}: {wrong}"
            )
        return target

    def _resolved(self, option: str, path: Path, what: str) -> str:
        if not str(path) or "\0" in str(path):
            raise UsageError(f"{option}: expected a path, received {quoted(path)}")
        try:
            target = os.path.realpath(path)
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(target)
        except OSError as error:
            raise UsageError(f"{option}: expected a path, received {quoted(path)} ({error.strerror})") from None
        for name, read in self.reads.items():
            if _is_within(target, os.path.realpath(read)):
                raise UsageError(f"{option}: expected a {what} outside the {name}, received {quoted(path)}")
        for outbox in self._outboxes(target):
            if _is_own(outbox, target, self.labels):
                received = f"received {quoted(path)}; another name at its top, or a place outside, will do"
                raise UsageError(f"{option}: expected a {what} that is not one of the outbox's own, {received}")
        return target

    def _outboxes(self, target: str) -> list[str]:
        """Return the command's outbox and all others that a path lies in."""
        own = [os.path.realpath(self.outbox)] if self.outbox else []
        above = [target, *map(str, Path(target).parents)][:-1]
        others = [folder for folder in above if os.path.isdir(f"{folder}/{STATE}/runs")]
        return [outbox for outbox in dict.fromkeys([*own, *others]) if _is_within(target, outbox)]


def _is_within(path: str, folder: str) -> bool:
    """Whether a path is another or lies below it; hard links to a file count as the file."""
    if os.path.commonpath([path, folder]) == folder:
        return True
    here, there = look_up(path), look_up(folder)
    return here is not None and there is not None and os.path.samestat(here, there)


def _is_own(outbox: str, target: str, labels: Collection[str]) -> bool:
    """Whether a path is the outbox, or one of the names that dicomsort makes at its top, or below such a name."""
    top = os.path.relpath(target, outbox).split("/")[0]
    if top == "." or top in _OWN or top in labels or top.startswith(f"{MANIFEST}."):
        return True
    if not os.path.isdir(f"{outbox}/{top}"):
        return False
    try:
        return any(placement.destination.split("/")[0] == top for _, placement in history(outbox))
    except DicomsortError:
        return False


class LogFile(RotatingFileHandler):
    """A log whose own errors never stop the program; each kind is reported once on stderr."""

    def __init__(self, path: Path, line: logging.Formatter, size: int, count: int) -> None:
        self._complained: set[str] = set()
        self._line = line
        target = str(path) if str(path) in DEVICES else os.path.realpath(path)
        super().__init__(target, maxBytes=size, backupCount=count, encoding="utf-8")
        self.setFormatter(self._line)

    def _open(self) -> TextIOWrapper:
        """Open for appending a log of ours, a new or empty file, or a standard stream; OSError for anything else."""
        files = Files()
        if self.baseFilename in DEVICES:
            descriptor = files.open_device(self.baseFilename)
        else:
            descriptor = files.open_append(self.baseFilename)
            if problem := LOG.problem_of_open(descriptor):
                os.close(descriptor)
                raise OSError(errno.EINVAL, f"{problem}; expected {LOG.name}", self.baseFilename)
            self._begin(descriptor)
        return TextIOWrapper(os.fdopen(descriptor, "ab"), encoding="utf-8", errors="backslashreplace")

    def _begin(self, descriptor: int) -> bool:
        """Write the line that identifies the log where the file is empty; False where there is no room.

        It is written whole or not at all: a file that begins with a part of it would be taken for somebody else's.
        """
        if os.fstat(descriptor).st_size:
            return True
        line = self._line.format(logging.makeLogRecord({"levelname": "INFO", "msg": LOG_BEGINS})) + "\n"
        try:
            if (written := os.write(descriptor, line.encode())) < len(line):
                if os.fstat(descriptor).st_size == written:  # else another process has begun it
                    os.ftruncate(descriptor, 0)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError as error:
            self._complain("be written", error)
            return False
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line; where the file was moved away, to a new one."""
        if self.baseFilename not in DEVICES:
            self._follow()
            if self.stream is not None and not self._begin(self.stream.fileno()):
                return
        super().emit(record)

    def _follow(self) -> None:
        """Open a new log where the file was moved away, as logrotate does; go on in the old one where that fails."""
        try:
            if self.stream is not None and not self._is_still_there(self.stream.fileno()):
                stream = self._open()
                self.stream.close()
                self.stream = stream
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._complain("be begun anew, and goes on in the file that was moved away", error)

    def _is_still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.baseFilename), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file."""
        try:
            super().close()
        except OSError as error:  # what was not written is lost, but no reason for the run to fail
            self._complain("be written", error)

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the library's name
        """Whether the line would make the file too large."""
        return self.stream is not None and bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802 - the library's name
        """Put the file aside under another name, if it is still there and all names are ours, and begin a new one."""
        there = look_up(self.baseFilename)
        if self.stream is None or there is None or not os.path.samestat(there, os.fstat(self.stream.fileno())):
            return  # the name is another file's now, or a link: nothing of it is put aside
        older = (f"{self.baseFilename}.{number}" for number in range(1, self.backupCount + 1))
        try:
            if foreign := next((path for path in older if LOG.problem(path)), None):
                raise OSError(errno.EEXIST, f"{os.path.basename(foreign)} is no log of dicomsort")  # noqa: TRY301
            super().doRollover()
        except OSError as error:  # also where its folder may not be changed: better a long log than none
            self.maxBytes = 0
            self._complain("be put aside, and grows on", error)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Report an error of the disk once; others as the library does."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._complain("be written", error)
        else:
            super().handleError(record)

    def _complain(self, what: str, error: OSError) -> None:
        if what not in self._complained:
            self._complained.add(what)
            print(f"dicomsort: the log cannot {what}: {error.strerror}", file=sys.stderr)  # noqa: T201 - where else
