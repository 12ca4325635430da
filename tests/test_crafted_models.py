"""Models from elsewhere whose graphs no training wrote: they are refused, and nobody waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import edited

from dicomsort.bundle.tensors import DISTANCE, read_outputs
from dicomsort.errors import BundleError
from dicomsort.training.models.tflite_weights import Graph, read_head, read_space


@pytest.fixture(scope="module")
def model(root: Path) -> bytes:
    return (root / "models/default/model.tflite").read_bytes()


def test_tensors_that_are_made_of_each_other(model: bytes) -> None:
    graph = Graph.read(model)
    softmax = next(place for place, o in enumerate(graph.makers.values()) if graph.kind(o) == "SOFTMAX")
    dense = list(graph.makers).index(int(list(graph.makers.values())[softmax].Inputs(0)))

    def edit(tree: Any) -> None:
        operators = tree.subgraphs[0].operators
        one, other = operators[0], operators[1]
        one.inputs, other.inputs = [int(other.outputs[0])], [int(one.outputs[0])]
        operators[dense].inputs = [int(operators[dense].inputs[0]), int(one.outputs[0])]

    with pytest.raises(BundleError, match="received ValueError: expected a constant, received tensors that are made"):
        read_head(edited(model, edit))


def _no_least(tree: Any) -> None:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    for code in tree.operatorCodes:
        if code.builtinCode == BuiltinOperator.REDUCE_MIN:
            code.builtinCode = code.deprecatedBuiltinCode = BuiltinOperator.REDUCE_MAX


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf])
def test_a_scale_that_no_distance_has(model: bytes, scale: float) -> None:
    graph = Graph.read(model)
    index = int(graph.makers[read_outputs(model)[DISTANCE].index].Inputs(1))

    def edit(tree: Any) -> None:
        tree.buffers[tree.subgraphs[0].tensors[index].buffer].data = np.frombuffer(
            np.float32(scale).tobytes(), np.uint8
        )

    with pytest.raises(BundleError, match="expected the scale of the distance to be over 0, received"):
        read_space(edited(model, edit))


def test_a_distance_that_is_no_least_one(model: bytes) -> None:
    with pytest.raises(BundleError, match="expected the distance to be the least of some"):
        read_space(edited(model, _no_least))


def test_lines_for_another_number_of_features(model: bytes) -> None:
    graph = Graph.read(model)
    unit = next(int(o.Outputs(0)) for o in graph.makers.values() if graph.kind(o) == "L2_NORMALIZATION")
    centre = next(int(o.Inputs(1)) for o in graph.users(unit) if graph.kind(o) == "SUB")

    def edit(tree: Any) -> None:
        tensor = tree.subgraphs[0].tensors[centre]
        tensor.shape, tensor.shapeSignature = [4], None
        tree.buffers[tensor.buffer].data = np.zeros(16, np.uint8)

    with pytest.raises(BundleError, match="expected distances of 4 features, received"):
        read_space(edited(model, edit))
