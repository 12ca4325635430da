from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from building import make_dicom, make_files
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dicomsort.errors import UsageError
from dicomsort.training.data.dataset import Dataset, DatasetError, Item, read_groups, read_subclasses, scan
from dicomsort.training.data.grouping import keep_together, near_duplicates, patient, perceptual_hash
from dicomsort.training.data.splitting import folds, split

LABELS = ("CT", "MRI")


def _dataset(*paths: str) -> Dataset:
    items = (Item(path, LABELS.index(path.split("/", maxsplit=1)[0])) for path in paths)
    named = (Item(item.path, item.label, item.source) for item in items)
    return Dataset(Path(), LABELS, tuple(named))


def _shapes(seed: int) -> Image.Image:
    """Blurred blobs: a picture with structure, as anatomy has."""
    noise = np.random.default_rng(seed).integers(0, 256, (14, 14), np.uint8)
    return Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC)


def _hash(picture: Image.Image) -> NDArray[np.uint64]:
    found = perceptual_hash(picture.convert("RGB"))
    assert found is not None
    return found


def _distance(one: Image.Image, other: Image.Image) -> int:
    return int(np.bitwise_count(_hash(one) ^ _hash(other)).sum())


def test_a_hash_survives_what_copies_go_through_and_tells_pictures_apart() -> None:
    picture = _shapes(0)
    small = picture.resize((96, 96)).resize((224, 224))
    assert _distance(picture, small) <= 12
    assert _distance(picture, picture.filter(ImageFilter.GaussianBlur(1))) <= 12
    assert _distance(picture, picture.point(lambda v: v * 0.7 + 20)) <= 12
    assert min(_distance(picture, _shapes(seed)) for seed in range(1, 20)) > 80


def test_blank_pictures_have_no_hash_and_join_nothing() -> None:
    for grey in (0, 128, 255):
        assert perceptual_hash(Image.fromarray(np.full((224, 224, 3), grey, np.uint8))) is None
    _, kept = keep_together(_dataset("CT/a/1", "CT/b/1", "MRI/c/1"), [None, None, None], ["", "", ""])
    assert (kept.near_duplicates, kept.blank, kept.joined) == (0, 3, ())


def test_near_duplicates_are_found_among_many() -> None:
    random = np.random.default_rng(0)
    hashes = list(random.integers(0, 1 << 63, (200, 4), np.uint64))
    hashes[150] = hashes[3] ^ np.uint64(0b1011)
    hashes[199] = hashes[150]
    assert sorted(near_duplicates(hashes)) == [(3, 150), (3, 199), (150, 199)]


def test_a_patient_is_told_by_a_salted_hash_and_nobody_is_none(tmp_path: Path) -> None:
    names = ("Doe-1", "Doe-1", "Doe-2", "", "ANONYMOUS", "0000", None)
    paths = [make_dicom(tmp_path / str(i), PatientID=name) for i, name in enumerate(names)]
    found = [patient(path, b"salt") for path in paths]
    assert found[0] == found[1] != found[2]
    assert found[3:] == [""] * 4
    assert "Doe" not in found[0]
    assert patient(paths[0], b"other") != found[0]
    other_issuer = make_dicom(tmp_path / "other", PatientID="Doe-1", IssuerOfPatientID="elsewhere")
    assert patient(other_issuer, b"salt") != found[0]
    make_files(tmp_path, {"picture.png": b"\x89PNG", "noise.dcm": b"\0" * 200})
    assert [patient(tmp_path / name, b"salt") for name in ("picture.png", "noise.dcm")] == ["", ""]


def test_sources_join_over_patients_and_near_duplicates_and_kin_stay_smaller() -> None:
    dataset = _dataset("CT/a/1", "CT/a/2", "CT/b/1", "CT/c/1", "MRI/d/1", "MRI/e/1", "MRI/e/2")
    hashes = list(np.random.default_rng(0).integers(0, 1 << 63, (7, 4), np.uint64))
    hashes[2] = hashes[0]
    joined, kept = keep_together(dataset, hashes, ["", "", "", "P", "P", "Q", "Q"])
    assert [item.group for item in joined.items] == ["a", "a", "a", "c", "c", "e", "e"]
    assert [item.kin for item in joined.items] == [
        "CT/a/1", "", "CT/a/1", "CT/c/1", "CT/c/1", "MRI/e/1", "MRI/e/1",
    ]  # fmt: skip
    assert (kept.near_duplicates, kept.clusters, kept.patients, kept.sources) == (2, 1, 2, 5)
    assert kept.joined == (("a", "b"), ("c", "d"))
    assert kept.words() == "2 near-duplicates in 1 cluster, 2 patients, 5 sources"
    assert joined.joined()


