from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from building import make_files
from numpy.typing import NDArray
from PIL import Image

from dicomsort.bundle import default_path
from dicomsort.errors import UsageError
from dicomsort.training.data import fingerprint
from dicomsort.training.data.dataset import Dataset, Item
from dicomsort.training.data.grouping import keep_together
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.evaluate import calibration, metrics, reporting
from dicomsort.training.evaluate.card import write_card
from dicomsort.training.evaluate.predictions import Predictions, cross_calibrated, name_clusters
from dicomsort.training.evaluate.tables import tables
from dicomsort.training.fit.held_out import HeldOutPredictions

LABELS = ("CT", "MRI", "OTHER", "XRAY")
SOURCES, EACH = 12, 20
SPEC = {
    "name": "ours",
    "arch": "cnn",
    "labels": list(LABELS),
    "temperature": 1.1,
    "thresholds": {"decide": 0.8, "contradict": 0.95},
    "training": {"images": {"CT": 3}, "fingerprint": "f" * 64, "recipe": {"seed": 4}},
}


def _dataset(sources: int = SOURCES, each: int = EACH) -> Dataset:
    items = (
        Item(f"{label}/{label}{source}/{i}.png", index, f"{label}{source}")
        for index, label in enumerate(LABELS)
        for source in range(sources)
        for i in range(each)
    )
    return Dataset(Path(), LABELS, tuple(items))


def _guesses(dataset: Dataset, seed: int = 0, sharpness: float = 1.0, by_source: float = 1.0) -> NDArray[np.float32]:
    """Probabilities, mostly right, whose errors go together within a source."""
    random = np.random.default_rng(seed)
    groups = np.unique([item.group for item in dataset.items], return_inverse=True)[1]
    logits = random.normal(0, 1, (len(groups), 4)) + 3 * np.eye(4)[dataset.classes()]
    logits += random.normal(0, by_source, (groups.max() + 1, 4))[groups]
    whole = np.exp(sharpness * (logits - logits.max(1, keepdims=True)))
    return (whole / whole.sum(1, keepdims=True)).astype(np.float32)


def _predictions(seed: int = 0) -> Predictions:
    dataset, random = _dataset(), np.random.default_rng(seed)
    fold = np.array([int(item.group[-1]) % 5 for item in dataset.items])
    distances = random.gamma(9, 1, len(fold)).astype(np.float32)
    variants = {name: _guesses(dataset, number) for number, name in enumerate(SHORTCUTS, 1)}
    everything, guesses = np.arange(len(fold)), _guesses(dataset, seed, 2.0)
    held_out = HeldOutPredictions(
        everything, dataset.classes(), fold, "folds", by_source=True, probabilities=guesses, distances=distances,
        variants=variants,
    )  # fmt: skip
    return cross_calibrated(held_out, dataset, 0.995)


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return _predictions()


@pytest.fixture(scope="module")
def report(predictions: Predictions) -> dict[str, object]:
    return {**reporting.report_of(predictions, 1), "skipped": {}, "trained_on": 0}


def test_figures_of_the_rest_are_what_their_definitions_say() -> None:
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.1, 0.2, 0.7, 0], [0, 0.1, 0.8, 0.1], [0, 0, 0.4, 0.6]], np.float32)
    items = tuple(Item(f"{LABELS[k]}/s/{i}", k, f"g{i}") for i, k in enumerate((0, 1, 2, 2)))
    dataset = Dataset(Path(), LABELS, items)
    arrays = {"decide": np.array([0.95, 0.5, 0.5, 0.5])}
    limits, distances = np.full(4, 1.0), np.array([0, 0, 2, 0], np.float32)
    found = metrics.report(
        Predictions(dataset, probabilities, arrays, "", list("abcd"), "source", distances=distances, limits=limits)
    )
    assert found["other"] == {
        "recall": 0.5,
        "class_images_sent_to_other": 0.5,
        "named_a_class": 0.5,
        "out_of_distribution": 0.5,
        "class_images_out_of_distribution": 0.0,
    }
    assert found["without_other"] == {"accuracy": 1.0, "balanced_accuracy": 1.0, "mean_recall_by_source": 1.0}
    assert found["thresholds"]["decide"] == {
        "threshold": 0.6125,
        "coverage": 0.75,
        "accuracy": pytest.approx(1 / 3, abs=1e-4),
    }
    assert found["thresholds"]["decide_and_distance"] == {
        "coverage": 0.75,  # what is taken for OTHER is decided however far it lies
        "accuracy": pytest.approx(1 / 3, abs=1e-4),
    }
    assert found["decided"] == {
        "CT": {"share": 0.0, "right": None},
        "MRI": {"share": 1.0, "right": None},
        "OTHER": {"share": 1.0, "right": 0.5},
        "XRAY": {"share": None, "right": 0.0},
    }
    assert found["out_of_distribution"] == 0.25
    # 3.6 of the 4 most confident: 0.9 right, 0.8 right, 0.7 wrong, and 0.6 of the last, which is wrong
    assert found["confident_90"]["accuracy"] == pytest.approx(2 / 3.6, abs=1e-4)
    assert found["accuracy"] == 0.5


