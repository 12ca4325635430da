"""What held-out predictions tell about confidence: a temperature, and the thresholds from which it can be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.bundle import calibrate

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Fewer held-out predictions than this say nothing about the last percent.
MIN_HELD_OUT = 50
MIN_CONFIDENT = 20
DECIDE_ACCURACY, DECIDE_BOUNDS = 0.99, (0.5, 0.99)
CONTRADICT_ACCURACY, CONTRADICT_BOUNDS = 0.995, (0.9, 0.99)
TEMPERATURES = np.geomspace(0.25, 10.0, 150)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A temperature and thresholds (0..1), and in ``notes`` what of them could not be fitted, in sentences."""

    temperature: float
    decide: float
    contradict: float
    notes: tuple[str, ...] = ()


def fit(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> Calibration:
    """Fit on held-out predictions.

    ``probabilities``: float32 (N, C), the model's own, of items it was not trained on; ``truth``: int64 (N,), 0..C-1.
    """
    if len(truth) < MIN_HELD_OUT:
        note = (
            f"Only {len(truth)} images were held out (at least {MIN_HELD_OUT} are needed): temperature and thresholds "
            "are not fitted but set to careful values."
        )
        return Calibration(1.0, DECIDE_BOUNDS[1], CONTRADICT_BOUNDS[1], (note,))
    losses = [log_loss(calibrate(probabilities, float(t)), truth) for t in TEMPERATURES]
    temperature = round(float(TEMPERATURES[int(np.argmin(losses))]), 4)
    calibrated = calibrate(probabilities, temperature)
    right, confidence = calibrated.argmax(1) == truth, calibrated.max(1)
    decide, decide_note = _threshold("decide", right, confidence, DECIDE_ACCURACY, DECIDE_BOUNDS)
    contradict, contradict_note = _threshold("contradict", right, confidence, CONTRADICT_ACCURACY, CONTRADICT_BOUNDS)
    return Calibration(temperature, decide, contradict, tuple(note for note in (decide_note, contradict_note) if note))


def log_loss(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Return the mean negative log likelihood of ``truth`` (N,) under ``probabilities`` (N, C), in nats."""
    picked = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.maximum(picked, 1e-12)).mean())


def expected_calibration_error(right: NDArray[np.bool_], confidence: NDArray[np.float32], bins: int = 15) -> float:
    """Return the ECE: over equal bins of confidence, the mean gap between confidence and accuracy, 0..1."""
    edges = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(right[edges == b].mean()) - float(confidence[edges == b].mean())) * float((edges == b).mean())
        for b in np.unique(edges)
    ]
    return float(sum(gaps))


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
