"""``train``: a model from a folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PLOTS = ("accuracy.png", "loss.png", "confusion.png")


def train(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with a folder of images a class.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle goes; an earlier one is replaced.")] = Path(
        "models/medical_image_classifier"
    ),
    arch: Annotated[str, typer.Option(metavar="cnn|efficientnet-lite0", help="The network.")] = "cnn",
    epochs: Annotated[int, typer.Option(help="How often every image is shown.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 0.001,
    validation_split: Annotated[float, typer.Option(help="The share that is held out, 0 to 1.")] = 0.2,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV (source, group): source folders to keep on one side.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes splits, first weights and order.")] = 0,
    show: Annotated[bool, typer.Option("--show", help="Open the plots when done.")] = False,
) -> None:
    """Train a model on a folder of images a class.

    Example: dicomsort train --arch efficientnet-lite0 --out models/ours images/
    """
    from dicomsort.report import visible
    from dicomsort.training.progress import Reporter
    from dicomsort.training.trainer import Settings
    from dicomsort.training.trainer import train as run

    settings = Settings(dataset, out, arch, epochs, batch_size, learning_rate, validation_split, seed, groups)
    with Reporter() as reporter:
        trained = run(settings, reporter)
    figures = trained.figures
    shares = f"{figures['accuracy']:.1%} right (balanced {figures['balanced_accuracy']:.1%})"
    print(f"{visible(str(trained.folder))}: {shares} of {figures['images']:,} held-out images; {trained.held_out}")
    if trained.skipped:
        print(f"{len(trained.skipped):,} files were skipped, being no readable image; metrics.json lists them")
    if show:
        for name in PLOTS:
            typer.launch(str(trained.folder / name))
