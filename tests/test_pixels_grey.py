from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import make_dicom
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, XRayAngiographicImageStorage

from dicomsort.pixels import render

WIDE = np.linspace(0, 4095, 224 * 224).astype(np.uint16).reshape(224, 224)  # of the output's size: nothing is scaled


def show(path: Path) -> NDArray[np.int16]:
    return render(path)[:, :, 0].astype(np.int16)


def table(data: NDArray[Any], first: int = 0, bits: int = 16) -> Dataset:
    item = Dataset()
    item["LUTDescriptor"] = DataElement("LUTDescriptor", "US", [len(data) % 65536, first % 65536, bits])
    item["LUTData"] = DataElement("LUTData", "OW", data.astype("<u2").tobytes())
    return item


def reference(path: Path) -> NDArray[np.float64]:
    """The picture by pydicom's own window, 0 to 255."""
    dataset = dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset)
    with np.errstate(over="ignore"):  # of a steep SIGMOID
        shown = apply_windowing(values, dataset)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    signed = dataset.PixelRepresentation == 1
    low = -(1 << dataset.BitsStored - 1) if signed else 0
    span = (1 << dataset.BitsStored) - 1
    return np.asarray((shown - (low * slope + intercept)) / (span * slope) * 255)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("centre", "width"), [(1000, 800), (40, 3000.5), (2047, 4096), (1000.25, 2)])
@pytest.mark.parametrize("slope", [1, 0.5])
def test_windows_are_those_of_the_standard(
    tmp_path: Path, function: str | None, centre: float, width: float, slope: float
) -> None:
    tags = {"WindowCenter": centre, "WindowWidth": width, "RescaleSlope": slope, "RescaleIntercept": -20}
    path = make_dicom(tmp_path / "a", pixels=WIDE, VOILUTFunction=function or "LINEAR", **tags)
    if function is None:
        dataset = dcmread(path)
        del dataset.VOILUTFunction
        dataset.save_as(path)
    assert np.abs(show(path) - reference(path)).max() <= 0.51


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    many = make_dicom(tmp_path / "a", pixels=WIDE, WindowCenter=[1000, 50], WindowWidth=[800, 10])
    one = make_dicom(tmp_path / "b", pixels=WIDE, WindowCenter=1000, WindowWidth=800)
    assert (render(many) == render(one)).all()


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": 1000, "WindowWidth": 0},
        {"WindowCenter": 1000, "WindowWidth": -5},
        {"WindowCenter": 90000, "WindowWidth": 10},
        {"WindowCenter": 2000, "WindowWidth": 65535},
        {"WindowCenter": 1000},
    ],
)
def test_without_a_window_that_shows_something_the_percentiles_count(tmp_path: Path, window: dict[str, float]) -> None:
    low, high = np.percentile(WIDE, [0.5, 99.5])
    expected = np.clip((WIDE - low) / (high - low) * 255, 0, 255)
    assert np.abs(show(make_dicom(tmp_path / "a", pixels=WIDE, **window)) - expected).max() <= 2


def test_a_mask_is_black_and_white_and_a_constant_black(tmp_path: Path) -> None:
    mask = np.zeros((224, 224), np.uint8)
    mask[100:110, 100:110] = 1
    assert (show(make_dicom(tmp_path / "a", pixels=mask)) == mask * 255).all()
    assert not render(make_dicom(tmp_path / "b", pixels=mask + 7 - mask)).any()


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = make_dicom(tmp_path / "a", pixels=WIDE, **window)
    inverted = make_dicom(tmp_path / "b", pixels=WIDE, PhotometricInterpretation="MONOCHROME1", **window)
    assert np.abs(show(plain) + show(inverted) - 255).max() <= 1


def test_signed_values_of_odd_depths(tmp_path: Path) -> None:
    values = (WIDE.astype(np.int16) - 2048).astype(np.int16)
    window = {"WindowCenter": 0, "WindowWidth": 1000}
    plain = show(make_dicom(tmp_path / "a", pixels=values, **window))
    dirty = ((values & 0x0FFF) | 0x3000).astype(np.int16)  # an overlay in the unused bits
    assert (show(make_dicom(tmp_path / "b", pixels=dirty, BitsStored=12, HighBit=11, **window)) == plain).all()
    high = (values.astype(np.int32) << 4).astype(np.int16)
    assert (show(make_dicom(tmp_path / "c", pixels=high, BitsStored=12, HighBit=15, **window)) == plain).all()
    false = make_dicom(tmp_path / "d", pixels=values, BitsStored=12, HighBit=15, **window)  # says so, is not
    assert (show(false) == plain).all()


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_32_bits(tmp_path: Path, dtype: type) -> None:
    values = WIDE.astype(dtype) * 100_000
    path = make_dicom(tmp_path / "a", pixels=values, RescaleSlope=0.00001)
    assert np.abs(show(path) - show(make_dicom(tmp_path / "b", pixels=WIDE))).max() <= 1


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_floating_point_pixels(tmp_path: Path, keyword: str, dtype: type) -> None:
    values = (WIDE / 4095).astype(dtype)
    values[:10] = np.nan
    values[10:20] = -9999
    tags = {"WindowCenter": 0.5, "WindowWidth": 1, "PixelData": None, "BitsAllocated": values.itemsize * 8}
    path = make_dicom(tmp_path / "a", pixels=WIDE, **tags)
    dataset = dcmread(path)
    setattr(dataset, keyword, values.tobytes())
    dataset.FloatPixelPaddingValue = -9999
    dataset.save_as(path)
    expected = np.nan_to_num(np.clip(values, 0, 1) * 255)
    assert np.abs(show(path) - expected).max() <= 0.51


