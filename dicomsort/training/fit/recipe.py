"""The numbers that a training is asked for, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dicomsort.training.fit.held_out import HeldOutPredictions
    from dicomsort.training.models.ood import MahalanobisModel


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers of a training run.

    ``augment`` names a strength of ``augment.STRENGTHS``. ``patience`` is the number of epochs without a better
    validation loss after which training ends with the best epoch's weights; 0 trains every epoch and keeps the last
    ones. ``balance`` weighs classes, and in each its sources, alike, ``split`` says what is held out; None leaves
    either to the recipe. ``checkpoint`` is the folder from which an interrupted training resumes (None: there is none),
    unless ``fresh``.
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
class TrainedModel:
    """A trained keras.Model and what was measured on the way.

    ``mahalanobis`` is that of its training images' features, None where it is not known; ``int8`` is ``held_out`` by
    networks in int8, None where there were none; ``history``: column -> a value an epoch; ``split``
    names what ``history`` held out, ``course`` is what metrics.json reports of the training.
    """

    model: Any
    mahalanobis: MahalanobisModel | None
    held_out: HeldOutPredictions
    int8: HeldOutPredictions | None
    history: dict[str, list[float]]
    split: str
    course: dict[str, Any]

    @property
    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Kernel (D, C) and bias (C,) of the last layer."""
        kernel, bias = self.model.get_layer("probabilities").get_weights()
        return kernel, bias
