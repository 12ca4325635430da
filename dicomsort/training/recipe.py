"""The numbers that a training is asked for, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.training.dataset import Indices


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of a training run.

    ``augment`` names a strength of ``augment.STRENGTHS``. ``patience`` is the number of epochs without a better
    validation loss after which training ends with the best epoch's weights; 0 trains every epoch and keeps the last
    ones. ``balance`` weighs classes, and in each its sources, alike, ``split`` says what is held out; None leaves
    either to the architecture's recipe. ``checkpoint`` is the folder from which an interrupted training goes on (None:
    none is kept), unless ``fresh``.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    validation_split: float
    seed: int
    augment: str = "none"
    patience: int = 0
    balance: bool | None = None
    split: str | None = None
    checkpoint: Path | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model and what was held out while it, or its like, was trained.

    ``history``: column -> a value an epoch. ``held``: items with held-out predictions; ``probabilities``: float32
    (len(held), C) of those, not calibrated. ``split`` and ``held_out`` say in words how it was split, ``by_source``
    whether whole sources were held out; ``course`` is what metrics.json tells of the training.
    """

    model: Any
    history: dict[str, list[float]]
    held: Indices
    probabilities: NDArray[np.float32]
    split: str
    held_out: str
    by_source: bool = False
    course: dict[str, Any] = field(default_factory=dict)
