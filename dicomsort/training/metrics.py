"""Figures from held-out predictions: plain dicts, ready for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.training.calibration import expected_calibration_error, log_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

THRESHOLD_DIGITS = 4


def measure(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    labels: Sequence[str],
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """Return accuracy, balanced accuracy, figures by class, confusion matrix (rows: truth), ECE and coverage.

    ``probabilities``: float32 (N, C), calibrated; ``truth``: int64 (N,). Balanced accuracy is the mean recall over the
    classes that occur. ``thresholds`` are reported with the share of images above each and the accuracy among them.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = predicted == truth
    matrix = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix, (truth, predicted), 1)
    by_class = {label: _class_figures(matrix, i) for i, label in enumerate(labels)}
    recalls = [figures["recall"] for figures in by_class.values() if figures["support"]]
    return {
        "images": len(truth),
        "accuracy": _round(right.mean()),
        "balanced_accuracy": _round(np.mean(recalls)),
        "log_loss": _round(log_loss(probabilities, truth)),
        "ece": _round(expected_calibration_error(right, confidence)),
        "classes": by_class,
        "confusion_matrix": {"labels": list(labels), "rows_are_truth": matrix.tolist()},
        "thresholds": {name: _coverage(right, confidence, value) for name, value in thresholds.items()},
    }


def without(
    label: str, probabilities: NDArray[np.float32], truth: NDArray[np.int64], labels: Sequence[str]
) -> dict[str, float]:
    """Return accuracy and balanced accuracy of the other classes, with ``label`` taken out of truth and answers."""
    column = labels.index(label)
    rows = truth != column
    answers = np.delete(np.arange(len(labels)), column)[np.delete(probabilities[rows], column, axis=1).argmax(1)]
    right, kept = answers == truth[rows], truth[rows]
    recalls = [float(right[kept == c].mean()) for c in np.unique(kept)]
    return {"images": int(rows.sum()), "accuracy": _round(right.mean()), "balanced_accuracy": _round(np.mean(recalls))}


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


def _class_figures(matrix: NDArray[np.int_], i: int) -> dict[str, Any]:
    """Return precision, recall, F1 (0..1; 0 where undefined) and support of class ``i``."""
    hits, support, named = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
    precision, recall = hits / named if named else 0.0, hits / support if support else 0.0
    f1 = 2 * hits / (support + named) if support + named else 0.0
    return {"precision": _round(precision), "recall": _round(recall), "f1": _round(f1), "support": support}


def _coverage(right: NDArray[np.bool_], confidence: NDArray[np.float32], threshold: float) -> dict[str, float | None]:
    """Return the share of images at or above ``threshold`` and the accuracy among them (None where there are none)."""
    above = confidence >= threshold
    accuracy = _round(right[above].mean()) if above.any() else None
    return {"threshold": threshold, "coverage": _round(above.mean()), "accuracy": accuracy}


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), THRESHOLD_DIGITS)
