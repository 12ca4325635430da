from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import make_files

from dicomsort.bundle import calibrate
from dicomsort.errors import UsageError
from dicomsort.training.data.balancing import balance
from dicomsort.training.data.dataset import Dataset, Item, read_groups, scan
from dicomsort.training.data.fingerprint import of_files
from dicomsort.training.data.splitting import folds, split
from dicomsort.training.evaluate import calibration, metrics
from dicomsort.training.evaluate.reporting import describe
from dicomsort.training.models.efficientnet_lite0 import read_tensors
from dicomsort.training.models.keras_applications import weights_digest

LABELS = ("CT", "MRI", "XRAY")


def _dataset(sources: int = 6, each: int = 5) -> Dataset:
    items = (
        Item(f"{label}/{label}{source}/{i}.png", index, f"{label}{source}")
        for index, label in enumerate(LABELS)
        for source in range(sources)
        for i in range(each + source)
    )
    return Dataset(Path(), LABELS, tuple(items))


def test_scan_takes_folders_for_classes_and_sources_and_skips_hidden_files(tmp_path: Path) -> None:
    make_files(tmp_path, dict.fromkeys(("B/s/2.png", "B/1.png", "A/t/u/3.png", "A/.x", ".git/a", "C/.y", "note"), "x"))
    (tmp_path / "A" / "link").symlink_to(tmp_path / "B")
    found = scan(tmp_path, {"s": "twins"})
    assert found.labels == ("A", "B")
    assert found.items == (Item("A/t/u/3.png", 0, "t"), Item("B/1.png", 1, ""), Item("B/s/2.png", 1, "twins"))
    assert (found.grouped(), found.joined()) == (False, True)


def test_groups_are_read_from_a_table(tmp_path: Path) -> None:
    make_files(tmp_path, {"good.csv": "source,group\na,x\nb,x\nc,\nd\n", "bad.csv": "a,b\n1,2\n"})
    assert read_groups(tmp_path / "good.csv") == {"a": "x", "b": "x", "c": "c", "d": "d"}
    for name in ("bad.csv", "gone.csv"):
        with pytest.raises(UsageError, match="expected a CSV file with the columns source and group"):
            read_groups(tmp_path / name)


def test_a_table_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.csv")
    with pytest.raises(UsageError, match="it is no regular file"):
        read_groups(tmp_path / "manifest.csv")
    assert "licences" not in describe(replace(_dataset(), root=tmp_path))
    with pytest.raises(UsageError, match="expected a file, received it is no regular file"):
        weights_digest(tmp_path / "manifest.csv")


def test_tables_of_a_data_set_may_be_links_and_large(tmp_path: Path) -> None:
    rows = "".join(f"MRI/MRI0/{number}.png,twins,CC0\n" for number in range(60_000))
    make_files(tmp_path, {"store/1": f"path,group,licence\n{rows}"})
    (tmp_path / "manifest.csv").symlink_to("store/1")
    assert len(read_groups(tmp_path / "manifest.csv")) == 60_000
    assert "CC0" in describe(replace(_dataset(), root=tmp_path))["licences"]


@pytest.mark.parametrize("seed", range(5))
def test_a_grouped_split_parts_no_source_and_leaves_every_class_on_both_sides(seed: int) -> None:
    dataset = _dataset()
    train, held = split(dataset, 0.2, seed, grouped=True)
    assert sorted([*train, *held]) == list(range(len(dataset.items)))
    assert not {dataset.items[i].group for i in train} & {dataset.items[i].group for i in held}
    for side in (train, held):
        assert {dataset.items[i].label for i in side} == {0, 1, 2}


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.99])
def test_a_random_split_holds_the_share_out_and_keeps_every_class_in_training(fraction: float) -> None:
    dataset = _dataset(2, 2)
    train, held = split(dataset, fraction, 3, grouped=False)
    assert sorted([*train, *held]) == list(range(len(dataset.items)))
    assert len(held)
    assert {dataset.items[i].label for i in train} == {0, 1, 2}
    again = split(dataset, fraction, 3, grouped=False)[1]
    np.testing.assert_array_equal(held, again)


