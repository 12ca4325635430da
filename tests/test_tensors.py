from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from unittest import mock

import imagecodecs
import numpy as np
import pytest
from building import make_dicom, make_files
from PIL import Image

from dicomsort import pixels
from dicomsort.engines import open_engine
from dicomsort.engines.engine import R, SerialEngine, T, TaskLimits
from dicomsort.errors import DicomsortError, UsageError, WorkerLost
from dicomsort.pixels import INPUT_SHAPE, render
from dicomsort.training.data import rendered as rendered_module
from dicomsort.training.data.dataset import Dataset, scan
from dicomsort.training.data.grouping import perceptual_hash
from dicomsort.training.data.rendered import Rendered, render_all
from dicomsort.training.progress import Reporter


class Losing(SerialEngine):
    """Loses every task that has the file ``hostile``, as one that is killed at its limit."""

    def submit(self, function: Callable[[T], R], task: T, /) -> Future[R]:
        if "hostile" in repr(task):
            lost: Future[R] = Future()
            lost.set_exception(WorkerLost("the worker process ran past 10 s"))
            return lost
        return super().submit(function, task)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two classes, PNG and DICOM of one patient, a file that is no image."""
    for number in range(9):
        picture = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
        path = tmp_path / "data" / "CT" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    for number in range(2):
        pixels = np.random.default_rng(50 + number).integers(0, 255, (30, 40), np.uint8)
        make_dicom(tmp_path / "data" / "MRI" / str(number), pixels=pixels)
    make_files(tmp_path / "data", {"CT/3-hostile.png": "x", "CT/note.txt": "x"})
    return scan(tmp_path / "data")


def _render(dataset: Dataset, place: Path, engine: SerialEngine, store: Path | None = None) -> Rendered:
    with Reporter() as reporter:
        return render_all(dataset, place, engine, reporter, store)


def test_every_readable_file_is_rendered_and_a_lost_one_is_skipped_alone(dataset: Dataset, tmp_path: Path) -> None:
    rendered = _render(dataset, tmp_path / "images.npy", Losing())
    assert dict(rendered.skipped) == {
        "CT/3-hostile.png": "the worker process ran past 10 s",
        "CT/note.txt": "neither PNG, JPEG nor DICOM",
    }
    assert len(rendered.dataset.items) == len(rendered.digests) == 11
    for item, row in zip(rendered.dataset.items, rendered.rows, strict=True):
        np.testing.assert_array_equal(rendered.images[row], render(dataset.root / item.path))
    assert [item.kin for item in rendered.dataset.items if item.label == 1] == ["MRI/0", "MRI/0"]
    assert (rendered.grouping.patients, rendered.grouping.near_duplicates) == (1, 0)


def test_worker_processes_render_the_same(dataset: Dataset, tmp_path: Path) -> None:
    here = _render(dataset, tmp_path / "here.npy", SerialEngine())
    with open_engine("processes", 1, None, limits=TaskLimits(30, 1 << 30)) as engine, Reporter() as reporter:
        there = render_all(dataset, tmp_path / "there.npy", engine, reporter)
    np.testing.assert_array_equal(here.images, there.images)
    assert (here.dataset, here.digests, here.skipped) == (there.dataset, there.digests, there.skipped)


def test_a_second_rendering_comes_from_the_cache(dataset: Dataset, tmp_path: Path) -> None:
    store = rendered_module.open_cache(tmp_path / "cache")
    first = _render(dataset, tmp_path / "1.npy", SerialEngine(), store)
    kept = sorted(path for path in store.rglob("*") if path.is_file())
    assert len(kept) == 11
    assert [path.stat().st_mode & 0o077 for path in (store, *kept)] == [0] * 12
    with mock.patch.object(pixels, "picture", side_effect=AssertionError("decoded again")):
        second = _render(dataset.only(range(3)), tmp_path / "2.npy", SerialEngine(), store)
    np.testing.assert_array_equal(first.images[:3], second.images)
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # damaged: rendered again, and repaired
    third = _render(dataset, tmp_path / "3.npy", SerialEngine(), store)
    np.testing.assert_array_equal(first.images, third.images)
    assert rendered_module.load_cached(store, kept[0].stem) is not None
    assert (first.dataset, first.grouping) == (third.dataset, third.grouping)  # near-duplicates by stored hashes


@pytest.mark.parametrize("blank", [True, False])
@pytest.mark.parametrize("colour", [True, False])
def test_what_is_kept_comes_back_to_the_last_bit(tmp_path: Path, colour: bool, blank: bool) -> None:  # noqa: FBT001
    store = rendered_module.open_cache(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, INPUT_SHAPE, np.uint8)
    image = image if colour else np.repeat(image[..., :1], 3, axis=2)
    digest = "ab" * 32
    assert rendered_module.load_cached(store, digest) is None
    rendered_module.store_cached(
        store, digest, rendered_module.RenderedImage(image, None if blank else perceptual_hash(Image.fromarray(image)))
    )
    (path,) = (path for path in store.rglob("*") if path.is_file())
    assert path.stat().st_size < (1 if colour else 0.5) * image.size + 1000
    found = rendered_module.load_cached(store, digest)
    assert found is not None
    assert found.image.flags.c_contiguous
    np.testing.assert_array_equal(found.image, image)
    np.testing.assert_array_equal(found.phash, None if blank else perceptual_hash(Image.fromarray(image)))


def test_a_damaged_or_foreign_file_in_the_cache_is_none_of_it(tmp_path: Path) -> None:
    store, digest = rendered_module.open_cache(tmp_path), "ab" * 32
    image = np.random.default_rng(0).integers(0, 256, INPUT_SHAPE, np.uint8)
    rendered_module.store_cached(store, digest, rendered_module.RenderedImage(image, None))
    (path,) = (path for path in store.rglob("*") if path.is_file())
    whole = path.read_bytes()
    flipped = bytes([whole[5000] ^ 1])
    other = imagecodecs.lz4f_encode(b"\2\3\0" + bytes(32) + image.tobytes(), contentchecksum=True)
    short = imagecodecs.lz4f_encode(b"\1\3\0" + bytes(50), contentchecksum=True)
    for content in (b"", b"x", whole[:5000], whole[:5000] + flipped + whole[5001:], other, short):
        path.write_bytes(content)
        assert rendered_module.load_cached(store, digest) is None
    for frame in ("04224d18687005000000000000800500000000", "04224d18687000000000000004002b00000000"):
        path.write_bytes(bytes.fromhex(frame))  # claims 2**63 + 5, 2**50 bytes of content
        assert rendered_module.load_cached(store, digest) is None
    path.write_bytes(whole)
    assert rendered_module.load_cached(store, digest) is not None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_in_the_cache_is_not_waited_for(
    dataset: Dataset, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    store = rendered_module.open_cache(tmp_path / "cache")
    first = _render(dataset, tmp_path / "1.npy", SerialEngine(), store)
    path = min(path for path in store.rglob("*") if path.is_file())
    path.unlink()
    make(path)
    second = _render(dataset, tmp_path / "2.npy", SerialEngine(), store)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.skipped == second.skipped


def test_small_files_come_in_large_batches(tmp_path: Path) -> None:
    make_files(tmp_path, {str(number): b"x" * (10 if number < 100 else 1 << 19) for number in range(120)})
    paths = [*(str(number) for number in range(120)), "gone"]
    batches = list(rendered_module._batches(tmp_path, paths))
    assert [pair for batch in batches for pair in batch] == list(enumerate(paths))
    assert [len(batch) for batch in batches] == [64, 38, 8, 8, 3]


def test_a_full_disk_ends_the_rendering_with_its_reason(dataset: Dataset, tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with (
        mock.patch.object(os, "pwrite", side_effect=full),
        pytest.raises(DicomsortError, match="expected 0 MiB of room for temporary files, received: No space left"),
    ):
        _render(dataset, tmp_path / "1.npy", SerialEngine())
    store = rendered_module.open_cache(tmp_path / "cache")
    with (
        mock.patch.object(os, "replace", side_effect=full),
        pytest.raises(DicomsortError, match="--cache: expected room for the renderings, received No space left"),
    ):
        _render(dataset, tmp_path / "2.npy", SerialEngine(), store)
    assert [path for path in store.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    make_files(tmp_path, {"file": "x"})
    with pytest.raises(UsageError, match="expected a folder that can be written, received Not a directory"):
        rendered_module.open_cache(tmp_path / "file")