def test_intervals_are_those_of_a_slow_bootstrap(predictions: Predictions) -> None:
    right, groups = predictions.right, np.array(predictions.clusters)
    by_source = [right[groups == name] for name in np.unique(groups)]
    random = np.random.default_rng(9)
    drawn = [
        np.concatenate([by_source[i] for i in random.integers(0, len(by_source), len(by_source))]).mean()
        for _ in range(1000)
    ]
    low, high = metrics.report(predictions)["intervals"]["accuracy"]
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.006)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.006)


def test_sources_that_differ_make_wider_intervals_than_files(predictions: Predictions) -> None:
    paths = [item.path for item in predictions.dataset.items]
    alone = Predictions(predictions.dataset, predictions.probabilities, predictions.thresholds, "", paths, "file")
    widths = [np.diff(metrics.report(p)["intervals"]["accuracy"])[0] for p in (predictions, alone)]
    assert widths[0] > 1.5 * widths[1]


def test_every_figure_is_within_its_interval_and_a_seed_fixes_it(report: dict[str, object]) -> None:
    def walk(figures: object, intervals: object, path: str) -> None:
        if isinstance(intervals, list):
            assert intervals[0] - 1e-3 <= figures <= intervals[1] + 1e-3, path  # type: ignore[operator]
            return
        assert isinstance(figures, dict)
        assert isinstance(intervals, dict)
        for name, inner in intervals.items():
            walk(figures[name], inner, f"{path}/{name}")

    walk(report, report["intervals"], "")
    assert metrics.report(_predictions(), 1)["intervals"] == report["intervals"]


def test_one_cluster_has_no_interval() -> None:
    dataset = _dataset(1, 3).only(range(3))
    one = Predictions(dataset, _guesses(dataset), {"decide": np.ones(3)}, "", ["a"] * 3, "source")
    assert "intervals" not in metrics.report(one)


def test_parts_of_the_resamples_add_up() -> None:
    parts = list(metrics.resamples(10_000, 10_000, 0))
    assert len(parts) > 1
    assert sum(map(len, parts)) == metrics.RESAMPLES
    assert all((part.sum(1) == 10_000).all() for part in parts)


def test_clusters_are_sources_else_patients_else_files() -> None:
    dataset = _dataset(2, 1)
    bare = Dataset(Path(), LABELS, tuple(Item(f"CT/{i}", 0, "") for i in range(3)))
    assert name_clusters(dataset) == ([item.group for item in dataset.items], "source")
    joined, _ = keep_together(bare, [None] * 3, ["p", "", "p"])
    assert name_clusters(joined) == (["CT/0", "CT/1", "CT/0"], "patient")
    assert name_clusters(bare) == (["CT/0", "CT/1", "CT/2"], "file")


