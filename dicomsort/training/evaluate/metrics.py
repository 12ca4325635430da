"""Metrics of predictions, each with its interval from a cluster bootstrap; plain dicts, ready for JSON.

The bootstrap draws whole sources, patients or files again and again. Every metric is a function of how often each
cluster counts. So one computation gives the metric (each cluster once) and its resampled values (as often as drawn).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dicomsort.training.evaluate.calibration import BINS, bin_of
from dicomsort.training.evaluate.predictions import Predictions
from dicomsort.training.fit.held_out import losses

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]
KeyPath = tuple[str, ...]  # names in nested dictionaries
Figures = dict[KeyPath, Values]
CONFIDENT = 0.9
RESAMPLES = 1000
LEVEL = 0.95
MIN_CLUSTERS = 2
ROOM = 4_000_000  # numbers in memory at a time
DIGITS = 4


class Tally:
    """Predictions summed by cluster.

    ``probabilities``: float32 (N, C); ``truth``: int64 (N,); ``clusters``: (N,), the name or number of each image's;
    ``thresholds``: name -> float64 (N,), on confidence; ``right``: bool (N,). Weights are float64 (r, K): how often
    each of the K clusters counts, r times over.
    """

    def __init__(
        self,
        probabilities: NDArray[np.float32],
        truth: NDArray[np.int64],
        labels: Sequence[str],
        clusters: ArrayLike,
        thresholds: Mapping[str, Values],
    ) -> None:
        """Sum what every set of predictions has; the ``add_`` methods add what only some have."""
        names, self._cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self.truth, self.labels, self.clusters = truth, labels, len(names)
        self._probabilities = probabilities
        self._predicted, self._confidence = probabilities.argmax(1), probabilities.max(1)
        self.right = self._predicted == truth
        self._cells, cell = np.unique(truth * len(labels) + self._predicted, return_inverse=True)
        self._counts = np.zeros((self.clusters, len(self._cells)))
        np.add.at(self._counts, (self._cluster, cell), 1)
        self._measures: list[Callable[[Values], Figures]] = [self._classes]
        self._mean(("log_loss",), losses(probabilities, truth))
        self._add_ece()
        self._add_most_confident()
        for name, values in thresholds.items():
            self._add_coverage(name, self._confidence >= values)

    def figures(self, weights: Values) -> Figures:
        """Return every figure as float64 (r,); NaN where there is nothing to measure."""
        return {path: values for measure in self._measures for path, values in measure(weights).items()}

    def matrix(self, weights: Values) -> Values:
        """Return the confusion matrices, float64 (r, C, C), rows the truth."""
        whole = np.zeros((len(weights), len(self.labels) ** 2))
        whole[:, self._cells] = weights @ self._counts
        return whole.reshape(-1, len(self.labels), len(self.labels))

    def add_distance(self, other: int | None, outside: Mask, alone: Mask) -> None:
        """Add what lies ``outside`` the limit of distance, and what is decided ``alone``, both (N,)."""
        known = self.truth != other
        if other is not None:
            self._ratio(("other", "out_of_distribution"), outside & ~known, ~known)
            self._ratio(("other", "class_images_out_of_distribution"), outside & known, known)
        self._mean(("out_of_distribution",), outside)
        self._add_coverage("decide_and_distance", alone)

    def add_decided(self, alone: Mask) -> None:
        """Add for each class what is decided ``alone``: the share of its images, and how many named so are right."""
        for index, label in enumerate(self.labels):
            own, named = self.truth == index, alone & (self._predicted == index)
            self._ratio(("decided", label, "share"), alone & own, own)
            self._ratio(("decided", label, "right"), named & own, named)

    def add_other(self, column: int, keys: Sequence[str], alone: Mask) -> None:
        """Add what concerns the class of all the rest, and how the other classes' images fare without it.

        What does harm is an image of the rest that is given a class's name ``alone``, (N,).
        """
        known = self.truth != column
        self._ratio(("other", "recall"), self.right & ~known, ~known)
        self._ratio(("other", "class_images_sent_to_other"), known & (self._predicted == column), known)
        named = (self._predicted != column) & alone
        self._ratio(("other", "named_a_class"), named & ~known, ~known)
        names = np.delete(np.arange(len(self.labels)), column)
        right = names[np.delete(self._probabilities, column, axis=1).argmax(1)] == self.truth
        self._ratio(("without_other", "accuracy"), right & known, known)
        self._add_balanced(("without_other", "balanced_accuracy"), right, known)
        if keys:
            self.add_mean_recall(("without_other", "mean_recall_by_source"), keys, right, known)

    def add_variant(self, name: str, probabilities: NDArray[np.float32], unchanged: NDArray[np.float32]) -> None:
        """Add a shortcut test: the accuracy on changed images, and the change against the ``unchanged`` ones.

        Both float32 (N, C), of the same models.
        """
        right, before = (each.argmax(1) == self.truth for each in (probabilities, unchanged))
        self._mean(("shortcuts", name, "accuracy"), right)
        self._mean(("shortcuts", name, "change"), right.astype(float) - before)

    def _sum(self, values: Values | Mask) -> Values:
        """Return the sums of ``values`` (N,) by cluster, (K,)."""
        return np.bincount(self._cluster, values, self.clusters).astype(np.float64)

    def _mean(self, path: KeyPath, values: Values | Mask) -> None:
        self._ratio(path, values, np.ones(len(self.truth)))

    def _ratio(self, path: KeyPath, above: Values | Mask, below: Values | Mask) -> None:
        """Add the sum of ``above`` over the sum of ``below``, both (N,)."""
        top, bottom = self._sum(above), self._sum(below)
        self._measures.append(lambda weights: {path: over(weights @ top, weights @ bottom)})

    def _classes(self, weights: Values) -> Figures:
        """Return precision, recall and F1 of each class, accuracy and balanced accuracy."""
        matrix = self.matrix(weights)
        hits, support, named = np.einsum("rcc->rc", matrix), matrix.sum(2), matrix.sum(1)
        recall, precision, f1 = over(hits, support), over(hits, named), over(2 * hits, support + named)
        figures: Figures = {
            ("accuracy",): over(hits.sum(1), support.sum(1)),
            ("balanced_accuracy",): mean_of_known(recall),
        }
        for i, label in enumerate(self.labels):
            figures["classes", label, "precision"] = precision[:, i]
            figures["classes", label, "recall"] = recall[:, i]
            figures["classes", label, "f1"] = f1[:, i]
        return figures

    def _add_balanced(self, path: KeyPath, right: Mask, among: Mask) -> None:
        """Add the mean over the classes of the share that is ``right``, ``among`` some of the images."""
        members = [among & (self.truth == i) for i in range(len(self.labels))]
        hits = np.stack([self._sum(right & member) for member in members], axis=1)
        counts = np.stack([self._sum(member) for member in members], axis=1)
        self._measures.append(lambda weights: {path: mean_of_known(over(weights @ hits, weights @ counts))})

    def add_mean_recall(self, path: KeyPath, keys: Sequence[str], right: Mask, among: Mask) -> None:
        """Add the mean of the recall by class and source, which ``keys`` name; a source must lie in one cluster."""
        _, first, row = np.unique(np.array(keys)[among], return_index=True, return_inverse=True)
        recall, home = np.bincount(row, right[among]) / np.bincount(row), self._cluster[among][first]
        top, rows = np.bincount(home, recall, self.clusters), np.bincount(home, minlength=self.clusters).astype(float)
        self._measures.append(lambda weights: {path: over(weights @ top, weights @ rows)})

    def _add_ece(self) -> None:
        """Add the expected calibration error."""
        place = bin_of(self._confidence)
        gap = self.right - self._confidence.astype(float)
        sums = np.zeros((self.clusters, BINS))
        np.add.at(sums, (self._cluster, place), gap)
        counts = self._sum(np.ones(len(self.truth)))
        self._measures.append(lambda weights: {("ece",): over(np.abs(weights @ sums).sum(1), weights @ counts)})

    def _add_most_confident(self) -> None:
        """Add the accuracy among the most confident 90 %, the last of them counted in part."""
        order = np.argsort(-self._confidence, kind="stable")
        cluster, right = self._cluster[order], self.right[order]

        def measure(weights: Values) -> Figures:
            each = weights[:, cluster]
            before = np.cumsum(each, axis=1) - each
            wanted = CONFIDENT * each.sum(1, keepdims=True)
            counted = np.clip(wanted - before, 0, each)
            return {("confident_90", "accuracy"): over(counted @ right, counted.sum(1))}

        self._measures.append(measure)

    def _add_coverage(self, name: str, above: Mask) -> None:
        """Add the share of the images ``above`` a threshold, and the accuracy among them."""
        self._mean(("thresholds", name, "coverage"), above)
        self._ratio(("thresholds", name, "accuracy"), self.right & above, above)


def over(top: Values, bottom: Values) -> Values:
    """Return ``top`` / ``bottom``, NaN where the latter is 0."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))


