from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import edited

from dicomsort.bundle import Bundle, Predictor, calibrate, check_target, default_path, label_problem, load, seal, staged
from dicomsort.errors import BundleError, UsageError
from dicomsort.records import RENDERING_VERSION
from dicomsort.training.fit.finetune import from_bundle
from dicomsort.training.pipeline import REPLACEABLE

SPEC, MODEL = "bundle.json", "model.tflite"
MISSING = object()

# field -> what it must not be; the error names the field and says what was expected and what was received
WRONG: list[tuple[str, object]] = [
    ("format_version", 2),
    ("format_version", MISSING),
    ("name", ""),
    ("name", "two\nlines"),
    ("arch", 3),
    ("labels", ["CT"]),
    ("labels", ["CT", "ct"]),
    ("labels", "CT"),
    ("labels", ["CT", "../up"]),
    ("labels", ["CT", "REVIEW"]),
    ("header_classes", {"CT": "nowhere"}),
    ("header_classes", {"US": "CT"}),
    ("header_classes", []),
    ("input_shape", [224, 224]),
    ("input_shape", [224, 224, 1]),
    ("input_shape", [224.0, 224, 3]),
    ("input_shape", [224, 224, 3.0]),
    ("input_shape", [128, 128, 3]),
    ("input_shape", [1 << 20, 1 << 20, 3]),
    ("rendering_version", 0),
    ("rendering_version", True),
    ("rendering_version", RENDERING_VERSION + 1),
    ("temperature", 0),
    ("temperature", "1"),
    ("temperature", float("nan")),
    ("temperature", 10**400),
    ("thresholds", {"decide": 0.9}),
    ("thresholds", {"decide": 0.9, "contradict": 0.99, "distance": 10**400}),
    ("thresholds", {"decide": 1.1, "contradict": 0.9}),
    ("thresholds", {"decide": {}, "contradict": 0.9}),
    ("thresholds", {"decide": {"CT": 0.9}, "contradict": 0.9}),
    ("thresholds", {"decide": {"CT": 0.9, "MRI": 0.9, "OTHER": 0.9, "XRAY": "1"}, "contradict": 0.9}),
    ("thresholds", {"decide": 0.9, "contradict": 0.99, "distance": -1}),
    ("thresholds", {"decide": 0.9, "contradict": 0.99, "distance": float("inf")}),
    ("thresholds", {"decide": 0.9, "contradict": 0.99, "distance": "1"}),
    ("training", None),
    ("training", {"fingerprint": 7}),
    ("training", {"files": 7}),
    ("training", {"images": 7}),
    ("training", {"images": {"CT": "7"}}),
    ("training", {"recipe": 7}),
    ("training", {"recipe": {"variation": [1]}}),
    ("created_with", {"keras": 3}),
    ("model_sha256", "A" * 64),
    ("model_size", -1),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_path(), tmp_path / "bundle"))


def _change(folder: Path, **fields: object) -> None:
    spec: dict[str, Any] = json.loads((folder / SPEC).read_text("utf-8"))
    spec.update(fields)
    kept = {key: value for key, value in spec.items() if value is not MISSING}
    (folder / SPEC).write_text(json.dumps(kept), "utf-8")


def _swap_model(folder: Path, model: bytes) -> Bundle:
    (folder / MODEL).write_bytes(model)
    _change(folder, model_size=len(model), model_sha256=hashlib.sha256(model).hexdigest())
    return load(folder)


def _custom_operator(tree: Any) -> None:
    """Make the first operator one that LiteRT does not know."""
    from ai_edge_litert import schema_py_generated as schema

    tree.operatorCodes[0].customCode = b"Evil"
    tree.operatorCodes[0].builtinCode = schema.BuiltinOperator.CUSTOM


def _huge(tree: Any) -> None:
    """Let what the first operator gives have 2^60 elements."""
    graph = tree.subgraphs[0]
    tensor = graph.tensors[graph.operators[0].outputs[0]]
    tensor.shape, tensor.shapeSignature = [1, 1 << 30, 1 << 30], None


def _two_outputs(tree: Any) -> None:
    """Let the input be an output too, of no name."""
    graph = tree.subgraphs[0]
    graph.outputs = [*graph.outputs, graph.inputs[0]]


def _no_output(tree: Any) -> None:
    tree.subgraphs[0].outputs = []


def _wide_output(tree: Any) -> None:
    """Promise five classes."""
    graph = tree.subgraphs[0]
    graph.tensors[graph.outputs[0]].shape = [1, 5]
    graph.tensors[graph.outputs[0]].shapeSignature = [-1, 5]


def _other_input(tree: Any) -> None:
    graph = tree.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = [1, 96, 96, 3]
    graph.tensors[graph.inputs[0]].shapeSignature = [-1, 96, 96, 3]


