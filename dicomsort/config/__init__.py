"""The settings of a command: a flag beats the environment (``DICOMSORT_*``), which beats a TOML file, that the default.

``tables`` holds the options of each command; all commands may share one file and one environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomsort.config import file as _file
from dicomsort.config.option import Option, at_home, checked, parsed
from dicomsort.config.tables import (
    DAY,
    MOST_PORT,
    MOST_WORKERS,
    OPTIONS,
    TABLES,
    TRAINING,
    WATCH,
    SortSettings,
    WatchSettings,
)
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DAY",
    "MOST_PORT",
    "MOST_WORKERS",
    "OPTIONS",
    "TABLES",
    "TRAINING",
    "WATCH",
    "Option",
    "SortSettings",
    "WatchSettings",
    "checked",
    "load",
    "load_watch",
    "parsed",
    "values_of",
]

PREFIX = "DICOMSORT_"
INHERITS = {"watch": ("sort",)}  # whose tables hold for a command where its own says nothing


def values_of(command: str, cli: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> dict[str, Any]:
    """Resolve the options of a command from the flags, the environment, and the file (also by ``DICOMSORT_CONFIG``).

    ``cli`` maps names of options to typed values, None where a flag was not given. Empty variables count as not given.
    Relative paths in the file start at its folder. Raises ``UsageError`` for a name that is no option, a value of the
    wrong type or out of range, and a file that cannot be read or is no TOML.
    """
    return _resolved(command, cli, environ, file)[0]


def load(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> SortSettings:
    """The settings of ``sort``, as ``values_of`` resolves them."""
    return SortSettings(**values_of("sort", cli, environ, file))


def load_watch(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> WatchSettings:
    """The settings of ``watch``, which sorts: where ``[watch]`` says nothing, ``[sort]`` holds."""
    values, written = _resolved("watch", cli, environ, file)
    every = values.pop("every")
    return WatchSettings(SortSettings(dry_run=False, **values), every, written.get(_file.ROUTES, {}))


def _resolved(
    command: str, cli: Mapping[str, object], environ: Mapping[str, str], file: Path | None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The value of each option of a command, and what the file's tables hold."""
    options = TABLES[command] or {}
    variables = {name: text for name, text in environ.items() if name.startswith(PREFIX)}
    named = variables.pop(f"{PREFIX}CONFIG", "")
    file = file or (at_home(Path(named), f"{PREFIX}CONFIG") if named else None)
    values: dict[str, Any] = {name: option.default for name, option in options.items()}
    written = _file.read(file) if file is not None else {}
    for table in (_file.TOP, *INHERITS.get(command, ()), command):
        values |= {name: value for name, value in written.get(table, {}).items() if name in options}
    values |= {name: value for name, value in _from_environment(variables, options).items() if name in options}
    values |= {name: checked(options[name], value, _flag(name)) for name, value in cli.items() if value is not None}
    if cli.get("scheduler") is not None and values["engine"] != "dask":
        raise UsageError(f"--scheduler: expected --engine dask beside it, received --engine {values['engine']}")
    return values, written


def _from_environment(variables: Mapping[str, str], options: Mapping[str, Option]) -> dict[str, object]:
    known = {**_file.KNOWN, **options}
    values: dict[str, object] = {}
    for variable, text in variables.items():
        name = variable.removeprefix(PREFIX).lower()
        if name not in known or variable != variable.upper():
            nearest = _file.nearest(name, known, lambda option: PREFIX + option.upper())
            raise UsageError(f"expected {PREFIX}<OPTION> in the environment, received {variable}; {nearest}")
        if text:
            right = checked(known[name], parsed(known[name], text), variable)
            values[name] = at_home(right, variable) if isinstance(right, Path) else right
    return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
