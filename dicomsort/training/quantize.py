"""A network in integers: weights and activations of 8 bits, which a processor multiplies several times as fast.

Imports TensorFlow inside functions only.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.training.export import converting
from dicomsort.training.outputs import complete
from dicomsort.training.restore import Graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dicomsort.training.distance import Space


def quantize(network: Any, space: Space | None, images: NDArray[np.uint8]) -> bytes:
    """Return a LiteRT model of int8 that gives what ``network`` does: probabilities, and distances in a ``space``.

    ``images``: uint8 (n, height, width, 3), from which the ranges of activations are taken (static quantisation, Jacob
    et al. 2018, arXiv:1712.05877). Input and outputs are float32, and so is what is computed from the features: it
    costs no time, and a distance is a small difference of large numbers. Products with large matrices stay int8 there
    too, for size.
    """
    import tensorflow as tf

    def examples() -> Iterator[list[NDArray[np.float32]]]:
        for image in images:
            yield [image[None].astype(np.float32)]

    whole = complete(network, space, explains=False)
    with converting(whole) as converter, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow, about its own interpreter
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=examples)
        kept = Graph.read(debugger.calibrated_model).behind_features()
        debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=kept)
        converted: bytes = debugger.get_nondebug_quantized_model()
    return converted
