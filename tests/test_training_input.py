"""What ``train`` says of data sets and settings that it cannot train with; none of it needs TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import make_dicom, make_files, read_tree
from command import run
from PIL import Image

from dicomsort.bundle import default_path
from dicomsort.records import RENDERING_VERSION
from dicomsort.training.settings import Settings, checked


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for label in ("CT", "MRI"):
        for number in range(2):
            _write(tmp_path / "dataset" / label / f"{number}.png", number)
    return tmp_path / "dataset"


def _write(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (30, 40), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("files", "expected", "received"),
    [
        (None, "expected a folder with one folder per class", "received nothing there"),
        ({}, "expected at least two folders with images", "received 0 (none)"),
        ({"a.png": "x"}, "expected at least two folders with images", "received 0 (none)"),
        ({"CT/a.png": "x", "MRI/.hidden": "x"}, "expected at least two folders with images", "received 1 (CT)"),
        ({"CT/a.png": "x", "REVIEW/a.png": "x"}, "folder 'REVIEW': expected a name that can be a class", "reserved"),
        ({"CT/a.png": "x", "MRI/a.png": "x"}, "class 'CT': expected at least 2 readable images", "received 0 (2 files"),
    ],
)
def test_a_data_set_that_cannot_be_trained_on(
    tmp_path: Path, files: dict[str, str] | None, expected: str, received: str
) -> None:
    if files is not None:
        (tmp_path / "dataset").mkdir()
        make_files(tmp_path / "dataset", dict(files))
    ran = run("train", tmp_path / "dataset", "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    last = ran.err.splitlines()[-1]
    assert expected in last
    assert received in last
    assert {path.name for path in tmp_path.iterdir()} <= {"dataset"}


def test_one_readable_image_is_too_few(dataset: Path, tmp_path: Path) -> None:
    (dataset / "MRI" / "1.png").unlink()
    make_dicom(dataset / "MRI" / "cut.dcm", has_pixels=False)
    ran = run("train", dataset, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "class 'MRI': expected at least 2 readable images, received 1 (1 file of the data set skipped)" in ran.err
    assert "MRI/cut.dcm: no pixel data" in ran.err
    assert not (tmp_path / "out").exists()


def test_copies_of_one_image_cannot_be_split(dataset: Path, tmp_path: Path) -> None:
    for label, number in (("CT", 0), ("MRI", 1)):
        for copy in range(2):
            _write(dataset / label / f"{copy}.png", number)
    ran = run("train", dataset, "--out", tmp_path / "out", "--epochs", 1)
    assert ran.code == 2
    assert "Kept together: 4 near-duplicates in 2 clusters" in ran.err
    assert "in every class only near-duplicates of one image" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--arch", "alexnet"), ("--epochs", 0), ("--batch-size", 0), ("--learning-rate", 0), ("--learning-rate", "nan"),
        ("--validation-split", 0), ("--validation-split", 1), ("--seed", -1), ("--patience", -1),
        ("--augment", "much"), ("--split", "none"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be(dataset: Path, tmp_path: Path, option: str, value: object) -> None:
    ran = run("train", dataset, "--out", tmp_path / "out", option, value)
    assert (ran.code, ran.out) == (2, "")
    assert f"{option}: expected " in ran.err
    assert f"received {value!r}" in ran.err or f"received {value}" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_groups_that_are_not_there(dataset: Path, tmp_path: Path) -> None:
    ran = run("train", dataset, "--out", tmp_path / "out", "--groups", "gone.csv")
    assert (ran.code, ran.out) == (2, "")
    assert "--groups 'gone.csv': expected a CSV file with the columns source and group, received " in ran.err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), "--subclasses: expected a network with pretrained weights, received --arch cnn"),
        (("--arch", "efficientnet-lite0"), "--subclasses: expected paths of the data set's files or folders"),
        (("--from", default_path()), "--from: expected no --subclasses beside it, received both"),
    ],
)
def test_subclasses_that_cannot_be_learnt(dataset: Path, tmp_path: Path, more: Any, expected: str) -> None:
    (tmp_path / "finer.csv").write_text("path,subclass\nCT/gone,head\n", "utf-8")
    ran = run("train", dataset, "--out", tmp_path / "out", "--subclasses", tmp_path / "finer.csv", *more)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_replaced(dataset: Path, tmp_path: Path) -> None:
    make_files(tmp_path, {"out/thesis.txt": "mine"})
    ran = run("train", dataset, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "received one with 'thesis.txt' in it" in ran.err
    assert read_tree(tmp_path / "out") == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("option", ["--out", "--cache"])
@pytest.mark.parametrize("below", ["", "models/ours"])
def test_the_data_set_is_no_place_for_output(dataset: Path, option: str, below: str) -> None:
    before = read_tree(dataset)
    ran = run("train", dataset, "--out", dataset.parent / "out", option, dataset / below)
    assert ran.code == 2
    place = str(dataset / below)
    assert f"{option}: expected a folder outside the data set, received {place!r}" in ran.err
    assert read_tree(dataset) == before


@pytest.mark.parametrize(
    ("cache", "out", "expected"),
    [
        ("x", "x", "--cache: expected a folder outside the folder 'x' of --out, received "),
        ("x/cache", "link/../x", "--cache: expected a folder outside the folder 'x' of --out, received "),
        (
            "x",
            f"x/rendering-{RENDERING_VERSION}",
            "--out: expected a folder outside the renderings of --cache, received ",
        ),
    ],
)
def test_a_cache_and_a_bundle_in_one_folder_are_refused_before_anything_is_rendered(
    dataset: Path, cache: str, out: str, expected: str
) -> None:
    (dataset.parent / "link").symlink_to(".")
    before = {path.name for path in dataset.parent.iterdir()}
    ran = run("train", dataset, "--cache", dataset.parent / cache, "--out", dataset.parent / out)
    assert (ran.code, ran.out, expected in ran.err, "Rendering" in ran.err) == (2, "", True, False)
    assert {path.name for path in dataset.parent.iterdir()} == before


def test_a_bundle_may_lie_beside_the_renderings(dataset: Path, tmp_path: Path) -> None:
    given = Settings(dataset, out=tmp_path / "cache/ours", cache=tmp_path / "cache")
    assert checked(given)[0].cache == given.cache


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_rendered(dataset: Path, option: str) -> None:
    make_files(dataset.parent, {"file": "x"})
    ran = run("train", dataset, "--out", dataset.parent / "out", option, dataset.parent / "file" / "below")
    assert (ran.code, ran.out) == (2, "")
    assert f"{option}: expected a folder that can be written, received " in ran.err
    assert "Rendering" not in ran.err


@pytest.mark.parametrize(
    ("arch", "name", "content", "expected"),
    [
        (
            "cnn",
            "w.h5",
            b"\x89HDF\r\n\x1a\n",
            "expected with --arch mobilenet-v3-small|resnet50|vgg16, received --arch cnn",
        ),
        ("vgg16", "w.h5", b"\x80\x04pickle", "expected Keras weights (.weights.h5 or .h5, HDF5), received another"),
        ("vgg16", "w.keras", b"PK\x03\x04", "expected Keras weights (.weights.h5 or .h5, HDF5), received another"),
    ],
)
def test_files_that_are_no_weights(dataset: Path, arch: str, name: str, content: bytes, expected: str) -> None:
    make_files(dataset.parent, {name: content})
    ran = run("train", dataset, "--out", dataset.parent / "out", "--arch", arch, "--weights", dataset.parent / name)
    assert ran.code == 2
    assert expected in ran.err
