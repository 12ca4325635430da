"""What a rendering reads of a file, and that it takes from a header what pydicom would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom.data
import pytest
from building import make_dicom
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from dicomsort.dicom.elements import AHEAD, ByteSource, NeedsFullParser
from dicomsort.pixels import INPUT_SHAPE, PixelsError, grayscale, render, source, values

FRAMES = 500
SHAPE = (64, 64)
TEST_FILES = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))


def read_by(task: Callable[[], object]) -> int:
    """The bytes that a task reads from files, as the kernel counts them."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux counts the bytes that a process reads")

    def counted() -> int:
        return int(Path("/proc/self/io").read_text("ascii").split()[1])  # rchar

    before = counted()
    between = counted()
    task()
    return counted() - between - (between - before)


def stack(frames: int = FRAMES) -> NDArray[np.uint16]:
    """Frames of noise, which no codec makes small."""
    return np.random.default_rng(0).integers(0, 4096, (frames, *SHAPE), np.uint16)


def multiframe(path: Path, kind: str, frames: int = FRAMES) -> tuple[Path, int]:
    """A file of many frames, and the bytes of one of them."""
    pixels, tags = stack(frames), {"WindowCenter": 2048, "WindowWidth": 4096}
    if kind == "native":
        return make_dicom(path, pixels=pixels, **tags), pixels[0].nbytes
    coded = [imagecodecs.jpegls_encode(frame) for frame in pixels]
    tables: dict[str, Any] = {"PixelData": encapsulate(coded, has_bot=kind == "basic offset table")}
    if kind == "extended offset table":
        keys = ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
        tables = dict(zip(keys, encapsulate_extended(coded), strict=True))
    if kind == "fragments":
        tables = {"PixelData": encapsulate(coded, fragments_per_frame=2, has_bot=False)}
    return make_dicom(path, pixels=pixels, syntax=JPEGLSLossless, **tables, **tags), len(coded[frames // 2])


@pytest.mark.parametrize("frame", [None, 0, FRAMES - 1])
@pytest.mark.parametrize("kind", ["native", "basic offset table", "extended offset table", "no table", "fragments"])
def test_of_many_frames_one_is_read(tmp_path: Path, kind: str, frame: int | None) -> None:
    path, size = multiframe(tmp_path / "a", kind)
    single = make_dicom(tmp_path / "b", pixels=stack()[FRAMES // 2 if frame is None else frame], WindowCenter=2048)
    render(single)  # imports what it needs
    headers = {"no table": 8 * FRAMES, "fragments": 2 * (8 + 10) * FRAMES}.get(kind, 0)
    assert path.stat().st_size > 8 * AHEAD
    assert read_by(lambda: render(path, frame)) <= AHEAD + size + headers + 64
    expected = make_dicom(tmp_path / "b", pixels=stack()[FRAMES // 2 if frame is None else frame],
                          WindowCenter=2048, WindowWidth=4096)  # fmt: skip
    assert (render(path, frame) == render(expected)).all()


@pytest.mark.parametrize("place", [1, 3])
def test_what_a_header_has_beside_is_not_read(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a"
    dataset = dcmread(make_dicom(path))
    block = dataset.private_block(0x0009 if place == 1 else 0x0029, "test", create=True)
    block.add_new(1, "OB", bytes(3 << 20))
    dataset.save_as(path)
    render(path)
    assert read_by(lambda: render(path)) <= 2 * AHEAD + 1024
    assert (render(path) == render(make_dicom(tmp_path / "b"))).all()


def test_a_file_may_begin_with_its_prefix_or_its_meta_information(tmp_path: Path) -> None:
    whole = make_dicom(tmp_path / "a").read_bytes()
    for cut in (128, 132):
        (tmp_path / "b").write_bytes(whole[cut:])
        assert (render(tmp_path / "b") == render(tmp_path / "a")).all()


def enhanced(path: Path, syntax: str, *, undefined: bool, frames: int = 6) -> Path:
    """Frames with a rescale and a window each, in items of defined or undefined length."""
    groups = []
    for number in range(frames):
        rescale, window, item = Dataset(), Dataset(), Dataset()
        rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = -10 * number, 2, "US"
        window.WindowCenter, window.WindowWidth = 100 * (number + 1), 500
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [rescale], [window]
        groups.append(item)
    pixels = stack(frames)
    make_dicom(path, pixels=pixels.byteswap() if syntax == ExplicitVRBigEndian else pixels, syntax=syntax)
    dataset = dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence = groups
    for item in groups:
        item.is_undefined_length_sequence_item = undefined
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_of_many_functional_groups_one_is_made(
    tmp_path: Path,
    syntax: str,
    undefined: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = enhanced(tmp_path / "a", syntax, undefined=undefined)
    header = source.read(ByteSource.of_bytes(path.read_bytes()))
    theirs = dcmread(path).PerFrameFunctionalGroupsSequence

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pydicom made an object of each")

    monkeypatch.setattr("pydicom.filereader.read_sequence", refuse)
    for number, group in enumerate(theirs):
        found = values.item(header.dataset, "PerFrameFunctionalGroupsSequence", number)
        assert found is not None
        window = values.item(found, "FrameVOILUTSequence")
        assert window is not None
        expected = [float(group.FrameVOILUTSequence[0].WindowCenter)]
        assert values.numbers(window, "WindowCenter") == expected
    monkeypatch.undo()
    assert values.item(header.dataset, "PerFrameFunctionalGroupsSequence", len(theirs)) is None


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_a_header_is_the_same_as_by_pydicom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = ByteSource.of_bytes(path.read_bytes())
    found = _read(content)
    monkeypatch.setattr(source, "_read_plain", _unusual)
    theirs = _read(content)
    if isinstance(found, str) or isinstance(theirs, str):
        assert found == theirs
        return
    assert (found.syntax, found.little, found.element) == (theirs.syntax, theirs.little, theirs.element)
    for keyword in values.KEYWORDS:
        if not keyword.endswith("Sequence"):  # of which pydicom makes objects
            assert values.encoded(found.dataset, keyword) == values.encoded(theirs.dataset, keyword)
        assert values.text(found.dataset, keyword) == values.text(theirs.dataset, keyword)
        assert values.numbers(found.dataset, keyword) == _by_pydicom(theirs.dataset, keyword)


def _read(content: ByteSource) -> source.Source | str:
    try:
        return source.read(content)
    except PixelsError as error:
        return str(error)


def _unusual(*_: object, **__: object) -> None:
    raise NeedsFullParser


def _by_pydicom(dataset: Dataset, keyword: str) -> list[float]:
    """The numbers of an element without the short way to them."""
    try:
        found = [float(value) for value in values._values(dataset, keyword)]
    except (TypeError, ValueError):
        return []
    return found if np.isfinite(found).all() else []


def test_nearly_all_headers_are_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(*_: object, **__: object) -> None:
        raise PixelsError("unusual")

    monkeypatch.setattr(source, "_read_full", count)
    reasons = []
    for path in TEST_FILES:
        try:
            source.read(ByteSource.of_bytes(path.read_bytes()))
        except PixelsError as error:
            reasons.append(str(error))
    assert reasons.count("unusual") < len(TEST_FILES) / 4


@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(-3e4, 3e4, width=32)))
def test_percentiles_are_those_of_numpy(numbers: NDArray[np.float32]) -> None:
    assert grayscale._percentiles(numbers) == np.percentile(numbers, grayscale.PERCENTILES).tolist()


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_a_value_is_shown_alike_by_itself_and_by_a_table(tmp_path: Path, function: str, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, INPUT_SHAPE[:2]).astype(dtype)  # nothing is scaled
    tags = {"WindowCenter": 2000.5, "WindowWidth": 3000, "VOILUTFunction": function, "RescaleSlope": 1.1}
    by_table = render(make_dicom(tmp_path / "a", pixels=pixels, **tags))
    pixels[0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max  # more values than pixels: no table
    by_itself = render(make_dicom(tmp_path / "b", pixels=pixels, **tags))
    assert (by_table[1:] == by_itself[1:]).all()
