"""Batches for a training that goes on from a bundle: a site's images, and features that the bundle keeps, in each.

Without the latter the site's images are all that is ever argued for, and what the bundle knew of others is forgotten
(rehearsal: Robins 1995, Catastrophic Forgetting, Rehearsal and Pseudorehearsal).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.training.remembered import Remembered
    from dicomsort.training.views import Drawn

SHARE = 0.5  # of a batch that is rehearsed


class Rehearsing:
    """Batches of float32 features (n, D) and one-hot truth (n, C): those of ``drawn``, with some that are rehearsed.

    What is drawn depends on seed, epoch and index alone; see ``prefetching.Source``.
    """

    def __init__(self, drawn: Drawn, kept: Remembered, size: int, seed: int) -> None:
        self._drawn, self._kept, self._seed, self._size = drawn, kept, seed, size
        self._shares = kept.weights()
        self._truth = np.eye(len(kept.labels), dtype=np.float32)[kept.truth]

    def __len__(self) -> int:
        """Return how many batches an epoch has: as many as show each image once."""
        return len(self._drawn) + math.ceil(len(self._kept.classes) / self._size)

    def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """Draw a batch."""
        features, truth = self._drawn.batch(epoch, index)
        count = round(SHARE * len(features))
        random = np.random.default_rng((self._seed, 1 + epoch, index, 1))
        chosen = random.choice(len(self._shares), count, p=self._shares)
        return (
            np.concatenate([features[count:], self._kept.features[chosen].astype(np.float32)]),
            np.concatenate([truth[count:], self._truth[chosen]]),
        )