def test_folds_part_no_source_and_are_even() -> None:
    dataset = _dataset()
    fold = folds(dataset, 3, 0, grouped=True)
    by_group: dict[str, set[int]] = {}
    for item, number in zip(dataset.items, fold, strict=True):
        by_group.setdefault(item.group, set()).add(int(number))
    assert all(len(numbers) == 1 for numbers in by_group.values())
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= len(LABELS) * 2


def test_the_fingerprint_is_of_names_and_contents_in_any_order() -> None:
    items = [Item("A/1", 0, ""), Item("B/2", 1, "")]
    whole = of_files(items, ["x", "y"])
    assert whole == of_files(items[::-1], ["y", "x"])
    assert len({whole, of_files(items, ["y", "x"]), of_files(items[:1], ["x"])}) == 3


def test_calibration_finds_overconfidence_and_the_thresholds_hold() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 5000)
    logits = random.normal(0, 1, (5000, 3)) + 3.5 * np.eye(3)[truth]
    sharp = np.exp(3 * logits)
    fitted = calibration.fit((sharp / sharp.sum(1, keepdims=True)).astype(np.float32), truth)
    # the logits of unit-variance classes 3.5 apart are calibrated at 3.5 times themselves
    assert fitted.temperature == pytest.approx(3 / 3.5, rel=0.1)
    assert 0.5 <= fitted.decide < 1
    assert 0.9 <= fitted.contradict <= 0.99
    assert fitted.notes == ()


def test_calibration_of_chance_keeps_careful_thresholds_and_says_so() -> None:
    random = np.random.default_rng(0)
    guesses = random.dirichlet((1, 1, 1), 500).astype(np.float32)
    fitted = calibration.fit(guesses, random.integers(0, 3, 500))
    assert fitted.decide == 0.99
    assert "That does not show" in fitted.notes[0]
    assert fitted.notes[1].startswith("No confidence up to 0.99 gave 99% accuracy")


@pytest.mark.parametrize("target", [0.98, 0.995])
def test_of_images_that_are_decided_alone_as_many_are_right_as_was_promised(target: float) -> None:
    random = np.random.default_rng(0)
    kept = []
    for _ in range(20):
        truth = random.integers(0, 3, 40_000)
        logits = random.normal(0, 1, (40_000, 3)) + 3.5 * np.eye(3)[truth]
        logits[:, 0] += 0.7 * (truth == 1)  # images of one class that look like another
        shares = np.exp(1.5 * logits)
        shares = (shares / shares.sum(1, keepdims=True)).astype(np.float32)
        fitted = calibration.fit(shares[:6000], truth[:6000], target=target)
        after = calibrate(shares[6000:], fitted.temperature)
        alone = after.max(1) >= fitted.decide
        kept.append((after.argmax(1) == truth[6000:])[alone].mean() >= target)
        assert fitted.notes == ()
    assert np.mean(kept) >= 0.75  # the promise is 90 %; of 20 trials as few as this are seen four times in a hundred


def test_sources_that_are_right_or_wrong_as_a_whole_count_as_one() -> None:
    random = np.random.default_rng(0)
    sources = np.repeat(np.arange(40), 50)
    truth = random.integers(0, 2, 2000)
    wrong = sources == 7  # one source of forty, all of whose images are confidently wrong
    shares = np.full((2000, 2), 0.01, np.float32)
    shares[np.arange(2000), np.where(wrong, 1 - truth, truth)] = 0.99
    alone = calibration.fit(shares, truth, target=0.965)
    together = calibration.fit(shares, truth, target=0.965, clusters=[f"source{each}" for each in sources])
    assert alone.notes == ()
    assert "That does not show, with 90 % confidence, that 96.5% are right on other sources" in together.notes[0]


def test_no_image_wrong_of_460_shows_99_5_percent() -> None:
    assert calibration.keeps(0, 460, 0.005)
    assert not calibration.keeps(0, 459, 0.005)
    assert not calibration.keeps(0, 10_000, 0.0)
    assert calibration.binomial_cdf(2, 10, 0.3) == pytest.approx(0.3828, abs=1e-4)  # as tables have it


