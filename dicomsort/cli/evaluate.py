"""``evaluate``: how right a bundle is on a folder of images a class, with intervals, as table, JSON and pictures.

``--compare`` shows two bundles side by side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.console import show_tables
from dicomsort.cli.options import bundle_of, open_workers, with_options
from dicomsort.config.fields import flag_of
from dicomsort.config.settings import EVALUATE, EvaluateSettings
from dicomsort.errors import UsageError, counted
from dicomsort.memory import TENSORFLOW, require_address_space
from dicomsort.progress import Reporter

if TYPE_CHECKING:
    from dicomsort.engines.engine import Engine

MAX_PATHS_SHOWN = 5
_DATASET = "A folder with one folder of images per class; --compare can do without."


@with_options(EVALUATE)
def evaluate(
    dataset: Annotated[Path | None, typer.Argument(metavar="DATASET", help=_DATASET, parser=Path)] = None, **flags: Any
) -> None:
    """Measure a model on images, or compare two models.

    Example: dicomsort evaluate --model models/ours --out figures images/

    Example: dicomsort evaluate --compare models/default models/site images/
    """
    settings = EvaluateSettings(**flags)
    if settings.compare:
        _compare(settings, settings.compare, dataset)
    else:
        _evaluate(settings, dataset)


def _evaluate(settings: EvaluateSettings, dataset: Path | None) -> None:
    """Write metrics.json, card and pictures, and print the tables that the card has, or one JSON object."""
    if settings.cross_validate not in {None, "source"}:
        raise UsageError(f"--cross-validate: expected source, received {settings.cross_validate!r}")
    if settings.folds == 1:
        raise UsageError("--folds: expected 0, or 2 or more, received 1")
    folds = settings.folds if settings.cross_validate else None
    if folds is not None:
        require_address_space(TENSORFLOW)
    if dataset is None:
        raise UsageError("evaluate: expected a DATASET, or --compare A B without one, received none")
    from dicomsort.report import visible
    from dicomsort.training.evaluate import evaluation
    from dicomsort.training.evaluate.tables import tables

    bundle, out = bundle_of(settings.model), settings.out or Path("evaluation")
    request = evaluation.EvaluationSettings(
        dataset, out, groups=settings.groups, seed=settings.seed, shortcuts=settings.shortcuts, folds=folds,
        update=settings.update, subclasses=settings.subclasses,
    )  # fmt: skip
    with _workers() as (engine, reporter):
        report = evaluation.evaluate(bundle, request, engine, reporter).report
    _warn(report)
    if settings.json:
        print(json.dumps(report))
        return
    print(f"{report['model']['name']}: {counted(report['images'], 'image')}; {report['held_out']}")
    show_tables(tables(report))
    print(f"\nFigures, card and pictures: {visible(str(out))}")


@contextmanager
def _workers() -> Iterator[tuple[Engine, Reporter]]:
    from dicomsort.engines.processes import usable_cores
    from dicomsort.training.evaluate.evaluation import WARM

    with Reporter() as reporter, open_workers(usable_cores(), WARM) as engine:
        yield engine, reporter


def _warn(report: dict[str, Any]) -> None:
    from dicomsort.training.data.rendered import skipped_lines

    lines = [f"WARNING: {report['held_out']}"] if report["trained_on"] else []
    missing = [label for label, count in report["data"]["images"].items() if not count]
    if missing:
        lines.append(f"No images of {', '.join(missing)}, which the model also knows")
    for line in (*lines, *skipped_lines([*report["skipped"].items()])):
        print(line, file=sys.stderr)


def _compare(settings: EvaluateSettings, folders: tuple[Path, Path], dataset: Path | None) -> None:
    """Compare two bundles, write metrics.json and a picture, and print tables, or one JSON object."""
    for name in ("model", "cross_validate", "shortcuts", "update", "subclasses"):
        if getattr(settings, name):
            raise UsageError(f"--compare: expected no {flag_of(name)} beside it, received both")
    from dicomsort.bundle import load
    from dicomsort.training.evaluate.compare_bundles import on_dataset, on_their_own, warnings, write_comparison
    from dicomsort.training.evaluate.evaluation import EvaluationSettings, check_out

    out = settings.out or Path("comparison")
    folder = check_out(out, dataset)
    bundles = load(folders[0]), load(folders[1])
    if dataset is None:
        report = on_their_own(bundles, settings.seed)
    else:
        with _workers() as (engine, reporter):
            report = on_dataset(
                bundles, EvaluationSettings(dataset, out, settings.groups, settings.seed), engine, reporter
            )
    write_comparison(report, folder)
    for warning in warnings(report):
        print(f"WARNING: {warning}", file=sys.stderr)
    if settings.json:
        print(json.dumps(report))
    else:
        _show_compared(report, out)


def _show_compared(report: dict[str, Any], out: Path) -> None:
    """Print the tables for a person, and the first images that only one of the two has right."""
    from dicomsort.report import visible
    from dicomsort.training.evaluate.compare_bundles import names_of, tables, title

    print(title(report))
    show_tables(tables(report))
    for name, which in zip(names_of(report), ("only_first", "only_second"), strict=True):
        paths = report.get("changed", {}).get(which, ())
        if paths:
            print(f"\nRight by {name} alone ({report['agreement'][which]:,}):")
            print("\n".join(f"  {visible(path)}" for path in paths[:MAX_PATHS_SHOWN]))
            if report["agreement"][which] > MAX_PATHS_SHOWN:
                print(f"  … metrics.json lists {len(paths):,}")
    print(f"\nFigures and picture: {visible(str(out))}")
