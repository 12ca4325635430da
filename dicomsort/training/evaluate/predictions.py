"""Predictions for the images of a data set, and where they come from: what metrics are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle import Bundle, BundleReference, predictor_of
from dicomsort.bundle.predictor import ModelOutput
from dicomsort.errors import counted
from dicomsort.records import OTHER
from dicomsort.training.data.dataset import Dataset, DatasetError
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.evaluate.calibration import by_image, nested
from dicomsort.training.fit.held_out import HeldOutPredictions

NESTED = "nested"


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for the items of ``dataset``, from wherever they come.

    ``probabilities``: float32 (N, C), calibrated, in the order of the labels. ``thresholds``: ``decide`` -> float64
    (N,), on confidence, each image's own where they were fitted without it. ``held_out`` says in words how the images
    relate to those that the model was trained on; ``by_source`` says whether whole sources were held out. ``clusters``
    names for each item what is resampled as one, ``unit`` what that is (source, patient, file). ``distances``: float32
    (N,), the feature-space distance from the training images, or None; ``limits``: float64 (N,), beyond which an image
    is out of distribution. ``variants``: name of a robustness test -> probabilities of the changed images, like the
    others. ``unchanged``: those of the unchanged images by the models behind ``variants``, None where they are
    ``probabilities``. ``calibration`` says where temperatures and thresholds come from: ``the bundle's``, or ``nested``
    (other folds).
    """

    dataset: Dataset
    probabilities: NDArray[np.float32]
    thresholds: Mapping[str, NDArray[np.float64]]
    held_out: str
    clusters: Sequence[str]
    unit: str
    by_source: bool = False
    distances: NDArray[np.float32] | None = None
    limits: NDArray[np.float64] | None = None
    variants: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    calibration: str = "the bundle's"
    unchanged: NDArray[np.float32] | None = None

    def only(self, rows: list[int]) -> Predictions:
        """Return the predictions for these images alone; ``variants`` and ``unchanged`` stay whole."""
        return replace(
            self,
            dataset=self.dataset.only(rows),
            probabilities=self.probabilities[rows],
            thresholds={name: values[rows] for name, values in self.thresholds.items()},
            clusters=[self.clusters[i] for i in rows],
            distances=None if self.distances is None else self.distances[rows],
            limits=None if self.limits is None else self.limits[rows],
        )

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image's most probable class is its own, (N,)."""
        return np.asarray(self.probabilities.argmax(1) == self.dataset.classes())

    @property
    def confidence(self) -> NDArray[np.float32]:
        """The probability of each image's most probable class, (N,)."""
        return np.asarray(self.probabilities.max(1))

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Whether each image lies beyond its limit of distance, (N,); False everywhere where there is none."""
        if self.distances is None or self.limits is None:
            return np.zeros(len(self.probabilities), bool)
        return np.asarray(self.distances > self.limits)

    @property
    def alone(self) -> NDArray[np.bool_]:
        """Whether each image is decided by its pixels alone, (N,): confident, and not out of distribution.

        What is taken for OTHER never is (``classify.is_out_of_distribution``).
        """
        named = np.array(self.dataset.labels)[self.probabilities.argmax(1)] != OTHER
        return np.asarray((self.confidence >= self.thresholds["decide"]) & ~(named & self.outside))


def name_clusters(dataset: Dataset) -> tuple[list[str], str]:
    """Return for each item what is resampled as one, and what that is: ``source``, ``patient`` or ``file``.

    Sources (or groups of them) where every item has one and there are at least two; else patients, near-duplicates
    with them, where some are known; else files.
    """
    groups = [item.group for item in dataset.items]
    if all(groups) and len(set(groups)) > 1:
        return groups, "source"
    kin = dataset.units(grouped=False)
    return kin, "patient" if any(item.kin for item in dataset.items) and len(set(kin)) > 1 else "file"


def own_thresholds(bundle: Bundle, probabilities: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Return the bundle's own threshold for each row of ``probabilities`` (N, C), as ``Predictions`` has them."""
    return {"decide": np.full(len(probabilities), bundle.decide)}


def require_images(dataset: Dataset, skipped: int) -> None:
    """Raise DatasetError where no image is left to evaluate on."""
    if not dataset.items:
        received = f"received none ({counted(skipped, 'file')} skipped)"
        raise DatasetError(f"data set {str(dataset.root)!r}: expected a readable image, {received}")


def cross_calibrated(
    held_out: HeldOutPredictions, dataset: Dataset, target: float, limit: float | None = None
) -> Predictions:
    """Return held-out predictions for ``dataset``, each image calibrated by the other folds (``calibration.nested``).

    ``target`` is the share that a threshold promises to be right; ``limit`` is that of distance, where it is known and
    not fitted.
    """
    other = dataset.labels.index(OTHER) if OTHER in dataset.labels else None
    clusters, unit = name_clusters(dataset)
    predictions = held_out.probabilities, held_out.truth, held_out.fold, held_out.distances
    calibrated = nested(*predictions, other, target, clusters)
    return Predictions(
        dataset,
        calibrated.probabilities,
        {"decide": calibrated.decide},
        held_out.how,
        clusters,
        unit,
        held_out.by_source,
        held_out.distances,
        calibrated.limits if limit is None else np.full(len(held_out.fold), limit),
        {name: by_image(changed, calibrated.temperatures) for name, changed in held_out.variants.items()},
        NESTED,
        held_out.unchanged,
    )


class ImagePrediction(NamedTuple):
    """The output for an image and its changed versions, without maps; or why there is none."""

    output: ModelOutput | None = None
    problem: str = ""


def predict_images(
    bundle: BundleReference, shortcuts: Sequence[str], images: Sequence[NDArray[np.uint8]]
) -> list[ImagePrediction]:
    """Predict each image, plain and changed by each of ``shortcuts``; runs in a worker."""
    predictor = predictor_of(bundle)
    outputs = (predictor.predict(np.stack([i, *(SHORTCUTS[name](i) for name in shortcuts)])) for i in images)
    return [ImagePrediction(output._replace(maps=None)) for output in outputs]
