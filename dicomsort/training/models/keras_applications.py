"""Networks of ``keras.applications``, without their last (ImageNet) layer, and weights for them from a local file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from dicomsort.errors import UsageError
from dicomsort.files import hashed, opened_input

HDF5 = b"\x89HDF\r\n\x1a\n"
DROPOUT = 0.3
# ImageNet's mean; the networks' published weights expect it subtracted, and channels in the order blue, green, red.
MEAN_RGB = (123.68, 116.779, 103.939)


class Network(NamedTuple):
    """A network's name in keras.applications, and its first convolution where that expects BGR, else ""."""

    function: str
    first: str


NETWORKS = {
    "mobilenet-v3-small": Network("MobileNetV3Small", ""),
    "resnet50": Network("ResNet50", "conv1_conv"),
    "vgg16": Network("VGG16", "block1_conv1"),
}


def body(name: str, shape: tuple[int, int, int]) -> Any:
    """Return the network with random weights, float32 (N, height, width, 3), 0..255, to features (N, D)."""
    import keras

    function, first = NETWORKS[name]
    image = keras.Input(shape, name="image")
    offset = [-mean for mean in MEAN_RGB]
    scaled = keras.layers.Rescaling(1.0, offset, name="rescale")(image) if first else image
    # MobileNetV3 scales by itself.
    network = getattr(keras.applications, function)(include_top=False, weights=None, input_tensor=scaled)
    pooled = keras.layers.GlobalAveragePooling2D(name="features")(network.output)
    return keras.Model(image, pooled, name=name.replace("-", "_"))


def classifier(backbone: Any, classes: int, *, dropout: float = DROPOUT) -> Any:
    """Return the backbone with a softmax layer behind its features.

    Its weights start at 0: random ones would stay random in directions that only unseen sources have.
    """
    import keras

    dropped = keras.layers.Dropout(dropout)(backbone.output)
    dense = keras.layers.Dense(
        classes, activation="softmax", kernel_initializer="zeros", dtype="float32", name="probabilities"
    )
    return keras.Model(backbone.input, dense(dropped), name=backbone.name)


def weights_digest(file: Path) -> str:
    """Return a weights file's SHA-256; UsageError unless it is HDF5, which holds numbers and no code."""
    try:
        with opened_input(file) as stream:
            head = stream.read(len(HDF5))
            digest = hashed(stream.fileno())
    except OSError as error:
        raise UsageError(f"--weights {str(file)!r}: expected a file, received {error.strerror}") from error
    if file.suffix != ".h5" or head != HDF5:
        msg = f"--weights {str(file)!r}: expected Keras weights (.weights.h5 or .h5, HDF5), received another"
        raise UsageError(msg)
    return digest


def pretrained(name: str, file: Path, shape: tuple[int, int, int]) -> Any:
    """Return ``body`` frozen with the weights of a file, saved without the ImageNet layer.

    UsageError where they are another network's.
    """
    network = body(name, shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns where it leaves layers as they were
            network.load_weights(file)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, UserWarning) as error:
        received = " ".join(str(error).split())[:200]
        msg = f"--weights {str(file)!r}: expected weights of {name} without its ImageNet layer, received: {received}"
        raise UsageError(msg) from error
    if first := NETWORKS[name].first:
        kernel, bias = network.get_layer(first).get_weights()
        network.get_layer(first).set_weights([kernel[:, :, ::-1], bias])
    network.trainable = False
    return network
