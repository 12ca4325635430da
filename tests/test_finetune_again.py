"""A training that goes on from a bundle again and again: what it may replace, and what it must leave whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import read_tree
from command import Ran, run
from networks import LABELS, RECIPE, known, noise

from dicomsort.bundle import EVALUATION_NAME, Predictor, load, seal
from dicomsort.training.evaluate import compare
from dicomsort.training.evaluate.compare import reasons
from dicomsort.training.pipeline import OUTPUTS

pytestmark = pytest.mark.xdist_group("finetune_again")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Any:
    with known():
        yield


@pytest.fixture
def start(tiny_start: Path, tmp_path: Path) -> Path:
    """A copy of a bundle of the tiny network."""
    return Path(shutil.copytree(tiny_start, tmp_path / "start"))


def _resealed(folder: Path, **changes: object) -> Path:
    """The bundle with other content of its bundle.json."""
    seal(folder, json.loads((folder / "bundle.json").read_text("utf-8")) | changes)
    return folder


def _without_evaluation(folder: Path) -> Path:
    (folder / EVALUATION_NAME).unlink()
    return _resealed(folder, evaluation=None)


def _wrongly_labelled(root: Path) -> Path:
    """What is bright called CT, and what is dark called XRAY."""
    noise(root / "right", ("CT", "XRAY"), 12, 200, "study{}")
    wrong = root / "wrong"
    wrong.mkdir()
    for name, other in (("CT", "XRAY"), ("XRAY", "CT")):
        (root / "right" / name).rename(wrong / other)
    return wrong


def _report(bundle: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((bundle / "metrics.json").read_text("utf-8"))["training_run"][compare.KEY]
    return report


def _train(data: Path, start: Path, out: Path, *options: object) -> Ran:
    return run("train", data, "--from", start, "--out", out, *RECIPE, *options)


def test_a_bundle_may_be_gone_on_from_in_its_own_place_again_and_again(start: Path, tmp_path: Path) -> None:
    kept = (start / EVALUATION_NAME).read_bytes()
    site = noise(tmp_path / "site", LABELS, 3, 100, "study{}")
    (site / "corrections.csv").write_text("a file beside the classes\n")
    first = load(start).model_sha256
    ran = _train(site, start, start, "--learning-rate", 0.05)
    assert ran.code == 0, ran.err
    assert {path.name for path in start.iterdir()} == OUTPUTS
    assert (start / EVALUATION_NAME).read_bytes() == kept
    report = _report(start)
    assert (report["model_sha256"], report["images"], report["trained_on"]) == (first, 9, 0)
    judged = report[compare.EVALUATION]
    assert judged["images"] == judged["trained_on"] == 12
    assert judged["at_hand"] == 0
    assert set(judged["agreement"]) == {"both", "only_first", "only_second", "neither"}
    assert "On the 12 evaluation images that the bundle keeps" in ran.out
    noise(site, ("CT",), 1, 150, "study{}")
    ran = _train(site, start, start, "--learning-rate", 0.05, "--replace-worse")
    assert ran.code == 0, ran.err
    again = _report(start)
    assert (again["images"], again["trained_on"], again["left_out"]) == (1, 0, 9)
    assert len(load(start).training[compare.KEY]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site", "start", "start-mistakes.png"]


def test_a_worse_model_replaces_nothing_unless_told_to(start: Path, tmp_path: Path) -> None:
    wrong = _wrongly_labelled(tmp_path)
    before = read_tree(start)
    ran = _train(wrong, start, start, "--learning-rate", 0.9)
    assert ran.code == 1, ran.out
    assert "expected a model no worse than start, which lies there, received a worse one: balanced accuracy" in ran.err
    assert "--replace-worse" in ran.err
    assert read_tree(start) == before
    refused = tmp_path / "start.refused"
    assert load(refused).labels == LABELS
    assert {path.name for path in tmp_path.iterdir()} == {
        "right", "wrong", "start", "start.refused", "start.refused-mistakes.png",
    }  # fmt: skip
    # another bundle of the same line there is compared by its last layer
    ran = _train(noise(tmp_path / "site", LABELS, 2, 100, "study{}"), refused, start, "--learning-rate", 1e-6)
    assert ran.code == 1
    assert "received a worse one: balanced accuracy on its 12 evaluation images" in ran.err
    assert "; of 6 images at hand" in ran.err
    assert read_tree(start) == before
    ran = _train(wrong, start, start, "--learning-rate", 0.9, "--replace-worse")
    assert ran.code == 0, ran.err
    assert read_tree(start) != before
    assert load(start).training[compare.KEY][0]["name"] == "start"


def test_another_bundle_is_judged_by_the_images_at_hand(start: Path, tmp_path: Path) -> None:
    site = noise(tmp_path / "site", LABELS, 2, 100, "study{}")
    ran = _train(site, _without_evaluation(start), tmp_path / "made", "--learning-rate", 0.05)
    assert ran.code == 0, ran.err
    assert "What got worse on images of other sources is not known: start keeps none" in ran.out
    assert {path.name for path in (tmp_path / "made").iterdir()} == OUTPUTS - {EVALUATION_NAME}
    # trained on all of them, and without evaluation images: nothing to compare by
    ran = _train(site, start, tmp_path / "made", "--learning-rate", 0.05)
    assert ran.code == 1
    assert "nothing to compare them by: made was trained on all 6 images at hand" in ran.err
    noise(site, ("CT", "XRAY"), 1, 150, "study{}")  # two that are new to it
    ran = _train(site, start, tmp_path / "made", "--learning-rate", 0.05)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("damage", ["labels", "model"])
def test_what_cannot_be_compared_is_not_replaced(start: Path, tmp_path: Path, damage: str) -> None:
    out = Path(shutil.copytree(start, tmp_path / "out"))
    if damage == "labels":
        careful = {"decide": 0.99, "contradict": 0.99}
        _resealed(out, labels=["CHEST", "HAND", "KNEE"], header_classes={}, thresholds=careful)
    else:
        (out / "model.tflite").write_bytes(b"damaged")
    before = read_tree(tmp_path)
    ran = _train(noise(tmp_path / "site", LABELS, 2, 100), start, out)
    assert ran.code == 2
    assert "expected a bundle there that can be compared with what comes of this training" in ran.err
    assert {path: content for path, content in read_tree(tmp_path).items() if "site/" not in path} == before


def test_an_interruption_leaves_the_earlier_bundle_whole(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = read_tree(start)
    monkeypatch.setattr("dicomsort.training.pipeline.write", interrupted)
    ran = _train(noise(tmp_path / "site", LABELS, 2, 100, "study{}"), start, start, "--learning-rate", 0.05)
    assert ran.code == 130
    assert read_tree(start) == before
    assert {path.name for path in tmp_path.iterdir()} == {"site", "start", "start.checkpoint"}


def test_unknown_classes_change_nothing(start: Path, tmp_path: Path) -> None:
    site = noise(tmp_path / "site", LABELS, 2, 100)
    (site / "MRI").rename(site / "ULTRASOUND")
    before = read_tree(tmp_path)
    ran = _train(site, start, start)
    assert ran.code == 2
    assert "expected folders with names among the bundle's labels (CT, MRI, XRAY), received 'ULTRASOUND'" in ran.err
    assert read_tree(tmp_path) == before


def test_too_few_images(start: Path, tmp_path: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    (site / "corrections.csv").write_text("a file beside the classes\n")
    ran = _train(site, start, out)
    assert ran.code == 2
    assert "expected at least one folder with images, one a class, received 0" in ran.err
    noise(site, ("CT",), 1, 100, "study")
    ran = _train(site, start, out)
    assert ran.code == 2
    assert "expected images of two sources (folders in a class's folder) or more" in ran.err
    assert not out.exists()
    noise(site, ("XRAY",), 1, 100, "another")  # one of each of two classes will do
    ran = _train(site, start, out)
    assert ran.code == 0, ran.err


def test_distances_are_those_of_the_start(start: Path, tmp_path: Path) -> None:
    spec = json.loads((start / "bundle.json").read_text("utf-8"))
    _resealed(start, thresholds=spec["thresholds"] | {"distance": 3.0})
    ran = _train(noise(tmp_path / "site", LABELS, 2, 100, "study{}"), start, tmp_path / "out")
    assert ran.code == 0, ran.err
    before, after = (load(folder) for folder in (start, tmp_path / "out"))
    assert after.distance == 3.0
    images = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    distances = [Predictor(bundle).predict(images).distances for bundle in (before, after)]
    np.testing.assert_allclose(*distances, rtol=0.01)
    assert "Distances and their limit are those of start" in (tmp_path / "out" / "card.md").read_text("utf-8")


def test_evaluation_images_that_are_trained_on_all_the_same_are_told(
    tiny_start: Path, start: Path, tmp_path: Path
) -> None:
    ran = _train(tiny_start.parent / "images", start, tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "this flatters it, because the images at hand have 12 of them" in ran.out
    assert "On the same 24 images (start was trained on all of them): start has " in ran.out


def test_small_steps_down_add_up(start: Path) -> None:
    """What is worse is told from the best of its line, not from the last alone."""
    pinned = json.loads((start / "bundle.json").read_text("utf-8"))
    line = [
        {"name": "b", compare.EVALUATION: {"sha256": pinned["evaluation"]["sha256"], "balanced_accuracy": 0.97}},
        {"name": "a", compare.EVALUATION: {"sha256": "another's", "balanced_accuracy": 1.0}},
        *(None, {"name": "c"}, {compare.EVALUATION: {"sha256": pinned["evaluation"]["sha256"]}}),
    ]
    _resealed(start, training=pinned["training"] | {compare.KEY: line})
    best = compare.best_of_line(load(start))
    assert best == 0.97
    kept = {
        "images": 200, "best_of_line": best, "by_class": {}, "before": {"balanced_accuracy": 0.955},
        "after": {"balanced_accuracy": 0.94},
    }  # fmt: skip
    report = {"trained_on": 0, "images": 9, "before": {"right": 3}, "after": {"right": 8}, compare.EVALUATION: kept}
    assert reasons(report) == [
        "balanced accuracy on its 200 evaluation images 95.5% → 94.0%, and 97.0% earlier in its line"
    ]
    kept["best_of_line"] = 0.955
    assert reasons(report) == []
    assert reasons(report | {"after": {"right": 2}}) == ["of 9 images at hand, 3 were right before, and 2 are now"]
