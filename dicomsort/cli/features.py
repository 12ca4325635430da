"""``features``: what a bundle keeps of some images, so that later trainings forget less and tell what got worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicomsort.cli.train import GROUPS, open_workers, told


def features(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with a folder of images a class.")],
    *,
    model: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle that gets them; earlier ones go.")],
    groups: Annotated[Path | None, typer.Option(metavar="FILE", help=GROUPS)] = None,
    seed: Annotated[int, told("seed", "Fixes which images are chosen, and which are rehearsed.")] = 0,
) -> None:
    """Keep features of some images in a bundle, no pixels: `train` does it too; this is for a bundle without them.

    `train --from` rehearses one half of them, and tells by the other what got better and what got worse.

    Example: dicomsort features --model models/ours images/
    """
    from dicomsort.report import visible
    from dicomsort.training.featuring import refeature
    from dicomsort.training.progress import Reporter
    from dicomsort.training.remembered import words

    with Reporter() as reporter:
        told = refeature(model, dataset, groups, seed, open_workers, reporter)
    print(f"{visible(str(model))}: {words(told)}")
