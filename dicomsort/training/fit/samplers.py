"""Batches of activations to train on: drawn so that classes and sources are balanced, and with replayed images.

In fine-tuning, each batch has features of the bundle's replay set beside those of the new images.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.training.data.balancing import balance
from dicomsort.training.data.dataset import Dataset, Indices
from dicomsort.training.fit.feeding import one_hot
from dicomsort.training.fit.hyperparameters import Hyperparameters
from dicomsort.training.models.replay_set import ReplaySet

CLEAN = 0.25  # the share of images that are not varied
EPOCH = 2048  # images drawn an epoch at most: balanced drawing repeats the few of small sources
EVENNESS = 0.5  # of sources: one of 16 times as many images is drawn four times as often
REPLAYED = 0.75  # the share of a batch that is replayed


class BalancedSampler:
    """Batches of float32 activations (n, …) and truth (n, C + K), drawn from ``items`` by their weights.

    ``views``: see ``view_all``; one of each item is drawn. The truth is of the classes, and then of the subclasses; see
    ``truth_of``. What is drawn depends on seed, epoch and index alone; see ``prefetch.BatchSource``.
    """

    def __init__(self, views: NDArray[np.float16], dataset: Dataset, items: Indices, hyper: Hyperparameters) -> None:
        self._views, self._items, self._truth = views, items, truth_of(dataset)
        weights = balance(dataset.only(items), EVENNESS).astype(np.float64)
        self._shares, self._size, self._seed = weights / weights.sum(), hyper.batch_size, hyper.seed

    def __len__(self) -> int:
        return math.ceil(min(len(self._items), EPOCH) / self._size)

    def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """Draw a batch."""
        random = np.random.default_rng((self._seed, 1 + epoch, index))
        drawn = random.choice(self._items, self._size, p=self._shares)
        view = np.zeros(len(drawn), np.intp)
        if len(self._views) > 1:
            varied = random.random(len(drawn)) >= CLEAN
            view[varied] = random.integers(1, len(self._views), varied.sum())
        return self._views[view, drawn].astype(np.float32), self._truth[drawn]


def truth_of(dataset: Dataset) -> NDArray[np.float32]:
    """Return the items' classes and, in the columns behind them, their subclasses, one-hot, float32 (N, C + K)."""
    return np.concatenate([one_hot(dataset), dataset.subclasses()], axis=1)


class ReplayTargets:
    """Features of a replay set and their ``targets``, float32 (N, C): ``probabilities`` where right, else the truth."""

    def __init__(self, replay: ReplaySet, probabilities: NDArray[np.float32]) -> None:
        self.features, self.truth, self.shares = replay.features, replay.truth, replay.weights()
        right = probabilities.argmax(axis=1) == replay.truth
        truth = np.eye(len(replay.labels), dtype=np.float32)[replay.truth]
        self.targets = np.where(right[:, None], probabilities, truth)

    def __len__(self) -> int:
        return len(self.truth)


class ReplaySampler:
    """Batches of float32 features (n, D) and their targets (n, C): those of ``drawn``, some replaced by replayed ones.

    What is drawn depends on seed, epoch and index alone; see ``prefetch.BatchSource``. An epoch has as many batches as
    would show each image once.
    """

    def __init__(self, drawn: BalancedSampler, replay_targets: ReplayTargets, size: int, seed: int) -> None:
        self._new, self._replay, self._size, self._seed = drawn, replay_targets, size, seed

    def __len__(self) -> int:
        return len(self._new) + math.ceil(len(self._replay) / self._size)

    def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """Draw a batch."""
        features, truth = self._new.batch(epoch, index)
        count = min(round(REPLAYED * len(features)), len(features) - 1)
        random = np.random.default_rng((self._seed, 1 + epoch, index, 1))
        chosen = random.choice(len(self._replay), count, p=self._replay.shares)
        return (
            np.concatenate([features[count:], self._replay.features[chosen].astype(np.float32)]),
            np.concatenate([truth[count:], self._replay.targets[chosen]]),
        )
