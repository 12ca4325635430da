"""Reads the weights of a LiteRT model that ``export`` wrote: what ships is small, and can still be trained further."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.errors import BundleError

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
        graph = _Graph.read(model)
        units = tuple(graph.units())[:convolutions]
        kernel, bias = graph.head()
    except UNREADABLE as error:
        msg = f"model.tflite: expected weights as dicomsort exports them, received {type(error).__name__}: {error}"
        raise BundleError(msg) from error
    if len(units) != convolutions:
        raise BundleError(f"model.tflite: expected {convolutions} convolutions, received {len(units)}")
    return Weights(units, kernel, bias)


@dataclass(frozen=True, slots=True)
class _Graph:
    """The one subgraph of a LiteRT model; ``makers`` tell which operator makes a tensor."""

    model: Any
    graph: Any
    names: dict[int, str]
    makers: dict[int, Any]

    @classmethod
    def read(cls, data: bytes) -> _Graph:
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
                kernel, bias = (self.constant(operator.Inputs(i)) for i in (1, 2))
                # LiteRT: (out, height, width, in), depthwise (1, height, width, channels).
                yield kernel.transpose((1, 2, 3, 0)), bias

    def head(self) -> Unit:
        """Return kernel (D, C) and bias (C,) of the dense layer that the softmax follows."""
        softmax = next(operator for operator in self.makers.values() if self.kind(operator) == "SOFTMAX")
        dense = self.makers[int(softmax.Inputs(0))]
        return self.constant(dense.Inputs(1)).T, self.constant(dense.Inputs(2))

    def constant(self, index: int) -> NDArray[np.float32]:
        """Return a constant's value; what is stored as float16 is brought to float32 by an operator of its own."""
        if index in self.makers:
            return self.constant(self.makers[index].Inputs(0))
        tensor = self.graph.Tensors(index)
        data = self.model.Buffers(tensor.Buffer()).DataAsNumpy()
        shape = tuple(int(side) for side in tensor.ShapeAsNumpy())
        value: NDArray[np.float32] = data.view(TYPES[tensor.Type()]).reshape(shape).astype(np.float32)
        return value
