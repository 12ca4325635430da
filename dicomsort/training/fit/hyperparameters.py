"""The hyperparameters of a training, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.training.fit.held_out import HeldOutPredictions
from dicomsort.training.models.ood import MahalanobisModel

OTHER_SOURCES = "other_sources"  # in ``TrainedModel.course``: what a training without some sources makes of these


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers of a training run.

    ``augment`` names a strength of ``augment.STRENGTHS``. ``patience`` is the number of epochs without a better
    validation loss after which training stops with the best epoch's weights; 0 trains every epoch and retains the last
    weights. ``balance`` weighs classes, and in each its sources, alike, ``split`` is what is held out; None leaves
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
    """A trained keras.Model and what was measured in training.

    ``mahalanobis`` is that of its training images' features, None where it is not known; ``int8`` is ``held_out`` by
    networks in int8, None where there were none; ``history``: column -> a value an epoch; ``split`` describes what
    ``history`` held out, ``course`` is the report of the training in metrics.json.
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
