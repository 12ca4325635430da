"""How dicomsort's own files begin, which distinguishes them from others; and the replacement of such a file.

A replacement is written beside the old file, then renamed. A reader sees the old file or the new one.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomsort.errors import UsageError
from dicomsort.files import STREAMS, Files, closing_descriptor, flush_path, look_up, opened_file
from dicomsort.jsonlines import parse

DEVICES = frozenset({"/dev/null", "/dev/full", "/dev/tty", *STREAMS})  # accepted in place of a file
_HEAD = 4096  # bytes that show what a file is


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file that dicomsort writes: its name in messages, and whether bytes are the first of one.

    ``literal`` are bytes that each one begins with, if any; ``most`` is how many bytes are read.
    """

    name: str
    holds: Callable[[bytes], object]
    literal: bytes = b""
    most: int = _HEAD

    def problem(self, path: str, *, torn: bool = False) -> str:
        """Return why a file must not be replaced; ``""`` where there is none, an empty one, or an earlier one.

        ``torn``: also for one that was cut short while it was written.
        """
        status = look_up(path)
        if status is None:
            return ""
        if not stat.S_ISREG(status.st_mode):
            return "it is no regular file"
        try:
            with opened_file(path) as stream:
                first = stream.read(self.most)
            return "" if torn and self.literal.startswith(first) else self.problem_of(first)
        except OSError as error:
            return error.strerror or str(error)

    def problem_of_open(self, descriptor: int) -> str:
        """Return the same for a file that is open for reading and writing."""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "it is no regular file"
        return self.problem_of(os.pread(descriptor, self.most, 0))

    def problem_of(self, first: bytes) -> str:
        """Return the same for the first bytes of a file."""
        return "" if not first or self.holds(first) else "it holds something else"


def beginning(name: str, literal: bytes) -> FileKind:
    """Return a kind of file that begins with some bytes."""
    return FileKind(name, lambda first: first.startswith(literal), literal)


LOG_BEGINS = "dicomsort log"  # the event of each log's first line; an older log has one of these there
_EVENTS = (
    "association (accepted|ended|rejected)|instance (stored|repeated|stored beside another|refused)"
    "|a connection's thread died|connection failed|ended|ending|fewer workers than asked for|instances were cut off"
    "|leftovers removed|listening|metrics could not be written|needs a person|not sent|recovered|round failed"
    '|round put off|run ended|send ended|sending failed; it is tried again [^\\n"]{1,80}?|sent|sort begins|sort ended'
    "|watch begins|watch ends|a run of another inbox was cut short; `dicomsort resume` finishes it"
)
_LOG_TIME, _LOG_LEVEL = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "(DEBUG|INFO|WARNING|ERROR|CRITICAL)"
LOG = FileKind(
    "a log of dicomsort",
    re.compile(
        rf"{_LOG_TIME} {_LOG_LEVEL} ({LOG_BEGINS}|{_EVENTS})( [a-z_]+=|\n)"
        rf'|\{{"time": "{_LOG_TIME}", "level": "{_LOG_LEVEL}", "event": "({LOG_BEGINS}|{_EVENTS})"[,}}]'.encode()
    ).match,
)


def _json_with(*shapes: Mapping[str, type | tuple[str, ...]]) -> Callable[[bytes], bool]:
    """Return a test for a JSON object with all keys of one of the shapes, with values of that type or in that tuple."""

    def fits(value: Any, wanted: type | tuple[str, ...]) -> bool:
        return value in wanted if isinstance(wanted, tuple) else type(value) is wanted

    def holds(data: bytes) -> bool:
        try:
            value = parse(data)
        except ValueError:
            return False
        return isinstance(value, dict) and any(
            all(key in value and fits(value[key], wanted) for key, wanted in shape.items()) for shape in shapes
        )

    return holds


def _is_figure(first: bytes) -> bool:
    """Whether bytes begin a plot; one that was written before the mark is recognised by its palette."""
    chunks = _chunks(first)
    return (b"tEXt", _MARK) in chunks or [kind for kind, _ in chunks] == [b"IHDR", b"PLTE", b"IDAT"]


