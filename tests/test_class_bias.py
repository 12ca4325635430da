"""The bias of the classes, fitted on held-out predictions."""

from __future__ import annotations

import numpy as np
import pytest

from dicomsort.bundle import calibrate
from dicomsort.training.fit.held_out import MOST_BIAS, HeldOutPredictions, add_bias


def held_out(count: int = 6000, lean: float = 0.0) -> HeldOutPredictions:
    """Predictions of four classes, calibrated but for a lean towards the second class, in logits."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (count, 4))
    right = add_bias(np.ones((count, 4), np.float32), np.zeros(4)) * np.exp(logits)
    right /= right.sum(1, keepdims=True)
    truth = (right.cumsum(1) < random.random((count, 1))).sum(1)
    leaning = add_bias(right.astype(np.float32), np.array([0, lean, 0, 0]))
    fold = np.arange(count) % 5
    return HeldOutPredictions(np.arange(count), truth, fold, "", True, leaning, None, {"inverted": leaning}, leaning)


@pytest.mark.parametrize("lean", [0.0, 0.8, -0.8])
def test_a_lean_towards_a_class_is_taken_back(lean: float) -> None:
    predictions = held_out(lean=lean)
    bias = predictions.class_bias()
    assert bias.mean() == pytest.approx(0, abs=1e-9)
    assert bias - bias[0] == pytest.approx([0, -lean, 0, 0], abs=0.15)


def test_all_predictions_get_it() -> None:
    predictions = held_out(lean=0.8)
    bias = predictions.class_bias()
    shifted = predictions.biased(bias)
    assert shifted.unchanged is not None
    for each in (shifted.probabilities, shifted.variants["inverted"], shifted.unchanged):
        assert each.sum(1) == pytest.approx(1, abs=1e-5)
        assert each == pytest.approx(add_bias(predictions.probabilities, bias))
    share = np.bincount(predictions.truth) / len(predictions.truth)
    assert calibrate(shifted.probabilities, 1.0).mean(0) == pytest.approx(share, abs=0.02)


def test_a_class_that_was_not_learnt_gets_no_endless_bias() -> None:
    predictions = held_out(200)
    predictions.probabilities[:, 3] = 1e-9
    assert np.abs(predictions.class_bias()).max() <= MOST_BIAS
