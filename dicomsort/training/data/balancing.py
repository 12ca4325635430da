"""Balances a data set: how much each image weighs, so that classes count alike, and in each class its sources.

``fit.samplers`` draws batches by these weights, ``fit.feeding`` weighs losses by them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicomsort.training.data.dataset import Dataset, Indices


def balance(dataset: Dataset, evenness: float = 1.0) -> NDArray[np.float32]:
    """Return a weight for each item, float32 (N,), mean 1: classes weigh the same, and in each its sources.

    With an ``evenness`` below 1 a source of n images weighs n ** (1 - evenness): few images are not repeated as often.
    """
    keys = [f"{item.label}/{item.source or item.group}" for item in dataset.items]
    _, source, counts = np.unique(keys, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[source] ** evenness
    weights /= np.bincount(dataset.classes(), weights)[dataset.classes()]
    return np.asarray(weights / weights.mean(), np.float32)


def draw(dataset: Dataset, count: int, seed: int) -> Indices:
    """Return at most ``count`` items, sorted, drawn without replacement by their weights (see ``balance``)."""
    weights = balance(dataset).astype(np.float64)
    size, random = len(dataset.items), np.random.default_rng(seed)
    drawn: Indices = random.choice(size, min(count, size), replace=False, p=weights / weights.sum())
    return np.sort(drawn)
