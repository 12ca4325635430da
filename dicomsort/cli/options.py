"""What ``sort`` and ``watch`` have in common: options from the tables, the mode's three flags, the engine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dicomsort.config import Option, SortSettings, checked, load_watch, parsed
from dicomsort.errors import UsageError
from dicomsort.memory import ADDRESSES, require_address_space

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from logging import Logger

    from dicomsort.engine import Engine

SECONDS_PER_TASK = 10.0
BYTES_PER_TASK = 1 << 30
WARM = ("dicomsort.tasks",)
CONFIG = typer.Option(
    metavar="FILE",
    help="A TOML file of options; a flag beats the environment (DICOMSORT_*), which beats the file.",
)


def option(table: Mapping[str, Option], name: str, metavar: str | None = None, **more: Any) -> Any:
    """The command line's option of that name; ``more`` is for Typer."""
    found = table[name]
    flag = "--" + name.replace("_", "-")
    if found.kind in {int, float}:
        return number(flag, found, metavar, **more)
    words = "|".join(found.kind) if isinstance(found.kind, tuple) else metavar
    return typer.Option(flag, help=found.help, metavar=words, **more)


def with_options(table: Mapping[str, Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of a table; it gets them as keywords, None (or empty) where not given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
        hints = {**get_type_hints(command, include_extras=True)}
        hints = {each.name: hints[each.name] for each in own} | {name: _hint(table, name) for name in table}
        made = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in table]
        parameters = [each.replace(annotation=hints[each.name]) for each in own + made]

        @wraps(command)
        def called(**values: object) -> None:
            command(**values)

        vars(called)["__signature__"] = inspect.Signature(parameters)
        called.__annotations__ = hints
        return called

    return decorate


def _hint(table: Mapping[str, Option], name: str) -> Any:
    """The annotation that makes Typer's option of one of the table."""
    found = table[name]
    default = f" [default: {found.default}]" if found.default and found.default is not True else ""
    made = option({name: found._replace(help=found.help + default)}, name, found.metavar or None)
    kind: Any = str if isinstance(found.kind, tuple) else found.kind
    return Annotated[list[str] | None if found.is_list else kind | None, made]


def number(flag: str, found: Option, metavar: str | None = None, **more: Any) -> Any:
    """The command line's option for a number: its help tells the range, and what is no number in it is refused."""
    metavar = metavar or ("INTEGER" if found.kind is int else "FLOAT")

    def parse(value: Any) -> Any:
        return checked(found, parsed(found, value) if isinstance(value, str) else value, flag)

    return typer.Option(flag, help=found.described, metavar=metavar, parser=parse, **more)


def mode_flag(mode: str, help_: str) -> Any:
    """One of the flags that say what to do with the files."""
    return typer.Option(f"--{mode}", help=help_)


def flags_of(context: typer.Context, table: Mapping[str, Option]) -> dict[str, object]:
    """What was given on the command line, by option; UsageError where two modes were."""
    modes = [mode for mode in ("copy", "move", "link") if context.params[mode]]
    if len(modes) > 1:
        raise UsageError("expected one of --copy, --move, --link, received " + " and ".join(f"--{m}" for m in modes))
    flags = {name: value for name, value in context.params.items() if name in table}
    return flags | {"mode": modes[0] if modes else None}


def check_routes_too(config: Path | None, settings: SortSettings, labels: Collection[str]) -> None:
    """UsageError where ``[routes]`` of the file names a class that the model has not; ``watch`` would fail by it."""
    from dicomsort.service.routes import check_classes

    watch = load_watch({}, os.environ, config)
    if watch.sort.model == settings.model:
        check_classes(watch.routes, labels)


def check_outputs(settings: SortSettings, inbox: str, outbox: str | None, labels: Collection[str]) -> None:
    """UsageError where the log or the figures would spoil the inbox, the outbox, or somebody else's file."""
    from dicomsort.content import LOG
    from dicomsort.outputs import Gate
    from dicomsort.report.metrics import FILE

    gate = Gate({"INBOX": inbox}, outbox, labels)
    if settings.metrics is not None:
        gate.check_file(FILE.option, settings.metrics, FILE.content)
    if settings.log_file is not None:
        gate.check_file("--log-file", settings.log_file, LOG)


def log_of(settings: SortSettings) -> AbstractContextManager[Logger]:
    """The log that the settings name."""
    from dicomsort.cli.logs import logging_to

    return logging_to(settings.log_file, settings.log_format, settings.log_size, settings.log_count)


def require_room(engine: str = "processes") -> None:
    """Raise ``DicomsortError`` where workers could not have the address space that a task may take.

    It is asked before modules and a model are loaded, which would fail in other words.
    """
    if engine == "processes":
        require_address_space(ADDRESSES + BYTES_PER_TASK)


def engine_for(settings: SortSettings) -> Engine:
    """Open the engine that the settings name; the caller closes it."""
    from dicomsort.adapters import open_engine
    from dicomsort.engine import Limits

    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    return open_engine(settings.engine, settings.workers, settings.scheduler, limits=limits, warm=WARM)
