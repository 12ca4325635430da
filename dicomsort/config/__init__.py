"""The settings of a command: a flag beats the environment (``DICOMSORT_*``), which beats a TOML file, that the default.

``settings`` declares the options of each command; all commands may share one file and one environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomsort.config import file as _file
from dicomsort.config.file import TABLES, Written
from dicomsort.config.settings import (
    DAY,
    MOST_PORT,
    RECEIVE,
    SEND,
    SORT,
    TRAINING,
    WATCH,
    Destination,
    Option,
    ReceiveSettings,
    Routes,
    SendSettings,
    SortSettings,
    TrainSettings,
    WatchSettings,
    at_home,
    checked,
    parsed,
    quoted,
)
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "DAY",
    "MOST_PORT",
    "RECEIVE",
    "SEND",
    "SORT",
    "TABLES",
    "TRAINING",
    "WATCH",
    "Destination",
    "Option",
    "ReceiveSettings",
    "Routes",
    "SendSettings",
    "SortSettings",
    "TrainSettings",
    "WatchSettings",
    "checked",
    "load_receive",
    "load_send",
    "load_sort",
    "load_watch",
    "parsed",
    "quoted",
]

PREFIX = "DICOMSORT_"
INHERITS = {"watch": ("sort",)}  # whose tables hold for a command where its own says nothing
SCOPED = ("send", "receive")  # whose variables have their name: DICOMSORT_SEND_RETRIES


def load_sort(
    cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None
) -> tuple[SortSettings, Routes]:
    """The settings of ``sort``, from the flags, the environment, and the file (also by ``DICOMSORT_CONFIG``).

    Beside them, the routes of the file, where ``watch`` would sort with the same model by it. ``cli`` maps names of
    options to typed values, None where a flag was not given. Empty variables count as not given. Relative paths in the
    file start at its folder. Raises ``UsageError`` for a name that is no option, a value of the wrong type or out of
    range, and a file that cannot be read or is no TOML. ``file`` may be what was read of it already.
    """
    written = _written(environ, file)
    settings = SortSettings(**_resolved("sort", cli, environ, written))
    is_same = _resolved("watch", {}, environ, written)["model"] == settings.model
    return settings, written.routes if is_same else {}


def load_watch(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None) -> WatchSettings:
    """The settings of ``watch``, which sorts: where ``[watch]`` says nothing, ``[sort]`` holds."""
    written = _written(environ, file)
    values = _resolved("watch", cli, environ, written)
    every = values.pop("every")
    return WatchSettings(SortSettings(dry_run=False, **values), every, written.routes)


def load_receive(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None) -> ReceiveSettings:
    """The settings of ``receive``, resolved as by ``load_sort``."""
    return ReceiveSettings(**_resolved("receive", cli, environ, _written(environ, file)))


def load_send(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None) -> SendSettings:
    """The settings of ``send``; ``to`` may name a table ``[destinations.NAME]``.

    What that table does not say has its default, whatever ``[send]`` says: a password is for one destination.
    """
    written = _written(environ, file)
    values = _resolved("send", cli, environ, written)
    named = written.destinations.get(values["to"] or "")
    if named is not None:
        given = _from_environment(environ, "send") | {name: value for name, value in cli.items() if value is not None}
        values |= {name: value for name, value in named.values().items() if name == "to" or name not in given}
    elif written.destinations and values["to"] and "@" not in values["to"] and "://" not in values["to"]:
        near = _file.nearest(values["to"], written.destinations)
        raise UsageError(f"--to: expected an address or the name of a destination, received {values['to']!r}; {near}")
    return SendSettings(**values)


def _written(environ: Mapping[str, str], file: Path | Written | None) -> Written:
    """What the file says; it is read once, for it may be a pipe."""
    if isinstance(file, Written):
        return file
    named = environ.get(f"{PREFIX}CONFIG", "")
    file = file or (at_home(Path(named), f"{PREFIX}CONFIG") if named else None)
    return Written() if file is None else _file.read(file)


def _resolved(command: str, cli: Mapping[str, object], environ: Mapping[str, str], written: Written) -> dict[str, Any]:
    """The value of each option of a command."""
    options = TABLES[command]
    values: dict[str, Any] = {name: option.default for name, option in options.items()}
    for table in (_file.TOP, *INHERITS.get(command, ()), command):
        values |= {name: value for name, value in written.tables.get(table, {}).items() if name in options}
    values |= {name: value for name, value in _from_environment(environ, command).items() if name in options}
    values |= {name: checked(options[name], value, _flag(name)) for name, value in cli.items() if value is not None}
    if cli.get("scheduler") is not None and values["engine"] != "dask":
        raise UsageError(f"--scheduler: expected --engine dask beside it, received --engine {values['engine']}")
    return values


def _from_environment(environ: Mapping[str, str], command: str) -> dict[str, object]:
    """What the environment says for a command; every variable is checked, whatever command it is for."""
    known = dict(_variables(command))
    values: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG":
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known or variable != variable.upper():
            nearest = _file.nearest(name, known, lambda each: PREFIX + each.upper())
            raise UsageError(f"expected {PREFIX}<OPTION> in the environment, received {variable}; {nearest}")
        scope, option_name, option = known[name]
        if text:
            right = checked(option, parsed(option, text), variable)
            if scope == (command if command in SCOPED else ""):
                values[option_name] = at_home(right, variable) if isinstance(right, Path) else right
    return values


def _variables(command: str) -> Iterator[tuple[str, tuple[str, str, Option]]]:
    """Each variable without its prefix, in small letters: the command that it is for, or "", and its option."""
    general = _file.KNOWN if command in SCOPED else {**_file.KNOWN, **TABLES[command]}
    yield from ((name, ("", name, option)) for name, option in general.items())
    for scope in SCOPED:
        yield from ((f"{scope}_{name}", (scope, name, option)) for name, option in TABLES[scope].items())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
