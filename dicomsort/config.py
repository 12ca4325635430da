"""The settings of a sort: a flag beats the environment (``DICOMSORT_*``), which beats a TOML file, that the default.

``OPTIONS`` is the one table that the file, the environment, the command line and its help are made from.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX = "DICOMSORT_"
TABLE = "sort"
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Option(NamedTuple):
    """One option: the type of its value or the words it may be, its default, its line of help, its least value."""

    kind: type[bool | int | float | str | Path] | tuple[str, ...]
    default: bool | int | float | str | None
    help: str
    minimum: int | None = None


OPTIONS: dict[str, Option] = {
    "mode": Option(("copy", "move", "link"), "copy", "What to do with the files: copy, move, or hard-link them."),
    "dry_run": Option(bool, False, "Print the plan; change nothing."),
    "model": Option(Path, None, "A model bundle [default: the one that ships]."),
    "evidence": Option(("auto", "header", "pixels"), "auto", "What may decide."),
    "layout": Option(str, "uid", "uid, keep, readable, or a template of the path in the outbox."),
    "settle": Option(float, None, "Leave series changed in the last SECONDS [default: 60 with --move, else 0].", 0),
    "duplicates": Option(("keep", "remove"), "keep", "What --move does with a file that the outbox has already."),
    "prune_empty": Option(bool, False, "Remove folders that a move emptied."),
    "held_ok": Option(bool, False, "Exit with 0, not 3, where files were held for a person."),
    "workers": Option(int, None, "How many tasks run at a time [default: the cores, or the cluster's threads].", 1),
    "engine": Option(("processes", "serial", "dask"), "processes", "What runs the tasks."),
    "scheduler": Option(str, None, "The address of the Dask scheduler (tcp://HOST:PORT)."),
    "json": Option(bool, False, "Print the summary as one JSON object."),
    "quiet": Option(bool, False, "Print errors only."),
    "log_file": Option(Path, None, "Append the log to this file."),
    "log_format": Option(("text", "json"), "text", "The form of the log's lines."),
}


@dataclass(frozen=True, slots=True)
class SortSettings:
    """The value of each of ``OPTIONS``; None where one has no default and was not given (``settle`` is in seconds)."""

    mode: str
    dry_run: bool
    model: Path | None
    evidence: str
    layout: str
    settle: float | None
    duplicates: str
    prune_empty: bool
    held_ok: bool
    workers: int | None
    engine: str
    scheduler: str | None
    json: bool
    quiet: bool
    log_file: Path | None
    log_format: str


def load(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> SortSettings:
    """Resolve each option from the flags, the environment, and the file (also named by ``DICOMSORT_CONFIG``).

    ``cli`` maps names of ``OPTIONS`` to typed values, None where a flag was not given. Empty variables count as not
    given. Relative paths in the file start at its folder. Raises ``UsageError`` for a name that is no option, a value
    of the wrong type or out of range, and a file that cannot be read or is no TOML.
    """
    variables = {name: text for name, text in environ.items() if name.startswith(PREFIX)}
    named = variables.pop(f"{PREFIX}CONFIG", "")
    file = file or (Path(named).expanduser() if named else None)
    values: dict[str, Any] = {name: option.default for name, option in OPTIONS.items()}
    if file is not None:
        values |= _from_file(file)
    values |= _from_environment(variables)
    values |= {name: _checked(name, value, _flag(name)) for name, value in cli.items() if value is not None}
    if cli.get("scheduler") is not None and values["engine"] != "dask":
        raise UsageError(f"--scheduler: expected --engine dask beside it, received --engine {values['engine']}")
    return SortSettings(**values)


def _from_file(file: Path) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in _entries(file):
        name, origin = key.replace("-", "_"), f"{file}: {key}"
        if name not in OPTIONS:
            raise UsageError(f"{file}: expected the name of an option, received {key!r}; {_nearest(name, '')}")
        if name in values:
            raise UsageError(f"{origin}: expected an option once, received it twice")
        checked = _checked(name, value, origin)
        values[name] = file.parent / checked.expanduser() if isinstance(checked, Path) else checked
    return values


def _entries(file: Path) -> Iterator[tuple[str, object]]:
    """Yield keys and values at the top of the file, then those of its table ``[sort]``."""
    try:
        content = tomllib.loads(file.read_bytes().decode("utf-8-sig"))  # editors of Windows write a mark
    except OSError as error:
        raise UsageError(f"{file}: expected a readable TOML file, received: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}: expected UTF-8, received other bytes (at line {line})") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: expected TOML, received: {error}") from None
    table = content.pop(TABLE, {})
    if not isinstance(table, dict):
        raise UsageError(f"{file}: expected [{TABLE}] to be a table, received {table!r}")
    yield from content.items()
    yield from table.items()


def _from_environment(variables: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for variable, text in variables.items():
        name = variable.removeprefix(PREFIX).lower()
        if name not in OPTIONS or variable != variable.upper():
            nearest = _nearest(name, PREFIX)
            raise UsageError(f"expected {PREFIX}<OPTION> in the environment, received {variable}; {nearest}")
        if text:
            checked = _checked(name, _parsed(OPTIONS[name], text), variable)
            values[name] = checked.expanduser() if isinstance(checked, Path) else checked
    return values


def _parsed(option: Option, text: str) -> object:
    """Turn text into the option's type; text that is none of that type stays text, and is refused as such."""
    try:
        if option.kind is bool:
            return TRUTH[text.lower()]
        return option.kind(text) if option.kind in {int, float} else text
    except (KeyError, ValueError):
        return text


def _checked(name: str, value: object, origin: str) -> object:
    option = OPTIONS[name]
    kind = option.kind
    if isinstance(kind, tuple):
        right = value in kind
    elif kind is Path:
        right = isinstance(value, str | Path) and str(value) != ""
    elif kind is float:
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        right = type(value) is kind
    if not right or (option.minimum is not None and value < option.minimum):  # type: ignore[operator]
        raise UsageError(f"{origin}: expected {_expected(option)}, received {value!r}")
    return kind(value) if kind in {Path, float} else value  # type: ignore[arg-type]


def _expected(option: Option) -> str:
    if isinstance(option.kind, tuple):
        return "|".join(option.kind)
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return kinds[option.kind] + ("" if option.minimum is None else f" of at least {option.minimum}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _nearest(name: str, prefix: str) -> str:
    """Say which known name was probably meant, else all of them."""
    near = difflib.get_close_matches(name, OPTIONS, n=1)
    known = [prefix + (option.upper() if prefix else option) for option in near or OPTIONS]
    return f"did you mean {known[0]}?" if near else f"known are {', '.join(known)}"
