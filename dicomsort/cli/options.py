"""Options of the command line made from those of the settings, and what ``sort`` and ``watch`` have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dicomsort.config import Option, SortSettings, checked, parsed
from dicomsort.config.fields import flag_of
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.memory import ADDRESSES, require_address_space

if TYPE_CHECKING:
    from collections.abc import Iterator
    from logging import Logger

    from dicomsort.bundle import Bundle
    from dicomsort.cli.logs import Ending
    from dicomsort.engines.engine import Engine
    from dicomsort.sorting import SortRequest

SECONDS_PER_TASK = 10.0
BYTES_PER_TASK = 1 << 30
WARM_HEADERS = ("dicomsort.tasks",)
WARM = (*WARM_HEADERS, "dicomsort.pixels", "ai_edge_litert.interpreter")
CONFIG = typer.Option(
    parser=Path,  # with no parser, whether what is parsed holds a Path or its text depends on the release of Typer
    metavar="FILE",
    help="Read options from this TOML file. A flag beats the environment (DICOMSORT_*), which beats the file.",
)


def option(name: str, declared: Option, default: str = "") -> Any:
    """Return the command line's option of that name; its help ends with ``default``, and with a number's range."""
    flag = declared.flag or flag_of(name)
    declared = declared._replace(help=declared.help + default)
    if declared.kind not in {int, float}:
        metavar = "|".join(declared.kind) if isinstance(declared.kind, tuple) else declared.metavar or None
        parser = Path if declared.kind is Path and not declared.is_list else None
        return typer.Option(flag, help=declared.help, metavar=metavar, parser=parser)

    def parse(value: Any) -> Any:
        return checked(declared, parsed(declared, value) if isinstance(value, str) else value, flag)

    metavar = declared.metavar or ("INTEGER" if declared.kind is int else "FLOAT")
    return typer.Option(flag, help=declared.described, metavar=metavar, parser=parse)


def with_options(
    table: Mapping[str, Option], *, is_resolved: bool = False, shows_defaults: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of a table, behind its arguments; it gets their values as keywords.

    ``is_resolved``: environment and file may give a value too, so an option that is not given is None (or empty);
    ``shows_defaults``: the help shows the default then.
    """
    made = {}
    for name, declared in table.items():
        default = None if is_resolved else declared.default
        is_shown = shows_defaults and declared.default and declared.default is not True
        words = f" [default: {declared.default}]" if is_shown else ""
        kind: Any = str if isinstance(declared.kind, tuple) else declared.kind
        hint = list[str] | None if declared.is_list else kind | None if default is None else kind
        if not declared.flags_of_words:
            made[name] = _parameter(name, Annotated[hint, option(name, declared, words)], default)
        for word, help_ in declared.flags_of_words:
            made[word] = _parameter(word, Annotated[bool, typer.Option(f"--{word}", help=help_)], default=False)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
        own = [each.replace(annotation=hints[each.name]) for each in own]
        parameters = sorted([*own, *made.values()], key=lambda each: (each.kind, each.name not in made))

        @wraps(command)
        def called(**values: object) -> None:
            command(**gathered(table, values))

        vars(called)["__signature__"] = inspect.Signature(parameters)
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return decorate


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def gathered(table: Mapping[str, Option], values: dict[str, object]) -> dict[str, object]:
    """Return the values with one for the flags that are words of one option; UsageError where two were given."""
    for name, declared in table.items():
        words = [word for word, _ in declared.flags_of_words]
        given = [word for word in words if values.pop(word)]
        if len(given) > 1:
            expected = ", ".join(f"--{word}" for word in words)
            raise UsageError(f"expected one of {expected}, received " + " and ".join(f"--{word}" for word in given))
        if words:
            values[name] = given[0] if given else None
    return values


def check_outputs(settings: SortSettings, inbox: str, outbox: str | None, labels: Collection[str]) -> None:
    """UsageError where the log or the figures would spoil the inbox, the outbox, or somebody else's file."""
    from dicomsort.outputs import Gate
    from dicomsort.own_files import LOG
    from dicomsort.report.metrics import FILE

    gate = Gate({"INBOX": inbox}, outbox, labels)
    if settings.metrics is not None:
        gate.check_file(FILE.option, settings.metrics, FILE.kind)
    if settings.log_file is not None:
        gate.check_file("--log-file", settings.log_file, LOG)


@contextmanager
def logged(
    command: str, settings: SortSettings, inbox: str, outbox: str | None, check: Callable[[], SortRequest]
) -> Iterator[tuple[Logger, Ending, SortRequest]]:
    """Yield the log that the settings name, the command's last line in it, and the request that ``check`` returns.

    The error that it raises is logged, too. The log is opened later, as only the request tells the outbox's own names.
    """
    from dicomsort.cli.logs import LAST_LINES, log_ending, logging_to

    failure: Exception | None = None
    try:
        request = check()
    except (DicomsortError, OSError) as error:
        failure = error
    check_outputs(settings, inbox, outbox, () if failure else request.bundle.labels)
    to = (settings.log_file, settings.log_format, settings.log_size, settings.log_count)
    with logging_to(*to) as log, log_ending(log, LAST_LINES[command]) as end:
        if failure:
            raise failure
        yield log, end, request


def require_room(engine: str = "processes") -> None:
    """Raise ``DicomsortError`` where workers could not have the address space that a task may take.

    Call it before modules and a model are loaded, which would fail in other words.
    """
    if engine == "processes":
        require_address_space(ADDRESSES + BYTES_PER_TASK)


def engine_for(settings: SortSettings) -> Engine:
    """Open the engine that the settings name; the caller closes it."""
    warm = WARM_HEADERS if settings.evidence == "header" else WARM
    return open_workers(settings.workers, warm, settings.engine, settings.scheduler)


def open_workers(
    workers: int | None, warm: tuple[str, ...] = WARM, engine: str = "processes", scheduler: str | None = None
) -> Engine:
    """Open workers with the limits of sorting, so that a hostile file costs its own time and memory.

    ``workers``: None leaves their number to the engine. ``warm`` are modules that each loads before its first task.
    """
    from dicomsort.engines import open_engine
    from dicomsort.engines.engine import TaskLimits

    return open_engine(engine, workers, scheduler, limits=TaskLimits(SECONDS_PER_TASK, BYTES_PER_TASK), warm=warm)


def bundle_of(model: Path | None) -> Bundle:
    """Load a bundle, None: the one that ships, once there is room for workers that judge by it."""
    require_room()
    from dicomsort.bundle import default_path, load

    return load(model or default_path())