HOSTILE = {
    _custom_operator: "expected builtin operators only, received b'Evil'",
    _huge: r"expected tensors of at most \d+ bytes in all, received \d{19}",
    _two_outputs: r"expected outputs .*probabilities, received .*number 0",
    _no_output: r"expected outputs .*probabilities, received none",
    _wide_output: r"expected output \w+ \(N.*\) float32, received \(-1, 5\) float32",
    _other_input: r"expected input \(N, \(224, 224, 3\)\) float32, received \(N, \(96, 96, 3\)\) float32",
}


def test_the_default_bundle_is_what_the_program_expects() -> None:
    bundle = load(default_path())
    assert set(bundle.labels) == {"CT", "MRI", "XRAY", "OTHER"}
    assert bundle.header_classes == {"CT": "CT", "MRI": "MRI", "XRAY": "XRAY"}
    assert all(0.5 <= threshold < 1 for threshold in (bundle.decide, bundle.contradict))
    assert bundle.model_size <= 10_000_000
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) < 12_000_000


@pytest.mark.parametrize("screen", [b"no model", None])
def test_an_earlier_bundle_loads_and_its_second_model_is_ignored(tmp_path: Path, screen: bytes | None) -> None:
    """``earlier_bundle.json`` was written when a bundle could have a faster model that confirmed clear headers."""
    spec = json.loads(Path(__file__).with_name("earlier_bundle.json").read_text("utf-8"))
    assert set(spec["screen"]) == {"confirm", "sha256", "size"}
    model = (default_path() / MODEL).read_bytes()
    (tmp_path / MODEL).write_bytes(model)
    if screen is not None:
        (tmp_path / "screen.tflite").write_bytes(screen)  # nothing pins it any longer, so nothing reads it
    spec |= {"model_sha256": hashlib.sha256(model).hexdigest(), "model_size": len(model)}
    (tmp_path / SPEC).write_text(json.dumps(spec), "utf-8")
    bundle = load(tmp_path)
    assert (bundle.temperature, bundle.decide, bundle.evaluation) == (1.8118, 0.95, None)
    assert Predictor(bundle).predict(np.zeros((1, 224, 224, 3), np.uint8)).probabilities.shape == (1, 4)
    _change(tmp_path, screen="whatever")
    assert replace(load(tmp_path), spec_sha256=bundle.spec_sha256) == bundle
    (tmp_path / "screen.tflite").write_bytes(model)
    check_target(tmp_path, REPLACEABLE)  # a training may replace it
    out = tmp_path.with_name("out")
    with staged(out, frozenset({SPEC, MODEL})) as part:
        (part / MODEL).write_bytes(model)
        seal(part, {key: value for key, value in spec.items() if key != "screen"})
    assert load(out).labels == bundle.labels


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda part: "missing" if part is MISSING else repr(part)[:40])
def test_a_wrong_field_is_refused_by_name(folder: Path, field: str, value: object) -> None:
    _change(folder, **{field: value})
    with pytest.raises(BundleError, match=rf"{field}[\w.]*: expected .*, received ") as caught:
        load(folder)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '"CT"', "[" * 100_000, "\ufeff{}"])
def test_a_spec_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / SPEC).write_text(text, "utf-8")
    with pytest.raises(BundleError, match=r"expected .*, received"):
        load(folder)


def test_a_spec_too_long_is_refused_before_it_is_parsed(folder: Path) -> None:
    (folder / SPEC).write_text(" " * ((1 << 20) + 1) + "{}")
    with pytest.raises(BundleError, match="expected at most 1048576 bytes"):
        load(folder)


def test_a_path_that_is_no_bundle_says_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, received in (("file", "a file"), ("gone", "nothing there")):
        with pytest.raises(BundleError, match=f"expected a bundle .* received {received}"):
            load(tmp_path / name)
    with pytest.raises(BundleError, match=r"bundle.json: expected a file, received 'none'"):
        load(tmp_path)


def test_a_missing_cut_or_changed_model_is_refused(folder: Path) -> None:
    model = folder / MODEL
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match="SHA-256"):
        load(folder)
    model.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=f"expected '?{len(whole)} bytes.*received '{len(whole) - 1} bytes"):
        load(folder)
    model.unlink()
    with pytest.raises(BundleError, match=r"model.tflite: expected a file"):
        load(folder)


@pytest.mark.parametrize("edit", HOSTILE, ids=lambda edit: edit.__name__)
def test_a_hostile_model_is_refused_before_memory_is_taken(folder: Path, edit: Callable[[Any], None]) -> None:
    bundle = _swap_model(folder, edited((folder / MODEL).read_bytes(), edit))
    with pytest.raises(BundleError, match=HOSTILE[edit]):
        Predictor(bundle)
    with pytest.raises(BundleError, match=HOSTILE[edit]):
        from_bundle(folder)


