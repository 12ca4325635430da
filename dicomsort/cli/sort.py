"""``dicomsort sort``: flags, environment and file to settings, settings to one call, its result to an exit code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.console import show_summary, watching
from dicomsort.config import OPTIONS, SortSettings, load
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from dicomsort.records import Operation

NEEDS_PERSON = 3
SECONDS_PER_TASK = 10.0
BYTES_PER_TASK = 1 << 30
WARM = ("dicomsort.tasks",)


def _option(name: str, metavar: str | None = None) -> Any:
    option = OPTIONS[name]
    words = "|".join(option.kind) if isinstance(option.kind, tuple) else metavar
    return typer.Option("--" + name.replace("_", "-"), help=option.help, metavar=words)


def _mode_flag(mode: str, help_: str) -> Any:
    return typer.Option(f"--{mode}", help=help_)


_CONFIG = typer.Option(
    metavar="FILE",
    help="A TOML file of options; a flag beats the environment (DICOMSORT_*), which beats the file.",
)


def sort(  # the parameters are what Typer makes options of; they are read from the context
    context: typer.Context,
    inbox: Annotated[str, typer.Argument(metavar="INBOX", help="The folder to sort, with all folders below it.")],
    outbox: Annotated[
        str | None, typer.Argument(metavar="[OUTBOX]", help="Where classes, manifest and state go; made if missing.")
    ] = None,
    *,
    copy: Annotated[bool, _mode_flag("copy", "Copy the files (the default).")] = False,
    move: Annotated[bool, _mode_flag("move", "Move the files.")] = False,
    link: Annotated[bool, _mode_flag("link", "Make hard links to the files.")] = False,
    dry_run: Annotated[bool | None, _option("dry_run")] = None,
    duplicates: Annotated[str | None, _option("duplicates")] = None,
    prune_empty: Annotated[bool | None, _option("prune_empty")] = None,
    settle: Annotated[float | None, _option("settle", "SECONDS")] = None,
    model: Annotated[Path | None, _option("model", "PATH")] = None,
    evidence: Annotated[str | None, _option("evidence")] = None,
    layout: Annotated[str | None, _option("layout", "uid|keep|readable|TEMPLATE")] = None,
    workers: Annotated[int | None, _option("workers", "N")] = None,
    engine: Annotated[str | None, _option("engine")] = None,
    scheduler: Annotated[str | None, _option("scheduler", "ADDRESS")] = None,
    config: Annotated[Path | None, _CONFIG] = None,
    json: Annotated[bool | None, _option("json")] = None,
    quiet: Annotated[bool | None, _option("quiet")] = None,
    log_file: Annotated[Path | None, _option("log_file", "FILE")] = None,
    log_format: Annotated[str | None, _option("log_format")] = None,
    held_ok: Annotated[bool | None, _option("held_ok")] = None,
) -> None:
    """Sort the files of INBOX into OUTBOX by what they show.

    Example: dicomsort sort --move --layout readable inbox/ outbox/
    """
    flags = {name: value for name, value in context.params.items() if name in OPTIONS}
    flags["mode"] = _mode(copy=copy, move=move, link=link)
    raise typer.Exit(_sort(inbox, outbox, load(flags, os.environ, config)))


def _mode(**chosen: bool) -> str | None:
    names = [name for name, is_set in chosen.items() if is_set]
    if len(names) > 1:
        raise UsageError("expected one of --copy, --move, --link, received " + " and ".join(f"--{n}" for n in names))
    return names[0] if names else None


def _sort(inbox: str, outbox: str | None, settings: SortSettings) -> int:
    from dicomsort.adapters import open_engine
    from dicomsort.cli.logs import logging_to
    from dicomsort.engine import Limits
    from dicomsort.files import Files
    from dicomsort.sorting import check, sort_inbox

    request = check(inbox, outbox, settings)
    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    with (
        logging_to(settings.log_file, settings.log_format) as log,
        open_engine(settings.engine, settings.workers, settings.scheduler, limits=limits, warm=WARM) as engine,
        watching(quiet=settings.quiet or settings.json) as progress,
    ):
        log.info("sort begins", extra={"facts": {"mode": settings.mode, "dry_run": settings.dry_run}})
        show = _nothing if settings.json or settings.quiet else _show
        summary = sort_inbox(request, engine, progress, Files(), show)
        log.info("sort ended", extra={"facts": summary.as_json()})
    show_summary(summary, as_json=settings.json, quiet=settings.quiet, outbox=outbox)
    return NEEDS_PERSON if summary.needs_person and not settings.held_ok else 0


def _show(operation: Operation) -> None:
    from dicomsort.report import visible

    row = operation.row
    if row is None:
        print(f"prune     {visible(operation.source.removeprefix('inbox/'))}")
    else:
        target = f" -> {visible(row.destination)}" if row.destination else ""
        verb = operation.verb.value if operation.verb != "leave" else row.status
        print(f"{verb:<9} {visible(row.source)}{target}  [{row.reason}]")


def _nothing(_: Operation) -> None:
    return
