"""Figures from predictions: plain dicts, ready for JSON, each with its bootstrap interval.

Every figure is a function of how often each cluster counts, so one computation gives the figure (each once) and its
resampled values (as often as drawn).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.records import OTHER
from dicomsort.training import bootstrap
from dicomsort.training.predictions import Predictions
from dicomsort.training.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DIGITS = 4
MIN_LABELS_BESIDE_OTHER = 2


def measure(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    labels: Sequence[str],
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """Return accuracy, balanced accuracy, figures by class, confusion matrix (rows: truth), ECE, coverage and the rest.

    ``probabilities``: float32 (N, C), calibrated; ``truth``: int64 (N,). Balanced accuracy is the mean recall over the
    classes that occur. ``thresholds`` are reported with the share of images above each and the accuracy among them.
    """
    arrays = {name: np.full(len(truth), value) for name, value in thresholds.items()}
    return _figures(Tally(probabilities, truth, labels, np.zeros(len(truth), np.intp), arrays), arrays)


def report(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
    """Return all figures of ``predictions``, and under ``intervals``, in the same shape, their 95 % intervals.

    ``sources`` lists each class and source with its recall, the worst first, where there are sources.
    """
    names, cluster = np.unique(np.array(predictions.clusters), return_inverse=True)
    tally = tally_of(predictions, cluster)
    drawn_from = {"unit": predictions.unit, "clusters": len(names), "resamples": bootstrap.RESAMPLES, "seed": seed}
    figures = {"bootstrap": drawn_from, **_figures(tally, predictions.thresholds)}
    sources = [item.source for item in predictions.dataset.items]
    if any(sources):
        truth, labels = predictions.dataset.classes(), predictions.dataset.labels
        figures["sources"] = by_source(predictions.probabilities, truth, labels, sources)
    if len(names) >= bootstrap.MIN_CLUSTERS:
        room = max(len(cluster), len(tally.labels) ** 2)
        parts = [tally.figures(weights) for weights in bootstrap.resamples(len(names), room, seed)]
        drawn = {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}
        drawn["ece",] = bootstrap.centred(drawn["ece",], figures["ece"])
        figures["intervals"] = bootstrap.nest({path: bootstrap.interval(values) for path, values in drawn.items()})
    return figures


def by_source(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], labels: Sequence[str], sources: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row a class and source, the worst recall first: label, source, images, recall, most common mistake."""
    predicted, names = probabilities.argmax(1), np.array(sources)
    rows = []
    for source, index in sorted({(s, int(t)) for s, t in zip(sources, truth, strict=True)}):
        answers = predicted[(names == source) & (truth == index)]
        wrong = answers[answers != index]
        rows.append(
            {
                "label": labels[index],
                "source": source,
                "images": len(answers),
                "recall": _round((answers == index).mean()),
                "mistaken_for": labels[int(np.bincount(wrong).argmax())] if len(wrong) else "",
            }
        )
    return sorted(rows, key=lambda row: (row["recall"], row["source"], row["label"]))


def tally_of(predictions: Predictions, cluster: NDArray[np.intp]) -> Tally:
    """Return the sums of all that is measured; what is named by source only where sources are the clusters."""
    dataset, truth = predictions.dataset, predictions.dataset.classes()
    tally = Tally(predictions.probabilities, truth, dataset.labels, cluster, predictions.thresholds)
    decide, outside = predictions.thresholds["decide"], predictions.outside
    beside = OTHER in dataset.labels and len(dataset.labels) > MIN_LABELS_BESIDE_OTHER
    other = dataset.labels.index(OTHER) if beside else None
    keys = [f"{item.label}/{item.source}" for item in dataset.items] if predictions.unit == "source" else []
    if keys:
        tally.add_sources(keys)
    if other is not None:
        tally.add_other(other, keys, decide, outside)
    if predictions.distances is not None and predictions.limits is not None:
        tally.add_distance(other, decide, outside)
    for name, changed in predictions.variants.items():
        tally.add_variant(name, changed, predictions.probabilities if predictions.plain is None else predictions.plain)
    return tally


def _figures(tally: Tally, thresholds: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the figures where every cluster counts once; what is undefined is 0 for a class, else None."""
    flat: dict[tuple[str, ...], Any] = {("images",): len(tally.truth)}
    for path, (value,) in tally.figures(np.ones((1, tally.clusters))).items():
        flat[path] = _round(value) if np.isfinite(value) else 0.0 if path[0] == "classes" else None
    for name, values in thresholds.items():
        flat["thresholds", name, "threshold"] = _round(np.mean(values))
    matrix = tally.matrix(np.ones((1, tally.clusters)))[0].astype(int)
    for label, row in zip(tally.labels, matrix, strict=True):
        flat["classes", label, "support"] = int(row.sum())
    flat["confusion_matrix",] = {"labels": list(tally.labels), "rows_are_truth": matrix.tolist()}
    return bootstrap.nest(flat)


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), DIGITS)
