"""Writes a trained model in its three formats. In floating point they must agree; see ``convert``.

What ships is in int8 unless that loses accuracy on held-out images; see ``fit.quantize``.
"""

from __future__ import annotations

import timeit
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle import EVALUATION_NAME
from dicomsort.bundle.predictor import LiteRTModel
from dicomsort.bundle.spec import read_model
from dicomsort.bundle.tensors import DISTANCE, PROBABILITIES
from dicomsort.errors import DicomsortError
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.fit.finetune import Finetune
from dicomsort.training.fit.held_out import HeldOutPredictions
from dicomsort.training.fit.hyperparameters import TrainedModel
from dicomsort.training.fit.quantize import Quantizer, compare, converting, words
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.ood import MahalanobisModel
from dicomsort.training.models.outputs import complete
from dicomsort.training.models.replay_set import keep_features
from dicomsort.training.models.tflite_head import FeatureExtractor, predict_head, with_head
from dicomsort.training.models.tflite_weights import INT8, precision
from dicomsort.training.progress import Reporter, stderr_captured

TOLERANCE = 0.01
DISTANCE_TOLERANCE = 0.05
PROBES = 32
REPEATS = 3
FINETUNED = "all but the last layer is that of the bundle from which it went on"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A LiteRT model: how it differs from Keras', and milliseconds an image on one thread.

    ``difference`` is the largest of probabilities, ``strayed`` the largest of distances as a share of them (of 1 where
    they are less; 0 where the model gives none). ``single`` is the time at batch 1, ``batch`` that at batch 32 (fewer
    where there are fewer images).
    """

    precision: str
    model: bytes
    difference: float
    strayed: float
    single: float
    batch: float

    def as_json(self, *, kept: bool) -> dict[str, Any]:
        """Return what metrics.json reports of it; ``kept`` for the one in the bundle."""
        report = {"precision": self.precision, "kept": kept, "megabytes": round(len(self.model) / 1e6, 2)}
        return {**report, "single": self.single, "batch": self.batch, "difference": self.difference}


class Exported(NamedTuple):
    """What ships of a training: its LiteRT model, all that were tried, and the held-out predictions of what ships.

    ``int8`` is what metrics.json reports of the integers; ``replay_set`` the content of its file, or why there is none.
    """

    model: Conversion
    conversions: Sequence[Conversion]
    int8: dict[str, Any]
    held_out: HeldOutPredictions
    replay_set: bytes | str


def export(
    architecture: Architecture, rendered: Rendered, trained: TrainedModel, seed: int, reporter: Reporter
) -> Exported:
    """Convert what was trained: to int8 where that costs next to nothing, else to floating point.

    A bundle that was trained further ships as it was, with another last layer. DicomsortError where nothing agrees with
    Keras.
    """
    reporter.note("Converting to LiteRT")
    probes = rendered.images[rendered.rows[:: max(1, len(rendered.rows) // PROBES)]]
    if isinstance(architecture, Finetune):
        start, held_out = architecture.bundle, trained.held_out
        model = _finetuned(read_model(start), trained, probes)
        report = {"kept": model.precision == INT8, "reason": FINETUNED}
        reporter.note(words(report))
        replay_set = read_model(start, EVALUATION_NAME) if start.evaluation else f"{start.name} keeps none"
        return Exported(model, [model], report, held_out, replay_set)
    quantizer = Quantizer.for_training(architecture, rendered, seed, reporter, len(trained.held_out.items))
    precisions = [each for each in architecture.precisions if each != INT8]
    model, conversions = convert(trained.model, precisions, probes, trained.mahalanobis)
    held_out = trained.held_out
    made = quantizer if isinstance(quantizer, str) else _int8(quantizer, trained, probes)
    if isinstance(made, str):
        report = {"kept": False, "reason": made}
    else:
        conversion, int8 = made
        report = compare(held_out.probabilities, int8.probabilities, held_out.truth, model.precision)
        conversions = [conversion, *conversions] if report["kept"] else [*conversions, conversion]
        model, held_out = (conversion, int8) if report["kept"] else (model, held_out)
    reporter.note(words(report))
    known = np.isin(held_out.items, held_out.trained_on(len(rendered.rows)))
    replay_set = keep_features(model.model, rendered, held_out.items, known, seed, reporter)
    return Exported(model, conversions, report, held_out, replay_set)


def _int8(
    quantizer: Quantizer, trained: TrainedModel, probes: NDArray[np.uint8]
) -> tuple[Conversion, HeldOutPredictions] | str:
    """Return a trained network in int8, and the held-out predictions of such networks; or why there is none."""
    held_out, count = trained.held_out, len(quantizer.rendered.rows)
    made = quantizer.make(trained.model, trained.mahalanobis, held_out.trained_on(count))
    if isinstance(made, str):
        return made
    int8 = trained.int8
    if len(held_out.items) < count:  # one network was trained, and did not see these
        int8 = held_out.with_int8(*quantizer.predict(made, held_out.items))
    if int8 is None:
        return "the networks of the folds could not be made so"
    return _measured(INT8, made, complete(trained.model, trained.mahalanobis), probes), int8


def _finetuned(start: bytes, trained: TrainedModel, probes: NDArray[np.uint8]) -> Conversion:
    """Return what ships of fine-tuning: the LiteRT file of its bundle with the last layer that was trained."""
    whole = complete(trained.model, trained.mahalanobis)
    made = _measured(precision(start), with_head(start, *trained.head), whole, probes)
    wanted = predict_head(FeatureExtractor(start).predict_on_batch(probes[:1]), *trained.head)
    strayed = float(np.abs(LiteRTModel(made.model).run(probes[:1].astype(np.float32))[PROBABILITIES] - wanted).max())
    if not strayed <= TOLERANCE:
        raise DicomsortError(f"last layer: expected it to agree within {TOLERANCE}, received {strayed:.4f}")
    return made


def save_keras(model: Any, folder: Path) -> None:
    """Write ``model.keras`` and ``medical_image_classifier.h5``; the latter is for other tools, never read here.

    Neither holds the optimizer's state, which would triple their size.
    """
    with warnings.catch_warnings(), stderr_captured():
        warnings.simplefilter("ignore")
        # ``keras.models.clone_model`` would copy the compilation too, and an optimizer's state be saved again.
        bare = type(model).from_config(model.get_config())
        bare.set_weights(model.get_weights())
        bare.save(folder / "model.keras")
        bare.save(folder / "medical_image_classifier.h5")


def convert(
    model: Any, precisions: Sequence[str], images: NDArray[np.uint8], mahalanobis: MahalanobisModel | None = None
) -> tuple[Conversion, list[Conversion]]:
    """Return the first conversion that agrees with ``model`` on ``images``, and all that were made.

    It gives probabilities, class maps where the network's end allows, and the distances of ``mahalanobis``. It
    agrees where probabilities differ by 0.01 at most, and distances by 5 %. ``images``: uint8 (n, height, width, 3), n
    up to 32. DicomsortError where none of ``precisions`` agrees.
    """
    whole = complete(model, mahalanobis)
    made = [_measured(each, _convert(whole, each), whole, images) for each in precisions]
    for conversion in made:
        if conversion.difference <= TOLERANCE and conversion.strayed <= DISTANCE_TOLERANCE:
            return conversion, made
    best = min(made, key=lambda conversion: conversion.difference)
    raise DicomsortError(
        f"conversion to LiteRT: expected probabilities within {TOLERANCE} of Keras' and distances within "
        f"{DISTANCE_TOLERANCE:.0%}, received {best.difference:.4f} and {best.strayed:.1%} at best"
    )


def _convert(model: Any, precision: str) -> bytes:
    import tensorflow as tf

    with converting(model) as converter:
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        converted: bytes = converter.convert()
    return converted


def _measured(precision: str, model: bytes, whole: Any, images: NDArray[np.uint8]) -> Conversion:
    """Compare a conversion with ``whole``, the keras.Model that it is of; the time is the best of a few."""
    probes = images[:PROBES].astype(np.float32)
    wanted = {name: np.asarray(values) for name, values in whole.predict_on_batch(probes).items()}
    with stderr_captured():
        running = LiteRTModel(model)
        given = running.run(probes)
        batch = _fastest(running, probes)
        single = _fastest(running, probes[:1])
    difference = round(float(np.abs(given[PROBABILITIES] - wanted[PROBABILITIES]).max()), 5)
    strayed = 0.0
    if DISTANCE in wanted:
        strayed = float((np.abs(given[DISTANCE] - wanted[DISTANCE]) / np.maximum(wanted[DISTANCE], 1)).max())
    return Conversion(precision, model, difference, round(strayed, 5), single, batch)


def _fastest(running: LiteRTModel, images: NDArray[np.float32]) -> float:
    """Return milliseconds an image of a batch, the best of three after one that is not counted."""
    running.run(images)
    seconds = timeit.repeat(lambda: running.run(images), number=1, repeat=REPEATS)
    return round(min(seconds) / len(images) * 1000, 2)
