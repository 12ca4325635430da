"""What tells a file of dicomsort's own from somebody else's: how it begins."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from dicomsort.files import STREAMS, look_up, opened_file

DEVICES = frozenset({"/dev/null", "/dev/full", "/dev/tty", *STREAMS})  # accepted in place of a file
_HEAD = 4096  # bytes that tell what a file is


@dataclass(frozen=True, slots=True)
class Content:
    """A kind of file that dicomsort writes: what an earlier one is called, a pattern of its first bytes.

    ``literal`` are bytes that each one begins with, where there are such.
    """

    name: str
    first: re.Pattern[bytes]
    literal: bytes = b""

    def problem(self, path: str, *, torn: bool = False) -> str:
        """Why a file may not be written in place of what has its name; empty for a new, empty or earlier file.

        ``torn``: also for one that was cut short while it was written.
        """
        status = look_up(path)
        if status is None:
            return ""
        if not stat.S_ISREG(status.st_mode):
            return "it is no regular file"
        try:
            with opened_file(path) as stream:
                first = stream.read(_HEAD)
            return "" if torn and self.literal.startswith(first) else self.problem_of(first)
        except OSError as error:
            return error.strerror or str(error)

    def problem_of_open(self, descriptor: int) -> str:
        """The same for a file that is open for reading and writing."""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "it is no regular file"
        return self.problem_of(os.pread(descriptor, _HEAD, 0))

    def problem_of(self, first: bytes) -> str:
        """The same for the first bytes of a file."""
        return "" if not first or self.first.match(first) else "it holds something else"


def beginning(name: str, literal: bytes) -> Content:
    """A kind of file that begins with some bytes."""
    return Content(name, re.compile(re.escape(literal)), literal)


LOG_BEGINS = "dicomsort log"  # the event of each log's first line; an older log has one of these there
_EVENTS = (
    "association (accepted|ended|rejected)|instance (stored|repeated|stored beside another|refused)"
    "|a connection's thread died|connection failed|ended|ending|fewer workers than asked for|instances were cut off"
    "|leftovers removed|listening|metrics could not be written|needs a person|not sent|recovered|round failed"
    '|round put off|run ended|send ended|sending failed; it is tried again [^\\n"]{1,80}?|sent|sort begins|sort ended'
    "|watch begins|watch ends|a run of another inbox was cut short; `dicomsort resume` finishes it"
)
_LOG_TIME, _LOG_LEVEL = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "(DEBUG|INFO|WARNING|ERROR|CRITICAL)"
LOG = Content(
    "a log of dicomsort",
    re.compile(
        rf'{_LOG_TIME} {_LOG_LEVEL} ({LOG_BEGINS}|{_EVENTS})( [a-z_]+=|\n)'
        rf'|\{{"time": "{_LOG_TIME}", "level": "{_LOG_LEVEL}", "event": "({LOG_BEGINS}|{_EVENTS})"[,}}]'.encode()
    ),
)
FIGURE = Content(  # a picture of curves or bars; before the mark was written, its few colours told it
    "an earlier picture of figures",
    re.compile(rb"\x89PNG\r\n\x1a\n(?:.{17}\x03|.*tEXtSoftware\0(?:dicomsort|Matplotlib))", re.DOTALL),
)
METRICS = Content("earlier figures", re.compile(rb'\{\s*"(?:held_out|model|of)": '))
MODEL_CARD = Content("an earlier card", re.compile(rb"# Model card: "))
BUNDLE = Content("a bundle", re.compile(rb'\{\s*"format_version": \d'))
CHECKPOINT = Content("a checkpoint", re.compile(rb"PK\x03\x04.{26}story\.npy|(?:PK.{0,33})?\Z", re.DOTALL))
TRIALS = Content("the trials of a search", re.compile(rb'\{"op_code": ?\d'))
JOURNAL = Content("a journal of `dicomsort send`", re.compile(b""))  # whose head is proven under its lock
