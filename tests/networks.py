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
