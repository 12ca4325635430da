"""``evaluate``: how right a bundle is on a folder of images a class, with intervals, as table, JSON and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dicomsort.cli.compare import show_compared
from dicomsort.cli.options import BYTES_PER_TASK, SECONDS_PER_TASK, option, require_room
from dicomsort.cli.train import told
from dicomsort.config import TRAINING
from dicomsort.errors import UsageError
from dicomsort.memory import TENSORFLOW, require_address_space

SKIPPED_SAID = 10
_DATASET = "A folder with a folder of images a class; --compare does without."
_OUT = "Where metrics.json, card.md and pictures go.  [default: evaluation; comparison with --compare]"
_COMPARE = (
    "Two bundles side by side: on DATASET, else on the evaluation images that both keep (a bundle and what --from made "
    "of it), else by the figures that each has."
)


def evaluate(
    dataset: Annotated[Path | None, typer.Argument(metavar="DATASET", help=_DATASET)] = None,
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The bundle to judge by (default: the one that ships).")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help=_OUT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV (source, group): source folders that count as one.")
    ] = None,
    seed: Annotated[int, told("seed", "Fixes the resamples, and the folds.")] = 0,
    shortcuts: Annotated[
        bool, typer.Option("--shortcuts", help="Also judge images with masked borders, pasted text and so on.")
    ] = False,
    cross_validate: Annotated[
        str | None,
        typer.Option(metavar="source", help="Train the recipe anew without the sources that are judged (TensorFlow)."),
    ] = None,
    folds: Annotated[int, option(TRAINING, "folds")] = 10,
    compare: Annotated[tuple[Path, Path] | None, typer.Option(metavar="A B", help=_COMPARE)] = None,
    update: Annotated[bool, typer.Option("--update", help="Replace the bundle's own figures and card too.")] = False,
) -> None:
    """Measure a model on a folder of images a class, or show two side by side.

    Example: dicomsort evaluate --model models/ours --out figures images/

    Example: dicomsort evaluate --compare models/default models/site images/
    """
    if compare:
        _refuse_beside_compare(model=model, cross_validate=cross_validate, shortcuts=shortcuts, update=update)
        show_compared(compare, dataset, out or Path("comparison"), groups, seed, as_json=as_json)
    else:
        folder, parts = out or Path("evaluation"), _folds(cross_validate, folds)
        if parts is not None:
            require_address_space(TENSORFLOW)
        _show(_evaluate(model, (dataset, folder, groups, seed, shortcuts, parts, update)), folder, as_json=as_json)


def _refuse_beside_compare(**given: object) -> None:
    """Raise UsageError for the first option that is given, and means nothing beside --compare."""
    for name, value in given.items():
        if value:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"--compare: expected no {option} beside it, received both")


def _folds(cross_validate: str | None, folds: int) -> int | None:
    """Return the number of parts to hold out in turn, None for none; UsageError where that is not to be understood."""
    if cross_validate not in {None, "source"}:
        raise UsageError(f"--cross-validate: expected source, received {cross_validate!r}")
    if folds == 1:
        raise UsageError("--folds: expected 0, or 2 or more, received 1")
    return folds if cross_validate else None


def _evaluate(model: Path | None, asked: tuple[Any, ...]) -> dict[str, Any]:
    """Return metrics.json's content; ``asked`` holds the fields of ``Settings`` in order, the data set first."""
    if asked[0] is None:
        raise UsageError("evaluate: expected a DATASET, or --compare A B without one, received none")
    from dicomsort.adapters import open_engine
    from dicomsort.adapters.processes import usable_cores
    from dicomsort.bundle import default_path, load
    from dicomsort.engine import Limits
    from dicomsort.records import RENDERING_VERSION
    from dicomsort.training.evaluate import WARM, Settings, evaluate
    from dicomsort.training.progress import Reporter

    require_room()
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


def _show(told: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Print the tables that the card has, for a person, or one JSON object."""
    _remark(told, sys.stderr)
    if as_json:
        print(json.dumps(told))
        return
    from dicomsort.cli.tables import show
    from dicomsort.report import visible
    from dicomsort.training.cardtables import tables

    print(f"{told['model']['name']}: {told['images']:,} images; {told['held_out']}")
    show(tables(told))
    print(f"\nFigures, card and pictures: {visible(str(out))}")
