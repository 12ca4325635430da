"""A network in int8, and whether it may ship: weights and activations of 8 bits are multiplied several times as fast.

Static quantisation (Jacob et al. 2018, arXiv:1712.05877). Imports TensorFlow inside functions only.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle.predictor import LiteRTModel
from dicomsort.bundle.tensors import DISTANCE, PROBABILITIES
from dicomsort.errors import counted
from dicomsort.training.data.balancing import draw
from dicomsort.training.data.dataset import Indices
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.ood import MahalanobisModel
from dicomsort.training.models.outputs import complete
from dicomsort.training.models.tflite_weights import INT8, UNREADABLE, Graph
from dicomsort.training.progress import Reporter, stderr_captured

Predicted = tuple[NDArray[np.float32], NDArray[np.float32] | None]  # probabilities (n, C), distances (n,)

EXAMPLES = 240  # images that the ranges of activations are taken from
LOST = 0.005  # of accuracy on held-out images: so much may int8 cost
MIN_IMAGES = 200  # held-out images: of fewer, one is more than that


@contextmanager
def converting(model: Any) -> Iterator[Any]:
    """Yield TensorFlow's converter of a keras.Model, quiet, to builtin operators and any batch size."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="dicomsort-") as scratch, stderr_captured():
        model.export(scratch, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        yield converter


def quantize(network: Any, mahalanobis: MahalanobisModel | None, images: NDArray[np.uint8]) -> bytes:
    """Return a LiteRT model of ``network`` in int8, with all outputs of ``outputs.complete``.

    ``images``: uint8 (n, height, width, 3), from which the ranges of activations are taken. Input and outputs are
    float32, and so is all that is computed from the features: it costs no time, a distance is a small difference of
    large numbers, and the last layer can be fine-tuned. One of ``UNREADABLE`` where TensorFlow makes none.
    """
    import tensorflow as tf

    def examples() -> Iterator[list[NDArray[np.float32]]]:
        for image in images:
            yield [image[None].astype(np.float32)]

    with converting(complete(network, mahalanobis)) as converter, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow, about its own interpreter
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=examples)
        in_float = Graph.read(debugger.calibrated_model).behind_features()
        debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=in_float)
        converted: bytes = debugger.get_nondebug_quantized_model()
    return converted


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Converts networks to int8 and predicts with them; ``seed`` fixes which of the images calibrate them."""

    rendered: Rendered
    seed: int
    reporter: Reporter

    @classmethod
    def for_training(
        cls, architecture: Architecture, rendered: Rendered, seed: int, reporter: Reporter, held: int
    ) -> Self | str:
        """Return one for a training that holds out ``held`` images, or why its network stays in floating point."""
        if INT8 not in architecture.precisions:
            return "this network is not exported so"
        if held < MIN_IMAGES:
            few = counted(held, "image was", "images were")
            return f"{few} held out, and {MIN_IMAGES} are needed to tell what it would lose"
        return cls(rendered, seed, reporter)

    def make(self, network: Any, mahalanobis: MahalanobisModel | None, items: Indices) -> bytes | str:
        """Return the LiteRT file of a network in int8, calibrated on some of ``items``; or why there is none."""
        try:
            return quantize(network, mahalanobis, self._examples(items))
        except UNREADABLE as error:
            return f"TensorFlow makes none of this network ({' '.join(str(error).split())[:100]})"

    def predict(self, model: bytes, items: Indices) -> Predicted:
        """Return the predictions of a LiteRT file for ``items``; no distances where it has none."""
        parts: list[dict[str, NDArray[np.float32]]] = []
        with stderr_captured():  # LiteRT prints when a model is run first
            running = LiteRTModel(model)
            running.run(np.zeros((1, *self.rendered.images.shape[1:]), np.float32))
        with self.reporter.step("Asking the network in int8", len(items)) as step:
            for item in items:
                parts.append(running.run(self._images(item[None]).astype(np.float32)))
                step.advance()
        distances = np.concatenate([part[DISTANCE] for part in parts]) if DISTANCE in parts[0] else None
        return np.concatenate([part[PROBABILITIES] for part in parts]), distances

    def predict_fold(
        self, network: Any, mahalanobis: MahalanobisModel | None, outside: Indices, inside: Indices
    ) -> Predicted | None:
        """Return the predictions in int8 of a network trained on ``outside`` for ``inside``, None if that fails."""
        made = self.make(network, mahalanobis, outside)
        return None if isinstance(made, str) else self.predict(made, inside)

    def _examples(self, items: Indices) -> NDArray[np.uint8]:
        return self._images(items[draw(self.rendered.dataset.only(items), EXAMPLES, self.seed)])

    def _images(self, items: Indices) -> NDArray[np.uint8]:
        return np.asarray(self.rendered.images[self.rendered.rows[items]])


def compare(
    floats: NDArray[np.float32], integers: NDArray[np.float32], truth: NDArray[np.int64], stays: str
) -> dict[str, Any]:
    """Return what metrics.json reports of integers beside ``floats``, probabilities (N, C) of the same held-out images.

    ``stays`` is what the model computes in where they lose too much.
    """
    before, after = (int((each.argmax(1) == truth).sum()) for each in (floats, integers))
    count, changed = len(truth), int((floats.argmax(1) != integers.argmax(1)).sum())
    accuracies = {"accuracy": round(after / count, 4), "float_accuracy": round(before / count, 4)}
    report = {"images": count, **accuracies, "changed": changed}
    if before - after <= LOST * count:
        return {"kept": True, **report}
    reason = f"it loses {100 * (before - after) / count:.1f} points of accuracy, and {100 * LOST} are allowed"
    return {"kept": False, "reason": f"{reason}, so the model is {stays}", **report}


def words(report: Mapping[str, Any]) -> str:
    """Return the report of int8 in metrics.json as a sentence without a stop."""
    if "accuracy" not in report:
        return f"{'int8' if report['kept'] else 'No int8'}: {report['reason']}"
    figures = (
        f"on {counted(report['images'], 'held-out image')} {report['accuracy']:.1%} right, where floating point has "
        f"{report['float_accuracy']:.1%}; {counted(report['changed'], 'answer differs', 'answers differ')}"
    )
    return f"int8: {figures}" if report["kept"] else f"No int8: {report['reason']} ({figures})"
