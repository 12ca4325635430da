"""The cluster bootstrap: whole sources, patients or files are drawn again and again, and every figure with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
MIN_CLUSTERS = 2
ROOM = 4_000_000  # numbers held at a time


def resamples(clusters: int, room: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each cluster is drawn, float64 (r, clusters), in parts whose r add up to 1,000.

    Each row draws as many clusters as there are, with replacement. Parts are so small that r rows of ``room`` numbers
    fit into memory.
    """
    random = np.random.default_rng(seed)
    part = max(1, min(RESAMPLES, ROOM // max(clusters, room)))
    for start in range(0, RESAMPLES, part):
        count = min(part, RESAMPLES - start)
        yield random.multinomial(clusters, np.full(clusters, 1 / clusters), size=count).astype(np.float64)


def interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the middle 95 % of ``values`` (R,) as [low, high] (percentile interval; Efron and Tibshirani 1993, 13.3).

    NaN, where a resample has none of what is measured, is left out; None where nothing remains.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return [round(float(low), 4), round(float(high), 4)]


def centred(values: NDArray[np.float64], figure: float) -> NDArray[np.float64]:
    """Return ``values`` (R,), none below 0, less their bias: the distance of their mean from ``figure``.

    The expected calibration error is a sum of magnitudes: whatever is drawn anew adds to it, so the resampled values
    all lie above the figure (Efron and Tibshirani 1993, 10.3, on the bootstrap's estimate of bias).
    """
    return np.maximum(values - (np.nanmean(values) - figure), 0)


def nest(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return ``flat`` (a path of names -> value) as dictionaries in dictionaries."""
    whole: dict[str, Any] = {}
    for path, value in flat.items():
        inner = whole
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return whole
