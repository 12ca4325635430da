"""``train``: a model from a folder a class; ``tune``: one by the recipe that does best on held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli import options
from dicomsort.cli.options import with_options
from dicomsort.config.settings import TRAIN, TUNE
from dicomsort.errors import counted
from dicomsort.memory import TENSORFLOW, require_address_space
from dicomsort.progress import Reporter

if TYPE_CHECKING:
    from dicomsort.engines.engine import Engine
    from dicomsort.training.pipeline import Trained
    from dicomsort.training.settings import Settings

PLOTS = ("accuracy.png", "loss.png", "confusion.png")
_DATASET = "A folder with one folder of images per class."
Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help=_DATASET, parser=Path)]


@with_options(TRAIN)
def train(
    dataset: Dataset,
    *,
    show: Annotated[bool, typer.Option("--show", help="Open the plots at the end.")] = False,
    **flags: Any,
) -> None:
    """Train a model on your own images: one folder per class.

    If it is interrupted (Ctrl-C, SIGTERM, even kill -9), it leaves DIR.checkpoint, and the same command goes on from
    there. With --from, a worse bundle does not replace an earlier one at --out: the exit code is 1, and the new bundle
    lies in DIR.refused.

    Example: dicomsort train --augment light --patience 3 --out models/ours images/

    Example: dicomsort train --from models/default --out models/site corrections/
    """
    from dicomsort.training.settings import Settings

    _train(Settings(dataset, **flags), show=show)


@with_options(TUNE)
def tune(dataset: Dataset, **flags: Any) -> None:
    """Search the best training recipe, and train a model with it.

    It tries learning rates, batch sizes, widths and augmentation. The score is the balanced accuracy on held-out
    sources, or on held-out images if there are too few sources. If it is interrupted, it leaves DIR.trials, and the
    same command goes on from there. It needs the extra tune: pip install '.[tune]' in the checkout.

    Example: dicomsort tune --trials 30 --arch efficientnet-lite0 --out models/ours images/
    """
    from dicomsort.training.settings import Settings

    trials = flags.pop("trials")
    _tune(Settings(dataset, **flags), trials)


def open_workers() -> Engine:
    """Open workers that decode a data set, once there is room for TensorFlow."""
    require_address_space(TENSORFLOW)
    return options.open_workers(None, ("dicomsort.training.data.rendered",))


def _train(settings: Settings, *, show: bool) -> None:
    from dicomsort.report import visible
    from dicomsort.training.evaluate import compare
    from dicomsort.training.evaluate.card import on_other_sources
    from dicomsort.training.fit.hyperparameters import OTHER_SOURCES
    from dicomsort.training.pipeline import train as run

    with Reporter() as reporter:
        trained = run(settings, open_workers, reporter)
    print(f"{visible(str(trained.folder))}: {_accuracy(trained)}")
    print(f"The mistakes, as a picture of your images: {visible(str(trained.sheet))}")
    report = trained.figures["training_run"]
    if other := report["course"].get(OTHER_SOURCES):
        print(" ".join(on_other_sources(other)))
    for note in report["notes"]:
        print(note)
    _print_sizes(trained)
    if comparison := report.get(compare.KEY):
        print("\n".join(compare.sentences(comparison)))
    if trained.skipped:
        skipped = counted(len(trained.skipped), "file was", "files were")
        print(f"{skipped} skipped: no readable image; metrics.json lists them")
    if show:
        for name in PLOTS:
            typer.launch(str(trained.folder / name))


def _tune(settings: Settings, trials: int) -> None:
    from dicomsort.report import visible
    from dicomsort.training.tune import tune as search

    with Reporter() as reporter:
        tuned = search(settings, trials, open_workers, reporter)
    best = f"the best of {counted(tuned.trials, 'trial')}, {tuned.score:.1%} in the search"
    print(f"{visible(str(tuned.trained.folder))}: {best}")
    print(f"Trained by it: {_accuracy(tuned.trained)}")
    _print_sizes(tuned.trained)
    print("The recipe was chosen by held-out images, which flatters the figures; trials.csv has every trial")


def _accuracy(trained: Trained) -> str:
    figures = trained.figures
    shares = f"{figures['accuracy']:.1%} right (balanced {figures['balanced_accuracy']:.1%})"
    return f"{shares} of {counted(figures['images'], 'held-out image')}; {trained.held_out}"


def _print_sizes(trained: Trained) -> None:
    """Print which weights a training kept, and where the megabytes of its bundle are."""
    from dicomsort.training.evaluate.tables import MEGABYTES, sizes

    run = trained.figures["training_run"]
    print(f"Weights kept: {run['course']['kept']}")
    print(f"Size: {sum(run[MEGABYTES].values()):.1f} MB, nearly all of it in three files with the same weights:")
    for name, megabytes, purpose in sizes(run).rows:
        print(f"  {name} {megabytes} MB: {purpose}")
