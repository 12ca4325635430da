"""A LiteRT model without its last layer, and with another one.

Fine-tuning trains the last layer alone, on the features of the network that ships: all before it stays in the file as
it is, of whatever type. So the quantization ranges do not come from one site's few images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle.predictor import LiteRTModel
from dicomsort.bundle.tensors import MAPS, PROBABILITIES, read_outputs
from dicomsort.training.models.tflite_weights import BIAS, FLOAT32, LAST_LAYER, TYPES, Graph, reading

IDENTIFIER = b"TFL3"  # of a LiteRT file
FLOATS = (0, 1)  # float32 and float16, TensorType of the schema
RTOL, ATOL = 2e-3, 1e-6  # above the rounding of float16


class FeatureExtractor:
    """A LiteRT model, loaded from a file's content, without its last layer; it is called as a keras.Model is.

    ``output`` has the shape of its output for no image: float32 (0, D). BundleError where the file does not end as
    ``export`` writes it, with features in float32.
    """

    def __init__(self, model: bytes) -> None:
        with reading(LAST_LAYER):
            graph = Graph.read(model)
            features = graph.features()
            tensor = graph.graph.Tensors(features)
            if tensor.Type() != FLOAT32:
                raise ValueError(f"features of type {tensor.Type()}")
            self._running = LiteRTModel(_until(graph, features))
            self.output = np.zeros((0, int(tensor.Shape(tensor.ShapeLength() - 1))), np.float32)

    def predict_on_batch(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the features, float32 (n, D), of images (n, height, width, 3), 0..255."""
        images = images.astype(np.float32)
        # One by one: a change of the batch size costs more time than it could save.
        return np.concatenate([self.output, *(self._running.run(image[None])[PROBABILITIES] for image in images)])


def predict_head(features: NDArray[Any], kernel: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float32]:
    """Return the probabilities, float32 (n, C), of features (n, D) by a last layer, kernel (D, C) and bias (C,)."""
    logits = features.astype(np.float32) @ kernel + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


def with_head(model: bytes, kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
    """Return a LiteRT model with another last layer, kernel (D, C) and bias (C,), in its class maps too.

    BundleError where that layer is not as ``export`` writes it.
    """
    with reading(LAST_LAYER):
        graph, outputs = Graph.read(model), read_outputs(model)
        area = int(np.prod(outputs[MAPS].shape[1:3])) if MAPS in outputs else 0
        found = list(_copies(graph, kernel, area))
        if len(found) < (2 if area else 1):
            raise ValueError("another form of the last layer")
        tree = _unpacked(graph)
        for index, value in (*found, (_bias(graph, tree, len(bias)), bias)):
            tensor = tree.subgraphs[0].tensors[index]
            tree.buffers[tensor.buffer].data = np.frombuffer(value.astype(TYPES[tensor.type]).tobytes(), np.uint8)
        return _packed(tree)


def _copies(graph: Graph, kernel: NDArray[np.float32], area: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the tensors that hold the last layer's kernel in some form, each with ``kernel`` in that form.

    ``area`` is the number of pixels of a class map, which is made with the kernel divided by that (see ``outputs``).
    """
    forms = list(zip(_forms(np.asarray(graph.head()[0]), area), _forms(kernel, area), strict=True))
    for index in range(graph.graph.TensorsLength()):
        tensor = graph.graph.Tensors(index)
        if tensor.Type() not in FLOATS or index in graph.makers or not graph.bytes_of(index):
            continue
        value = graph.constant(index)
        for old, new in forms:
            if value.shape == old.shape and np.allclose(value, old, RTOL, ATOL):
                yield index, new
                break


def _forms(kernel: NDArray[np.float32], area: int) -> Iterator[NDArray[np.float32]]:
    for divisor in (1, area) if area else (1,):
        yield from (kernel.T / np.float32(divisor), kernel / np.float32(divisor))


def _bias(graph: Graph, tree: Any, classes: int) -> int:
    """Return the tensor that holds the last layer's bias, a new one where the converter omitted a bias of zeros."""
    from ai_edge_litert import schema_py_generated as schema

    dense = graph.last()
    if (index := graph.bias_of(dense)) >= 0:
        return graph.stored(index)
    part, tensor = tree.subgraphs[0], schema.TensorT()
    tensor.shape, tensor.buffer, tensor.name = np.array([classes], np.int32), len(tree.buffers), b"bias"
    tree.buffers.append(schema.BufferT())
    part.tensors.append(tensor)
    operator = next(each for each in part.operators if int(each.outputs[0]) == int(dense.Outputs(0)))
    operator.inputs = [*operator.inputs[:BIAS], len(part.tensors) - 1]
    return len(part.tensors) - 1


def _until(graph: Graph, output: int) -> bytes:
    """Return the model with the output tensor ``output``, and no operators that it does not need."""
    tree = _unpacked(graph)
    part, wanted, needed = tree.subgraphs[0], {output}, []
    for operator in reversed(part.operators):
        if wanted & set(map(int, operator.outputs)):
            wanted |= set(map(int, operator.inputs))
            needed.append(operator)
    part.operators, part.outputs, tree.signatureDefs = needed[::-1], [output], []
    return _packed(tree)


def _unpacked(graph: Graph) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(graph.model)


def _packed(tree: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(tree.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())
