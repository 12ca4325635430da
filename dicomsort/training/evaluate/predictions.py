"""What a model says of a data set's images, and how it came to judge them: what figures are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.records import OTHER
from dicomsort.training.data.dataset import DatasetError
from dicomsort.training.evaluate.calibration import by_image, nested

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicomsort.training.data.dataset import Dataset

NESTED = "nested"


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for the items of ``dataset``, from wherever they come.

    ``probabilities``: float32 (N, C), calibrated, in the order of the labels. ``thresholds``: ``decide`` and
    ``contradict`` -> float64 (N,), on confidence, each image's own where they were fitted without it. ``held_out``
    says in words how the images relate to those that the model was trained on; ``by_source`` tells whether whole
    sources were kept from it. ``clusters`` names for each item what is resampled as one, ``unit`` what that is (source,
    patient, file). ``distances``: float32 (N,), the feature-space distance from the training images, or None;
    ``limits``: float64 (N,), beyond which an image is out of distribution. ``variants``: name of a shortcut test ->
    probabilities of the changed images, like the others.
    ``plain``: those of the unchanged images by the models that judged ``variants``, None where they are
    ``probabilities``. ``calibration`` tells where temperatures and thresholds come from: ``the bundle's``, or
    ``nested`` (other folds).
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
    plain: NDArray[np.float32] | None = None

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


def require_images(dataset: Dataset, skipped: int) -> None:
    """Raise DatasetError where no image is left to judge."""
    if not dataset.items:
        msg = f"data set {str(dataset.root)!r}: expected a readable image, received none ({skipped} files were skipped)"
        raise DatasetError(msg)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Predictions of items by models that were not trained on them, not calibrated.

    ``probabilities``: float32 (N, C); ``fold``: int64 (N,), no source in two of them; ``held_out`` and ``by_source`` as
    in ``Predictions``; ``distances``: float32 (N,) or None; ``variants``: name of a shortcut test -> float32 (N, C);
    ``limit``: that of distance, where it is known and not fitted; ``plain``: what the models that judged ``variants``
    say of the unchanged images, None where they are the same.
    """

    probabilities: NDArray[np.float32]
    fold: NDArray[np.int64]
    held_out: str
    by_source: bool
    distances: NDArray[np.float32] | None = None
    variants: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    limit: float | None = None
    plain: NDArray[np.float32] | None = None

    def calibrated(self, dataset: Dataset) -> Predictions:
        """Return the predictions, each calibrated by what the other folds tell (``calibration.nested``)."""
        other = dataset.labels.index(OTHER) if OTHER in dataset.labels else None
        found = nested(self.probabilities, dataset.classes(), self.fold, self.distances, other)
        clusters, unit = name_clusters(dataset)
        return Predictions(
            dataset,
            found.probabilities,
            {"decide": found.decide, "contradict": found.contradict},
            self.held_out,
            clusters,
            unit,
            self.by_source,
            self.distances,
            found.limits if self.limit is None else np.full(len(self.fold), self.limit),
            {name: by_image(changed, found.temperatures) for name, changed in self.variants.items()},
            NESTED,
            self.plain,
        )
