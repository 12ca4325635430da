"""Writes a trained model in its three formats, and proves that they say the same.

What ships computes in integers of 8 bits (static quantisation, Jacob et al. 2018, arXiv:1712.05877), which a processor
with the instructions for it multiplies several times as fast, unless that loses accuracy on held-out images.

Imports Keras and TensorFlow: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dicomsort.bundle.predictor import Running
from dicomsort.bundle.spec import read_model
from dicomsort.bundle.tensors import DISTANCE, PROBABILITIES
from dicomsort.errors import DicomsortError
from dicomsort.training.fit.quantize import INT8, Quantizer, converting
from dicomsort.training.models.outputs import complete
from dicomsort.training.models.tflite_head import Body, with_head
from dicomsort.training.models.tflite_weights import precision
from dicomsort.training.progress import hushed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.fit.recipe import Fitted, Said
    from dicomsort.training.models.architectures import Architecture
    from dicomsort.training.models.ood import MahalanobisModel
    from dicomsort.training.progress import Reporter

TOLERANCE = 0.01
DISTANCE_TOLERANCE = 0.05
PROBES = 32
REPEATS = 3
LOST = 0.005  # of accuracy: so much may integers cost


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
        """Return what metrics.json tells of it; ``kept`` for the one in the bundle."""
        size = round(len(self.model) / 1e6, 2)
        told = {"precision": self.precision, "kept": kept, "megabytes": size}
        return {**told, "single": self.single, "batch": self.batch, "difference": self.difference}


class Exported(NamedTuple):
    """What ships of a training: its LiteRT model, all that were tried, and what metrics.json tells of the integers.

    ``fitted`` has the held-out predictions of the network that ships.
    """

    fitted: Fitted
    kept: Conversion
    conversions: Sequence[Conversion]
    told: dict[str, Any]


def export(architecture: Architecture, rendered: Rendered, fitted: Fitted, seed: int, reporter: Reporter) -> Exported:
    """Convert what was trained: to int8 where that costs next to nothing, else to floating point.

    What went on from a bundle ships as that bundle's model, with another last layer. DicomsortError where nothing
    agrees with Keras.
    """
    reporter.note("Converting to LiteRT")
    probes = rendered.images[rendered.rows[:: max(1, len(rendered.rows) // PROBES)]]
    if architecture.start:
        return _gone_on(read_model(architecture.start), fitted, probes)
    kept, conversions = convert(
        fitted.model, [each for each in architecture.precisions if each != INT8], probes, fitted.space
    )
    quantizer = Quantizer.fitting(architecture, rendered, seed, reporter, len(fitted.held))
    made = quantizer if isinstance(quantizer, str) else _integers(quantizer, fitted, probes)
    truth = rendered.dataset.classes()[fitted.held]
    if isinstance(made, str):
        return Exported(fitted, kept, conversions, {"kept": False, "reason": made})
    conversion, said = made
    told = _compared(fitted.probabilities, said.probabilities, truth, kept.precision)
    if not told["kept"]:
        return Exported(fitted, kept, [*conversions, conversion], told)
    distances = None if fitted.distances is None else said.distances
    fitted = replace(fitted, probabilities=said.probabilities, distances=distances, plain=fitted.probabilities)
    return Exported(fitted, conversion, [conversion, *conversions], told)


def _integers(quantizer: Quantizer, fitted: Fitted, probes: NDArray[np.uint8]) -> tuple[Conversion, Said] | str:
    """Return a trained network in int8, and what such networks say of what was held out; or why there is none."""
    everything = np.arange(len(quantizer.rendered.rows))
    trained = everything if fitted.fold is not None else np.setdiff1d(everything, fitted.held)
    made = quantizer.make(fitted.model, fitted.space, trained)
    if isinstance(made, str):
        return made
    said = fitted.int8 if fitted.fold is not None else quantizer.ask(made, fitted.held)
    if said is None:
        return "the networks of the folds could not be made so"
    return _measured(INT8, made, complete(fitted.model, fitted.space), probes), said


def _compared(
    floats: NDArray[np.float32], integers: NDArray[np.float32], truth: NDArray[np.int64], stays: str
) -> dict[str, Any]:
    """Return what metrics.json tells of integers beside ``floats``, probabilities (N, C) of the same held-out images.

    ``stays`` is what the model computes in where they lose too much.
    """
    before, after = (int((said.argmax(1) == truth).sum()) for said in (floats, integers))
    count, changed = len(truth), int((floats.argmax(1) != integers.argmax(1)).sum())
    told = {"images": count, "accuracy": round(after / count, 4), "float_accuracy": round(before / count, 4)}
    told |= {"changed": changed}
    if before - after <= LOST * count:
        return {"kept": True, **told}
    reason = f"it loses {100 * (before - after) / count:.1f} points of accuracy, and {100 * LOST} are allowed"
    return {"kept": False, "reason": f"{reason}, so the model is {stays}", **told}


def _gone_on(start: bytes, fitted: Fitted, probes: NDArray[np.uint8]) -> Exported:
    """Return what ships of a training of the last layer: its start's file with that."""
    kernel, bias = fitted.model.get_layer("probabilities").get_weights()
    kind = precision(start)
    made = _measured(kind, with_head(start, kernel, bias), complete(fitted.model, fitted.space), probes)
    logits = Body(start).predict_on_batch(probes[:1]) @ kernel + bias
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    strayed = float(np.abs(Running(made.model).run(probes[:1].astype(np.float32))[PROBABILITIES] - shares).max())
    if not strayed <= TOLERANCE:
        raise DicomsortError(f"last layer: expected it to agree within {TOLERANCE}, received {strayed:.4f}")
    told = {"kept": kind == INT8, "reason": "all but the last layer is that of the bundle from which it went on"}
    return Exported(fitted, made, [made], told)


