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
from dicomsort.config.settings import EVALUATE, EvaluateSettings
from dicomsort.errors import UsageError
from dicomsort.memory import TENSORFLOW, require_address_space
from dicomsort.progress import Reporter

if TYPE_CHECKING:
    from dicomsort.bundle import Bundle
    from dicomsort.engines.engine import Engine

SKIPPED_SAID = 10
PATHS_SAID = 5
_DATASET = "A folder with a folder of images a class; --compare does without."


@with_options(EVALUATE)
def evaluate(
    dataset: Annotated[Path | None, typer.Argument(metavar="DATASET", help=_DATASET)] = None, **flags: Any
) -> None:
    """Measure a model on a folder of images a class, or show two side by side.

    Example: dicomsort evaluate --model models/ours --out figures images/

    Example: dicomsort evaluate --compare models/default models/site images/
    """
    asked = EvaluateSettings(**flags)
    if asked.compare:
        _refuse_beside_compare(asked, "model", "cross_validate", "shortcuts", "update")
        _compare(asked, asked.compare, dataset, asked.out or Path("comparison"))
        return
    out, parts = asked.out or Path("evaluation"), _folds(asked)
    if parts is not None:
        require_address_space(TENSORFLOW)
    _show(_evaluate(dataset, out, asked, parts), out, asked)


def _refuse_beside_compare(asked: EvaluateSettings, *names: str) -> None:
    """Raise UsageError for the first of these options that is given: they mean nothing beside --compare."""
    for name in names:
        if getattr(asked, name):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"--compare: expected no {option} beside it, received both")


def _folds(asked: EvaluateSettings) -> int | None:
    """Return the number of parts to hold out in turn, None for none; UsageError where that is not to be understood."""
    if asked.cross_validate not in {None, "source"}:
        raise UsageError(f"--cross-validate: expected source, received {asked.cross_validate!r}")
    if asked.folds == 1:
        raise UsageError("--folds: expected 0, or 2 or more, received 1")
    return asked.folds if asked.cross_validate else None


def _evaluate(dataset: Path | None, out: Path, asked: EvaluateSettings, parts: int | None) -> dict[str, Any]:
    """Return metrics.json's content; ``parts`` are held out in turn, None judges by the bundle's own model."""
    if dataset is None:
        raise UsageError("evaluate: expected a DATASET, or --compare A B without one, received none")
    from dicomsort.training.evaluate import evaluation as judging

    bundle = bundle_of(asked.model)
    settings = judging.Settings(dataset, out, asked.groups, asked.seed, asked.shortcuts, parts, asked.update)
    with _working() as (engine, reporter):
        return judging.evaluate(bundle, settings, engine, reporter).report


@contextmanager
def _working() -> Iterator[tuple[Engine, Reporter]]:
    """Workers that judge, and what is told meanwhile."""
    from dicomsort.engines.processes import usable_cores
    from dicomsort.training.evaluate.evaluation import WARM

    with Reporter() as reporter, open_workers(usable_cores(), WARM) as engine:
        yield engine, reporter


def _remark(report: dict[str, Any], stream: Any) -> None:
    """Say what must not be overlooked."""
    if report["trained_on"]:
        print(f"WARNING: {report['held_out']}", file=stream)
    missing = [label for label, count in report["data"]["images"].items() if not count]
    if missing:
        print(f"No images of {', '.join(missing)}, which the model also knows", file=stream)
    if skipped := report["skipped"]:
        print(f"Skipped {len(skipped):,} files that are no readable image:", file=stream)
        for path, reason in list(skipped.items())[:SKIPPED_SAID]:
            print(f"  {path}: {reason}", file=stream)
        if len(skipped) > SKIPPED_SAID:
            print(f"  … and {len(skipped) - SKIPPED_SAID} more, all listed in metrics.json", file=stream)


def _show(report: dict[str, Any], out: Path, asked: EvaluateSettings) -> None:
    """Print the tables that the card has, for a person, or one JSON object."""
    _remark(report, sys.stderr)
    if asked.json:
        print(json.dumps(report))
        return
    from dicomsort.report import visible
    from dicomsort.training.evaluate.tables import tables

    print(f"{report['model']['name']}: {report['images']:,} images; {report['held_out']}")
    show_tables(tables(report))
    print(f"\nFigures, card and pictures: {visible(str(out))}")


def _compare(asked: EvaluateSettings, folders: tuple[Path, Path], dataset: Path | None, out: Path) -> None:
    """Compare two bundles, write metrics.json and a picture to ``out``, and print tables, or one JSON object."""
    from dicomsort.bundle import load
    from dicomsort.records import RENDERING_VERSION
    from dicomsort.training.evaluate.compare_bundles import warnings, write_comparison
    from dicomsort.training.evaluate.evaluation import check_out

    folder = check_out(out, dataset)
    bundles = load(folders[0], RENDERING_VERSION), load(folders[1], RENDERING_VERSION)
    report = _compared(bundles, dataset, out, asked)
    write_comparison(report, folder)
    for warning in warnings(report):
        print(f"WARNING: {warning}", file=sys.stderr)
    if asked.json:
        print(json.dumps(report))
    else:
        _show_compared(report, out)


def _compared(
    bundles: tuple[Bundle, Bundle], dataset: Path | None, out: Path, asked: EvaluateSettings
) -> dict[str, Any]:
    from dicomsort.training.evaluate.compare_bundles import on_dataset, on_their_own

    if dataset is None:
        return on_their_own(bundles, asked.seed)
    from dicomsort.training.evaluate.evaluation import Settings

    with _working() as (engine, reporter):
        return on_dataset(bundles, Settings(dataset, out, asked.groups, asked.seed), engine, reporter)


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
            print("\n".join(f"  {visible(path)}" for path in paths[:PATHS_SAID]))
            if report["agreement"][which] > PATHS_SAID:
                print(f"  … metrics.json lists {len(paths):,}")
    print(f"\nFigures and picture: {visible(str(out))}")