@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (63536, None), (-2000, -1500), (-1500, -2000)])
def test_padding_is_black_and_not_counted(tmp_path: Path, value: int, limit: int | None) -> None:
    values = WIDE.astype(np.int16)
    bare = show(make_dicom(tmp_path / "a", pixels=values[40:]))
    values[:40] = -2000
    values[20:40] = -2000 if limit is None else -1700
    path = make_dicom(tmp_path / "b", pixels=values, PhotometricInterpretation="MONOCHROME1")
    dataset = dcmread(path)
    vr = "US" if value > 0 else "SS"
    dataset["PixelPaddingValue"] = DataElement("PixelPaddingValue", vr, value)
    if limit is not None:
        dataset["PixelPaddingRangeLimit"] = DataElement("PixelPaddingRangeLimit", vr, limit)
    dataset.save_as(path)
    assert not show(path)[:40].any()
    assert np.abs(255 - show(path)[40:] - bare[20:204]).max() <= 3


def test_modality_lut_by_table(tmp_path: Path) -> None:
    bent = (np.arange(4096) ** 2 / 4095).astype(np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    by_table = make_dicom(tmp_path / "a", pixels=WIDE, ModalityLUTSequence=[table(bent)], **window)
    expected = show(make_dicom(tmp_path / "b", pixels=bent[WIDE], **window))
    assert (show(by_table) == expected).all()
    tags = {"sop_class": XRayAngiographicImageStorage, "PixelIntensityRelationship": "LOG"}
    as_stored = make_dicom(tmp_path / "c", pixels=WIDE, ModalityLUTSequence=[table(bent)], **tags, **window)
    assert (show(as_stored) == show(make_dicom(tmp_path / "d", pixels=WIDE, **window))).all()


@pytest.mark.parametrize("first", [0, 500, -300])
def test_voi_lut_by_table(tmp_path: Path, first: int) -> None:
    data = np.linspace(65535, 0, 2000).astype(np.uint16)
    values = WIDE.astype(np.int16) - 1000
    window = {"WindowCenter": 1, "WindowWidth": 1}  # the table goes before the window
    path = make_dicom(tmp_path / "a", pixels=values, VOILUTSequence=[table(data, first)], **window)
    assert np.abs(show(path) - data[np.clip(values - first, 0, 1999)] / 65535 * 255).max() <= 0.51


def test_voi_lut_of_fewer_bits_than_it_says_and_of_bytes(tmp_path: Path) -> None:
    narrow = table(np.linspace(0, 4095, 4096), bits=16)
    path = make_dicom(tmp_path / "a", pixels=WIDE, VOILUTSequence=[narrow])
    assert np.abs(show(path) - WIDE / 4095 * 255).max() <= 0.51
    item = table(np.zeros(4096), bits=8)
    item.LUTData = (np.arange(4096) // 16).astype(np.uint8).tobytes()
    assert (show(make_dicom(tmp_path / "b", pixels=WIDE, VOILUTSequence=[item])) == WIDE // 16).all()


def test_a_damaged_lut_is_passed_over(tmp_path: Path) -> None:
    item = table(np.zeros(4096))
    item.LUTData = b"\0\0"
    tags = {"ModalityLUTSequence": [item], "VOILUTSequence": [item], "WindowCenter": 2048, "WindowWidth": 4096}
    path = make_dicom(tmp_path / "a", pixels=WIDE, **tags)
    assert np.abs(show(path) - WIDE / 4095 * 255).max() <= 1


def _groups(window: float, slope: float | None = None) -> Dataset:
    groups, voi, modality = Dataset(), Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = window, 1000
    groups.FrameVOILUTSequence = [voi]
    if slope:
        modality.RescaleSlope, modality.RescaleIntercept = slope, 0
        groups.PixelValueTransformationSequence = [modality]
    return groups


def test_functional_groups_are_those_of_the_frame(tmp_path: Path) -> None:
    stack = np.stack([WIDE, WIDE, WIDE])
    path = make_dicom(
        tmp_path / "a",
        pixels=stack,
        syntax=ExplicitVRLittleEndian,
        WindowCenter=5,
        WindowWidth=5,
        SharedFunctionalGroupsSequence=[_groups(3000, slope=0.5)],
        PerFrameFunctionalGroupsSequence=[_groups(500), _groups(1500, slope=2), Dataset()],
    )
    for frame, (centre, slope) in enumerate([(500, 0.5), (1500, 2), (3000, 0.5)]):
        tags = {"WindowCenter": centre, "WindowWidth": 1000, "RescaleSlope": slope, "RescaleIntercept": 0}
        expected = make_dicom(tmp_path / f"{frame}", pixels=WIDE, **tags)
        assert (render(path, frame) == render(expected)).all()


def test_one_bit_a_pixel(tmp_path: Path) -> None:
    mask = (WIDE > 2000).astype(np.uint8)
    packed = np.packbits(np.stack([mask[::-1], mask]), bitorder="little").tobytes()
    tags = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "NumberOfFrames": 2, "PixelData": packed}
    path = make_dicom(tmp_path / "a", pixels=mask, **tags)
    assert (show(path) == mask * 255).all()


def test_words_with_their_bytes_the_other_way_round_are_put_right(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * 31
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    for name, pixels in (("ramp", ramp), ("noise", noise)):
        right, swapped = (
            render(make_dicom(tmp_path / f"{name}{kind}.dcm", pixels=stored))
            for kind, stored in (("right", pixels), ("swapped", pixels.byteswap()))
        )
        assert np.array_equal(right, swapped) == (name == "ramp")
