"""``resume``, ``undo``, ``runs`` and ``verify``: what can be done with the runs of an outbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.console import EXIT_NEEDS_PERSON, optional, resumable, show_summary
from dicomsort.cli.options import option, with_options
from dicomsort.config.settings import REPORT, RUNS, RunsSettings
from dicomsort.errors import counted
from dicomsort.progress import Silent, progress_bars

if TYPE_CHECKING:
    from dicomsort.records import Operation, Result
    from dicomsort.report import Summary
    from dicomsort.sorting import RunContext

Outbox = Annotated[str, typer.Argument(metavar="OUTBOX", help="An outbox that `dicomsort sort` has written to.")]
Run = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's id, as `dicomsort runs` lists them.")]
Json = Annotated[bool, option("json", RUNS["json"])]
Quiet = Annotated[bool, option("quiet", REPORT["quiet"])]
_TAIL = 6  # characters of a run's id that a table of 80 columns has room for


def resume(
    outbox: Outbox,
    run: Run = None,
    *,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="End RUN as it stands, without its inbox: what it has not done is failed.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Finish a run that was cut short; by default the newest.

    Example: dicomsort resume outbox/
    """
    from dicomsort import sorting

    _finish(lambda context: sorting.resume(context, run, gives_up=give_up), outbox, as_json=as_json, quiet=quiet)


