"""Two bundles side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Ran, run
from networks import LABELS, RECIPE, known, noise
from PIL import Image

from dicomsort.bundle import load, seal
from dicomsort.training.evaluate import compare, metrics
from dicomsort.training.evaluate.metrics import Tally

pytestmark = pytest.mark.xdist_group("compare")

OUTCOME = {"metrics.json", "comparison.png"}


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Any:
    with known():
        yield


@pytest.fixture(scope="module")
def site(tiny_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What came of the tiny bundle on images with the wrong labels."""
    root = tmp_path_factory.mktemp("compare")
    noise(root / "right", ("CT", "XRAY"), 6, 200, "study{}")
    for name, other in (("CT", "XRAY"), ("XRAY", "CT")):
        shutil.copytree(root / "right" / name, root / "wrong" / other)
    out = root / "site"
    ran = run("train", root / "wrong", "--from", tiny_start, "--out", out, *RECIPE, "--learning-rate", 0.9)
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images a class, in two sources each, and a file that is no image."""
    root = tmp_path_factory.mktemp("compare-images")
    for source, first in (("a", 300), ("b", 310)):
        noise(root, LABELS, 3, first, source)
    (root / "CT" / "a" / "note.txt").write_text("no image")
    return root


def _changed(folder: Path, to: Path, **changes: object) -> Path:
    """A copy of a bundle with other content of its bundle.json."""
    copy = Path(shutil.copytree(folder, to))
    seal(copy, json.loads((copy / "bundle.json").read_text("utf-8")) | changes)
    return copy


def _compared(first: Path, second: Path, out: Path, *more: object) -> tuple[dict[str, Any], Ran]:
    ran = run("evaluate", "--compare", first, second, "--out", out, *more)
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} == OUTCOME
    with Image.open(out / "comparison.png") as picture:
        assert min(picture.size) > 200
    report: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
    return report, ran


def test_on_a_data_set(tiny_start: Path, site: Path, dataset: Path, tmp_path: Path) -> None:
    report, ran = _compared(tiny_start, site, tmp_path / "out", dataset)
    assert (report["of"], report["images"], report["unit"], report["clusters"]) == ("data set", 18, "source", 2)
    assert list(report["skipped"]) == ["CT/a/note.txt"]
    bundles = [load(folder) for folder in (tiny_start, site)]
    assert [row["sha256"] for row in report["bundles"].values()] == [bundle.model_sha256 for bundle in bundles]
    # each side is what evaluate says of that bundle alone
    for name, folder in (("first", tiny_start), ("second", site)):
        alone = json.loads(run("evaluate", dataset, "--model", folder, "--out", tmp_path / name, "--json").out)
        figures = report["figures"][name]
        for key in ("accuracy", "balanced_accuracy", "ece", "log_loss"):
            assert figures[key] == alone[key]
        assert figures["classes"]["CT"]["recall"] == alone["classes"]["CT"]["recall"]
        assert figures["thresholds"]["decide"]["coverage"] == alone["thresholds"]["decide"]["coverage"]
    change = report["figures"]["second"]["accuracy"] - report["figures"]["first"]["accuracy"]
    assert report["change"]["accuracy"] == pytest.approx(change, abs=1e-4)
    assert change < 0
    low, high = report["intervals"]["accuracy"]
    assert low <= report["change"]["accuracy"] <= high
    assert sum(report["agreement"].values()) == 18
    assert len(report["changed"]["only_first"]) == report["agreement"]["only_first"] > 0
    assert {(row["label"], row["source"], row["images"]) for row in report["sources"]} == {
        (label, source, 3) for label in LABELS for source in "ab"
    }
    for words in ("start and site on 18 images of 2 sources", "CT recall", "start right", "Right by start alone"):
        assert words in ran.out
    assert "WARNING" not in ran.err


def test_what_a_bundle_was_trained_on_is_told(tiny_start: Path, site: Path, tmp_path: Path) -> None:
    images = tiny_start.parent / "images"
    report, ran = _compared(site, tiny_start, tmp_path / "out", images, "--json")
    assert json.loads(ran.out) == report
    assert "WARNING: site was trained on 24 of these 24 images, which flatters it" in ran.err
    assert "WARNING: start was trained on 24 of these 24 images, which flatters it" in ran.err
    assert (report["unit"], report["sources"]) == ("file", [])


def test_without_a_data_set_on_what_both_keep(tiny_start: Path, site: Path, tmp_path: Path) -> None:
    report, ran = _compared(tiny_start, site, tmp_path / "out")
    assert (report["of"], report["images"]) == ("evaluation images", 12)
    assert "start and site on 12 evaluation images that both keep" in ran.out
    assert "The network was trained on 12 of these 12 images: this shows what one of the two forgot" in ran.err
    run_ = json.loads((site / "metrics.json").read_text("utf-8"))["training_run"]["started_from"]["evaluation"]
    assert report["figures"]["first"]["accuracy"] == run_["before"]["accuracy"]
    assert report["figures"]["second"]["accuracy"] == run_["after"]["accuracy"]  # LiteRT's weights say what Keras' say
    same, _ = _compared(tiny_start, tiny_start, tmp_path / "same")
    assert same["change"]["accuracy"] == 0
    assert same["agreement"]["only_first"] == same["agreement"]["only_second"] == 0


def test_else_each_by_its_own_figures(tiny_start: Path, site: Path, tmp_path: Path) -> None:
    other = _changed(site, tmp_path / "other", evaluation=None)
    report, ran = _compared(tiny_start, other, tmp_path / "out")
    assert report["of"] == "own figures"
    assert "change" not in report
    assert "OF DIFFERENT IMAGES" in ran.err
    assert "start and site, each by its own figures" in ran.out
    own = json.loads((site / "metrics.json").read_text("utf-8"))
    assert report["figures"]["second"]["accuracy"] == own["accuracy"]
    (other / "metrics.json").write_text("{")
    ran = run("evaluate", "--compare", tiny_start, other, "--out", tmp_path / "none")
    assert ran.code == 2
    assert "expected its own metrics.json, as the two keep no common evaluation images" in ran.err
    assert not (tmp_path / "none").exists()


def test_labels_in_another_order_are_the_same_and_others_are_not(
    tiny_start: Path, dataset: Path, tmp_path: Path
) -> None:
    turned = _changed(tiny_start, tmp_path / "turned", labels=["XRAY", "MRI", "CT"])
    report, _ = _compared(tiny_start, turned, tmp_path / "out", dataset)
    assert report["figures"]["first"]["classes"]["MRI"] == report["figures"]["second"]["classes"]["MRI"]
    assert report["figures"]["second"]["classes"]["CT"]["recall"] < 1  # its outputs are now called otherwise
    others = _changed(
        tiny_start,
        tmp_path / "others",
        labels=["CHEST", "HAND", "KNEE"],
        header_classes={},
        thresholds={"decide": 0.99, "contradict": 0.99},
    )
    ran = run("evaluate", "--compare", tiny_start, others, dataset, "--out", tmp_path / "none")
    assert ran.code == 2
    assert "expected two bundles with the same classes, received CT, MRI, XRAY (start) and CHEST, HAND, KNEE" in ran.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "expected a DATASET, or --compare A B without one, received none"),
        (("--compare", "START"), "--compare"),
        (("--compare", "START", "missing"), "expected a bundle (a folder with bundle.json and model.tflite)"),
        (("--compare", "START", "START", "--shortcuts"), "--compare: expected no --shortcuts beside it, received both"),
        (("--compare", "START", "START", "--model", "START"), "--compare: expected no --model beside it"),
        (("--compare", "START", "START", "--out", "START"), "expected a folder for figures, received a bundle"),
        (("--compare", "START", "START", "missing"), "expected a folder with one folder per class, received nothing"),
    ],
)
def test_what_cannot_be_compared(
    tiny_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("evaluate", *(tiny_start if each == "START" else each for each in arguments))
    assert ran.code == 2
    assert expected in ran.err
    assert list(tmp_path.iterdir()) == []


def test_paired_changes_are_those_of_the_same_resamples() -> None:
    random = np.random.default_rng(0)
    truth, cluster = random.integers(0, 2, 400), np.repeat(np.arange(40), 10)
    hard = random.random(40)[cluster] < 0.4  # what is hard is hard for both
    said = []
    for spare in (0.1, 0.15):
        right = ~hard & (random.random(400) > spare)
        share = np.where(right, 0.9, 0.1)
        said.append(np.where(truth[:, None] == np.arange(2), share[:, None], 1 - share[:, None]).astype(np.float32))
    one, two = (Tally(each, truth, ("A", "B"), cluster, {}) for each in said)
    report = compare.changes(one, two)
    for name, each in (("first", said[0]), ("second", said[1])):
        alone = metrics.measure(each, truth, ("A", "B"), {})
        assert report[name]["accuracy"] == pytest.approx(alone["accuracy"], abs=1e-4)
    low, high = report["intervals"]["accuracy"]
    assert low < report["change"]["accuracy"] < high
    assert high - low < 0.12  # the clusters alone spread each accuracy by 0.3
    assert compare.changes(one, one)["intervals"]["accuracy"] == [0, 0]