def test_nested_calibration_never_sees_the_fold_it_serves() -> None:
    dataset = _dataset()
    fold = np.array([int(item.group[-1]) % 5 for item in dataset.items])
    raw, truth = _guesses(dataset, sharpness=2.0), dataset.classes()
    distances = np.arange(len(truth), dtype=np.float32)
    first = calibration.nested(raw, truth, fold, distances, 2)
    changed, inside = raw.copy(), fold == 0
    changed[inside] = np.roll(raw[inside], 1, axis=1)
    second = calibration.nested(changed, truth, fold, np.where(inside, 0, distances).astype(np.float32), 2)
    for name in ("temperatures", "decide", "limits"):
        one, other = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(one[inside], other[inside], name)
        assert len(np.unique(one[inside])) == 1
    assert not np.array_equal(first.temperatures[~inside], second.temperatures[~inside])
    alone = calibration.fit(raw[~inside], truth[~inside], distances[~inside], 2)
    assert (first.temperatures[inside] == alone.temperature).all()
    assert first.limits is not None
    assert first.limits[inside][0] == alone.distance
    known = ~inside & (truth != 2)
    assert (distances[known] > first.limits[inside][0]).mean() == pytest.approx(0.01, abs=0.005)


def test_nested_calibration_improves_overconfidence() -> None:
    dataset = _dataset(12, 40)
    fold = np.array([int(item.group[-1]) % 5 for item in dataset.items])
    raw, truth = _guesses(dataset, sharpness=4.0, by_source=0.3), dataset.classes()
    found = calibration.nested(raw, truth, fold).probabilities
    before, after = (metrics.measure(p, truth, LABELS, {})["ece"] for p in (raw, found))
    assert after < before / 2


def test_kept_digests_tell_which_files_were_trained_on() -> None:
    random = np.random.default_rng(0)
    digests = [random.bytes(32).hex() for _ in range(50)]
    items = [Item(f"CT/{i}", 0, "") for i in range(50)]
    training = {fingerprint.KEY: fingerprint.encode(digests[:20])}
    assert fingerprint.compare(training, items[10:], digests[10:]) == fingerprint.Overlap(40, 10)
    assert "none of these files" in fingerprint.compare(training, items[20:], digests[20:]).words()
    for nothing in ({}, {fingerprint.KEY: ""}, {fingerprint.KEY: "no Base64!"}, {fingerprint.KEY: "AAA="}):
        assert fingerprint.compare(nothing, items, digests).count is None


def test_licences_come_by_path_else_by_source(tmp_path: Path) -> None:
    items = tuple(Item(f"CT/{source}/1.png", 0, source) for source in "abc")
    dataset = Dataset(tmp_path, LABELS, items)
    assert "licences" not in reporting.describe(dataset)
    make_files(tmp_path, {"manifest.csv": "source,path,licence\na,,CC0\nb,CT/b/1.png,MIT\n"})
    assert reporting.describe(dataset)["licences"] == {"CC0": 1, "MIT": 1, "not listed": 1}
    make_files(tmp_path, {"manifest.csv": b"\xff\xfe\0"})
    assert "licences" not in reporting.describe(dataset)


def test_the_card_holds_every_figure_and_what_flatters_it(report: dict[str, object]) -> None:
    run = {
        "summary": "a network",
        "notes": ["Only few."],
        "data": {"licences": {"CC0": 7}, "sources": {"CT": {"ours": 3}}},
    }
    card = write_card(SPEC, {**report, "training_run": run})
    assert all(
        name in card
        for name in (*SHORTCUTS, "CC0: 7", "(images): ours 3", "Only few.", "never on its", "out of distribution")
    )
    for table in tables(report):
        assert table.title in card
        assert all(cell in card for row in table.rows for cell in row)
    assert "less often than these figures say" not in card
    seen_sources = write_card(SPEC, {**report, "by_source": False, "trained_on": 9})
    assert "less often than these figures say" in seen_sources
    assert "trained on 9 of these 960 images" in seen_sources


def test_table_and_text_of_the_card_tell_the_same_thresholds(report: dict[str, object]) -> None:
    card = write_card(SPEC, {**report, "calibration": "nested"})
    assert "it decides from a confidence of 0.800." in card
    assert "own has 0.950 or more." in card
    (row,) = (re.findall(r"[^|]+", line) for line in card.splitlines() if line.startswith("| decide |"))
    assert row[1].strip() == "0.800"
    folds = report["thresholds"]
    assert isinstance(folds, dict)
    assert row[2].strip() == f"{folds['decide']['threshold']:.3f}"
    assert "| threshold | the bundle's | used here, the folds' mean |" in card
    (shown,) = (table for table in tables({**report, "calibration": "nested"}) if table.title == "Confidence")
    assert shown.head[1] == "the folds' mean"


