"""The outputs of a model that ships beside probabilities: distances and class maps, computed within it.

The class maps are Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) in closed form.

Grad-CAM weighs each channel of the last convolution by the mean gradient of a class's logit there. Behind global
average pooling and one dense layer that gradient is the layer's weight by the number of places (it is the class
activation map of Zhou et al. 2016); behind flattening and dense layers with ReLU it is the product of their weights
over those units that are on. So no gradient is computed when the model runs, and a bundle explains itself without
Keras.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle.tensors import DISTANCE, MAPS, PROBABILITIES
from dicomsort.errors import DicomsortError
from dicomsort.training.models import ood


def find_top(model: Any) -> list[Any]:
    """Return the last layers of ``model``, from the one on that pools or flattens a convolution's output.

    None are returned unless those behind it are dense and dropout layers, with softmax at the end.
    """
    import keras

    layers = list(model.layers)
    while layers and isinstance(layers[-1], keras.Sequential):
        layers[-1:] = layers[-1].layers
    kinds = (keras.layers.GlobalAveragePooling2D, keras.layers.Flatten)
    places = [i for i, layer in enumerate(layers) if isinstance(layer, kinds)]
    if not places:
        return []
    pool, *behind = layers[places[-1] :]
    dense = [layer for layer in behind if isinstance(layer, keras.layers.Dense)]
    plain = all(isinstance(layer, keras.layers.Dense | keras.layers.Dropout) for layer in behind)
    activations = [layer.activation.__name__ for layer in dense]
    if not plain or len(pool.input.shape) != 4 or not dense or behind[-1] is not dense[-1]:  # noqa: PLR2004
        return []
    if activations[-1] != "softmax" or not set(activations[:-1]) <= {"relu", "linear"}:
        return []
    return [pool, *behind]


def complete(model: Any, mahalanobis: ood.MahalanobisModel | None = None) -> Any:
    """Return a keras.Model of the same weights with the outputs of a bundle, by their names.

    From float32 (N, height, width, 3) to ``probabilities`` (N, C); ``maps`` (N, h, w, C), 0 or more, where the network
    ends as ``find_top`` says; ``distance`` (N,) where there is a ``mahalanobis``, made of the features of
    ``featured``. DicomsortError where there is one, but the network ends otherwise.
    """
    import keras

    if mahalanobis is None and not find_top(model):
        return keras.Model(model.inputs[0], {PROBABILITIES: model.outputs[0]})
    pool, features, active = _run(model)
    outputs = {PROBABILITIES: active[-1][1], MAPS: _maps(pool, active)}
    if mahalanobis is not None:
        outputs[DISTANCE] = ood.append(mahalanobis, features)
    return keras.Model(model.inputs[0], outputs)


def featured(model: Any) -> Any:
    """Return a keras.Model of the same weights, from images to the features before the last layer: float32 (N, D).

    DicomsortError where the network does not end as ``find_top`` says.
    """
    import keras

    return keras.Model(model.inputs[0], _run(model)[1])


def _run(model: Any) -> tuple[Any, Any, list[tuple[Any, Any]]]:
    """Return the pooling layer, the features, and the dense layers each with its output, as Keras tensors.

    DicomsortError where the network does not end as ``find_top`` says.
    """
    import keras

    top = find_top(model)
    if not top:
        raise DicomsortError(
            f"network {model.name!r}: expected one that ends in pooling or flattening, dense and dropout layers, with "
            "ReLU between and softmax at the end, received another: it tells no distances"
        )
    pool, *behind = top
    x = features = pool.output
    active: list[tuple[Any, Any]] = []
    for layer in behind:
        if isinstance(layer, keras.layers.Dense):
            features = x
            x = layer(x)
            active.append((layer, x))
    return pool, features, active


def _maps(pool: Any, active: list[tuple[Any, Any]]) -> Any:
    """Return the class maps (N, h, w, C); ``active`` are the dense layers with their outputs."""
    import keras
    from keras import ops

    _, height, width, channels = pool.input.shape
    flattened = isinstance(pool, keras.layers.Flatten)
    gradient: Any = None  # of each logit by the outputs of the layer at hand, (N, units, C) or the same for all
    for i, (layer, output) in reversed(list(enumerate(active))):
        kernel: NDArray[np.float32] = np.asarray(layer.get_weights()[0])
        if i == 0:
            places = height * width
            kernel = kernel.reshape(places, channels, -1).mean(axis=0) if flattened else kernel / places
        if gradient is None:
            gradient = kernel
            continue
        if layer.activation.__name__ == "relu":
            on = ops.cast(ops.greater(output, 0), "float32")
            gradient = ops.multiply(ops.expand_dims(on, 2), gradient)
        gradient = ops.matmul(kernel, gradient)
    convolved = ops.reshape(pool.input, (-1, height * width, channels))
    return ops.reshape(ops.relu(ops.matmul(convolved, gradient)), (-1, height, width, active[-1][1].shape[1]))