def test_what_too_few_images_cannot_show_is_told() -> None:
    truth = np.arange(300) % 2
    sure = np.where(np.eye(2)[truth] > 0, 0.99, 0.01).astype(np.float32)
    fitted = calibration.fit(sure, truth)
    assert fitted.decide == 0.5
    told = "The threshold is 0.5. 300 held-out images reach it, and 0 of them are wrong. That does not show, with 90 %"
    assert fitted.notes[0].startswith(told)


def test_the_figures_are_what_their_definitions_say() -> None:
    probabilities = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.1, 0.2, 0.7]], np.float32)
    truth = np.array([0, 1, 1, 2])
    figures = metrics.measure(probabilities, truth, LABELS, {"decide": 0.75})
    assert figures["accuracy"] == 0.75
    assert figures["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-4)
    assert figures["confusion_matrix"]["rows_are_truth"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert figures["classes"]["CT"] == {"precision": 0.5, "recall": 1.0, "f1": 0.6667, "support": 1}
    assert figures["thresholds"]["decide"] == {"threshold": 0.75, "coverage": 0.5, "accuracy": 1.0}
    assert figures["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4, abs=1e-4)
    worst = metrics.by_source(probabilities, truth, LABELS, ["a", "b", "b", "c"])[0]
    assert worst == {"label": "MRI", "source": "b", "images": 2, "recall": 0.5, "mistaken_for": "CT"}


def test_balance_gives_classes_and_their_sources_equal_weight() -> None:
    dataset = _dataset(3, 2)
    weights = balance(dataset)
    assert weights.mean() == pytest.approx(1)
    by_source: dict[str, float] = {}
    for item, weight in zip(dataset.items, weights, strict=True):
        by_source[item.group] = by_source.get(item.group, 0) + float(weight)
    assert max(by_source.values()) == pytest.approx(min(by_source.values()), rel=1e-5)


@pytest.mark.parametrize("hostile", [b"cos\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR."])
def test_weights_that_carry_code_are_refused(hostile: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"expected tensors only, received (os|builtins)"):
        read_tensors(hostile)


def _torch_file(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Two-by-two float32 0, 1, 2, 3 under the name ``w``, seen through ``shape`` and ``stride``, protocol 0 by hand."""
    reference = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\nNtQ"
    numbers = b"".join(b"(" + b"".join(b"I%d\n" % n for n in part) + b"t" for part in (shape, stride))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"I%d\n" % offset + numbers + b"I00\nNtR"
    state = b"ccollections\nOrderedDict\n(tR(S'w'\n" + tensor + b"u."
    head = b"".join(pickle.dumps(value) for value in (1, 1001, OrderedDict()))
    return head + state + pickle.dumps(["0"]) + struct.pack("<q4f", 4, 0, 1, 2, 3)


def test_tensors_are_read_by_shape_and_stride() -> None:
    np.testing.assert_array_equal(read_tensors(_torch_file((2, 2), (2, 1)))["w"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(read_tensors(_torch_file((2, 2), (1, 2)))["w"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(("shape", "stride", "offset"), [((2, 3), (2, 1), 0), ((2,), (-1,), 0), ((2,), (1,), -1)])
def test_tensors_outside_their_storage_are_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    with pytest.raises(pickle.UnpicklingError, match="inside their storage"):
        read_tensors(_torch_file(shape, stride, offset))


def test_a_cut_file_of_weights_is_refused() -> None:
    with pytest.raises((EOFError, pickle.UnpicklingError, struct.error, ValueError)):
        read_tensors(_torch_file((2, 2), (2, 1))[:-4])


def test_no_room_for_temporary_files_is_said_at_once(tmp_path: Path) -> None:
    make_files(tmp_path, {f"data/{label}/{i}.png": "x" for label in LABELS for i in range(10)})
    code = (
        "import resource, sys; from dicomsort.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "sys.argv = ['dicomsort', 'train', 'data', '--out', 'out']; main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "expected 4 MiB of room for temporary files, received: File too large" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
