"""What ``sort`` and ``watch`` have in common: options from the tables, the mode's three flags, the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from dicomsort.config import Option, SortSettings
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from logging import Logger

    from dicomsort.engine import Engine
    from dicomsort.sorting import Request

SECONDS_PER_TASK = 10.0
BYTES_PER_TASK = 1 << 30
WARM = ("dicomsort.tasks",)
CONFIG = typer.Option(
    metavar="FILE",
    help="A TOML file of options; a flag beats the environment (DICOMSORT_*), which beats the file.",
)


def option(table: Mapping[str, Option], name: str, metavar: str | None = None) -> Any:
    """The command line's option of that name."""
    found = table[name]
    words = "|".join(found.kind) if isinstance(found.kind, tuple) else metavar
    return typer.Option("--" + name.replace("_", "-"), help=found.help, metavar=words)


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


def check_outputs(settings: SortSettings, request: Request) -> None:
    """UsageError where the log or the figures would spoil the inbox, the outbox, or somebody else's file."""
    from dicomsort.content import LOG
    from dicomsort.outputs import Gate
    from dicomsort.report.metrics import FILE

    gate = Gate({"INBOX": request.inbox}, request.outbox, request.bundle.labels)
    if settings.metrics is not None:
        gate.check_file(FILE.option, settings.metrics, FILE.content)
    if settings.log_file is not None:
        gate.check_file("--log-file", settings.log_file, LOG)


def log_of(settings: SortSettings) -> AbstractContextManager[Logger]:
    """The log that the settings name."""
    from dicomsort.cli.logs import logging_to

    return logging_to(settings.log_file, settings.log_format, settings.log_size, settings.log_count)


def engine_for(settings: SortSettings) -> Engine:
    """Open the engine that the settings name; the caller closes it."""
    from dicomsort.adapters import open_engine
    from dicomsort.engine import Limits

    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    return open_engine(settings.engine, settings.workers, settings.scheduler, limits=limits, warm=WARM)
