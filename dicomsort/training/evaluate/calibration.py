"""Calibration on held-out predictions: a temperature, and the thresholds from which a confidence can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.bundle import Bundle, calibrate
from dicomsort.records import OTHER
from dicomsort.training.fit.finetune import Finetune
from dicomsort.training.models import ood
from dicomsort.training.models.replay_set import predictions_of
from dicomsort.training.models.tflite_head import predict_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicomsort.training.fit.held_out import HeldOutPredictions
    from dicomsort.training.fit.recipe import TrainedModel
    from dicomsort.training.models.architectures import Architecture
    from dicomsort.training.models.ood import MahalanobisModel

# Fewer held-out predictions than this say nothing about the last percent.
MIN_HELD_OUT, MIN_OF_CLASS = 50, 10  # of every class in fine-tuning: corrections are few, and none typical
MIN_CONFIDENT = 20
DECIDE_ACCURACY, DECIDE_BOUNDS = 0.99, (0.5, 0.99)
CONTRADICT_ACCURACY, CONTRADICT_BOUNDS = 0.995, (0.9, 0.99)
TEMPERATURES = np.geomspace(0.25, 10.0, 150)
BINS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """A temperature and thresholds (0..1), and in ``notes`` what of them could not be fitted, in sentences.

    ``distance`` is the feature-space distance beyond which an image is out of distribution, None where there is none.
    """

    temperature: float
    decide: float
    contradict: float
    notes: tuple[str, ...] = ()
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Nested:
    """Calibration that is fair to each image: fitted on the held-out predictions of the other folds alone.

    ``probabilities``: float32 (N, C), calibrated; ``temperatures``, ``decide`` and ``contradict``: float64 (N,), those
    of the image's fold; ``limits``: float64 (N,) of distance, or None.
    """

    probabilities: NDArray[np.float32]
    temperatures: NDArray[np.float64]
    decide: NDArray[np.float64]
    contradict: NDArray[np.float64]
    limits: NDArray[np.float64] | None = None


def of_training(
    architecture: Architecture, trained: TrainedModel, held_out: HeldOutPredictions, labels: Sequence[str]
) -> Calibration:
    """Return the calibration by the held-out predictions of the network that ships; see ``finetuned``."""
    other = list(labels).index(OTHER) if OTHER in labels else None
    fitted = fit(held_out.probabilities, held_out.truth, held_out.distances, other)
    if not isinstance(architecture, Finetune):
        return fitted
    counts = dict(zip(labels, np.bincount(held_out.truth, minlength=len(labels)).tolist(), strict=True))
    images, replayed = architecture.evaluation_set, None
    if images and (before := predictions_of(architecture.bundle, images)) is not None:
        replayed = before, predict_head(images.features, *trained.head)
    distances = [] if held_out.distances is None else held_out.distances.tolist()
    return finetuned(architecture.bundle, trained.mahalanobis, counts, fitted, distances, replayed)


def fit(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    distances: NDArray[np.float32] | None = None,
    other: int | None = None,
) -> Calibration:
    """Fit on held-out predictions.

    ``probabilities``: float32 (N, C), the model's own, of items it was not trained on; ``truth``: int64 (N,), 0..C-1;
    ``distances``: float32 (N,). The limit of distance is what ``distance.threshold`` makes of the images that are
    not of the class ``other`` (the index of OTHER, where there is one).
    """
    if len(truth) < MIN_HELD_OUT:
        note = (
            f"Only {len(truth)} images were held out (at least {MIN_HELD_OUT} are needed): temperature and thresholds "
            "are not fitted but set to careful values."
        )
        return Calibration(1.0, DECIDE_BOUNDS[1], CONTRADICT_BOUNDS[1], (note,))
    mean_losses = [float(losses(calibrate(probabilities, float(t)), truth).mean()) for t in TEMPERATURES]
    temperature = round(float(TEMPERATURES[int(np.argmin(mean_losses))]), 4)
    calibrated = calibrate(probabilities, temperature)
    right, confidence = calibrated.argmax(1) == truth, calibrated.max(1)
    decide, decide_note = _threshold("decide", right, confidence, DECIDE_ACCURACY, DECIDE_BOUNDS)
    contradict, contradict_note = _threshold("contradict", right, confidence, CONTRADICT_ACCURACY, CONTRADICT_BOUNDS)
    notes = tuple(filter(None, (decide_note, contradict_note)))
    known = np.zeros(0, np.float32) if distances is None else distances[truth != other]
    return Calibration(temperature, decide, contradict, notes, ood.threshold(known) if len(known) else None)


def bundle_calibration(start: Bundle, counts: Mapping[str, int]) -> Calibration | None:
    """Return the calibration of the bundle that was fine-tuned; None where there are enough images to fit another.

    ``counts`` are those of the held-out images by label.
    """
    few = "".join(f", {count or 'none'} of {label}" for label, count in counts.items() if count < MIN_OF_CLASS)
    total = sum(counts.values())
    if total >= MIN_HELD_OUT and not few:
        return None
    note = (
        f"Temperature and thresholds are those of {start.name}, from which the training went on: it had {total:,} "
        f"held-out images{few} ({MIN_HELD_OUT} are needed, {MIN_OF_CLASS} of every class)."
    )
    return Calibration(start.temperature, start.decide, start.contradict, (note,))


def as_sure(before: NDArray[np.float32], after: NDArray[np.float32], temperature: float) -> float:
    """Return the temperature at which ``after`` has the mean confidence that ``before`` has at ``temperature``.

    Both float32 (N, C), of the same images, not calibrated. A training on a few odd images makes a model less sure of
    all others, and unchanged thresholds would then leave far more of them undecided.
    """
    wanted = calibrate(before, temperature).max(1).mean()
    means = [calibrate(after, each).max(1).mean() for each in TEMPERATURES]
    return float(TEMPERATURES[int(np.abs(np.array(means) - wanted).argmin())])


def finetuned(
    start: Bundle,
    mahalanobis: MahalanobisModel | None,
    counts: Mapping[str, int],
    fitted: Calibration,
    distances: Sequence[float],
    replayed: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> Calibration:
    """Return the calibration after fine-tuning: that of the bundle ``start``, else ``fitted``, with its distance limit.

    ``mahalanobis`` is that of the images that the bundle was trained on; where it is None, there is no limit.
    ``distances``: (N,) from them, of the images at hand. ``replayed`` is what the bundle predicts for its evaluation
    images before and after, float32 (N, C), not calibrated: it must be as sure of them where its thresholds stay.
    """
    result = bundle_calibration(start, counts)
    if result and replayed:
        temperature = as_sure(*replayed, start.temperature)
        note = f"The temperature is the one at which it is as sure of the images that {start.name} keeps as that was."
        result = replace(result, temperature=temperature, notes=(*result.notes, note))
    result = result or fitted
    if start.distance is None:
        return replace(result, distance=None)
    if mahalanobis is None:
        note = f"Distances, which {start.name} tells, are not told: its model does not hold them as they are exported."
        return replace(result, distance=None, notes=(*result.notes, note))
    beyond = int((np.asarray(distances) > start.distance).sum())
    note = (
        f"Distances and their limit are those of {start.name}, from the images that it was trained on: {beyond:,} of "
        f"the {len(distances):,} images at hand lie beyond it, and are out of distribution as before."
    )
    return replace(result, distance=start.distance, notes=(*result.notes, note))


def nested(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    fold: NDArray[np.int64],
    distances: NDArray[np.float32] | None = None,
    other: int | None = None,
) -> Nested:
    """Calibrate the images of each fold by what ``fit`` finds on all the others; arguments as there.

    ``fold``: int64 (N,); no source may have images in two folds.
    """
    calibrated = np.zeros_like(probabilities)
    temperatures, decide, contradict, limits = (np.full(len(truth), np.inf) for _ in range(4))
    for k in np.unique(fold):
        rest, inside = fold != k, fold == k
        fitted = fit(probabilities[rest], truth[rest], None if distances is None else distances[rest], other)
        calibrated[inside] = calibrate(probabilities[inside], fitted.temperature)
        temperatures[inside], decide[inside], contradict[inside] = fitted.temperature, fitted.decide, fitted.contradict
        if fitted.distance is not None:
            limits[inside] = fitted.distance
    return Nested(calibrated, temperatures, decide, contradict, None if distances is None else limits)


def by_image(probabilities: NDArray[np.float32], temperatures: NDArray[np.float64]) -> NDArray[np.float32]:
    """Calibrate each row of ``probabilities`` (N, C) by a temperature of its own (N,)."""
    calibrated = np.zeros_like(probabilities)
    for temperature in np.unique(temperatures):
        rows = temperatures == temperature
        calibrated[rows] = calibrate(probabilities[rows], float(temperature))
    return calibrated


def losses(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the negative log likelihood of each ``truth`` (N,) under ``probabilities`` (N, C), in nats, (N,)."""
    picked = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return np.asarray(-np.log(np.maximum(picked, 1e-12)))


def bin_of(confidence: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the bin of each confidence (N,), of 15 of equal width, for the expected calibration error.

    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, 2017.
    """
    return np.minimum((confidence * BINS).astype(np.intp), BINS - 1)


def _threshold(
    name: str, right: NDArray[np.bool_], confidence: NDArray[np.float32], wanted: float, bounds: tuple[float, float]
) -> tuple[float, str]:
    """Return the smallest threshold in ``bounds`` above which accuracy is ``wanted``, and a note where none is."""
    low, high = bounds
    for threshold in np.round(np.arange(low, high + 0.0025, 0.005), 4):
        above = confidence >= threshold
        if above.sum() < MIN_CONFIDENT:
            break
        if right[above].mean() >= wanted:
            return float(threshold), ""
    note = f"No confidence up to {high} gave {wanted:.1%} accuracy on held-out images: `{name}` is set to {high}."
    return high, note
