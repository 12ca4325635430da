"""Calibration on held-out predictions: a temperature, and the thresholds from which a confidence can be trusted.

The threshold from which pixels decide alone keeps a promise: of the images that are decided at least ``target`` are
right, with 90 % confidence. Two tests must show it: the one-sided limit of Clopper and Pearson (Biometrika 1934), which
counts images, and a bootstrap of whole sources, because the images of a source are right or wrong together. Where they
do not, the threshold is that of an accuracy of 99 %, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, dropwhile, takewhile

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle import Bundle, calibrate
from dicomsort.errors import counted
from dicomsort.records import OTHER
from dicomsort.training.fit.finetune import Finetune
from dicomsort.training.fit.held_out import HeldOutPredictions, losses
from dicomsort.training.fit.hyperparameters import TrainedModel
from dicomsort.training.models import ood
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.ood import MahalanobisModel
from dicomsort.training.models.replay_set import predictions_of
from dicomsort.training.models.tflite_head import predict_head

# Fewer held-out predictions than this say nothing about the last percent.
MIN_HELD_OUT, MIN_OF_CLASS = 50, 10  # of every class in fine-tuning: corrections are few, and none typical
MIN_CONFIDENT = 20
TARGET, RISK = 0.995, 0.1  # the promise, and how often it may be shown by chance
DECIDE_ACCURACY, DECIDE_BOUNDS = 0.99, (0.5, 0.99)
HELD, CONTRADICT_BOUNDS = 0.005, (0.9, 0.99)  # the share of clear headers that may be held wrongly
STEPS = np.unique(np.round(1 / (1 + np.exp(-np.arange(0, 9.3, 0.1))), 4))  # thresholds from 0.5 on, even in logits
RESAMPLES = 400  # of the sources
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

    ``probabilities``: float32 (N, C), calibrated; ``temperatures`` and ``decide``: float64 (N,), those of the image's
    fold; ``limits``: float64 (N,) of distance, or None.
    """

    probabilities: NDArray[np.float32]
    temperatures: NDArray[np.float64]
    decide: NDArray[np.float64]
    limits: NDArray[np.float64] | None = None


def of_training(
    architecture: Architecture,
    trained: TrainedModel,
    held_out: HeldOutPredictions,
    labels: Sequence[str],
    clusters: Sequence[str],
    target: float,
) -> Calibration:
    """Return the calibration by the held-out predictions of the network that ships; see ``finetuned``."""
    other = list(labels).index(OTHER) if OTHER in labels else None
    fitted = fit(held_out.probabilities, held_out.truth, held_out.distances, other, target=target, clusters=clusters)
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
    *,
    target: float = TARGET,
    clusters: Sequence[str] = (),
) -> Calibration:
    """Fit on held-out predictions.

    ``probabilities``: float32 (N, C), the model's own, of items it was not trained on; ``truth``: int64 (N,), 0..C-1;
    ``distances``: float32 (N,). The limit of distance is what ``ood.threshold`` makes of the images that are
    not of the class ``other`` (the index of OTHER, where there is one). ``clusters`` (N,) names each image's source, or
    what else is right or wrong together; by default each image is its own.
    """
    if len(truth) < MIN_HELD_OUT:
        few = f"Only {counted(len(truth), 'image was', 'images were')} held out (at least {MIN_HELD_OUT} are needed)"
        note = f"{few}: temperature and thresholds are not fitted but set to careful values."
        return Calibration(1.0, DECIDE_BOUNDS[1], CONTRADICT_BOUNDS[1], (note,))
    best = min(TEMPERATURES, key=lambda each: losses(calibrate(probabilities, each), truth).mean())
    temperature = round(float(best), 4)
    calibrated = calibrate(probabilities, temperature)
    known = np.zeros(0, np.float32) if distances is None else distances[truth != other]
    limit = ood.threshold(known) if len(known) else None
    predicted, confidence = calibrated.argmax(1), calibrated.max(1)
    usable = np.ones(len(truth), bool)
    if limit is not None and distances is not None:
        usable = (distances <= limit) | (predicted == other)
    trusted = np.where(usable, confidence, 0)
    decide, notes = _decide(predicted == truth, trusted, clusters, target)
    contradict, note = _contradict(calibrated, truth, trusted >= decide, truth != other)
    return Calibration(temperature, decide, contradict, tuple(filter(None, (*notes, note))), limit)


def _decide(
    right: NDArray[np.bool_], confidence: NDArray[np.float32], clusters: Sequence[str], target: float
) -> tuple[float, list[str]]:
    """Return the smallest threshold that keeps the promise, else a careful one; and notes on what is not shown.

    Thresholds are tested from the strictest on that keeps the promise, until one does not: in a fixed order many tests
    need no correction (Angelopoulos et al., Learn then Test, arXiv:2110.01052). All classes have one threshold. With
    one of each class, 98.8 % of what was decided on other sources was right, with one for all 99.4 %.
    """
    promise = _Promise(target, right, clusters)

    def is_kept(threshold: float) -> bool:
        return promise.is_kept(confidence >= threshold)

    from_first = dropwhile(lambda threshold: not is_kept(threshold), map(float, STEPS[::-1]))
    if sequence := list(takewhile(is_kept, from_first)):
        return sequence[-1], []
    careful, too_few = _careful(right, confidence)
    above = confidence >= careful
    return careful, [_unshown(careful, int(above.sum()), int((above & ~right).sum()), target), too_few]


def _unshown(careful: float, count: int, wrong: int, target: float) -> str:
    return (
        f"The threshold is {careful}. {counted(count, 'held-out image reaches', 'held-out images reach')} it, and "
        f"{wrong:,} of them {'is' if wrong == 1 else 'are'} wrong. That does not show, with 90 % confidence, that "
        f"{target:.1%} are right on other sources."
    )


