"""``evaluate``: how right a bundle is on a folder of images a class, with intervals, as table, JSON and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.options import BYTES_PER_TASK, SECONDS_PER_TASK
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomsort.training.cardtables import Table

SKIPPED_SAID = 10


def evaluate(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with a folder of images a class.")],
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The bundle to judge by (default: the one that ships).")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where metrics.json, card.md and pictures go.")] = Path(
        "evaluation"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV (source, group): source folders that count as one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the resamples, and the folds.")] = 0,
    shortcuts: Annotated[
        bool, typer.Option("--shortcuts", help="Also judge images with masked borders, pasted text and so on.")
    ] = False,
    cross_validate: Annotated[
        str | None,
        typer.Option(metavar="source", help="Train the recipe anew without the sources that are judged (TensorFlow)."),
    ] = None,
    folds: Annotated[int, typer.Option(min=0, help="Parts that the sources are held out in; 0: one by one.")] = 10,
    update: Annotated[bool, typer.Option("--update", help="Replace the bundle's own figures and card too.")] = False,
) -> None:
    """Measure a model on a folder of images a class.

    Example: dicomsort evaluate --model models/ours --out figures images/
    """
    if cross_validate not in {None, "source"}:
        raise UsageError(f"--cross-validate: expected source, received {cross_validate!r}")
    if folds == 1:
        raise UsageError("--folds: expected 0, or 2 or more, received 1")
    told = _evaluate(model, (dataset, out, groups, seed, shortcuts, folds if cross_validate else None, update))
    _remark(told, sys.stderr)
    if as_json:
        print(json.dumps(told))
    else:
        _show(told, out)


def _evaluate(model: Path | None, asked: tuple[Any, ...]) -> dict[str, Any]:
    """Return metrics.json's content; ``asked`` holds the fields of ``Settings`` in order."""
    from dicomsort.adapters import open_engine
    from dicomsort.adapters.processes import usable_cores
    from dicomsort.bundle import default_path, load
    from dicomsort.engine import Limits
    from dicomsort.records import RENDERING_VERSION
    from dicomsort.training.evaluate import WARM, Settings, evaluate
    from dicomsort.training.progress import Reporter

    bundle = load(model or default_path(), RENDERING_VERSION)
    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    with Reporter() as reporter, open_engine("processes", usable_cores(), None, limits=limits, warm=WARM) as engine:
        return evaluate(bundle, Settings(*asked), engine, reporter).told


def _remark(told: dict[str, Any], stream: Any) -> None:
    """Say what must not be overlooked."""
    if told["trained_on"]:
        print(f"WARNING: {told['held_out']}", file=stream)
    missing = [label for label, count in told["data"]["images"].items() if not count]
    if missing:
        print(f"No images of {', '.join(missing)}, which the model also knows", file=stream)
    if skipped := told["skipped"]:
        print(f"Skipped {len(skipped):,} files that are no readable image:", file=stream)
        for path, reason in list(skipped.items())[:SKIPPED_SAID]:
            print(f"  {path}: {reason}", file=stream)
        if len(skipped) > SKIPPED_SAID:
            print(f"  … and {len(skipped) - SKIPPED_SAID} more, all listed in metrics.json", file=stream)


def _show(told: dict[str, Any], out: Path) -> None:
    """Print the tables that the card has, for a person."""
    from dicomsort.report import visible
    from dicomsort.training.cardtables import tables

    print(f"{told['model']['name']}: {told['images']:,} images; {told['held_out']}")
    draw = _rich if sys.stdout.isatty() else _plain
    for table in tables(told):
        print()
        draw(table)
    print(f"\nFigures, card and pictures: {visible(str(out))}")


def _plain(table: Table) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    lines: list[Sequence[str]] = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    print(table.title)
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  " + "  ".join(cells).rstrip())


def _rich(table: Table) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    grid = Grid(title=escape(table.title), title_justify="left")
    for i, name in enumerate(table.head):
        grid.add_column(escape(name), justify="right" if i else "left")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    Console(soft_wrap=True).print(grid)
