"""What a bundle keeps of its evaluation images: that it is what it says, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from networks import LABELS, RECIPE, known, noise

from dicomsort.bundle import EVALUATION_NAME, calibrate, default_path, load, seal
from dicomsort.errors import BundleError
from dicomsort.training.data.dataset import Dataset, Item
from dicomsort.training.models import replay_set
from dicomsort.training.models.replay_set import ReplaySet, build_replay_set, choose, load_replay_set, predictions_of

pytestmark = pytest.mark.xdist_group("replay_set")

SOURCES, EACH, WIDTH = 4, 5, 16


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Any:
    with known():
        yield


@pytest.fixture
def bundle(tiny_start: Path, tmp_path: Path) -> Path:
    """A copy of a bundle of the tiny network."""
    return Path(shutil.copytree(tiny_start, tmp_path / "start"))


@pytest.fixture
def dataset() -> Dataset:
    items = [
        Item(f"{label}/{label}{source}/{i}.png", n, f"{label}{source}")
        for n, label in enumerate(LABELS)
        for source in range(SOURCES)
        for i in range(EACH * (1 + source))
    ]
    return Dataset(Path(), LABELS, tuple(items))


def _kept(dataset: Dataset) -> ReplaySet:
    count = len(dataset.items)
    random = np.random.default_rng(0)
    features, probes = (random.random((n, WIDTH)).astype(np.float32) for n in (count, replay_set.PROBES))
    digests = [f"{i:08x}" + "0" * 56 for i in range(count)]
    return build_replay_set(dataset, digests, features, probes, np.arange(count) % 2 == 0, 0)


def _with(folder: Path, content: bytes) -> Path:
    """The bundle with other content of its evaluation file, which it pins."""
    (folder / EVALUATION_NAME).write_bytes(content)
    spec = json.loads((folder / "bundle.json").read_text("utf-8"))
    seal(folder, spec)
    return folder


def test_what_is_packed_is_what_is_recalled(bundle: Path, dataset: Dataset) -> None:
    kept = _kept(dataset)
    content = kept.pack()
    assert content == _kept(dataset).pack()
    found = load_replay_set(load(_with(bundle, content)))
    assert found is not None
    assert (found.labels, found.unit) == (LABELS, "source")
    for name in ("classes", "clusters", "rehearsed", "trained", "files", "probes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(kept, name))
    steps = np.ptp(kept.features.astype(np.float32), axis=0) / 255  # a feature is kept in so many levels
    assert (np.abs(found.features - kept.features.astype(np.float32)) <= 0.51 * steps + 1e-3).all()
    report = replay_set.report_of(content)
    assert report["trained_on"] == 75
    assert sum(report["judged"].values()) + sum(report["rehearsed"].values()) == 150


def test_no_source_is_rehearsed_and_judged(dataset: Dataset) -> None:
    kept = _kept(dataset)
    for part in (kept.part(rehearsed=True), kept.part(rehearsed=False)):
        assert set(part.truth) == {0, 1, 2}
        sums = np.bincount(part.truth, part.weights())
        np.testing.assert_allclose(sums, 1 / len(LABELS))
    rehearsed, judged = (set(kept.part(rehearsed=which).clusters.tolist()) for which in (True, False))
    assert not rehearsed & judged
    assert len(rehearsed | judged) == len(LABELS) * SOURCES


def test_the_choice_is_bounded_and_even(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(choose(dataset, WIDTH, 0)) == 150
    monkeypatch.setattr(replay_set, "ROOM", WIDTH * 60)
    chosen = choose(dataset, WIDTH, 0)
    assert len(chosen) == 60
    assert chosen.tolist() == choose(dataset, WIDTH, 0).tolist()
    assert min(dataset.only(chosen).counts().values()) >= 15
    assert len({dataset.items[i].source for i in chosen}) == len(LABELS) * SOURCES


def _archive(
    change: Callable[[dict[str, bytes]], object], method: int = zipfile.ZIP_DEFLATED
) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        change(parts)
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", method) as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
        return written.getvalue()

    return changed


def _npy(array: Any) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=True)
    return written.getvalue()


def _headed(text: str) -> bytes:
    """An array whose head is this text."""
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


def _story(labels: object) -> bytes:
    return _npy(np.frombuffer(json.dumps({"labels": labels, "unit": "source"}).encode(), np.uint8))


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no archive": (lambda _: b"no archive", "File is not a zip file"),
    "cut": (lambda content: content[: len(content) // 2], "File is not a zip file"),
    "a flipped byte": (lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:], ""),
    "an array less": (_archive(lambda parts: parts.pop("trained.npy") and None), "where the arrays"),
    "an array more": (_archive(lambda parts: parts.update({"more.npy": b""})), "where the arrays"),
    "objects": (_archive(lambda parts: parts.update({"story.npy": _npy(np.array([{}], object))})), "|O"),
    "another type": (_archive(lambda parts: parts.update({"features.npy": _npy(np.zeros((150, 16)))})), "<f8"),
    "a claim of more than there is": (
        _archive(lambda parts: parts.update({"features.npy": parts["features.npy"].replace(b"(150,", b"(9999999,")})),
        "",
    ),
    "too much": (
        _archive(lambda parts: parts.update({"features.npy": _npy(np.zeros((2_000_000, 16), np.float16))})),
        "where at most 33554432 bytes unpacked is due",
    ),
    "other counts": (_archive(lambda parts: parts.update({"classes.npy": _npy(np.zeros(3, np.uint8))})), "150 classes"),
    "unknown classes": (
        _archive(lambda parts: parts.update({"classes.npy": _npy(np.full(150, 3, np.uint8))})), "classes 0 to 2",
    ),
    "a source on both sides": (
        _archive(lambda parts: parts.update({"clusters.npy": _npy(np.zeros(150, np.uint16))})), "no cluster both",
    ),
    "no numbers": (
        _archive(lambda parts: parts.update({"scales.npy": _npy(np.full(16, np.nan, np.float32))})), "finite",
    ),
    "features of another type": (
        _archive(lambda parts: parts.update({"features.npy": _npy(np.zeros((150, 16), np.float16))})), "is due",
    ),
    "scales of others": (
        _archive(lambda parts: parts.update({"scales.npy": _npy(np.ones(15, np.float32))})), "a floor and a scale",
    ),
    "a head that does not end": (
        _archive(lambda parts: parts.update({"floors.npy": _headed("{'descr': (\n")})), "where the head of an array",
    ),
    "a head of no type": (
        _archive(lambda parts: parts.update({"floors.npy": _headed("{'descr': (), 'fortran_order': 0}\n")})),
        "where the head of an array",
    ),
    "a head of another length": (
        _archive(lambda parts: parts.update({"floors.npy": parts["floors.npy"].replace(b"\1\0v", b"\1\0u")})),
        "where a head of 118 bytes",
    ),
    "another compression": (
        _archive(lambda parts: None, zipfile.ZIP_LZMA), "others where stored or deflated arrays",
    ),
    "other labels": (_archive(lambda parts: parts.update({"story.npy": _story(["A", "B", "C"])})), "labels"),
    "no labels": (_archive(lambda parts: parts.update({"story.npy": _story(None)})), ""),
}  # fmt: skip


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_files_are_refused(bundle: Path, dataset: Dataset, damage: str) -> None:
    change, expected = DAMAGE[damage]
    loaded = load(_with(bundle, change(_kept(dataset).pack())))  # sorting does not read it
    with pytest.raises(BundleError, match=r"evaluation\.npz: expected features as dicomsort keeps them") as raised:
        load_replay_set(loaded)
    assert expected in str(raised.value)


def test_a_file_that_is_not_the_pinned_one_is_refused_before_any_time_is_spent(bundle: Path, tmp_path: Path) -> None:
    kept = (bundle / EVALUATION_NAME).read_bytes()
    for content, expected in (
        (kept[:-1] + b"x", "expected SHA-256"),
        (kept + b"x", f"expected {len(kept)} bytes"),
        (None, "expected a file, received 'none'"),
    ):
        (bundle / EVALUATION_NAME).unlink() if content is None else (bundle / EVALUATION_NAME).write_bytes(content)
        ran = run("train", noise(tmp_path / "site", LABELS, 2, 100), "--from", bundle, "--out", tmp_path / "out")
        assert ran.code == 2
        assert expected in ran.err
        assert not (tmp_path / "out").exists()
        assert load(bundle).evaluation is not None  # whatever it is: sorting does not read it


def test_features_of_another_network_are_refused(bundle: Path, tmp_path: Path) -> None:
    kept = load_replay_set(load(bundle))
    assert kept is not None
    _with(bundle, replace(kept, probes=kept.probes + np.float16(1)).pack())
    site = noise(tmp_path / "site", LABELS, 2, 100)
    ran = run("train", site, "--from", bundle, "--out", tmp_path / "out", *RECIPE)
    assert ran.code == 2
    assert "expected features of its own network, received others by" in ran.err


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("no object", "evaluation: expected an object, or none"),
        ({"sha256": "0" * 63, "size": 3}, r"evaluation\.sha256: expected 64 hexadecimal digits"),
        ({"sha256": "0" * 64, "size": 1 << 30}, r"evaluation\.size: expected 1 to 16777216 bytes"),
    ],
)
def test_what_bundle_json_says_of_it_is_checked(bundle: Path, block: object, expected: str) -> None:
    spec = json.loads((bundle / "bundle.json").read_text("utf-8"))
    (bundle / "bundle.json").write_text(json.dumps(spec | {"evaluation": block}), "utf-8")
    with pytest.raises(BundleError, match=expected):
        load(bundle)


def test_the_bundle_that_ships_is_as_sure_of_what_it_knows_as_of_what_was_held_out() -> None:
    """Else the thresholds were found with other networks than the one that ships: it held nearly all for review."""
    bundle = load(default_path())
    images = load_replay_set(bundle)
    assert images is not None
    probabilities = predictions_of(bundle, images)
    assert probabilities is not None
    sure = calibrate(probabilities, bundle.temperature).max(1) >= bundle.decide
    held_out = json.loads((bundle.folder / "metrics.json").read_text("utf-8"))["thresholds"]["decide"]["coverage"]
    assert sure.mean() >= 0.8 * held_out
