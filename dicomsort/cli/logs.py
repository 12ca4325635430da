"""``--log-file`` and ``--log-format``: a line an event, text or JSON; paths below the inbox, never patient data."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicomsort.errors import UsageError


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        return json.dumps({"time": _stamp(record), "level": record.levelname, "event": record.getMessage(), **facts})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value!r}" for name, value in getattr(record, "facts", {}).items())
        return f"{_stamp(record)} {record.levelname} {record.getMessage()} {facts}".rstrip()


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))


def formatter(log_format: str) -> logging.Formatter:
    """What makes a line of an event, in the form that ``--log-format`` names."""
    return _Json() if log_format == "json" else _Text()


@contextmanager
def logging_to(path: Path | None, log_format: str) -> Iterator[logging.Logger]:
    """The program's logger, writing to a file where one is wanted; UsageError where it cannot be written."""
    log = logging.getLogger("dicomsort")
    log.propagate = False
    log.setLevel(logging.INFO)
    try:
        handler = logging.FileHandler(path, encoding="utf-8") if path else logging.NullHandler()
    except OSError as error:
        message = f"--log-file: expected a file that can be written, received {str(path)!r} ({error.strerror})"
        raise UsageError(message) from error
    handler.setFormatter(formatter(log_format))
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        handler.close()
