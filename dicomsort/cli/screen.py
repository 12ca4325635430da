"""``screen``: a second, faster model for a bundle, which confirms what clear headers say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomsort.cli.train import open_workers, told


def screen(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with a folder of images a class.")],
    *,
    model: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle that gets it; an earlier one is replaced.")],
    seed: Annotated[int, told("seed", "Fixes which images tell the ranges of the network's numbers.")] = 0,
) -> None:
    """Make the screen of a bundle anew: `train` makes one too, where it pays on the machine at hand.

    Example: dicomsort screen --model models/ours images/
    """
    from dicomsort.report import visible
    from dicomsort.training.progress import Reporter
    from dicomsort.training.rescreen import rescreen
    from dicomsort.training.screening import words

    with Reporter() as reporter:
        told = rescreen(model, dataset, seed, open_workers, reporter)
    print(f"{visible(str(model))}: {words(told)}")
