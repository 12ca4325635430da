"""Two models on the same images: each figure of both, the change, and its interval where the same clusters are drawn.

Both are resampled alike, so what is hard for both adds nothing to the interval (a paired bootstrap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.training import bootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.training.tally import Figures, Tally

DIGITS = 4


def changes(first: Tally, second: Tally, seed: int = 0) -> dict[str, Any]:
    """Return the figures of both, ``change`` from the first to the second, and its 95 % ``intervals``, ready for JSON.

    Each is a dictionary of the figures that both have, in the shape of metrics.json; undefined figures are left out.
    Both tallies are of the same images in the same order, with the same clusters. No intervals with one cluster alone.
    """
    once = np.ones((1, first.clusters))
    one, two = ({path: float(v[0]) for path, v in tally.figures(once).items()} for tally in (first, second))
    paths = [path for path in one if np.isfinite([one[path], two.get(path, np.nan)]).all()]
    told = {name: bootstrap.nest({path: _round(figures[path]) for path in paths}) for name, figures in
            (("first", one), ("second", two), ("change", {path: two[path] - one[path] for path in paths}))}  # fmt: skip
    if first.clusters >= bootstrap.MIN_CLUSTERS:
        drawn = _drawn(first, second, seed)
        told["intervals"] = bootstrap.nest({path: bootstrap.interval(drawn[path]) for path in paths})
    return told


def agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, int]:
    """Return how many images both have right, only the first, only the second, and neither; both (N,)."""
    return {
        "both": int((first & second).sum()),
        "only_first": int((first & ~second).sum()),
        "only_second": int((second & ~first).sum()),
        "neither": int((~first & ~second).sum()),
    }


def _drawn(first: Tally, second: Tally, seed: int) -> Figures:
    """Return the changes of every figure in 1,000 resamples, float64 (1000,)."""
    room = max(len(first.truth), len(first.labels) ** 2)
    parts = []
    for weights in bootstrap.resamples(first.clusters, room, seed):
        one, two = first.figures(weights), second.figures(weights)
        parts.append({path: two[path] - one[path] for path in one if path in two})
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


def _round(value: float) -> float:
    return round(value, DIGITS)
