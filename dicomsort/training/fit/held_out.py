"""Predictions for images by models that were not trained on them, for calibration, metrics, card and comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle import calibrate
from dicomsort.training.data.dataset import Dataset, Indices
from dicomsort.training.data.robustness import SHORTCUTS

TEMPERATURES = np.geomspace(0.25, 10.0, 50)
ROUNDS, STEPS = 4, 60  # of fitting temperature and bias in turn; of fitting the bias
MOST_BIAS = 2.0  # a network that lacks more than that for a class has not learnt it
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class HeldOutPredictions:
    """Predictions for n images of a data set, each by a model that was not trained on it, not calibrated.

    ``items``: int (n,), their indices in the data set; ``truth``: int64 (n,), 0..C-1; ``fold``: int64 (n,), no source
    in two of them: images are calibrated by the other folds. ``how`` describes how they were held out,
    ``by_source`` whether whole sources were. ``probabilities``: float32 (n, C); ``distances``: float32 (n,), from the
    training images, None where the model has none; ``variants``: name of a robustness test -> float32 (n, C) for the
    changed images; ``unchanged``: predictions of the models behind ``variants`` for the unchanged images, float32
    (n, C), None where that is ``probabilities``.
    """

    items: Indices
    truth: NDArray[np.int64]
    fold: NDArray[np.int64]
    how: str
    by_source: bool
    probabilities: NDArray[np.float32]
    distances: NDArray[np.float32] | None = None
    variants: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    unchanged: NDArray[np.float32] | None = None

    @classmethod
    def zeros(cls, dataset: Dataset, fold: NDArray[np.int64], how: str, *, by_source: bool) -> Self:
        """Return arrays of zeros for the predictions of every image of ``dataset``."""
        probabilities, *changed = np.zeros((1 + len(SHORTCUTS), len(fold), len(dataset.labels)), np.float32)
        variants = dict(zip(SHORTCUTS, changed, strict=True))
        distances = np.zeros(len(fold), np.float32)
        return cls(np.arange(len(fold)), dataset.classes(), fold, how, by_source, probabilities, distances, variants)

    def arrays(self) -> list[NDArray[np.float32]]:
        """Return the arrays to be filled, in a fixed order: probabilities, distances where there are some, variants."""
        distances = [] if self.distances is None else [self.distances]
        return [self.probabilities, *distances, *self.variants.values()]

    def with_int8(
        self, probabilities: NDArray[np.float32], distances: NDArray[np.float32] | None
    ) -> HeldOutPredictions:
        """Return the same with the predictions of networks in int8; robustness was tested in floating point."""
        distances = None if self.distances is None else distances
        return replace(self, probabilities=probabilities, distances=distances, unchanged=self.probabilities)

    def biased(self, bias: NDArray[np.float64]) -> HeldOutPredictions:
        """Return the predictions after ``bias`` (C,) is added to the logits of the classes."""
        variants = {name: add_bias(each, bias) for name, each in self.variants.items()}
        unchanged = None if self.unchanged is None else add_bias(self.unchanged, bias)
        return replace(self, probabilities=add_bias(self.probabilities, bias), variants=variants, unchanged=unchanged)

    def class_bias(self) -> NDArray[np.float64]:
        """Return the bias (C,), mean 0, by which the mean calibrated probability of each class is its share of images.

        It is that of the greatest likelihood: bias-corrected temperature scaling (Alexandari, Kundaje and Shrikumar,
        Maximum Likelihood with Bias-Corrected Calibration, 2020). Networks take images of kinds that they never saw
        for some classes rather than for others; without it these classes set the threshold of all.
        """
        classes = self.probabilities.shape[1]
        share = np.maximum(np.bincount(self.truth, minlength=classes), 1) / len(self.truth)
        bias = np.zeros(classes)
        for _ in range(ROUNDS):
            shifted = add_bias(self.probabilities, bias)
            temperature = min(TEMPERATURES, key=lambda each: losses(calibrate(shifted, each), self.truth).mean())
            for _ in range(STEPS):
                mean = calibrate(add_bias(self.probabilities, bias), temperature).mean(0, np.float64)
                bias += temperature * np.log(share / np.maximum(mean, _TINY))
            bias = np.clip(bias - bias.mean(), -MOST_BIAS, MOST_BIAS)
        return bias

    def trained_on(self, count: int) -> Indices:
        """Return the images, of ``count`` in the data set, that the model that ships was trained on.

        Those that were not held out; all of them after a cross-validation.
        """
        rest = np.setdiff1d(np.arange(count), self.items)
        return rest if len(rest) else np.arange(count)


def add_bias(probabilities: NDArray[np.float32], bias: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return softmax(log(p) + bias) row by row, float32 (N, C)."""
    shifted = probabilities.astype(np.float64) * np.exp(bias - bias.max())
    return np.asarray(shifted / np.maximum(shifted.sum(1, keepdims=True), _TINY), np.float32)


def losses(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the negative log likelihood of each ``truth`` (N,) under ``probabilities`` (N, C), in nats, (N,)."""
    picked = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return np.asarray(-np.log(np.maximum(picked, 1e-12)))
