from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import make_dicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicomsort.pixels import PixelsError, render
from dicomsort.pixels.render import as_array, fit

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
INDEX = np.arange(224 * 224).reshape(224, 224) % 256


def make_colour(path: Path, pixels: NDArray[Any], photometric: str = "RGB", **tags: Any) -> Path:
    """A colour file of (rows, columns, 3) samples, colour by pixel unless the tags say otherwise."""
    order = pixels.transpose(2, 0, 1) if tags.get("PlanarConfiguration") else pixels
    bits = pixels.dtype.itemsize * 8
    return make_dicom(
        path,
        pixels=pixels[:, :, 0],
        SamplesPerPixel=3,
        PhotometricInterpretation=photometric,
        **{"PlanarConfiguration": 0, "PixelData": order.tobytes(), "BitsStored": bits, "HighBit": bits - 1} | tags,
    )


def scene() -> NDArray[np.uint8]:
    y, x = np.mgrid[:224, :224]
    return np.stack([x, y, 255 - x], axis=2).astype(np.uint8)


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_by_pixel_and_by_plane(tmp_path: Path, planar: int) -> None:
    assert (render(make_colour(tmp_path / "a", scene(), PlanarConfiguration=planar)) == scene()).all()


def test_deep_samples_lose_the_lower_bits_and_shallow_ones_are_spread(tmp_path: Path) -> None:
    deep = scene().astype(np.uint16) << 8 | 0x55
    assert (render(make_colour(tmp_path / "a", deep)) == scene()).all()
    assert (render(make_colour(tmp_path / "b", deep >> 4, BitsStored=12, HighBit=11)) == scene()).all()
    shallow = scene() >> 4
    assert (render(make_colour(tmp_path / "c", shallow, BitsStored=4, HighBit=3)) == shallow * 17).all()


def test_ybr_full(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(scene()).convert("YCbCr"))
    shown = render(make_colour(tmp_path / "a", ybr, "YBR_FULL")).astype(int)
    assert np.abs(shown - scene()).max() <= 3


def test_ybr_full_422(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(scene()).convert("YCbCr"))
    whole = make_colour(tmp_path / "a", ybr, "YBR_FULL_422")  # says so, is not subsampled
    assert np.abs(render(whole).astype(int) - scene()).max() <= 3
    pairs = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=2)
    halved = make_colour(tmp_path / "b", ybr, "YBR_FULL_422", PixelData=pairs.tobytes())
    assert np.abs(render(halved).astype(int) - scene()).max() <= 5


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+n2.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_jls_lossy_sample.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_rle_32bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_bars_have_their_colours_however_they_are_coded(name: str) -> None:
    shown = render(get_testdata_file(name)).astype(int)
    for row, colour in ((11, RED), (56, GREEN), (101, BLUE), (212, WHITE)):
        assert np.abs(shown[row, 112] - colour).max() <= 6, (row, shown[row, 112])


@pytest.mark.parametrize("name", ["SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm"])
def test_a_jpeg_of_rgb_components_is_not_converted(name: str) -> None:
    shown = render(get_testdata_file(name)).astype(int)
    assert np.abs(shown - 244).mean() <= 3  # a nearly white tissue slide; converted, it would be pink


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_dcmtk_+eb+cr.dcm"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_a_jpegs_own_word_on_its_colours_counts(tmp_path: Path, name: str, photometric: str) -> None:
    dataset = dcmread(get_testdata_file(name))
    dataset.PhotometricInterpretation = photometric
    dataset.save_as(tmp_path / "a")
    assert (render(tmp_path / "a") == render(get_testdata_file(name))).all()


@pytest.mark.parametrize("name", ["examples_palette.dcm", "OBXXXX1A.dcm"])
def test_palettes_are_applied_as_pydicom_does(name: str) -> None:
    path = get_testdata_file(name)
    dataset = dcmread(path)
    rgb = apply_color_lut(pixel_array(path, index=0), dataset)
    expected = as_array(fit(Image.fromarray((rgb >> 8 if rgb.dtype == np.uint16 else rgb).astype(np.uint8))))
    assert (render(path, 0) == expected).all()