class _Promise:
    """Tests whether of the images that are decided alone the ``target`` is right: by image, and by source."""

    def __init__(self, target: float, right: NDArray[np.bool_], clusters: Sequence[str]) -> None:
        self._target, self._right = target, right
        names, self._cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self._number = len(names)
        chances = np.full(self._number, 1 / self._number) if self._number else [1.0]
        self._drawn = np.random.default_rng(0).multinomial(self._number, chances, RESAMPLES)

    def is_kept(self, decided: NDArray[np.bool_]) -> bool:
        """Return whether it is kept where these images (N,) are decided."""
        if not keeps(int((decided & ~self._right).sum()), int(decided.sum()), 1 - self._target):
            return False
        if not self._number:
            return True
        parts = (decided, decided & self._right)
        named, hits = (self._drawn @ np.bincount(self._cluster[part], minlength=self._number) for part in parts)
        return bool(np.quantile(hits / np.maximum(named, 1), RISK) >= self._target)


def _careful(right: NDArray[np.bool_], confidence: NDArray[np.float32]) -> tuple[float, str]:
    """Return the smallest threshold above which 99 % of all are ``right``, and a note where none is."""
    high = DECIDE_BOUNDS[1]
    for threshold in _steps(DECIDE_BOUNDS):
        above = confidence >= threshold
        if above.sum() < MIN_CONFIDENT:
            break
        if right[above].mean() >= DECIDE_ACCURACY:
            return threshold, ""
    note = f"No confidence up to {high} gave {DECIDE_ACCURACY:.0%} accuracy on held-out images: it is set to {high}."
    return high, note


def _steps(bounds: tuple[float, float]) -> list[float]:
    """Return thresholds from one bound to the other, 0.005 apart."""
    low, high = bounds
    return [float(each) for each in np.round(np.arange(low, high + 0.0025, 0.005), 4)]


def _contradict(
    calibrated: NDArray[np.float32], truth: NDArray[np.int64], confident: NDArray[np.bool_], clear: NDArray[np.bool_]
) -> tuple[float, str]:
    """Return the smallest share from which on few ``clear`` images, whose header is right, are held, and a note."""
    high = CONTRADICT_BOUNDS[1]
    own, best = calibrated[np.arange(len(truth)), truth], calibrated.max(1)
    against = clear & confident & (calibrated.argmax(1) != truth)
    for threshold in _steps(CONTRADICT_BOUNDS):
        held = against & (best >= threshold * (best + own))
        if keeps(int(held.sum()), int(clear.sum()), HELD):
            return threshold, ""
    note = f"No threshold up to {high} holds at most {HELD:.1%} of clear images wrongly: `contradict` is set to {high}."
    return high, note


def keeps(wrong: int, count: int, share: float) -> bool:
    """Return whether ``wrong`` of ``count`` show, with 90 % confidence, that at most ``share`` is wrong."""
    return count > wrong and binomial_cdf(wrong, count, share) <= RISK


def binomial_cdf(wrong: int, count: int, risk: float) -> float:
    """Return the probability of at most ``wrong`` mistakes among ``count`` where each is made with ``risk``."""
    if not risk or wrong >= count:
        return 1.0
    number = np.arange(1, wrong + 1)
    steps = np.log((count - number + 1) / number * risk / (1 - risk))
    logs = count * np.log1p(-risk) + np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(np.logaddexp.reduce(logs)))


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
    return float(min(TEMPERATURES, key=lambda each: abs(calibrate(after, each).max(1).mean() - wanted)))


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
        note = f"The distances of {start.name} are left out: its model file does not hold them as they are exported."
        return replace(result, distance=None, notes=(*result.notes, note))
    beyond = int((np.asarray(distances) > start.distance).sum())
    note = (
        f"Distances and their limit are those of {start.name}, from the images that it was trained on. Of the "
        f"{counted(len(distances), 'image')} at hand, {beyond:,} {'is' if beyond == 1 else 'are'} out of distribution."
    )
    return replace(result, distance=start.distance, notes=(*result.notes, note))


def nested(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    fold: NDArray[np.int64],
    distances: NDArray[np.float32] | None = None,
    other: int | None = None,
    target: float = TARGET,
    clusters: Sequence[str] = (),
) -> Nested:
    """Calibrate the images of each fold by what ``fit`` finds on all the others; arguments as there.

    ``fold``: int64 (N,); no source may have images in two folds.
    """
    calibrated = np.zeros_like(probabilities)
    temperatures, decide, limits = (np.full(len(truth), np.inf) for _ in range(3))
    for k in np.unique(fold):
        rest, inside = fold != k, fold == k
        others = None if distances is None else distances[rest]
        names = list(compress(clusters, rest))
        fitted = fit(probabilities[rest], truth[rest], others, other, target=target, clusters=names)
        calibrated[inside] = calibrate(probabilities[inside], fitted.temperature)
        temperatures[inside], decide[inside] = fitted.temperature, fitted.decide
        if fitted.distance is not None:
            limits[inside] = fitted.distance
    return Nested(calibrated, temperatures, decide, None if distances is None else limits)


def by_image(probabilities: NDArray[np.float32], temperatures: NDArray[np.float64]) -> NDArray[np.float32]:
    """Calibrate each row of ``probabilities`` (N, C) by a temperature of its own (N,)."""
    calibrated = np.zeros_like(probabilities)
    for temperature in np.unique(temperatures):
        rows = temperatures == temperature
        calibrated[rows] = calibrate(probabilities[rows], float(temperature))
    return calibrated


def bin_of(confidence: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the bin of each confidence (N,), of 15 of equal width, for the expected calibration error.

    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, 2017.
    """
    return np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