def mean_of_known(values: Values) -> Values:
    """Return the mean of each row (r, n) over what is no NaN, (r,); NaN where there is nothing."""
    known = np.isfinite(values)
    return over(np.where(known, values, 0).sum(1), known.sum(1).astype(float))


def resamples(clusters: int, room: int, seed: int) -> Iterator[Values]:
    """Yield how often each cluster is drawn, float64 (r, clusters), in parts whose r add up to 1,000.

    Each row draws as many clusters as there are, with replacement. Parts are so small that r rows of ``room`` numbers
    fit into memory.
    """
    random = np.random.default_rng(seed)
    part = max(1, min(RESAMPLES, ROOM // max(clusters, room)))
    for start in range(0, RESAMPLES, part):
        count = min(part, RESAMPLES - start)
        yield random.multinomial(clusters, np.full(clusters, 1 / clusters), size=count).astype(np.float64)


def bootstrap(measure: Callable[[Values], Figures], tally: Tally, seed: int) -> Figures:
    """Return what ``measure`` makes of 1,000 resamples of the clusters of ``tally``, float64 (1000,) a figure."""
    room = max(len(tally.truth), len(tally.labels) ** 2)
    parts = [measure(weights) for weights in resamples(tally.clusters, room, seed)]
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


def interval(values: Values) -> list[float] | None:
    """Return the middle 95 % of ``values`` (R,) as [low, high] (percentile interval; Efron and Tibshirani 1993, 13.3).

    NaN, where a resample has none of what is measured, is left out; None where nothing remains.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return [_round(low), _round(high)]


def centred(values: Values, figure: float) -> Values:
    """Return ``values`` (R,), none below 0, less their bias: the distance of their mean from ``figure``.

    The expected calibration error is a sum of magnitudes: whatever is drawn anew adds to it, so the resampled values
    all lie above the figure (Efron and Tibshirani 1993, 10.3, on the bootstrap's estimate of bias).
    """
    return np.maximum(values - (np.nanmean(values) - figure), 0)


def nest(flat: Mapping[KeyPath, Any]) -> dict[str, Any]:
    """Return ``flat`` (a path of names -> value) as dictionaries in dictionaries."""
    whole: dict[str, Any] = {}
    for path, value in flat.items():
        inner = whole
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return whole


def measure(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], labels: Sequence[str], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """Return accuracy, balanced accuracy, figures by class, confusion matrix (rows: truth), ECE, coverage and the rest.

    ``probabilities``: float32 (N, C), calibrated; ``truth``: int64 (N,). Balanced accuracy is the mean recall over the
    classes that occur. ``thresholds`` are reported with the share of images above each and the accuracy among them.
    """
    arrays = {name: np.full(len(truth), value) for name, value in thresholds.items()}
    return _figures(Tally(probabilities, truth, labels, np.zeros(len(truth)), arrays), arrays)


def report(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
    """Return all figures of ``predictions``, and under ``intervals``, in the same shape, their 95 % intervals.

    ``sources`` lists each class and source with its recall, the worst first, where there are sources.
    """
    tally = tally_of(predictions)
    how = {"unit": predictions.unit, "clusters": tally.clusters, "resamples": RESAMPLES, "seed": seed}
    figures = {"bootstrap": how, **_figures(tally, predictions.thresholds)}
    sources = [item.source for item in predictions.dataset.items]
    if any(sources):
        truth, labels = predictions.dataset.classes(), predictions.dataset.labels
        figures["sources"] = by_source(predictions.probabilities, truth, labels, sources)
    if tally.clusters >= MIN_CLUSTERS:
        drawn = bootstrap(tally.figures, tally, seed)
        drawn["ece",] = centred(drawn["ece",], figures["ece"])
        figures["intervals"] = nest({path: interval(values) for path, values in drawn.items()})
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


def tally_of(predictions: Predictions) -> Tally:
    """Return the sums of all that is measured; what is named by source only where sources are the clusters."""
    dataset, truth = predictions.dataset, predictions.dataset.classes()
    tally = Tally(predictions.probabilities, truth, dataset.labels, predictions.clusters, predictions.thresholds)
    alone = predictions.alone
    other = dataset.other()
    keys = [f"{item.label}/{item.source}" for item in dataset.items] if predictions.unit == "source" else []
    if keys:
        tally.add_mean_recall(("mean_recall_by_source",), keys, tally.right, np.ones(len(truth), bool))
    if other is not None:
        tally.add_other(other, keys, alone)
    if predictions.distances is not None and predictions.limits is not None:
        tally.add_distance(other, predictions.outside, alone)
    tally.add_decided(alone)
    unchanged = predictions.probabilities if predictions.unchanged is None else predictions.unchanged
    for name, changed in predictions.variants.items():
        tally.add_variant(name, changed, unchanged)
    return tally


def _figures(tally: Tally, thresholds: Mapping[str, Values]) -> dict[str, Any]:
    """Return the figures where every cluster counts once; what is undefined is 0 for a class, else None."""
    flat: dict[KeyPath, Any] = {("images",): len(tally.truth)}
    for path, (value,) in tally.figures(np.ones((1, tally.clusters))).items():
        flat[path] = _round(value) if np.isfinite(value) else 0.0 if path[0] == "classes" else None
    for name, values in thresholds.items():
        flat["thresholds", name, "threshold"] = _round(np.mean(values))
    matrix = tally.matrix(np.ones((1, tally.clusters)))[0].astype(int)
    for label, row in zip(tally.labels, matrix, strict=True):
        flat["classes", label, "support"] = int(row.sum())
    flat["confusion_matrix",] = {"labels": list(tally.labels), "rows_are_truth": matrix.tolist()}
    return nest(flat)


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), DIGITS)