def _is_sheet(first: bytes) -> bool:
    """Whether bytes begin a sheet of mistakes, which earlier had another mark."""
    return any(kind == b"tEXt" and text.startswith((_MARK, b"Software\0Matplotlib")) for kind, text in _chunks(first))


def _chunks(first: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and content of the chunks of a PNG, up to the first of its pixels; none where it is no PNG."""
    found: list[tuple[bytes, bytes]] = []
    at = len(_PNG)
    while first.startswith(_PNG) and at + 8 <= len(first) and (not found or found[-1][0] != b"IDAT"):
        size, kind = struct.unpack_from(">I4s", first, at)
        found.append((kind, first[at + 8 : at + 8 + size]))
        at += size + 12
    return found


_PNG, _MARK = b"\x89PNG\r\n\x1a\n", b"Software\0dicomsort"
FIGURE = FileKind("an earlier picture of figures", _is_figure)
SHEET = FileKind("an earlier picture of mistakes", _is_sheet)
COMPARED = ("data set", "evaluation images", "own figures")  # what two bundles are compared by
METRICS = FileKind(
    "earlier figures",
    _json_with(
        {"held_out": str, "by_source": bool, "calibration": str},
        {"held_out": str, "model": dict, "trained_on": int},
        {"of": COMPARED, "bundles": dict, "figures": dict},
    ),
    most=64 << 20,
)
REPORT_BEGINS = b"<!DOCTYPE html>\n<!-- dicomsort report -->\n"
REPORT = beginning("an earlier report", REPORT_BEGINS)
MODEL_CARD = beginning("an earlier card", b"# Model card: ")
BUNDLE = FileKind("a bundle", _json_with({"format_version": int, "labels": list, "model_sha256": str}), most=1 << 20)
CHECKPOINT = FileKind("a checkpoint", re.compile(rb"PK\x03\x04.{26}story\.npy|(?:PK.{0,33})?\Z", re.DOTALL).match)
TRIALS = FileKind("the trials of a search", re.compile(rb'\{"op_code": ?\d').match)
JOURNAL = FileKind("a journal of `dicomsort send`", lambda _: True)  # its head is checked under its lock
_BY_NAME = {"bundle.json": BUNDLE, "metrics.json": METRICS, "card.md": MODEL_CARD, "mistakes.png": SHEET}
_BY_ENDING = {
    ".png": FIGURE,
    ".csv": FileKind("an earlier table", re.compile(rb"(epoch|trial),").match),
    ".keras": beginning("a model of Keras", b"PK\x03\x04"),
    ".npz": beginning("arrays", b"PK\x03\x04"),
    ".h5": beginning("a model in HDF5", b"\x89HDF\r\n\x1a\n"),
    ".tflite": FileKind("a model of LiteRT", re.compile(rb".{4}TFL3", re.DOTALL).match),
}


def kind_of(name: str) -> FileKind | None:
    """Return the kind of a file of results with this name; None where the name is not one of ours."""
    return _BY_NAME.get(name) or _BY_ENDING.get(os.path.splitext(name)[1])


@dataclass(frozen=True, slots=True)
class Replaced:
    """A file that is replaced: the option that names it, its kind, its mode."""

    option: str
    kind: FileKind
    mode: int

    def write(self, files: Files, path: Path, data: bytes) -> None:
        """Write such a file; an earlier one stays whole until then.

        UsageError where something else has the name, or the name of the part file beside it.
        """
        if str(path) in DEVICES:
            with closing_descriptor(files.open_device(str(path))) as descriptor:
                files.write(descriptor, data)
            return
        target = os.path.realpath(path)
        folder, name = os.path.split(target)
        part = f"{folder}/.{name}.part"
        for each in (target, part):
            if problem := self.kind.problem(each, torn=each == part):
                raise UsageError(
                    f"{self.option}: expected a new file or {self.kind.name}, received {each!r}: {problem}"
                )
        if look_up(part) is not None:
            files.unlink(part)
        try:
            with closing_descriptor(files.create(part, self.mode)) as descriptor:
                files.write(descriptor, data)
                files.flush(descriptor)
            files.replace(part, target)
        except (OSError, KeyboardInterrupt):
            with suppress(OSError):
                files.unlink(part)
            raise
        flush_path(files, folder)
