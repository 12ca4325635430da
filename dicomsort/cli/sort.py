"""``dicomsort sort``: flags, environment and file to settings, settings to one call, its result to an exit code."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomsort.cli.console import EXIT_NEEDS_PERSON, optional, resumable, show_summary
from dicomsort.cli.options import CONFIG, engine_for, logged, require_room, with_options
from dicomsort.config import SORT, Routes, SortSettings, load_sort
from dicomsort.errors import DicomsortError
from dicomsort.progress import progress_bars

if TYPE_CHECKING:
    from logging import Logger

    from dicomsort.engines.engine import Engine
    from dicomsort.files import Files
    from dicomsort.records import Operation
    from dicomsort.report import Summary
    from dicomsort.sorting import SortRequest

_TROUBLES = frozenset({"failed", "changed"})  # reasons that ``Summary.trouble`` explains


@with_options(SORT, is_resolved=True)
def sort(
    inbox: Annotated[str, typer.Argument(metavar="INBOX", help="The folder to sort, with all folders below it.")],
    outbox: Annotated[
        str | None,
        typer.Argument(metavar="OUTBOX", help="The folder for classes, manifest and state; made if missing."),
    ] = None,
    config: Annotated[Path | None, CONFIG] = None,
    **flags: object,
) -> None:
    """Sort the files of INBOX into OUTBOX: one folder per class.

    Headers and pixels decide. What they do not decide goes to OUTBOX/REVIEW for a person (exit code 3).

    Example: dicomsort sort --move --layout readable inbox/ outbox/
    """
    settings, routes = load_sort(flags, os.environ, config)
    optional(is_optional=not settings.dry_run)
    with resumable(None if settings.dry_run else outbox):
        require_room(settings.engine)
        with engine_for(settings) as engine:
            engine.warm_up()  # a worker imports its modules while this process imports others
            code = _sort(engine, inbox, outbox, settings, routes)
    raise typer.Exit(code)


def _sort(engine: Engine, inbox: str, outbox: str | None, settings: SortSettings, routes: Routes) -> int:
    from dicomsort.files import Files
    from dicomsort.report import Summary
    from dicomsort.sorting import RunContext, sort_inbox

    files, counted = Files(), Summary()
    check = partial(_check, inbox, outbox, settings, routes)
    with logged("sort", settings, inbox, outbox, check) as (log, end, request):
        log.info("sort begins", extra={"facts": {"mode": settings.mode, "dry_run": settings.dry_run}})
        show = (lambda _: None) if settings.json or settings.quiet else _show
        with progress_bars(quiet=settings.quiet or settings.json) as progress:
            context = RunContext(request.outbox or "", files, progress, counted.count)
            summary = sort_inbox(request, context, engine, show)
        end.exit_code, end.cause, end.facts = _code(summary, settings), _cause(summary, outbox or ""), summary.as_json()
        if settings.metrics is not None and not settings.dry_run:
            _measure(request, settings.metrics, files, counted, summary, log)
    show_summary(summary, as_json=settings.json, quiet=settings.quiet, outbox=outbox)
    return end.exit_code


def _check(inbox: str, outbox: str | None, settings: SortSettings, routes: Routes) -> SortRequest:
    from dicomsort.config.routes import check_classes
    from dicomsort.sorting import check

    request = check(inbox, outbox, settings)
    check_classes(routes, request.bundle.labels)  # `watch` would fail by it
    return request


def _code(summary: Summary, settings: SortSettings) -> int:
    """Return 3 where something needs a person; ``--held-ok`` excuses what is held, and never what failed."""
    return EXIT_NEEDS_PERSON if summary.has_failed or (summary.needs_person and not settings.held_ok) else 0


def _cause(summary: Summary, outbox: str) -> str:
    summaries = (summary, *summary.finished)
    troubles = [each.trouble for each in summaries]
    counts = sum((each.held for each in summaries), Counter[str]()).most_common()
    held = ", ".join(f"{reason} {count:,}" for reason, count in counts if reason not in _TROUBLES)
    return "; ".join(filter(None, (*summary.unfinished_notes(outbox), *troubles, held and f"held: {held}")))


def _measure(request: SortRequest, path: Path, files: Files, counted: Summary, summary: Summary, log: Logger) -> None:
    """Write the figures of a run; an error is logged and printed, and is no failure of the run."""
    from dicomsort import __version__
    from dicomsort.report.metrics import Figures, last_success, set_file_metrics, set_run_metrics, write_metrics
    from dicomsort.sorting import survey

    figures = Figures()
    figures.set("dicomsort_info", 1, version=__version__)
    success = last_success(path) if summary.has_failed else int(time.time())
    if success is not None:
        figures.set("dicomsort_last_success_timestamp_seconds", success)
    set_run_metrics(figures, counted, summary.seconds)
    left = survey(request.inbox, request.outbox)
    set_file_metrics(figures, summary.waiting, left.files, left.oldest_ns)
    try:
        write_metrics(files, path, figures)
    except (DicomsortError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        log.warning("metrics could not be written", extra={"facts": {"message": reason}})
        print(f"dicomsort: the metrics could not be written: {reason}", file=sys.stderr)


def _show(operation: Operation) -> None:
    from dicomsort.report import visible

    row = operation.row
    if row is None:
        print(f"prune     {visible(operation.source.removeprefix('inbox/'))}")
    else:
        target = f" -> {visible(row.destination)}" if row.destination else ""
        verb = operation.verb.value if operation.verb != "leave" else row.status
        print(f"{verb:<9} {visible(row.source)}{target}  [{row.reason}]")
