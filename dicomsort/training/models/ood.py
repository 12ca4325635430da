"""Out-of-distribution detection: how far an image's features lie from those of the training images.

The Mahalanobis distance to the nearest class with one covariance for all (Lee et al. 2018, arXiv:1807.03888), on
features of unit length (Mueller & Hein 2025, arXiv:2505.18032); the covariance is that of probabilistic principal
components (Tipping & Bishop 1999): as measured in the first ``SIZE`` directions, and equal in all others. Those others
matter most: images unlike all training images leave the subspace that these span (Wang et al. 2022, arXiv:2203.10807).

Fit it on the classes of interest and not on OTHER: an image near to one odd kind of image is no less odd. The model
that ships computes the distance; ``classify.is_out_of_distribution`` compares it with the bundle's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE, SHARE = 128, 4  # principal directions at most, and at most one in so many of all
LEAST = 1e-3  # of the mean variance: the least in the other directions, or dead units would decide alone
ROUNDING = 1e-4  # above the rounding of squared distances between unit vectors in float32
QUANTILE = 0.99  # of the distances of held-out images, which is the threshold
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class MahalanobisModel:
    """Where the training's features lie; D features, C classes, K directions.

    ``centre``: float32 (D,), the mean of the class means; ``directions``: float32 (D, K), the first principal
    directions within classes, each scaled by sqrt(1 - rest / its variance); ``slopes``: float64 (D, C) and ``offsets``:
    float64 (C,), what a class's squared distance adds to that of the centre; ``rest``: the variance in every other
    direction.
    """

    centre: NDArray[np.float32]
    directions: NDArray[np.float32]
    slopes: NDArray[np.float64]
    offsets: NDArray[np.float64]
    rest: float

    def distances(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 (N,), 0 or more, of ``features`` float32 (N, D): the mean over D of squared deviations.

        About 1 for images like the training's.
        """
        unit = _unit(features.astype(np.float64)) - self.centre
        whole = (unit**2).sum(axis=1) - ((unit @ self.directions) ** 2).sum(axis=1)
        squared = whole + (unit @ self.slopes + self.offsets).min(axis=1)
        return np.asarray(np.maximum(squared, 0) / self.scale, np.float32)

    @property
    def scale(self) -> float:
        """The divisor of squared distances."""
        return self.rest * len(self.centre)


def fit(features: NDArray[np.float32], classes: NDArray[np.int64]) -> MahalanobisModel:
    """Return the model of ``features``, float32 (N, D), whose ``classes`` are integers (N,), one number a class.

    Directions that N images cannot span are left out: a few images are enough, and D may be 1.
    """
    unit = _unit(features.astype(np.float64))
    numbers, places = np.unique(classes, return_inverse=True)
    means = np.stack([unit[places == i].mean(axis=0) for i in range(len(numbers))])
    inside = unit - means[places]
    covariance = inside.T @ inside / len(unit)
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = np.maximum(variances[::-1], TINY), vectors[:, ::-1]
    size = max(0, min(SIZE, len(variances) // SHARE, len(unit) - len(numbers) - 1))
    rest = max(float(variances[size:].mean()), LEAST * float(variances.mean()), ROUNDING / len(variances))
    directions = vectors[:, :size] * np.sqrt(np.maximum(0, 1 - rest / variances[:size]))
    centre = means.mean(axis=0)
    # Rounded to float32, as the model that ships is.
    shifts, rounded = (part.astype(np.float32).astype(np.float64) for part in (means - centre, directions))
    projected = shifts @ rounded
    slopes = -2 * (shifts - projected @ rounded.T)
    offsets = (shifts**2).sum(axis=1) - (projected**2).sum(axis=1)
    return MahalanobisModel(centre.astype(np.float32), directions.astype(np.float32), slopes.T, offsets, rest)


def append(mahalanobis: MahalanobisModel, features: Any) -> Any:
    """Return the Keras tensor (N,) of the distances of a Keras tensor of features (N, D); builtin operators only."""
    from keras import ops

    unit = ops.multiply(features, ops.rsqrt(ops.maximum(_squares(features), TINY)))
    centred = ops.subtract(unit, mahalanobis.centre)
    slopes, offsets = (part.astype(np.float32) for part in (mahalanobis.slopes, mahalanobis.offsets))
    nearest = ops.min(ops.add(ops.matmul(centred, slopes), offsets), axis=1)
    whole = _squares(centred)
    if mahalanobis.directions.shape[1]:
        whole = ops.subtract(whole, _squares(ops.matmul(centred, mahalanobis.directions)))
    squared = ops.add(ops.squeeze(whole, axis=1), nearest)
    return ops.multiply(ops.relu(squared), np.float32(1 / mahalanobis.scale))


def threshold(distances: NDArray[np.float32]) -> float:
    """Return the distance that 99 % of ``distances``, float32 (N,), of held-out images do not exceed."""
    return float(f"{np.quantile(distances, QUANTILE):.5g}")


def _squares(tensor: Any) -> Any:
    """Return the sums of squares (N, 1) of a Keras tensor (N, D)."""
    from keras import ops

    return ops.sum(ops.square(tensor), axis=1, keepdims=True)


def _unit(features: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(features / np.sqrt(np.maximum((features**2).sum(axis=1, keepdims=True), TINY)))
