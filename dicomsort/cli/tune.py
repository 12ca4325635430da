"""``tune``: the recipe that does best on held-out images, and a model made by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomsort.cli.options import option
from dicomsort.cli.train import ARCH, GROUPS, SPLIT, open_workers, told, weighed
from dicomsort.config import TRAINING

if TYPE_CHECKING:
    from dicomsort.training.settings import Settings

_CACHE = "Keep the rendered images (patient data!) here."


def tune(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with a folder of images a class.")],
    *,
    trials: Annotated[int, option(TRAINING, "trials", "N")] = 20,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle goes; an earlier one is replaced.")] = Path(
        "models/tuned"
    ),
    arch: Annotated[str | None, typer.Option(metavar="NAME", help=ARCH)] = None,
    epochs: Annotated[int, told("epochs", "How often a trial shows every image, at most.")] = 10,
    validation_split: Annotated[float, told("validation_split", "The share that trials are judged on.")] = 0.2,
    split: Annotated[str | None, typer.Option(metavar="random|source", help=SPLIT)] = None,
    groups: Annotated[Path | None, typer.Option(metavar="FILE", help=GROUPS)] = None,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help=_CACHE)] = None,
    seed: Annotated[int, told("seed", "Fixes what is tried, split, first weights, order and variations.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where trials are left.")] = False,
) -> None:
    """Search learning rate, batch size, width and augmentation, and train a model by the best.

    Needs the extra tune: pip install '.[tune]' in the checkout. The score is the balanced accuracy on held-out sources
    (on held-out images where there are too few). Interrupted, it leaves DIR.trials, and the same command goes on from
    there.

    Example: dicomsort tune --trials 30 --arch efficientnet-lite0 --out models/ours images/
    """
    from dicomsort.training.settings import Settings

    settings = Settings(
        dataset, out, arch, epochs, validation_split=validation_split, seed=seed, groups=groups, split=split,
        cache=cache, fresh=fresh,
    )  # fmt: skip
    _tune(settings, trials)


def _tune(settings: Settings, trials: int) -> None:
    from dicomsort.report import visible
    from dicomsort.training.progress import Reporter
    from dicomsort.training.tune import tune as run

    with Reporter() as reporter:
        tuned = run(settings, trials, open_workers, reporter)
    figures = tuned.trained.figures
    print(f"{visible(str(tuned.trained.folder))}: the best of {tuned.trials:,} trials, {tuned.score:.1%} in the search")
    shares = f"{figures['accuracy']:.1%} right (balanced {figures['balanced_accuracy']:.1%})"
    print(f"Trained by it: {shares} of {figures['images']:,} held-out images; {tuned.trained.held_out}")
    print("\n".join(weighed(figures)))
    print("The recipe was chosen by held-out images, which flatters the figures; trials.csv has every trial")