def undo(
    outbox: Outbox,
    run: Run = None,
    *,
    with_decisions: Annotated[
        bool, typer.Option("--with-decisions", help="First take back the decisions about files that RUN held.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would happen; change nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take back a run; by default the newest that changed anything.

    Files get back their paths, modes and times. Folders that were removed are made again. Files that were there before,
    or changed since, are not touched. A decision of `review` is a run, too.

    Example: dicomsort undo --dry-run outbox/
    """
    from dicomsort import sorting

    show = (lambda *_: None) if as_json or quiet else _show
    if dry_run:
        optional(is_optional=False)
        act = lambda context: sorting.rehearse_undo(context, run, show, with_decisions=with_decisions)
    else:
        act = lambda context: sorting.undo(context, run, with_decisions=with_decisions)
    _finish(act, outbox, as_json=as_json, quiet=quiet)


def _show(operation: Operation, refused: Result | None) -> None:
    from dicomsort.report import visible

    place = visible(operation.source.partition("/")[2])
    target = f" -> {visible(operation.target.partition('/')[2])}" if operation.target else ""
    verb, reason = ("stays", f"  [{refused.message}]") if refused else (operation.verb.value, "")
    print(f"{verb:<13} {place}{target}{reason}")


def _finish(act: Callable[[RunContext], Summary], outbox: str, *, as_json: bool, quiet: bool) -> None:
    from dicomsort.files import Files
    from dicomsort.sorting import RunContext

    with resumable(outbox), progress_bars(quiet=quiet or as_json) as progress:
        summary = act(RunContext(outbox, Files(), progress))
    show_summary(summary, as_json=as_json, quiet=quiet, outbox=outbox)
    raise typer.Exit(EXIT_NEEDS_PERSON if summary.needs_person else 0)


@with_options(RUNS)
def runs(outbox: Outbox, **flags: Any) -> None:
    """List the runs of an outbox, or remove the state of old runs.

    The oldest run stands first. --prune and --keep remove state for good: such a run can not be undone or resumed any
    more. The sorted files and manifest.csv stay. With both options, a run is removed only if neither keeps it.

    Example: dicomsort runs --prune 90 --keep 10 outbox/
    """
    from dicomsort.sorting import list_runs

    settings = RunsSettings(**flags)
    if settings.prune is not None or settings.keep is not None:
        _prune(outbox, settings)
        return
    listed = list_runs(outbox)
    if settings.json:
        typer.echo(json.dumps(listed, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from dicomsort.report import visible

    run_id = Column("run", no_wrap=True, min_width=max((len(run["run_id"]) for run in listed), default=0))
    table = Table(run_id, "what", "state", "files", "sorted", "for a person", "mode")
    for run in listed:
        verb = f"undo of …{run['undoes'][-_TAIL:]}" if run["undoes"] else run["verb"]
        cells = (run["run_id"], verb, *(run[cell] for cell in ("state", "found", "sorted", "held", "mode")))
        table.add_row(*(escape(str(cell)) for cell in cells))
    console = Console(soft_wrap=True)
    console.print(table)
    for damage in (run["damage"] for run in listed if "damage" in run):
        console.print(escape(f"{visible(damage)}; the run is left alone"))


def _prune(outbox: str, settings: RunsSettings) -> None:
    from dicomsort.files import Files
    from dicomsort.sorting import RunContext, prune

    optional()
    pruned = prune(RunContext(outbox, Files(), Silent()), settings.prune, settings.keep)
    if settings.json:
        typer.echo(json.dumps(vars(pruned), indent=1))
        return
    removed = counted(len(pruned.removed), "run")
    typer.echo(f"removed the state of {removed}, {counted(pruned.bytes, 'byte')}; {pruned.kept:,} kept")
    for run, reason in pruned.needed.items():
        typer.echo(f"kept {run}: {reason}")


_REPAIR = "First repair a damaged manifest.csv. The damaged file is kept beside it."


def verify(
    outbox: Outbox,
    *,
    repair: Annotated[bool, typer.Option("--repair", help=_REPAIR)] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that sorted files, manifest and state are whole.

    It hashes every file that was placed, compares it with the manifest, and reads the state of every run. The exit code
    is 3 if a file is gone, differs or cannot be read, or if the manifest or a run is damaged, unfinished or lost rows.

    --repair writes manifest.csv again, from all rows that can be read and from the rows in the runs' own records. It
    keeps the damaged file as manifest.csv.damaged-TIME.

    Example: dicomsort verify outbox/
    """
    from dicomsort.files import Files
    from dicomsort.sorting import RunContext
    from dicomsort.sorting import verify as check

    with progress_bars(quiet=quiet or as_json) as progress:
        context = RunContext(outbox, Files(), progress)
        repaired = _repaired(context) if repair else {}
        result = repaired | check(context)
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        _show_verified(result)
    states = ("missing", "different", "unreadable", "damaged", "runs", "unfinished")
    needs_person = any(result[state] for state in states) or repaired.get("repaired", {}).get("skipped")
    raise typer.Exit(EXIT_NEEDS_PERSON if needs_person else 0)


def _repaired(context: RunContext) -> dict[str, Any]:
    from dicomsort.sorting import repair

    repaired = repair(context)
    damages = repaired.damages
    return {
        "repaired": {
            "kept": repaired.kept, "added": repaired.added, "unreadable": damages.count, "lines": damages.lines,
            "damaged_as": repaired.damaged_as, "skipped": repaired.skipped, "message": repaired.message,
        }
    }  # fmt: skip


def _show_verified(result: dict[str, Any]) -> None:
    from dicomsort.report import visible

    if repaired := result.get("repaired"):
        typer.echo(f"manifest.csv: {counted(repaired['kept'], 'row')} kept, {repaired['added']:,} added from the runs")
        if unreadable := repaired["unreadable"]:
            more = "" if unreadable == len(repaired["lines"]) else "; and more"
            typer.echo(
                f"{counted(unreadable, 'line')} could not be read: {visible('; '.join(repaired['lines']))}{more}"
            )
        if repaired["damaged_as"]:
            typer.echo(f"the damaged manifest is kept as {repaired['damaged_as']}")
        for sentence in repaired["skipped"]:
            typer.echo(visible(f"skipped: {sentence}"))
        if repaired["message"]:
            typer.echo(f"manifest.csv: {repaired['message']}")
    typer.echo(counted(result["whole"], "file holds", "files hold") + " the bytes that the manifest says")
    for state in ("missing", "different", "unreadable"):
        for path in result[state]:
            typer.echo(f"{state}: {visible(path)}")
    damages = [f"{damage}; the run is left alone" for damage in result["runs"]]
    for sentence in (*result["damaged"], *damages, *result["unfinished"]):
        typer.echo(visible(sentence))
