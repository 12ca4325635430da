"""Reads the weights of a LiteRT model that ``export`` wrote: what ships is small, and can still be trained further."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle.tensors import DISTANCE, read_outputs
from dicomsort.errors import BundleError
from dicomsort.training.distance import Space

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dicomsort.training.lite0 import Unit
    from dicomsort.training.torchfile import Array

# What damaged content makes the parser, or what is read here, raise.
UNREADABLE = (
    struct.error, IndexError, KeyError, StopIteration, TypeError, ValueError, AttributeError, OverflowError,
    RecursionError,
)  # fmt: skip
TYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float16)}  # TensorType of the schema
BIAS = 2  # its place among the inputs of a convolution or a dense layer
LARGE = 64 << 10  # bytes of a matrix that is worth being stored as int8


@dataclass(frozen=True, slots=True)
class Weights:
    """A network's weights as Keras has them, float32: its convolutions in order, and its softmax layer."""

    units: tuple[Unit, ...]
    kernel: Array
    bias: Array


def read_weights(model: bytes, convolutions: int) -> Weights:
    """Return the first ``convolutions`` convolutions of a LiteRT model and the dense layer before its softmax.

    BundleError where it has no such weights, as float32 or float16.
    """
    try:
        graph = Graph.read(model)
        units = tuple(graph.units())[:convolutions]
        kernel, bias = graph.head()
    except UNREADABLE as error:
        msg = f"model.tflite: expected weights as dicomsort exports them, received {type(error).__name__}: {error}"
        raise BundleError(msg) from error
    if len(units) != convolutions:
        raise BundleError(f"model.tflite: expected {convolutions} convolutions, received {len(units)}")
    return Weights(units, kernel, bias)


def read_head(model: bytes) -> Unit:
    """Return kernel (D, C) and bias (C,), float32, of the last layer of a LiteRT model.

    BundleError where it has none before its softmax, as float32 or float16.
    """
    try:
        kernel, bias = Graph.read(model).head()
    except UNREADABLE as error:
        msg = f"model.tflite: expected a last layer as dicomsort exports it, received {type(error).__name__}: {error}"
        raise BundleError(msg) from error
    return kernel, bias


@dataclass(frozen=True, slots=True)
class ToldSpace(Space):
    """A space as a LiteRT model holds it: what it computes with is told, and ``means``, of which that is made, are not.

    ``slopes`` (D, C) and ``offsets`` (C,), float64, are those of ``lines``.
    """

    slopes: NDArray[np.float64]
    offsets: NDArray[np.float64]

    def lines(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return slopes and offsets."""
        return self.slopes, self.offsets


def read_space(model: bytes) -> Space:
    """Return what the distances of a LiteRT model are computed with; BundleError where it tells none as exported."""
    try:
        return Graph.read(model).space(read_outputs(model)[DISTANCE].index)
    except UNREADABLE as error:
        msg = f"model.tflite: expected distances as dicomsort exports them, received {type(error).__name__}: {error}"
        raise BundleError(msg) from error


@dataclass(frozen=True, slots=True)
class Graph:
    """The one subgraph of a LiteRT model; ``makers`` tell which operator makes a tensor."""

    model: Any
    graph: Any
    names: dict[int, str]
    makers: dict[int, Any]

    @classmethod
    def read(cls, data: bytes) -> Graph:
        """Return the first subgraph of a file's content; what that raises where it is damaged is in ``UNREADABLE``."""
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
            if kind in {"CONV_2D", "DEPTHWISE_CONV_2D"}:
                kernel = self.constant(operator.Inputs(1))
                # LiteRT: (out, height, width, in), depthwise (1, height, width, channels).
                channels = kernel.shape[0] if kind == "CONV_2D" else kernel.shape[3]
                yield kernel.transpose((1, 2, 3, 0)), self.bias(operator, channels)

    def head(self) -> Unit:
        """Return kernel (D, C) and bias (C,) of the dense layer that the softmax follows."""
        softmax = next(operator for operator in self.makers.values() if self.kind(operator) == "SOFTMAX")
        dense = self.makers[int(softmax.Inputs(0))]
        kernel = self.constant(dense.Inputs(1)).T
        return kernel, self.bias(dense, kernel.shape[1])

    def bias(self, operator: Any, size: int) -> NDArray[np.float32]:
        """Return the bias (size,) of a convolution or a dense layer; the converter leaves out one that is all 0."""
        given = operator.InputsLength() > BIAS and operator.Inputs(BIAS) >= 0
        return self.constant(operator.Inputs(BIAS)) if given else np.zeros(size, np.float32)

    def space(self, distance: int) -> Space:
        """Return what the tensor ``distance`` is computed with (see ``distance.append``)."""
        unit = next(int(o.Outputs(0)) for o in self.makers.values() if self.kind(o) == "L2_NORMALIZATION")
        centred = next(operator for operator in self.users(unit) if self.kind(operator) == "SUB")
        centre = self.constant(centred.Inputs(1))
        directions = np.zeros((len(centre), 0), np.float32)
        for product in self.users(int(centred.Outputs(0))):
            ends = {self.kind(user) for user in self.users(int(product.Outputs(0)))}
            if "REDUCE_MIN" in ends:
                slopes, offsets = (self.constant(product.Inputs(i)).astype(np.float64) for i in (1, 2))
            elif "SQUARE" in ends:
                directions = self.constant(product.Inputs(1)).T
        scale = 1 / float(self.constant(self.makers[distance].Inputs(1)))
        unknown = np.full((len(offsets), len(centre)), np.nan, np.float32)
        return ToldSpace(centre, directions, unknown, scale / len(centre), slopes.T, offsets)

    def users(self, index: int) -> list[Any]:
        """Return the operators that a tensor goes into."""
        return [o for o in self.makers.values() if index in (int(o.Inputs(i)) for i in range(o.InputsLength()))]

    def behind_features(self) -> list[str]:
        """Return the names of the tensors that are computed from the features, with these where they are means.

        Products with a large matrix are left out.
        """
        softmax = next(operator for operator in self.makers.values() if self.kind(operator) == "SOFTMAX")
        features = int(self.makers[int(softmax.Inputs(0))].Inputs(0))
        found = [features] if self.kind(self.makers[features]) == "MEAN" else []
        reached = {features}
        for output, operator in self.makers.items():
            sources = {int(operator.Inputs(i)) for i in range(operator.InputsLength())}
            if sources & reached:
                reached.add(output)
                if max(self.bytes_of(source) for source in sources) < LARGE:
                    found.append(output)
        return [self.graph.Tensors(index).Name().decode() for index in found]

    def bytes_of(self, index: int) -> int:
        """Return the size of what the file holds of a tensor; 0 for a tensor that is computed, or is left out."""
        return int(self.model.Buffers(self.graph.Tensors(index).Buffer()).DataLength()) if index >= 0 else 0

    def constant(self, index: int) -> NDArray[np.float32]:
        """Return a constant's value; what is stored as float16 is brought to float32 by an operator of its own."""
        if index in self.makers:
            return self.constant(self.makers[index].Inputs(0))
        tensor = self.graph.Tensors(index)
        data = self.model.Buffers(tensor.Buffer()).DataAsNumpy()
        shape = tuple(int(side) for side in tensor.ShapeAsNumpy())
        value: NDArray[np.float32] = data.view(TYPES[tensor.Type()]).reshape(shape).astype(np.float32)
        return value
