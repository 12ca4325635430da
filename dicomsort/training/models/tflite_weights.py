"""Reads the weights of a LiteRT model that ``export`` wrote, so that a bundle can be fine-tuned."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle.tensors import DISTANCE, read_outputs
from dicomsort.errors import BundleError
from dicomsort.training.models.efficientnet_lite0 import Unit
from dicomsort.training.models.ood import MahalanobisModel

# What the parser, LiteRT, or the checks here raise for damaged content.
UNREADABLE = (
    struct.error, IndexError, KeyError, StopIteration, TypeError, ValueError, AttributeError, ArithmeticError,
    RuntimeError,
)  # fmt: skip
# TensorType of the schema
TYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    2: np.dtype(np.int32),
    9: np.dtype(np.int8),
}
FLOAT32 = 0
INT8 = "int8"  # the precision, and its block in metrics.json
PRECISIONS = {0: "float32", 1: "float16", 9: INT8}
CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
BIAS = 2  # its place among the inputs of a convolution or a dense layer
LAST_LAYER = "a last layer as dicomsort exports it"


@contextmanager
def reading(expected: str) -> Iterator[None]:
    """Raise BundleError, with what was ``expected``, for any of ``UNREADABLE`` within."""
    try:
        yield
    except UNREADABLE as error:
        received = f"{type(error).__name__}: {error}"[:200]
        raise BundleError(f"model.tflite: expected {expected}, received {received}") from error


def read_weights(model: bytes, convolutions: int) -> list[Unit]:
    """Return the first ``convolutions`` convolutions of a LiteRT model, and as the last its softmax layer.

    Each is kernel and bias as Keras has them, float32; weights in int8 are dequantized. BundleError where it has no
    such weights.
    """
    with reading("weights as dicomsort exports them"):
        graph = Graph.read(model)
        units = list(graph.units())[:convolutions]
        head = graph.head()
    if len(units) != convolutions:
        raise BundleError(f"model.tflite: expected {convolutions} convolutions, received {len(units)}")
    return [*units, head]


def read_head(model: bytes) -> Unit:
    """Return kernel (D, C) and bias (C,), float32, of the last layer of a LiteRT model.

    BundleError where it has none before its softmax.
    """
    with reading(LAST_LAYER):
        return Graph.read(model).head()


def precision(model: bytes) -> str:
    """Return the type of a LiteRT model's first kernel: float32, float16 or int8; "unknown" where it has none."""
    try:
        graph = Graph.read(model)
        kernel = next(o for o in graph.makers.values() if graph.kind(o) in CONVOLUTIONS).Inputs(1)
        return PRECISIONS[graph.graph.Tensors(graph.stored(int(kernel))).Type()]
    except UNREADABLE:
        return "unknown"


def read_mahalanobis(model: bytes) -> MahalanobisModel:
    """Return the Mahalanobis model that a LiteRT model computes distances with; BundleError where it has none."""
    with reading("distances as dicomsort exports them"):
        return Graph.read(model).mahalanobis(read_outputs(model)[DISTANCE].index)


