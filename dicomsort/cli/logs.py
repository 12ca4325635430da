"""``--log-file`` and its kin: a line an event, text or JSON; paths below the inbox, never patient data.

The first line of each file says that it is a log of dicomsort. A log that would grow over its size becomes ``FILE.1``,
older ones ``FILE.2`` and so on. Where something else (logrotate) moves the file away, a new one is created.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from dicomsort.config import INHERITS
from dicomsort.config.file import parse_file
from dicomsort.config.settings import LOG_COUNT, LOG_MIB
from dicomsort.content import DEVICES, LOG, LOG_BEGINS
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.files import Files, look_up, opened_file
from dicomsort.signals import code_of, number_of

MIB = 1 << 20
# The event of the last line of each command that runs unattended.
LAST_LINES = {"sort": "sort ended", "watch": "watch ends", "send": "send ended", "receive": "ended"}
_ended: list[str] = []  # events of runs of this process that have ended
_PLAIN = re.compile(r"[^\s\"\\=]+")


class _Formatter(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level, event, facts = record.levelname, record.getMessage(), getattr(record, "facts", {})
        if self._as_json:
            return json.dumps({"time": stamp, "level": level, "event": event, **facts})
        return f"{stamp} {level} {event} {' '.join(_pairs('', facts))}".rstrip()


def _pairs(prefix: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield ``name=value`` of each fact, ``name.key=value`` of a table; empty ones are left out, odd text is JSON."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _pairs(f"{prefix}{name}.", value)
        elif isinstance(value, list | tuple | set | frozenset):
            if value:
                yield f"{_word(prefix + name)}={_word(', '.join(map(str, value)))}"
        elif value not in ("", None):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{_word(prefix + name)}={_word(text)}"


def _word(text: str) -> str:
    """Return the text, in quotes where it is not one word; control characters of terminals are escaped."""
    is_printable = text.isprintable()
    return text if is_printable and _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=not is_printable)


class _Log(RotatingFileHandler):
    """A log whose own errors never stop the program; each kind is reported once on stderr."""

    def __init__(self, path: Path, log_format: str, size: int, count: int) -> None:
        self._complained: set[str] = set()
        self._line = formatter(log_format)
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
        try:
            super().close()
        except OSError as error:  # what was not written is lost, but no reason for the run to fail
            self._complain("be written", error)

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the library's name
        return self.stream is not None and bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802 - the library's name
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
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._complain("be written", error)
        else:
            super().handleError(record)

    def _complain(self, what: str, error: OSError) -> None:
        if what not in self._complained:
            self._complained.add(what)
            print(f"dicomsort: the log cannot {what}: {error.strerror}", file=sys.stderr)


def formatter(log_format: str) -> logging.Formatter:
    """Return the formatter of events that ``--log-format`` names."""
    return _Formatter(as_json=log_format == "json")


@contextmanager
def logging_to(
    path: Path | None, log_format: str, size: float = LOG_MIB, count: int = LOG_COUNT, *, to_stderr: bool = False
) -> Iterator[logging.Logger]:
    """Yield the program's logger, writing to a file where one is wanted; ``UsageError`` where that fails.

    ``size`` is in MiB, 0 for a log without limit; ``count`` older logs remain. Without a file, events may go to stderr.
    """
    log = logging.getLogger("dicomsort")
    log.propagate = False
    log.setLevel(logging.INFO)
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if to_stderr else logging.NullHandler()
    handler.setFormatter(formatter(log_format))
    try:
        handler = _Log(path, log_format, int(size * MIB), count) if path else handler
    except OSError as error:
        message = f"--log-file: expected a file that can be written, received {str(path)!r} ({error.strerror})"
        raise UsageError(message) from error
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        handler.close()


def begin() -> None:
    """Note that a command begins: no run of it has ended."""
    _ended.clear()


def log_refusal(arguments: Sequence[str], environ: Mapping[str, str], code: int, message: str) -> None:
    """Write into the log that a command names how it ended, where no run of it began, and so none has ended.

    Nobody has checked the arguments yet. So the log is found leniently, and only one that exists is written.
    """
    command = next((each for each in arguments if not each.startswith("-")), "")
    is_over = _ended or command not in LAST_LINES or message.startswith("--log-file")
    path = None if is_over else _named_log(command, arguments, environ)
    with suppress(DicomsortError, OSError, ValueError):
        if path is None or not _may_be_written(path, arguments):
            return
        with opened_file(str(path)) as stream:
            log_format = "json" if stream.read(1) == b"{" else "text"
        with logging_to(path, log_format) as log:
            facts = {"exit_code": code, "cause": " ".join(message.split())}
            log.error(LAST_LINES[command], extra={"facts": facts})


def _may_be_written(path: Path, arguments: Sequence[str]) -> bool:
    """Whether it is a log of ours, with one name, and in no folder that the command line names."""
    target = os.path.realpath(path)
    folders = [os.path.realpath(each) for each in arguments if os.path.isdir(each)]
    if any(target.startswith(f"{folder.rstrip('/')}/") for folder in folders):
        return False
    status = os.stat(target)
    return bool(status.st_size) and status.st_nlink == 1 and not LOG.problem(target)


def _named_log(command: str, arguments: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """Return the log that flag, environment or file names, if any; errors in these are reported elsewhere."""
    names = [f"DICOMSORT_{command.upper()}_", "DICOMSORT_"]
    variables = [text for name in names if (text := environ.get(f"{name}LOG_FILE"))]
    if named := [*_values("--log-file", arguments), *variables]:
        return Path(named[0])
    files = [*_values("--config", arguments), *filter(None, [environ.get("DICOMSORT_CONFIG")])]
    file = Path(os.path.expanduser(files[0])) if files else None
    with suppress(UsageError):
        tables = parse_file(file) if file and os.path.isfile(file) else {}
        for table in (*(tables.get(name) for name in (command, *INHERITS.get(command, ()))), tables):
            found = isinstance(table, dict) and (table.get("log-file") or table.get("log_file"))
            if file and isinstance(found, str):
                return file.parent / os.path.expanduser(found)
    return None


def _values(flag: str, arguments: Sequence[str]) -> Iterator[str]:
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            yield arguments[at + 1]
        elif argument.startswith(f"{flag}="):
            yield argument.partition("=")[2]


@dataclass
class Ending:
    """How a run ends: its exit code, why where that is not 0, and what else is to be logged."""

    exit_code: int = 0
    cause: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def ending(log: logging.Logger, what: str) -> Iterator[Ending]:
    """Log one line when a run ends, however it ends: ``what`` with the exit code and the cause."""
    end = Ending()
    try:
        yield end
    except KeyboardInterrupt as stop:
        end.exit_code, end.cause = code_of(number_of(stop)), "interrupted"
        raise
    except DicomsortError as error:
        end.exit_code, end.cause = error.exit_code, str(error)
        raise
    except Exception as error:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        end.exit_code, end.cause = 1, f"{kind}{error}"
        raise
    finally:
        _ended.append(what)
        facts = {"exit_code": end.exit_code, "cause": " ".join(end.cause.split()), **end.facts}
        log.log(logging.INFO if end.exit_code == 0 else logging.ERROR, what, extra={"facts": facts})