def test_the_card_that_ships_is_what_its_figures_say() -> None:
    spec, report = (json.loads((default_path() / name).read_text("utf-8")) for name in ("bundle.json", "metrics.json"))
    assert (default_path() / "card.md").read_text("utf-8") == write_card(spec, report)


def test_pictures_are_drawn_of_little_too(tmp_path: Path) -> None:
    dataset = _dataset(1, 1).only([0])
    bare = Dataset(Path(), LABELS, (Item("CT/only.png", 0, ""),))
    for each, count in ((dataset, 1), (bare, 1)):
        right = Predictions(
            each, np.eye(4, dtype=np.float32)[:count], {"decide": np.full(count, 2.0)}, "", ["a"], "file"
        )
        report = reporting.report_of(right)
        assert report["thresholds"]["decide"]["accuracy"] is None
        reporting.draw(tmp_path, report, right)
        reporting.draw_mistakes(tmp_path / reporting.SHEET, right, reporting.mistakes(right), [])
    assert {path.name for path in tmp_path.iterdir()} == {*reporting.PICTURES, reporting.SHEET}


def test_a_sheet_of_mistakes_takes_the_place_of_an_earlier_one_alone(tmp_path: Path) -> None:
    dataset = _dataset(1, 1).only([0])
    right = Predictions(dataset, np.eye(4, dtype=np.float32)[:1], {"decide": np.full(1, 2.0)}, "", ["a"], "file")
    sheet, mine, second = tmp_path / reporting.SHEET, tmp_path / "mine.png", tmp_path / "second name.png"
    mine.write_bytes(b"an image of mine")
    sheet.symlink_to(mine)
    with pytest.raises(UsageError, match="it holds something else"):
        reporting.draw_mistakes(sheet, right, [], [])
    assert mine.read_bytes() == b"an image of mine"
    sheet.unlink()
    reporting.draw_mistakes(sheet, right, [], [])
    os.link(sheet, second)
    reporting.draw_mistakes(sheet, right, [], [])
    assert not sheet.samefile(second)


def _picture() -> NDArray[np.uint8]:
    """A wide image on black bars: a gradient with a bright frame."""
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[40:184] = np.linspace(30, 220, 224).astype(np.uint8)[None, :, None]
    picture[40:45] = picture[179:184] = 255
    return picture


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_shortcut_test_keeps_shape_and_changes_the_image_the_same_way_twice(name: str) -> None:
    picture, change = _picture(), SHORTCUTS[name]
    before = picture.copy()
    changed = change(picture)
    assert (changed.shape, changed.dtype) == (picture.shape, np.uint8)
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(changed, change(picture))
    assert not np.array_equal(changed, picture)
    assert change(np.zeros_like(picture)).shape == picture.shape


def test_borders_and_inversion_are_of_the_image_not_of_the_square() -> None:
    masked, inverted = SHORTCUTS["borders masked"](_picture()), SHORTCUTS["inverted"](_picture())
    assert masked[:54].max() == masked[:, :22].max() == 0
    assert (masked[60:160, 30:190] == _picture()[60:160, 30:190]).all()
    assert inverted[:40].max() == 0
    assert (inverted[50:170] == 255 - _picture()[50:170]).all()


def test_text_lies_within_the_image() -> None:
    changed = np.flatnonzero((SHORTCUTS["text pasted"](_picture()) != _picture()).any(2).any(1))
    assert 40 <= changed[0] < 60
    assert 160 < changed[-1] < 184


def test_a_crop_fills_the_square_as_a_file_of_its_own_would() -> None:
    cut = SHORTCUTS["crop, centre"](_picture())
    lit = np.flatnonzero(cut.max(2).any(1))
    assert (lit[0], lit[-1]) == (40, 183)
    assert cut[112, 0, 0] > 40
    assert Image.fromarray(SHORTCUTS["crop, corner"](_picture())).getpixel((0, 100)) == (30, 30, 30)
