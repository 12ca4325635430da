"""Writes a trained model in its three formats, and proves that they say the same.

Imports Keras and TensorFlow: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle.running import Running
from dicomsort.bundle.tensors import DISTANCE, PROBABILITIES
from dicomsort.errors import DicomsortError
from dicomsort.training.outputs import complete
from dicomsort.training.progress import hushed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dicomsort.training.distance import Space

TOLERANCE = 0.01
DISTANCE_TOLERANCE = 0.05
PROBES = 32
REPEATS = 3


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
    model: Any, precisions: Sequence[str], images: NDArray[np.uint8], space: Space | None = None
) -> tuple[Conversion, list[Conversion]]:
    """Return the first conversion that agrees with ``model`` on ``images``, and all that were made.

    It gives probabilities, class maps where the network's end allows, and the distances of ``space``, and agrees where
    probabilities differ by 0.01 at most, and distances by 5 %. ``images``: uint8 (n, height, width, 3), n up to 32.
    DicomsortError where none of ``precisions`` agrees.
    """
    probes = images[:PROBES].astype(np.float32)
    whole = complete(model, space)
    wanted = {name: np.asarray(values) for name, values in whole.predict_on_batch(probes).items()}
    made = [_measured(precision, _convert(whole, precision), probes, wanted) for precision in precisions]
    for conversion in made:
        if conversion.difference <= TOLERANCE and conversion.strayed <= DISTANCE_TOLERANCE:
            return conversion, made
    best = min(made, key=lambda conversion: conversion.difference)
    msg = (
        f"conversion to LiteRT: expected probabilities within {TOLERANCE} of Keras' and distances within "
        f"{DISTANCE_TOLERANCE:.0%}, received {best.difference:.4f} and {best.strayed:.1%} at best"
    )
    raise DicomsortError(msg)


@contextmanager
def converting(model: Any) -> Iterator[Any]:
    """Yield TensorFlow's converter of a keras.Model to builtin operators, any batch size, without its remarks."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="dicomsort-") as scratch, hushed():
        model.export(scratch, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        yield converter


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


def _measured(
    precision: str, model: bytes, probes: NDArray[np.float32], wanted: dict[str, NDArray[np.float32]]
) -> Conversion:
    """Run a conversion on ``probes`` at batch 1 and all at once; the time is the best of a few."""
    with hushed():
        running = Running(model)
        given = running.run(probes)
        whole = fastest(running, probes)
        single = fastest(running, probes[:1])
    difference = round(float(np.abs(given[PROBABILITIES] - wanted[PROBABILITIES]).max()), 5)
    strayed = 0.0
    if DISTANCE in wanted:
        strayed = float((np.abs(given[DISTANCE] - wanted[DISTANCE]) / np.maximum(wanted[DISTANCE], 1)).max())
    return Conversion(precision, model, difference, round(strayed, 5), single, whole)


def fastest(running: Running, images: NDArray[np.float32], repeats: int = REPEATS) -> float:
    """Return milliseconds an image of a batch, the best of ``repeats`` after one that is not counted."""
    running.run(images)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        running.run(images)
        best = min(best, time.perf_counter() - start)
    return round(best / len(images) * 1000, 2)