def _one_output(tree: Any) -> None:
    tree.subgraphs[0].outputs = tree.subgraphs[0].outputs[:1]


def test_a_threshold_needs_a_model_that_tells_distances(folder: Path) -> None:
    _change(folder, thresholds={"decide": 0.9, "contradict": 0.99, "distance": 2.5})
    bundle = _swap_model(folder, edited((folder / MODEL).read_bytes(), _one_output))
    assert bundle.distance == 2.5
    with pytest.raises(BundleError, match="expected outputs distance, probabilities, received probabilities"):
        Predictor(bundle)


@pytest.mark.parametrize("model", [b"no model", b"\0" * 4096, b"\x1c\0\0\0TFL3" + b"\xff" * 4096])
def test_a_file_that_is_no_model_is_refused(folder: Path, model: bytes) -> None:
    bundle = _swap_model(folder, model)
    with pytest.raises(BundleError, match="expected a LiteRT model"):
        Predictor(bundle)


def test_a_model_of_other_classes_is_refused(folder: Path) -> None:
    _change(folder, labels=["CT", "MRI", "XRAY"], thresholds={"decide": 0.9, "contradict": 0.99})
    with pytest.raises(BundleError, match="expected output"):
        Predictor(load(folder))


def test_predictions_do_not_depend_on_the_batch() -> None:
    predictor = Predictor(load(default_path()))
    images = np.random.default_rng(0).integers(0, 256, (35, 224, 224, 3), np.uint8)
    whole = predictor.predict(images)
    assert (whole.probabilities.dtype, whole.distances.dtype) == (np.float32, np.float32)
    assert (whole.probabilities.shape, whole.distances.shape) == ((35, 4), (35,))
    np.testing.assert_allclose(whole.probabilities.sum(1), 1, atol=1e-5)
    last = predictor.predict(images[34:])
    np.testing.assert_allclose(last.probabilities, whole.probabilities[34:], atol=1e-3)
    np.testing.assert_allclose(last.distances, whole.distances[34:], rtol=1e-3)
    nothing = predictor.predict(images[:0])
    assert (nothing.probabilities.shape, nothing.distances.shape) == ((0, 4), (0,))
    for wrong in (images.astype(np.float32), images[:, :96]):
        with pytest.raises(ValueError, match="expected uint8"):
            predictor.predict(wrong)


def test_calibration_keeps_the_order_and_turns_nonsense_into_doubt() -> None:
    p = np.array([[0.7, 0.2, 0.1], [np.nan, 0, 1], [0, 0, 0], [1, 0, 0]], np.float32)
    np.testing.assert_allclose(calibrate(p, 1.0)[0], p[0], atol=1e-6)
    assert calibrate(p, 2.0)[0].max() < 0.7 < calibrate(p, 0.5)[0].max()
    np.testing.assert_allclose(calibrate(p, 2.0)[1:3], 1 / 3)
    assert calibrate(p, 2.0)[3].argmax() == 0


@pytest.mark.parametrize(
    "label", ["", "review", "Unreadable", "a/b", "a\\b", ".hidden", "-x", "x.", "CON", "a\0b", "e\u0301", "x" * 65]
)
def test_names_that_cannot_be_folders(label: str) -> None:
    assert label_problem(label)


def test_names_that_can_be_folders() -> None:
    assert not any(map(label_problem, ["CT", "OTHER", "Röntgen", "left hand", "手"]))


def test_a_staged_bundle_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    bare = {"evaluation": None}
    target, spec = tmp_path / "new", json.loads((default_path() / SPEC).read_text("utf-8")) | bare
    outputs = frozenset({SPEC, MODEL})

    def write(*, fail: type[BaseException] | None) -> None:
        with staged(target, outputs) as part:
            (part / MODEL).write_bytes((default_path() / MODEL).read_bytes())
            if fail:
                raise fail
            seal(part, spec)

    for interruption in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(interruption):
            write(fail=interruption)
        assert list(tmp_path.iterdir()) == []
    write(fail=None)
    write(fail=None)  # an earlier bundle is replaced
    assert load(target).name == spec["name"]
    with pytest.raises(KeyboardInterrupt):
        write(fail=KeyboardInterrupt)
    assert load(target).name == spec["name"]
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"received one with 'thesis.txt' in it"):
        write(fail=None)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_spec_that_load_would_refuse_is_never_written(tmp_path: Path) -> None:
    spec = json.loads((default_path() / SPEC).read_text("utf-8")) | {"evaluation": None}
    (tmp_path / MODEL).write_bytes(b"model")
    with pytest.raises(BundleError, match="temperature"):
        seal(tmp_path, spec | {"temperature": 0})
    assert [path.name for path in tmp_path.iterdir()] == [MODEL]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, dicomsort.bundle; print({'tensorflow', 'keras', 'ai_edge_litert', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