def test_images_without_source_folders_have_their_kin_alone() -> None:
    joined, kept = keep_together(_dataset("CT/1", "CT/2", "MRI/1", "MRI/2"), [None] * 4, ["P", "P", "", ""])
    assert [(item.group, item.kin) for item in joined.items] == [("", "CT/1"), ("", "CT/1"), ("", ""), ("", "")]
    assert joined.units(grouped=False) == ["CT/1", "CT/1", "MRI/1", "MRI/2"]
    assert (kept.sources, joined.grouped()) == (0, False)


def test_groups_name_sources_or_files(tmp_path: Path) -> None:
    make_files(tmp_path, {"data/A/s/1.png": "x", "data/A/2.png": "x", "data/B/t/3.png": "x", "data/B/4.png": "x"})
    make_files(tmp_path, {"path.csv": "path,group\nA/2.png,twins\nB/t/3.png,twins\n", "bad.csv": "path\nA/2.png\n"})
    dataset = scan(tmp_path / "data", read_groups(tmp_path / "path.csv"))
    joined, kept = keep_together(dataset, [None] * 4, [""] * 4)
    assert {item.path: item.kin for item in joined.items} == {
        "A/2.png": "A/2.png", "A/s/1.png": "", "B/4.png": "", "B/t/3.png": "A/2.png",
    }  # fmt: skip
    assert kept.groups == 1
    with pytest.raises(UsageError, match="expected a CSV file with the columns source and group"):
        read_groups(tmp_path / "bad.csv")


def test_subclasses_are_those_of_the_file_or_of_the_nearest_folder(tmp_path: Path) -> None:
    make_files(tmp_path, {f"data/{path}.png": "x" for path in ("A/s/1", "A/s/2", "A/t/deep/3", "A/4", "B/s/5", "B/6")})
    table = "path,subclass\nA,any\nA/s/,one\nA/s/2.png,two\nA/t,three\nB/gone,four\n"
    make_files(tmp_path, {"finer.csv": table, "bad.csv": "path,group\nA,any\n"})
    dataset = scan(tmp_path / "data", subclasses=read_subclasses(tmp_path / "finer.csv"))
    assert {item.path: item.subclass for item in dataset.items} == {
        "A/4.png": "any", "A/s/1.png": "one", "A/s/2.png": "two", "A/t/deep/3.png": "three",
        "B/6.png": "", "B/s/5.png": "",
    }  # fmt: skip
    with pytest.raises(UsageError, match="expected a CSV file with the columns path and subclass, received"):
        read_subclasses(tmp_path / "bad.csv")
    with pytest.raises(UsageError, match="--subclasses: expected paths of the data set's files or folders"):
        scan(tmp_path / "data", subclasses={})


def _families() -> Dataset:
    items = [Item(f"{label}/{i}", n, kin=f"{label}{i // 3}") for n, label in enumerate(LABELS) for i in range(30)]
    return Dataset(Path(), LABELS, tuple(items))


@pytest.mark.parametrize("seed", range(5))
def test_a_random_split_and_folds_part_no_kin(seed: int) -> None:
    dataset = _families()
    train, held = split(dataset, 0.2, seed, grouped=False)
    assert not {dataset.items[i].kin for i in train} & {dataset.items[i].kin for i in held}
    assert (len(held), len(train)) == (12, 48)
    fold = folds(dataset, 5, seed, grouped=False)
    assert all(len({int(fold[i]) for i in range(60) if dataset.items[i].kin == kin}) == 1 for kin in ("CT0", "MRI9"))


def test_a_class_of_one_kin_stays_in_training() -> None:
    items = [Item(f"CT/{i}", 0, kin="CT/0") for i in range(2)] + [Item(f"MRI/{i}", 1) for i in range(4)]
    for seed in range(6):
        train, held = split(Dataset(Path(), LABELS, tuple(items)), 0.5, seed, grouped=False)
        assert {0, 1} <= set(train.tolist())
        assert len(held)


def test_a_patient_in_every_class_leaves_nothing_to_hold_out() -> None:
    items = [Item(f"{label}/{i}", n, kin="P") for n, label in enumerate(LABELS) for i in range(3)]
    with pytest.raises(DatasetError, match="expected images of which some can be held out"):
        split(Dataset(Path(), LABELS, tuple(items)), 0.2, 0, grouped=False)