@dataclass(frozen=True, slots=True)
class Graph:
    """The one subgraph of a LiteRT model; ``makers``: tensor -> the operator that computes it."""

    model: Any
    graph: Any
    names: dict[int, str]
    makers: dict[int, Any]

    @classmethod
    def read(cls, data: bytes) -> Graph:
        """Return the first subgraph of a file's content; one of ``UNREADABLE`` where that is damaged."""
        from ai_edge_litert import schema_py_generated as schema

        model = schema.Model.GetRootAs(data, 0)
        graph = model.Subgraphs(0)
        names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
        operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
        makers = {int(operator.Outputs(0)): operator for operator in operators}
        return cls(model, graph, names, makers)

    def kind(self, operator: Any) -> str:
        """Return an operator's name in the schema."""
        return self.names[self.model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()]

    def units(self) -> Iterator[Unit]:
        """Yield kernel and bias of each convolution, in the order in which they run."""
        for operator in self.makers.values():
            kind = self.kind(operator)
            if kind in CONVOLUTIONS:
                kernel = self.constant(operator.Inputs(1))
                # LiteRT: (out, height, width, in), depthwise (1, height, width, channels).
                channels = kernel.shape[0] if kind == "CONV_2D" else kernel.shape[3]
                yield kernel.transpose((1, 2, 3, 0)), self.bias(operator, channels)

    def last(self) -> Any:
        """Return the dense layer that the softmax follows."""
        softmax = next(operator for operator in self.makers.values() if self.kind(operator) == "SOFTMAX")
        return self.makers[int(softmax.Inputs(0))]

    def head(self) -> Unit:
        """Return kernel (D, C) and bias (C,) of the last layer."""
        dense = self.last()
        kernel = self.constant(dense.Inputs(1)).T
        return kernel, self.bias(dense, kernel.shape[1])

    def features(self) -> int:
        """Return the tensor that is the last layer's input."""
        return int(self.last().Inputs(0))

    def bias(self, operator: Any, size: int) -> NDArray[np.float32]:
        """Return the bias (size,) of a convolution or a dense layer; the converter omits a bias of zeros."""
        index = self.bias_of(operator)
        return self.constant(index) if index >= 0 else np.zeros(size, np.float32)

    def bias_of(self, operator: Any) -> int:
        """Return the tensor of a bias, -1 where there is none."""
        return int(operator.Inputs(BIAS)) if operator.InputsLength() > BIAS else -1

    def mahalanobis(self, distance: int) -> MahalanobisModel:
        """Return the Mahalanobis model that the tensor ``distance`` is computed with (see ``ood.append``)."""
        unit = next(int(o.Outputs(0)) for o in self.makers.values() if self.kind(o) == "L2_NORMALIZATION")
        centred = next(operator for operator in self.users(unit) if self.kind(operator) == "SUB")
        centre = self.constant(centred.Inputs(1))
        directions, lines = np.zeros((len(centre), 0), np.float32), None
        for product in self.users(int(centred.Outputs(0))):
            ends = {self.kind(user) for user in self.users(int(product.Outputs(0)))}
            if "REDUCE_MIN" in ends:
                lines = tuple(self.constant(product.Inputs(i)).astype(np.float64) for i in (1, 2))
            elif "SQUARE" in ends:
                directions = self.constant(product.Inputs(1)).T
        if lines is None:
            raise ValueError("expected the distance to be a minimum over the classes, received none")
        slopes, offsets = lines
        size = float(self.constant(self.makers[distance].Inputs(1)))
        if slopes.shape != (len(offsets), len(centre)) or len(directions) != len(centre):
            raise ValueError(f"expected distances of {len(centre)} features, received {slopes.shape[1:]}")
        if not 0 < size < np.inf:
            raise ValueError(f"expected the scale of the distance to be over 0, received {size}")
        return MahalanobisModel(centre, directions, slopes.T, offsets, 1 / size / len(centre))

    def users(self, index: int) -> list[Any]:
        """Return the operators that have a tensor as input."""
        return [operator for operator in self.makers.values() if index in inputs_of(operator)]

    def behind_features(self) -> list[str]:
        """Return the names of the float32 tensors computed from the features, or from the maps they are means of."""
        features = self.features()
        pooled = self.kind(self.makers[features]) == "MEAN"
        reached, found = {int(self.makers[features].Inputs(0)) if pooled else features}, []
        for output, operator in self.makers.items():
            if reached.intersection(inputs_of(operator)):
                reached.add(output)
                found += [output] if self.graph.Tensors(output).Type() == FLOAT32 else []
        return [self.graph.Tensors(index).Name().decode() for index in found]

    def bytes_of(self, index: int) -> int:
        """Return the bytes that the file holds of a tensor; 0 for one that is computed."""
        return int(self.model.Buffers(self.graph.Tensors(index).Buffer()).DataLength())

    def stored(self, index: int) -> int:
        """Return the tensor that holds a constant; an operator converts one in float16 to float32."""
        if index < 0:
            raise ValueError("expected a constant, received none")
        for _ in range(len(self.makers) + 1):  # as operators may feed each other in a circle
            if index not in self.makers:
                return index
            index = int(self.makers[index].Inputs(0))
        raise ValueError("expected a constant, received tensors that are made of each other")

    def constant(self, index: int) -> NDArray[np.float32]:
        """Return a constant's value as float32, of whatever type it is stored."""
        tensor = self.graph.Tensors(self.stored(index))
        data = self.model.Buffers(tensor.Buffer()).DataAsNumpy()
        shape = tuple(int(side) for side in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        kind = TYPES[tensor.Type()]
        value = data.view(kind).reshape(shape).astype(np.float32)
        if kind.kind == "i":
            quantization, channels = tensor.Quantization(), np.ones(len(shape), int)
            scales, zeros = quantization.ScaleAsNumpy(), quantization.ZeroPointAsNumpy()  # one, or one a channel
            channels[quantization.QuantizedDimension()] = len(scales)
            value = (value - zeros.reshape(channels)) * scales.reshape(channels)
        return np.asarray(value, np.float32)


def inputs_of(operator: Any) -> list[int]:
    """Return the tensors that are an operator's inputs."""
    return [int(operator.Inputs(i)) for i in range(operator.InputsLength())]
