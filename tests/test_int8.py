"""The network in integers: what it says, when a training keeps it, and trainings that go on from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from command import Ran, run
from networks import LABELS, RECIPE, TINY, known, noise, tiny
from numpy.typing import NDArray

from dicomsort.bundle import EVALUATION_NAME, Predictor, load, seal
from dicomsort.bundle.predictor import LiteRTModel
from dicomsort.errors import BundleError
from dicomsort.training.fit import quantize
from dicomsort.training.fit.finetune import from_bundle
from dicomsort.training.fit.quantize import words
from dicomsort.training.models import ood, replay_set
from dicomsort.training.models.architectures import ARCHITECTURES
from dicomsort.training.models.tflite_head import FeatureExtractor, with_head
from dicomsort.training.models.tflite_weights import Graph, precision, read_head, read_mahalanobis, read_weights
from dicomsort.training.pipeline import OUTPUTS
from dicomsort.training.progress import load_tensorflow

pytestmark = pytest.mark.xdist_group("int8")

SIDE = 224


def blocks(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images (N, 224, 224, 3) of random blocks."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return small.repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)


def said(model: bytes, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """All outputs of a LiteRT model, (N, …)."""
    running = LiteRTModel(model)
    parts = [running.run(image[None].astype(np.float32)) for image in images]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def network() -> Any:
    load_tensorflow()
    made, random = tiny((SIDE, SIDE, 3), 3), np.random.default_rng(3)
    made.set_weights([random.normal(0, 0.5, weight.shape) for weight in made.get_weights()])
    return made


@pytest.fixture(scope="module")
def mahalanobis(network: Any) -> ood.MahalanobisModel:
    from dicomsort.training.models.outputs import featured

    return ood.fit(featured(network).predict(blocks(60).astype(np.float32), verbose=0), np.arange(60) % 3)


@pytest.fixture(scope="module")
def files(network: Any, mahalanobis: ood.MahalanobisModel) -> dict[str, bytes]:
    """The network as a LiteRT model in each kind of numbers."""
    from dicomsort.training.export import tflite

    floats = {each: tflite.convert(network, [each], blocks(8), mahalanobis)[0].model for each in ("float32", "float16")}
    return floats | {"int8": quantize.quantize(network, mahalanobis, blocks(30))}


def test_it_says_nearly_the_same(files: dict[str, bytes]) -> None:
    images = blocks(30, 1)
    one, other = said(files["float32"], images), said(files["int8"], images)
    assert {name: value.shape for name, value in other.items()} == {name: value.shape for name, value in one.items()}
    np.testing.assert_allclose(other["probabilities"], one["probabilities"], atol=0.1)
    np.testing.assert_allclose(other["distance"], one["distance"], rtol=0.3, atol=0.3)
    np.testing.assert_allclose(other["maps"], one["maps"], atol=0.1 * one["maps"].max())
    assert len(files["int8"]) < len(files["float32"])
    for each in ("float32", "float16", "int8"):
        assert precision(files[each]) == each
    assert precision(b"junk") == "unknown"


def test_its_weights_and_distances_are_read_from_its_file(
    files: dict[str, bytes], mahalanobis: ood.MahalanobisModel
) -> None:
    wanted, found = (read_weights(files[each], 2) for each in ("float32", "int8"))
    for one, other in zip(wanted[:-1], found[:-1], strict=True):
        steps = np.abs(one[0]).max(axis=(0, 1, 2) if one[0].shape[2] > 1 else None) / 127  # one a channel
        assert (np.abs(other[0] - one[0]) <= np.max(steps)).all()
        np.testing.assert_allclose(other[1], one[1], atol=1e-3)
    np.testing.assert_array_equal(found[-1][0], wanted[-1][0])  # what is behind the features stays float32
    features = FeatureExtractor(files["int8"]).predict_on_batch(blocks(20, 2))
    report = read_mahalanobis(files["int8"]).distances(features)
    np.testing.assert_allclose(report, mahalanobis.distances(features), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(said(files["int8"], blocks(20, 2))["distance"], report, rtol=1e-2, atol=1e-2)
    for junk in (b"", files["int8"][:300]):
        with pytest.raises(BundleError, match=r"model\.tflite: expected distances as dicomsort exports them"):
            read_mahalanobis(junk)


@pytest.mark.parametrize("numbers", ["float32", "float16", "int8"])
def test_another_last_layer_changes_nothing_before_it(files: dict[str, bytes], numbers: str) -> None:
    before, images, random = files[numbers], blocks(6, 4), np.random.default_rng(5)
    kernel, bias = (random.normal(size=shape).astype(np.float32) for shape in ((16, 3), (3,)))
    after = with_head(before, kernel, bias)
    features = FeatureExtractor(before).predict_on_batch(images)
    np.testing.assert_array_equal(FeatureExtractor(after).predict_on_batch(images), features)
    logits = features @ kernel + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = said(after, images)
    np.testing.assert_allclose(found["probabilities"], shares / shares.sum(axis=1, keepdims=True), atol=5e-3)
    np.testing.assert_allclose(found["distance"], said(before, images)["distance"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(read_head(after)[0], kernel, atol=2e-3)
    np.testing.assert_array_equal(said(with_head(before, 0 * kernel, bias), images)["maps"], 0)
    back = said(with_head(after, *read_head(before)), images)
    np.testing.assert_allclose(back["maps"], said(before, images)["maps"], rtol=5e-3, atol=1e-4)
    for junk in (b"", b"junk", bytes(4096), before[:300], before[: len(before) // 2]):
        for act in (lambda content: with_head(content, kernel, bias), FeatureExtractor):
            with pytest.raises(BundleError, match=r"model\.tflite: expected a last layer as dicomsort exports it"):
                act(junk)


def test_a_head_that_the_maps_do_not_share_is_refused(files: dict[str, bytes]) -> None:
    graph = Graph.read(files["float32"])
    kernel, bias = graph.head()
    content = bytearray(files["float32"])
    place = content.rfind(np.ascontiguousarray(kernel.T / np.float32(64)).tobytes())
    content[place : place + 4] = np.float32(9).tobytes()
    assert place > 0
    with pytest.raises(BundleError, match="another form of the last layer"):
        with_head(bytes(content), kernel, bias)


def probabilities(labels: list[int]) -> NDArray[np.float32]:
    return np.eye(3, dtype=np.float32)[labels]


@pytest.mark.parametrize(("wrong", "kept"), [(0, True), (5, True), (6, False)])
def test_it_is_kept_unless_it_loses_half_a_point(wrong: int, kept: bool) -> None:  # noqa: FBT001
    from dicomsort.training.fit.quantize import compare

    truth = [0, 1] * 500
    integers = [2] * wrong + truth[wrong:]
    report = compare(probabilities(truth), probabilities(integers), np.array(truth), "float16")
    assert report["kept"] is kept
    assert (report["images"], report["changed"]) == (1000, wrong)
    assert (
        "No int8: it loses 0.6 points of accuracy, and 0.5 are allowed, so the model is float16" in words(report)
    ) != kept
    assert f"{1 - wrong / 1000:.1%} right, where floating point has 100.0%; {wrong} answers differ" in words(report)


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    """The tiny network by two recipes, exported to int8 however few images are held out."""
    tries = {recipe: replace(TINY, recipe=recipe, precisions=("int8", "float32")) for recipe in ("transfer", "full")}
    with known(), mock.patch.dict(ARCHITECTURES, tries), mock.patch.object(quantize, "MIN_IMAGES", 5):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("int8") / "images"
    for source in range(2):
        noise(root, LABELS, 4, 4 * source, f"source{source}")
    return root


def _train(dataset: Path, out: Path, arch: str) -> Ran:
    return run("train", dataset, "--out", out, "--arch", arch, *RECIPE, "--epochs", 8, "--learning-rate", 0.05)


@pytest.fixture(scope="module")
def trained(dataset: Path) -> Path:
    """A bundle in int8."""
    out = dataset.with_name("transfer")
    ran = _train(dataset, out, "transfer")
    assert ran.code == 0, ran.err
    assert "int8: on 24 held-out images " in ran.err
    return out


def _report(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return report


def test_a_training_leaves_it_measured_on_what_was_held_out(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == OUTPUTS
    assert precision((trained / "model.tflite").read_bytes()) == "int8"
    report = _report(trained)
    found = report["training_run"]["int8"]
    assert (found["kept"], found["images"], found["accuracy"]) == (True, report["images"], report["accuracy"])
    kept, *others = report["training_run"]["litert"]
    assert (kept["precision"], kept["kept"]) == ("int8", True)
    assert [(other["precision"], other["kept"]) for other in others] == [("float32", False)]
    card = (trained / "card.md").read_text("utf-8")
    assert f"`model.tflite` computes in int8.\n{words(found)}." in card
    seen = Predictor(load(trained)).predict(blocks(3))
    assert seen.maps is not None
    assert np.isfinite(seen.distances).all()


def test_the_features_that_it_keeps_are_its_own(trained: Path) -> None:
    bundle = load(trained)
    kept = replay_set.load_replay_set(bundle)
    assert kept is not None
    extractor = FeatureExtractor((trained / "model.tflite").read_bytes())
    probes = extractor.predict_on_batch(replay_set.probe_images((SIDE, SIDE, 3)))
    np.testing.assert_allclose(kept.probes, probes, rtol=1e-3)
    replay_set.require_of(bundle, kept, probes)


def test_a_whole_training_asks_it_about_the_validation_split(dataset: Path, tmp_path: Path) -> None:
    with mock.patch.object(quantize, "MIN_IMAGES", 3):
        ran = _train(dataset, tmp_path / "out", "full")
    assert ran.code == 0, ran.err
    report = _report(tmp_path / "out")
    assert report["training_run"]["int8"]["images"] == report["images"] < 24
    assert (
        report["training_run"]["int8"]["accuracy"] in {report["accuracy"], 0.0}
        or not report["training_run"]["int8"]["kept"]
    )


def test_what_loses_too_much_stays_in_floating_point(dataset: Path, tmp_path: Path) -> None:
    with mock.patch("dicomsort.training.fit.quantize.LOST", -2):
        ran = _train(dataset, tmp_path / "out", "transfer")
    assert ran.code == 0, ran.err
    report = _report(tmp_path / "out")
    assert not report["training_run"]["int8"]["kept"]
    assert report["accuracy"] == report["training_run"]["int8"]["float_accuracy"]
    assert [made["kept"] for made in report["training_run"]["litert"]] == [True, False]
    assert precision((tmp_path / "out" / "model.tflite").read_bytes()) == "float32"
    reason = words(report["training_run"]["int8"])
    assert reason.startswith("No int8: it loses ")
    assert reason in ran.err
    assert f"computes in float32.\n{reason}." in (tmp_path / "out" / "card.md").read_text("utf-8")


def test_where_it_cannot_be_judged_or_made_the_reason_is_told() -> None:
    rendered: Any = None
    reporter: Any = None
    integers = replace(TINY, precisions=("int8", "float32"))
    assert quantize.Quantizer.for_training(TINY, rendered, 0, reporter, 500) == "this network is not exported so"
    with mock.patch.object(quantize, "MIN_IMAGES", 200):
        few = quantize.Quantizer.for_training(integers, rendered, 0, reporter, 199)
        assert few == "199 images were held out, and 200 are needed to tell what it would lose"
        quantizer = quantize.Quantizer.for_training(integers, rendered, 0, reporter, 200)
    assert isinstance(quantizer, quantize.Quantizer)
    with (
        mock.patch.object(quantize, "quantize", side_effect=RuntimeError("no such\noperator")),
        mock.patch.object(quantize.Quantizer, "_examples", return_value=blocks(2)),
    ):
        made = quantizer.make(None, None, np.arange(2))
        assert made == "TensorFlow makes none of this network (no such operator)"
        assert quantizer.predict_fold(None, None, np.arange(2), np.arange(2)) is None
    assert words({"kept": False, "reason": made}) == f"No int8: {made}"


def test_a_training_goes_on_from_it_again_and_again(trained: Path, tmp_path: Path) -> None:
    images, features, before = blocks(5), [], trained
    for number in range(2):
        out = tmp_path / f"round{number}"
        site = noise(tmp_path / f"site{number}", ("CT", "XRAY"), 6, 100 + 10 * number)
        ran = run("train", site, "--from", before, "--out", out, *RECIPE)
        assert ran.code == 0, ran.err
        assert "all but the last layer is that of the bundle from which it went on" in ran.err
        bundle, start = load(out), load(before)
        assert precision((out / "model.tflite").read_bytes()) == "int8"
        assert bundle.model_sha256 != start.model_sha256
        assert bundle.evaluation == start.evaluation
        assert (out / EVALUATION_NAME).read_bytes() == (trained / EVALUATION_NAME).read_bytes()
        assert bundle.distance == start.distance
        features.append(FeatureExtractor((out / "model.tflite").read_bytes()).predict_on_batch(images))
        before = out
    np.testing.assert_array_equal(*features)
    ran = run("evaluate", "--compare", trained, before, tmp_path / "site0", "--json")
    assert ran.code == 0, ran.err


def test_a_cross_validation_judges_in_the_numbers_of_the_bundle(trained: Path, dataset: Path, tmp_path: Path) -> None:
    options = ("--model", trained, "--cross-validate", "source", "--folds", 2, "--out", tmp_path / "out")
    judge = quantize.Quantizer.predict_fold
    with mock.patch.object(quantize.Quantizer, "predict_fold", autospec=True, side_effect=judge) as judged:
        ran = run("evaluate", dataset, *options)
    assert ran.code == 0, ran.err
    assert judged.call_count == 2


def test_a_network_made_of_it_agrees_with_it(trained: Path, tmp_path: Path) -> None:
    assert from_bundle(trained).build((SIDE, SIDE, 3), 3).count_params() > 0
    spec = json.loads((trained / "bundle.json").read_text("utf-8"))
    content = (trained / "model.tflite").read_bytes()
    kernel, bias = read_head(content)
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.tflite").write_bytes(with_head(content, kernel[:, ::-1].copy() * 3, bias))
    seal(tmp_path, spec)
    with pytest.raises(BundleError, match=r"expected weights that agree with model\.tflite within 0\.\d+, received"):
        from_bundle(tmp_path).build((SIDE, SIDE, 3), 3)