def save_keras(model: Any, folder: Path) -> None:
    """Write ``model.keras`` and ``medical_image_classifier.h5``; the latter is for other tools, never read here.

    Neither holds the optimizer's state, which would triple their size.
    """
    with warnings.catch_warnings(), hushed():
        warnings.simplefilter("ignore")
        # ``keras.models.clone_model`` would copy the compilation too, and an optimizer's state be saved again.
        bare = type(model).from_config(model.get_config())
        bare.set_weights(model.get_weights())
        bare.save(folder / "model.keras")
        bare.save(folder / "medical_image_classifier.h5")


def convert(
    model: Any, precisions: Sequence[str], images: NDArray[np.uint8], space: MahalanobisModel | None = None
) -> tuple[Conversion, list[Conversion]]:
    """Return the first conversion that agrees with ``model`` on ``images``, and all that were made.

    It gives probabilities, class maps where the network's end allows, and the distances of ``space``, and agrees where
    probabilities differ by 0.01 at most, and distances by 5 %. ``images``: uint8 (n, height, width, 3), n up to 32.
    DicomsortError where none of ``precisions`` agrees.
    """
    whole = complete(model, space)
    made = [_measured(each, _convert(whole, each), whole, images) for each in precisions]
    for conversion in made:
        if conversion.difference <= TOLERANCE and conversion.strayed <= DISTANCE_TOLERANCE:
            return conversion, made
    best = min(made, key=lambda conversion: conversion.difference)
    msg = (
        f"conversion to LiteRT: expected probabilities within {TOLERANCE} of Keras' and distances within "
        f"{DISTANCE_TOLERANCE:.0%}, received {best.difference:.4f} and {best.strayed:.1%} at best"
    )
    raise DicomsortError(msg)


def _convert(model: Any, precision: str) -> bytes:
    """Return a LiteRT model with weights of this precision."""
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
    with hushed():
        running = Running(model)
        given = running.run(probes)
        batch = fastest(running, probes)
        single = fastest(running, probes[:1])
    difference = round(float(np.abs(given[PROBABILITIES] - wanted[PROBABILITIES]).max()), 5)
    strayed = 0.0
    if DISTANCE in wanted:
        strayed = float((np.abs(given[DISTANCE] - wanted[DISTANCE]) / np.maximum(wanted[DISTANCE], 1)).max())
    return Conversion(precision, model, difference, round(strayed, 5), single, batch)


def fastest(running: Running, images: NDArray[np.float32], repeats: int = REPEATS) -> float:
    """Return milliseconds an image of a batch, the best of ``repeats`` after one that is not counted."""
    running.run(images)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        running.run(images)
        best = min(best, time.perf_counter() - start)
    return round(best / len(images) * 1000, 2)
