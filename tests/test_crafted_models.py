"""Models from elsewhere whose graphs no training wrote: they are refused, and nobody waits for them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from networks import edited, noise

from dicomsort.bundle import load, require_answer
from dicomsort.bundle.tensors import DISTANCE, read_outputs
from dicomsort.cli.options import open_workers
from dicomsort.errors import BundleError
from dicomsort.training.models.tflite_weights import Graph, read_head, read_mahalanobis


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
        read_mahalanobis(edited(model, edit))


def test_a_distance_that_is_no_least_one(model: bytes) -> None:
    with pytest.raises(BundleError, match="expected the distance to be a minimum over the classes"):
        read_mahalanobis(edited(model, _no_least))


def test_lines_for_another_number_of_features(model: bytes) -> None:
    graph = Graph.read(model)
    unit = next(int(o.Outputs(0)) for o in graph.makers.values() if graph.kind(o) == "L2_NORMALIZATION")
    centre = next(int(o.Inputs(1)) for o in graph.users(unit) if graph.kind(o) == "SUB")

    def edit(tree: Any) -> None:
        tensor = tree.subgraphs[0].tensors[centre]
        tensor.shape, tensor.shapeSignature = [4], None
        tree.buffers[tensor.buffer].data = np.zeros(16, np.uint8)

    with pytest.raises(BundleError, match="expected distances of 4 features, received"):
        read_mahalanobis(edited(model, edit))


def _killing(tree: Any) -> None:
    """Let what is quantized for the class maps be said to be unsigned: LiteRT reads from nowhere."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, TensorType

    graph = tree.subgraphs[0]
    kinds = [tree.operatorCodes[operator.opcodeIndex].builtinCode for operator in graph.operators]
    operators = list(zip(graph.operators, kinds, strict=True))
    reshaped = {int(operator.outputs[0]) for operator, kind in operators if kind == BuiltinOperator.RESHAPE}
    for operator, kind in operators:
        if kind == BuiltinOperator.QUANTIZE and int(operator.inputs[0]) in reshaped:
            graph.tensors[operator.outputs[0]].type = TensorType.UINT8


@pytest.fixture
def killing(root: Path, model: bytes, tmp_path: Path) -> Path:
    """A bundle whose model kills the process that runs it."""
    folder = Path(shutil.copytree(root / "models/default", tmp_path / "killing"))
    content = edited(model, _killing)
    (folder / "model.tflite").write_bytes(content)
    spec = json.loads((folder / "bundle.json").read_text("utf-8"))
    spec |= {"model_size": len(content), "model_sha256": hashlib.sha256(content).hexdigest()}
    (folder / "bundle.json").write_text(json.dumps(spec), "utf-8")
    return folder


def test_a_model_that_kills_its_workers_is_named(killing: Path, tmp_path: Path) -> None:
    images = noise(tmp_path / "images", ("CT", "MRI"), 2)
    told = f"bundle {str(killing)!r}: model.tflite: expected a model that can be run, received: the worker process"
    ran = run("predict", *images.rglob("*.png"), tmp_path / "none.png", "--model", killing)
    assert (ran.code, len(ran.out.splitlines())) == (1, 5)
    assert told in ran.err
    ran = run("evaluate", images, "--model", killing, "--out", tmp_path / "out")
    assert ran.code == 1
    assert told in ran.err


def test_a_model_that_answers_is_not_blamed(root: Path) -> None:
    bundle = load(root / "models/default")
    with open_workers(1) as engine:
        require_answer(bundle, engine.submit)
