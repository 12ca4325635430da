"""Sums by cluster, and the figures that follow from how often each cluster counts: the arithmetic of every figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomsort.training.calibration import BINS, bin_of, losses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Figures = dict[tuple[str, ...], Values]

CONFIDENT = 0.9


class Tally:
    """Predictions summed by cluster.

    ``probabilities``: float32 (N, C); ``truth``: int64 (N,); ``cluster``: intp (N,), 0..K-1; ``thresholds``: name ->
    float64 (N,), on confidence. Weights are float64 (r, K): how often each of the K clusters counts, r times over.
    """

    def __init__(
        self,
        probabilities: NDArray[np.float32],
        truth: NDArray[np.int64],
        labels: Sequence[str],
        cluster: NDArray[np.intp],
        thresholds: Mapping[str, Values],
    ) -> None:
        """Sum what every set of predictions has; the ``add_`` methods add what only some have."""
        self.truth, self.labels, self.clusters = truth, labels, int(cluster.max()) + 1
        self._cluster, self._probabilities = cluster, probabilities
        self._predicted, confidence = probabilities.argmax(1), probabilities.max(1)
        self._right, self._confidence = self._predicted == truth, confidence
        self._cells, cell = np.unique(truth * len(labels) + self._predicted, return_inverse=True)
        self._counts = np.zeros((self.clusters, len(self._cells)))
        np.add.at(self._counts, (cluster, cell), 1)
        self._measures: list[Callable[[Values], Figures]] = [self._classes]
        self._mean(("log_loss",), losses(probabilities, truth))
        self._add_ece()
        self._add_most_confident()
        for name, values in thresholds.items():
            self._add_coverage(name, confidence >= values)

    def figures(self, weights: Values) -> Figures:
        """Return every figure as float64 (r,); NaN where there is nothing to measure."""
        return {path: values for measure in self._measures for path, values in measure(weights).items()}

    def matrix(self, weights: Values) -> Values:
        """Return the confusion matrices, float64 (r, C, C), rows the truth."""
        whole = np.zeros((len(weights), len(self.labels) ** 2))
        whole[:, self._cells] = weights @ self._counts
        return whole.reshape(-1, len(self.labels), len(self.labels))

    def add_distance(self, other: int | None, decide: Values, outside: NDArray[np.bool_]) -> None:
        """Add what lies out of distribution, and what is answered: confident enough, and not out of distribution."""
        known = self.truth != other
        if other is not None:
            self._ratio(("other", "out_of_distribution"), outside & ~known, ~known)
            self._ratio(("other", "class_images_out_of_distribution"), outside & known, known)
        self._mean(("out_of_distribution",), outside)
        self._add_coverage("decide_and_distance", (self._confidence >= decide) & ~outside)

    def add_sources(self, keys: Sequence[str]) -> None:
        """Add the mean recall by class and source, which ``keys`` name; a source must lie in one cluster."""
        self._mean_recall(("mean_recall_by_source",), keys, self._right, np.ones(len(self.truth), bool))

    def add_other(self, column: int, keys: Sequence[str], decide: Values, outside: NDArray[np.bool_]) -> None:
        """Add what concerns the class of all the rest, and how the other classes' images fare without it.

        What does harm is an image of the rest that gets a class's name: with a confidence of ``decide``, and not
        ``outside`` the limit of distance.
        """
        known = self.truth != column
        self._ratio(("other", "recall"), self._right & ~known, ~known)
        self._ratio(("other", "class_images_sent_to_other"), known & (self._predicted == column), known)
        named = (self._predicted != column) & (self._confidence >= decide) & ~outside
        self._ratio(("other", "named_a_class"), named & ~known, ~known)
        names = np.delete(np.arange(len(self.labels)), column)
        right = names[np.delete(self._probabilities, column, axis=1).argmax(1)] == self.truth
        self._ratio(("without_other", "accuracy"), right & known, known)
        self._add_balanced(("without_other", "balanced_accuracy"), right, known)
        if keys:
            self._mean_recall(("without_other", "mean_recall_by_source"), keys, right, known)

    def add_variant(self, name: str, probabilities: NDArray[np.float32], plain: NDArray[np.float32]) -> None:
        """Add a shortcut test: the accuracy on changed images, and the change against ``plain``, the unchanged ones.

        Both float32 (N, C), of the same models.
        """
        right, before = (said.argmax(1) == self.truth for said in (probabilities, plain))
        self._mean(("shortcuts", name, "accuracy"), right)
        self._mean(("shortcuts", name, "change"), right.astype(float) - before)

    def _sum(self, values: NDArray[np.float64 | np.bool_]) -> Values:
        """Return the sums of ``values`` (N,) by cluster, (K,)."""
        return np.bincount(self._cluster, values, self.clusters).astype(np.float64)

    def _mean(self, path: tuple[str, ...], values: NDArray[np.float64 | np.bool_]) -> None:
        self._ratio(path, values, np.ones(len(self.truth)))

    def _ratio(
        self, path: tuple[str, ...], above: NDArray[np.float64 | np.bool_], below: NDArray[np.float64 | np.bool_]
    ) -> None:
        """Add the sum of ``above`` over the sum of ``below``, both (N,)."""
        top, bottom = self._sum(above), self._sum(below)
        self._measures.append(lambda weights: {path: over(weights @ top, weights @ bottom)})

    def _classes(self, weights: Values) -> Figures:
        """Precision, recall and F1 of each class, accuracy and balanced accuracy, and the confusion's shares."""
        matrix = self.matrix(weights)
        hits, support, named = np.einsum("rcc->rc", matrix), matrix.sum(2), matrix.sum(1)
        recall, precision, f1 = over(hits, support), over(hits, named), over(2 * hits, support + named)
        found: Figures = {
            ("accuracy",): over(hits.sum(1), support.sum(1)),
            ("balanced_accuracy",): mean_of_known(recall),
        }
        for i, label in enumerate(self.labels):
            found["classes", label, "precision"] = precision[:, i]
            found["classes", label, "recall"] = recall[:, i]
            found["classes", label, "f1"] = f1[:, i]
        return found

    def _add_balanced(self, path: tuple[str, ...], right: NDArray[np.bool_], among: NDArray[np.bool_]) -> None:
        """Add the mean over the classes of the share that is ``right``, ``among`` some of the images."""
        members = [among & (self.truth == i) for i in range(len(self.labels))]
        hits = np.stack([self._sum(right & member) for member in members], axis=1)
        counts = np.stack([self._sum(member) for member in members], axis=1)
        self._measures.append(lambda weights: {path: mean_of_known(over(weights @ hits, weights @ counts))})

    def _mean_recall(
        self, path: tuple[str, ...], keys: Sequence[str], right: NDArray[np.bool_], among: NDArray[np.bool_]
    ) -> None:
        """Add the mean of the recall in each of the rows that ``keys`` name."""
        _, first, row = np.unique(np.array(keys)[among], return_index=True, return_inverse=True)
        recall, home = np.bincount(row, right[among]) / np.bincount(row), self._cluster[among][first]
        top, rows = np.bincount(home, recall, self.clusters), np.bincount(home, minlength=self.clusters).astype(float)
        self._measures.append(lambda weights: {path: over(weights @ top, weights @ rows)})

    def _add_ece(self) -> None:
        """Add the expected calibration error."""
        place = bin_of(self._confidence)
        gap = self._right - self._confidence.astype(float)
        sums = np.zeros((self.clusters, BINS))
        np.add.at(sums, (self._cluster, place), gap)
        counts = self._sum(np.ones(len(self.truth)))
        self._measures.append(lambda weights: {("ece",): over(np.abs(weights @ sums).sum(1), weights @ counts)})

    def _add_most_confident(self) -> None:
        """Add the accuracy among the most confident 90 %, the last of them counted in part."""
        order = np.argsort(-self._confidence, kind="stable")
        cluster, right = self._cluster[order], self._right[order]

        def measure(weights: Values) -> Figures:
            each = weights[:, cluster]
            before = np.cumsum(each, axis=1) - each
            wanted = CONFIDENT * each.sum(1, keepdims=True)
            counted = np.clip(wanted - before, 0, each)
            return {("confident_90", "accuracy"): over(counted @ right, counted.sum(1))}

        self._measures.append(measure)

    def _add_coverage(self, name: str, above: NDArray[np.bool_]) -> None:
        """Add the share of the images ``above`` a threshold, and the accuracy among them."""
        self._mean(("thresholds", name, "coverage"), above)
        self._ratio(("thresholds", name, "accuracy"), self._right & above, above)


def over(top: Values, bottom: Values) -> Values:
    """Return ``top`` / ``bottom``, NaN where the latter is 0."""
    quotient: Values = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return quotient


def mean_of_known(values: Values) -> Values:
    """Return the mean of each row (r, n) over what is no NaN, (r,); NaN where there is nothing."""
    known = np.isfinite(values)
    return over(np.where(known, values, 0).sum(1), known.sum(1).astype(float))