def test_a_palette_in_big_endian_is_the_same() -> None:
    little, big = get_testdata_file("OBXXXX1A.dcm"), get_testdata_file("OBXXXX1A_expb.dcm")
    assert (render(little) == render(big)).all()


def with_palette(path: Path, prefix: str, channels: list[NDArray[Any]], descriptor: list[int], **tags: Any) -> Path:
    make_dicom(path, pixels=INDEX.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR", **tags)
    dataset = dcmread(path)
    for name, data in zip(("Red", "Green", "Blue"), channels, strict=True):
        keyword = f"{name}PaletteColorLookupTableDescriptor"
        dataset[keyword] = DataElement(keyword, "US", descriptor)
        keyword = f"{prefix}{name}PaletteColorLookupTableData"
        dataset[keyword] = DataElement(keyword, "OW", data.tobytes())
    dataset.save_as(path)
    return path


RAMP = np.arange(256)


@pytest.mark.parametrize(("first", "shift"), [(0, 0), (10, -10)])
def test_palette_of_bytes_and_of_words(tmp_path: Path, first: int, shift: int) -> None:
    words = [(RAMP << 8).astype("<u2"), (RAMP[::-1] << 8).astype("<u2"), (RAMP * 0).astype("<u2")]
    index = np.clip(INDEX + shift, 0, 255)
    expected = np.stack([index, 255 - index, 0 * index], axis=2)
    deep = with_palette(tmp_path / "a", "", words, [256, first, 16])
    flat = with_palette(tmp_path / "b", "", [(word >> 8).astype("u1") for word in words], [256, first, 8])
    padded = with_palette(tmp_path / "c", "", [word >> 8 for word in words], [256, first, 16])
    for path in (deep, flat, padded):
        assert (render(path) == expected).all()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_segmented_palette(tmp_path: Path, syntax: str) -> None:
    order = "<" if syntax == ExplicitVRLittleEndian else ">"
    # 1 entry of 0, a line of 127 to 0x7F00, then both again by their place, less the line's last 128 entries.
    segments = np.array([0, 1, 0, 1, 127, 0x7F00, 0, 1, 0x8000, 1, 127, 0xFF00], f"{order}u2")
    repeated = np.array([0, 1, 0, 1, 127, 0x7F00, 2, 2, 0, 0], f"{order}u2")
    path = with_palette(tmp_path / "a", "Segmented", [segments, repeated, segments], [256, 0, 16], syntax=syntax)
    shown = render(path)
    assert (shown[:, :, 0] == INDEX).all()
    assert (shown[:, :, 1] == INDEX % 128).all()


@pytest.mark.parametrize(
    "segments",
    [
        [1, 65535, 7],  # a line that starts nowhere
        [0, 1, 5, 3, 9, 9],  # no such kind
        [0, 1, 5] + [1, 65535, 9] * 40,  # expands beyond 65,536
        [0, 1, 5, 2, 9, 3, 0],  # an indirect segment that repeats an indirect one
        [0],
    ],
)
def test_a_damaged_segmented_palette_is_an_error(tmp_path: Path, segments: list[int]) -> None:
    channel = np.array(segments, "<u2")
    path = with_palette(tmp_path / "a", "Segmented", [channel] * 3, [256, 0, 16])
    with pytest.raises(PixelsError, match="palette is damaged"):
        render(path)


def test_palettes_of_different_lengths_are_an_error(tmp_path: Path) -> None:
    path = with_palette(tmp_path / "a", "", [RAMP.astype("<u2")] * 3, [256, 0, 16])
    dataset = dcmread(path)
    dataset.BluePaletteColorLookupTableDescriptor = [100, 0, 16]
    dataset.save_as(path)
    with pytest.raises(PixelsError, match="palette is damaged"):
        render(path)


def test_without_its_palette_an_image_is_grey(tmp_path: Path) -> None:
    bare = make_dicom(tmp_path / "a", pixels=INDEX.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    assert (render(bare) == render(make_dicom(tmp_path / "b", pixels=INDEX.astype(np.uint8)))).all()
