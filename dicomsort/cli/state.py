"""``resume``, ``undo``, ``runs`` and ``verify``: what can be done with the runs of an outbox."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dicomsort.cli.console import show_summary, watching

Outbox = Annotated[str, typer.Argument(metavar="OUTBOX", help="An outbox that `dicomsort sort` has written to.")]
Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id, as `dicomsort runs` lists them.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout instead.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
NEEDS_PERSON = 3


def resume(outbox: Outbox, run: Run = None, *, as_json: Json = False, quiet: Quiet = False) -> None:
    """Go on with a run that was cut short.

    The newest unfinished one by default.
    """
    _finish("resume", outbox, run, as_json=as_json, quiet=quiet)


def undo(outbox: Outbox, run: Run = None, *, as_json: Json = False, quiet: Quiet = False) -> None:
    """Take a run back, the newest by default.

    Paths, modes, times and folders are as they were before it. What was there before, or changed since, is not touched.
    """
    _finish("undo", outbox, run, as_json=as_json, quiet=quiet)


def _finish(verb: str, outbox: str, run: str | None, *, as_json: bool, quiet: bool) -> None:
    from dicomsort import sorting
    from dicomsort.files import Files

    with watching(quiet=quiet or as_json) as progress:
        summary = {"resume": sorting.resume, "undo": sorting.undo}[verb](outbox, run, progress, Files())
    show_summary(summary, as_json=as_json, quiet=quiet, outbox=outbox)
    raise typer.Exit(NEEDS_PERSON if summary.needs_person else 0)


def runs(outbox: Outbox, *, as_json: Json = False) -> None:
    """List the runs of an outbox, oldest first."""
    from dicomsort.sorting import list_runs

    listed = list_runs(outbox)
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "what", "state", "files", "sorted", "held", "mode")
    for run in listed:
        cells = ("run_id", "verb", "state", "found", "sorted", "held", "mode")
        table.add_row(*(str(run[cell]) for cell in cells))
    Console().print(table)


def verify(outbox: Outbox, *, as_json: Json = False, quiet: Quiet = False) -> None:
    """Hash what was placed and compare with the manifest.

    Exit code 3 where a file is gone or differs.
    """
    from dicomsort.report import visible
    from dicomsort.sorting import verify as check

    with watching(quiet=quiet or as_json) as progress:
        result = check(outbox, progress)
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        typer.echo(f"{result['whole']:,} files hold the bytes that the manifest says")
        for state in ("missing", "different"):
            for path in result[state]:
                typer.echo(f"{state}: {visible(path)}")
    raise typer.Exit(NEEDS_PERSON if result["missing"] or result["different"] else 0)
