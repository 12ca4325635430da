"""A training as the user asked for it, and whether it can be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomsort.errors import UsageError
from dicomsort.training.architectures import ARCHITECTURES, with_weights
from dicomsort.training.augment import STRENGTHS
from dicomsort.training.recipe import Recipe

if TYPE_CHECKING:
    from dicomsort.training.architectures import Architecture

SPLITS = ("random", "source")


@dataclass(frozen=True, slots=True)
class Settings:
    """A training run as the user asked for it.

    ``groups`` is a CSV file (see ``read_groups``), ``weights`` a file of Keras weights, ``cache`` a folder for
    renderings; the rest is told by ``Recipe``.
    """

    dataset: Path
    out: Path
    arch: str = "cnn"
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.001
    validation_split: float = 0.2
    seed: int = 0
    groups: Path | None = None
    augment: str = "none"
    patience: int = 5
    balance: bool | None = None
    split: str | None = None
    weights: Path | None = None
    cache: Path | None = None
    fresh: bool = False

    def recipe(self) -> Recipe:
        """Return the numbers of the training; its checkpoint lies beside the bundle."""
        out = Path(os.path.abspath(self.out))
        return Recipe(
            self.epochs, self.batch_size, self.learning_rate, self.validation_split, self.seed, self.augment,
            self.patience, self.balance, self.split, out.with_name(f"{out.name}.checkpoint"), self.fresh,
        )  # fmt: skip

    def told(self) -> dict[str, Any]:
        """Return what ``bundle.json`` tells of the recipe: numbers and names, no paths of this machine."""
        names = ("arch", "epochs", "batch_size", "learning_rate", "validation_split", "seed", "augment", "patience")
        chosen = {"balance": self.balance, "split": self.split, "weights": self.weights and self.weights.name}
        return {name: getattr(self, name) for name in names} | {k: v for k, v in chosen.items() if v is not None}


def checked(settings: Settings) -> Architecture:
    """Return the architecture; UsageError names the first setting that cannot be."""
    for option, chosen, known in (
        ("--arch", settings.arch, tuple(ARCHITECTURES)),
        ("--augment", settings.augment, tuple(STRENGTHS)),
        ("--split", settings.split or SPLITS[0], SPLITS),
    ):
        if chosen not in known:
            raise UsageError(f"{option}: expected one of {', '.join(known)}, received {chosen!r}")
    for option, value, holds, expected in (
        ("--epochs", settings.epochs, settings.epochs >= 1, "1 or more"),
        ("--batch-size", settings.batch_size, settings.batch_size >= 1, "1 or more"),
        ("--learning-rate", settings.learning_rate, 0 < settings.learning_rate <= 1, "above 0, at most 1"),
        ("--validation-split", settings.validation_split, 0 < settings.validation_split < 1, "between 0 and 1"),
        ("--seed", settings.seed, 0 <= settings.seed < 1 << 32, "0 to 4294967295"),
        ("--patience", settings.patience, settings.patience >= 0, "0 (off) or more"),
    ):
        if not holds:
            raise UsageError(f"{option}: expected {expected}, received {value}")
    for option, path in (("--out", settings.out), ("--cache", settings.cache)):
        # What lies in the data set is taken for a class by the next training.
        if path and path.resolve().is_relative_to(settings.dataset.resolve()):
            raise UsageError(f"{option} {str(path)!r}: expected a folder outside the data set, received one in it")
    architecture = ARCHITECTURES[settings.arch]
    if settings.weights:
        return with_weights(architecture, settings.arch, settings.weights)
    architecture.require()
    return architecture
