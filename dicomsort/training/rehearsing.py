"""Batches for a training that goes on from a bundle: a site's images, and features that the bundle keeps, in each.

Without the latter the site's images are all that is ever argued for, and what the bundle knew of others is forgotten
(rehearsal: Robins 1995, Catastrophic Forgetting, Rehearsal and Pseudorehearsal). What it is to say of them is what the
bundle itself says, doubts and all (Li and Hoiem 2016, arXiv:1606.09282): argued for by their labels alone it becomes
ever surer of them, and less often right about images that are neither these nor the site's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.training.remembered import Remembered
    from dicomsort.training.views import Drawn

SHARE = 0.75  # of a batch that is rehearsed


class Rehearsal:
    """Features that are rehearsed, and what is to be said of them: ``said`` by the bundle, float32 (N, C), where right.

    Where it is wrong, the truth.
    """

    def __init__(self, kept: Remembered, said: NDArray[np.float32]) -> None:
        self.features, self.truth, self.shares = kept.features, kept.truth, kept.weights()
        right = said.argmax(axis=1) == kept.truth
        self.wanted = np.where(right[:, None], said, np.eye(len(kept.labels), dtype=np.float32)[kept.truth])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.truth)


class Rehearsing:
    """Batches of float32 features (n, D) and what is to be said (n, C): those of ``drawn``, with some of ``rehearsal``.

    What is drawn depends on seed, epoch and index alone; see ``prefetching.Source``.
    """

    def __init__(self, drawn: Drawn, rehearsal: Rehearsal, size: int, seed: int) -> None:
        self._drawn, self._rehearsal, self._size, self._seed = drawn, rehearsal, size, seed

    def __len__(self) -> int:
        """Return how many batches an epoch has: as many as would show each image once."""
        return len(self._drawn) + math.ceil(len(self._rehearsal) / self._size)

    def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """Draw a batch."""
        features, truth = self._drawn.batch(epoch, index)
        count = min(round(SHARE * len(features)), len(features) - 1)
        random = np.random.default_rng((self._seed, 1 + epoch, index, 1))
        chosen = random.choice(len(self._rehearsal), count, p=self._rehearsal.shares)
        return (
            np.concatenate([features[count:], self._rehearsal.features[chosen].astype(np.float32)]),
            np.concatenate([truth[count:], self._rehearsal.wanted[chosen]]),
        )
