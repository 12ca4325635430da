"""The values of a command's options: flags, then environment variables, then the TOML file, then defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomsort.config.fields import Option, at_home, checked, flag_of, parsed
from dicomsort.config.file import KNOWN, TABLES, TOP, Written, nearest, read
from dicomsort.config.settings import ReceiveSettings, Routes, SendSettings, SortSettings, WatchSettings
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "DICOMSORT_"
INHERITS = {"watch": ("sort",)}  # whose tables hold for a command where its own says nothing
SCOPED = ("send", "receive")  # whose variables have their name: DICOMSORT_SEND_RETRIES


def load_sort(
    cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None
) -> tuple[SortSettings, Routes]:
    """Return the settings of ``sort``, from the flags, the environment, and the file (also by ``DICOMSORT_CONFIG``).

    Beside them, the routes of the file, where ``watch`` would sort with the same model by it. ``cli`` maps names of
    options to typed values, None where a flag was not given. Empty variables count as not given. Relative paths in the
    file start at its folder. ``file`` may be its content. Raises ``UsageError`` for an unknown name, a value of the
    wrong type or out of range, and a file that cannot be read or is no TOML.
    """
    written = _written(environ, file)
    settings = SortSettings(**_resolved("sort", cli, environ, written))
    is_same = _resolved("watch", {}, environ, written)["model"] == settings.model
    return settings, written.routes if is_same else {}


def load_watch(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None) -> WatchSettings:
    """Return the settings of ``watch``, which sorts: where ``[watch]`` says nothing, ``[sort]`` holds."""
    written = _written(environ, file)
    values = _resolved("watch", cli, environ, written)
    every = values.pop("every")
    return WatchSettings(SortSettings(dry_run=False, **values), every, written.routes)


def load_receive(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None) -> ReceiveSettings:
    """Return the settings of ``receive``, resolved as by ``load_sort``."""
    return ReceiveSettings(**_resolved("receive", cli, environ, _written(environ, file)))


def load_send(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | Written | None) -> SendSettings:
    """Return the settings of ``send``; ``to`` may name a table ``[destinations.NAME]``.

    What that table does not say has its default, whatever ``[send]`` says: a password is for one destination.
    """
    written = _written(environ, file)
    values = _resolved("send", cli, environ, written)
    named = written.destinations.get(values["to"] or "")
    if named is not None:
        given = _from_environment(environ, "send") | {name: value for name, value in cli.items() if value is not None}
        values |= {name: value for name, value in named.values().items() if name == "to" or name not in given}
    elif written.destinations and values["to"] and "@" not in values["to"] and "://" not in values["to"]:
        near = nearest(values["to"], written.destinations)
        raise UsageError(f"--to: expected an address or the name of a destination, received {values['to']!r}; {near}")
    return SendSettings(**values)


def _written(environ: Mapping[str, str], file: Path | Written | None) -> Written:
    """Return the content of the file; it is read once, for it may be a pipe."""
    if isinstance(file, Written):
        return file
    named = environ.get(f"{PREFIX}CONFIG", "")
    file = file or (at_home(Path(named), f"{PREFIX}CONFIG") if named else None)
    return Written() if file is None else read(file)


def _resolved(command: str, cli: Mapping[str, object], environ: Mapping[str, str], written: Written) -> dict[str, Any]:
    options = TABLES[command]
    values: dict[str, Any] = {name: option.default for name, option in options.items()}
    layers = [written.tables.get(table, {}) for table in (TOP, *INHERITS.get(command, ()), command)]
    for layer in (*layers, _from_environment(environ, command)):
        values |= {name: value for name, value in layer.items() if name in options}
    flags = {name: value for name, value in cli.items() if value is not None}
    values |= {name: checked(options[name], flags[name], flag_of(name)) for name in flags}
    if "scheduler" in flags and values["engine"] != "dask":
        raise UsageError(f"--scheduler: expected --engine dask beside it, received --engine {values['engine']}")
    return values


def _from_environment(environ: Mapping[str, str], command: str) -> dict[str, object]:
    """Return the values that the environment has for a command; every variable is checked, whatever it is for."""
    scope_of_command, known = command if command in SCOPED else "", _variables(command)
    values: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG":
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known or variable != variable.upper():
            near = nearest(name, known, lambda each: PREFIX + each.upper())
            raise UsageError(f"expected {PREFIX}<OPTION> in the environment, received {variable}; {near}")
        scope, option_name, option = known[name]
        if text:
            value = checked(option, parsed(option, text), variable)
            if scope == scope_of_command:
                values[option_name] = at_home(value, variable) if isinstance(value, Path) else value
    return values


def _variables(command: str) -> dict[str, tuple[str, str, Option]]:
    """Return each variable, in small letters without its prefix: the command that it is for, or "", and its option."""
    general = KNOWN if command in SCOPED else {**KNOWN, **TABLES[command]}
    known = {name: ("", name, option) for name, option in general.items()}
    for scope in SCOPED:
        known |= {f"{scope}_{name}": (scope, name, option) for name, option in TABLES[scope].items()}
    return known
