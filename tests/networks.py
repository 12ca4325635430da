"""A network small enough to be trained in a test."""

from __future__ import annotations

from typing import Any

from dicomsort.training.architectures import Architecture


def tiny(shape: tuple[int, int, int], classes: int) -> Any:
    """A trunk that takes means, then a convolution, a depthwise one, and the end that all networks have."""
    import keras

    from dicomsort.training.keras_networks import classifier

    layers = keras.layers
    image = keras.Input(shape)
    means = layers.AveragePooling2D(28, name="means")(layers.Rescaling(1 / 255)(image))
    first = layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(means)
    second = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="second")(first)
    return classifier(keras.Model(image, layers.GlobalAveragePooling2D(name="features")(second), name="tiny"), classes)


TINY = Architecture("a tiny network", "staged", tiny, ("float32",), "first")


def saying(*probabilities: float, distance: float | None = None) -> bytes:
    """A LiteRT model that says the same of every image: probabilities, and a distance where one is given."""
    import keras
    import numpy as np
    from keras import ops

    from dicomsort.training.export import _convert

    image = keras.Input((224, 224, 3), name="image")
    nothing = keras.layers.GlobalAveragePooling2D()(image) * 0.0
    dense = keras.layers.Dense(len(probabilities), activation="softmax")
    outputs = {"probabilities": dense(nothing)}
    dense.set_weights([np.zeros((3, len(probabilities))), np.log(np.array(probabilities))])
    if distance is not None:
        outputs["distance"] = ops.sum(nothing, axis=1) + distance
    return _convert(keras.Model(image, outputs), "float32")
