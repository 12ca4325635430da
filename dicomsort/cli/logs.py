"""``--log-file`` and its kin: a line an event, text or JSON; paths below the inbox, never patient data.

The first line of each file says that it is a log of dicomsort. A log that would grow over its size becomes ``FILE.1``,
older ones ``FILE.2`` and so on. Where something else (logrotate) moves the file away, a new one is created.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicomsort.config.file import parse_file
from dicomsort.config.resolve import INHERITS, PREFIX, SCOPED
from dicomsort.config.settings import LOG_COUNT, LOG_MIB
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.signals import code_of, number_of

MIB = 1 << 20
# The event of the last line of each command that runs unattended.
LAST_LINES = {"sort": "sort ended", "watch": "watch ends", "send": "send ended", "receive": "ended"}
_ended: list[str] = []  # events of runs of this process that have ended
_PLAIN = re.compile(r"[^\s\"\\=]+")


class Formatter(logging.Formatter):
    """Makes the lines of a log, in the form that ``--log-format`` names."""

    def __init__(self, log_format: str) -> None:
        super().__init__()
        self._as_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event."""
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
    handler.setFormatter(Formatter(log_format))
    try:
        if path:
            from dicomsort.outputs import LogFile

            handler = LogFile(path, Formatter(log_format), int(size * MIB), count)
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
    if path is None:
        return
    from dicomsort.files import opened_file

    with suppress(DicomsortError, OSError, ValueError):
        if not _may_be_written(path, arguments):
            return
        with opened_file(str(path)) as stream:
            log_format = "json" if stream.read(1) == b"{" else "text"
        with logging_to(path, log_format, size=0) as log:  # one that it does not rotate: nobody knows its limits here
            facts = {"exit_code": code, "cause": " ".join(message.split())}
            log.error(LAST_LINES[command], extra={"facts": facts})


def _may_be_written(path: Path, arguments: Sequence[str]) -> bool:
    """Whether it is a log of ours, with one name, and in no folder that the command line names."""
    from dicomsort.own_files import LOG

    target = os.path.realpath(path)
    folders = [os.path.realpath(each) for each in arguments if os.path.isdir(each)]
    if any(target.startswith(f"{folder.rstrip('/')}/") for folder in folders):
        return False
    status = os.stat(target)
    return bool(status.st_size) and status.st_nlink == 1 and not LOG.problem(target)


def _named_log(command: str, arguments: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """Return the log that flag, environment or file names, if any; errors in these are reported elsewhere."""
    scope = f"{command.upper()}_" if command in SCOPED else ""
    if flag := _last("--log-file", arguments):
        return Path(flag)
    if variable := environ.get(f"{PREFIX}{scope}LOG_FILE"):
        return Path(os.path.expanduser(variable))
    named = _last("--config", arguments) or environ.get("DICOMSORT_CONFIG")
    file = Path(os.path.expanduser(named)) if named else None
    with suppress(UsageError):
        tables = parse_file(file) if file and os.path.isfile(file) else {}
        for table in (*(tables.get(name) for name in (command, *INHERITS.get(command, ()))), tables):
            found = isinstance(table, dict) and (table.get("log-file") or table.get("log_file"))
            if file and isinstance(found, str):
                return file.parent / os.path.expanduser(found)
    return None


def _last(flag: str, arguments: Sequence[str]) -> str:
    """Return the value that counts of a flag, "" where it is not given."""
    value = ""
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            value = arguments[at + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


@dataclass
class Ending:
    """How a run ends: its exit code, why where that is not 0, and what else is to be logged."""

    exit_code: int = 0
    cause: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def log_ending(log: logging.Logger, what: str) -> Iterator[Ending]:
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
