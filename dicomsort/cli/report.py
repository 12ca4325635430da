"""``report``: what a run did, told again; with ``--html`` as a page with pictures of what needs a person."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.console import show_summary
from dicomsort.cli.options import bundle_of, open_workers, with_options
from dicomsort.cli.state import Outbox
from dicomsort.config.settings import REPORT, STDOUT, ReportSettings
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.progress import Progress, progress_bars

if TYPE_CHECKING:
    from dicomsort.pages.report import Report
    from dicomsort.sorting.inspection import ReportedRun


@with_options(REPORT)
def report(
    outbox: Outbox,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The id of a run (default: the newest sort).")
    ] = None,
    **flags: Any,
) -> None:
    """Show what a run did; --html makes a page with pictures.

    The page shows what needs a person. It fetches nothing. It shows patients' images, so only you may read the file.
    Nothing in the outbox changes.

    Example: dicomsort report --html morning.html outbox/
    """
    from dicomsort.sorting.inspection import reported_run

    settings = ReportSettings(**flags)
    found = reported_run(outbox, run)
    if settings.html is None:
        _show(found, settings)
    elif settings.json:
        raise UsageError("expected one of --html, --json, received both")
    else:
        _write(found, settings.html, settings)


def _show(run: ReportedRun, settings: ReportSettings) -> None:
    from dicomsort.pages.run_statistics import RunStatistics
    from dicomsort.report.manifest import rows_of
    from dicomsort.sorting.inspection import waiting_after

    summary = run.summary or RunStatistics.of(run.run, rows_of(run.outbox, run.run, doubtful=True)).summary
    waiting = waiting_after(run)
    summary.waiting, summary.waiting_from_other_runs = waiting.waiting, waiting.waiting_from_other_runs
    summary.unreadable = waiting.unreadable
    if run.undone_by:
        extent = "" if run.is_undone else " in part"
        summary.notes.append(f"this run was undone{extent} by {run.undone_by}")
    if not run.head:
        summary.notes.append("this run was pruned: how long it took may not be known any more")
    show_summary(summary, as_json=settings.json, quiet=settings.quiet, outbox=run.outbox)


def _write(run: ReportedRun, html: str, settings: ReportSettings) -> None:
    from dicomsort.files import Files
    from dicomsort.outputs import Gate
    from dicomsort.own_files import DEVICES
    from dicomsort.pages.report_page import FILE, page
    from dicomsort.report.text import size, visible

    if html != STDOUT:
        reads = {"inbox": run.head["inbox"]} if run.head else {}
        Gate(reads, run.outbox).check_file("--html", Path(html), FILE.kind)
    with progress_bars(quiet=settings.quiet) as progress:
        content = page(_make(run, settings, progress))
    if html == STDOUT:
        typer.echo(content, nl=False)
        return
    try:
        FILE.write(Files(), Path(html), content)
    except OSError as error:
        room = f"{len(content):,} bytes could not be written"
        raise DicomsortError(f"--html: expected a place for the page, received {error.strerror} ({room})") from error
    if not settings.quiet and html not in DEVICES:
        typer.echo(f"The page is {visible(os.path.abspath(html))} ({size(len(content))})", err=True)


def _make(run: ReportedRun, settings: ReportSettings, progress: Progress) -> Report:
    from dicomsort.pages.report import make

    if not settings.pictures:
        return make(run, None, None, 0, progress)
    bundle = bundle_of(settings.model)
    with open_workers(settings.workers) as engine:
        return make(run, bundle, engine, settings.pictures, progress)
