"""The numbers that a training is asked for, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dicomsort.training.data.dataset import Indices
    from dicomsort.training.models.ood import MahalanobisModel


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


class Said(NamedTuple):
    """What a model says of n images.

    ``probabilities``: float32 (n, C), not calibrated; ``distances``: float32 (n,), None where it tells none.
    """

    probabilities: NDArray[np.float32]
    distances: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model and what was held out while it, or its like, was trained.

    ``history``: column -> a value an epoch. ``held``: items with held-out predictions; ``probabilities``: float32
    (len(held), C) of those, not calibrated. ``split`` and ``held_out`` say in words how it was split, ``by_source``
    whether whole sources were held out; ``course`` is what metrics.json tells of the training. ``fold``: int64
    (len(held),), which of several models judged an item, None where one did; ``distances``: float32 (len(held),), from
    what that model was trained on; ``variants``: name of a shortcut test -> probabilities like the others; ``space`` is
    where the features of the final model's training images lie; ``before``: what the bundle from which the training
    went on says of ``held``, like ``probabilities``, None where there is none; ``int8``: what the models that judged
    say of ``held`` in integers, None where they were not asked; ``plain``: ``probabilities`` of the models that judged
    ``variants``, None where they are the same; ``remembered``: what that bundle, and the final model, say
    of the images that the bundle keeps to be judged by, each float32 (M, C), None where it keeps none.
    """

    model: Any
    history: dict[str, list[float]]
    held: Indices
    probabilities: NDArray[np.float32]
    split: str
    held_out: str
    by_source: bool = False
    course: dict[str, Any] = field(default_factory=dict)
    fold: NDArray[np.int64] | None = None
    distances: NDArray[np.float32] | None = None
    variants: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    space: MahalanobisModel | None = None
    before: NDArray[np.float32] | None = None
    int8: Said | None = None
    remembered: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    plain: NDArray[np.float32] | None = None
