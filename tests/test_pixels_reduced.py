from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import imagecodecs
import numpy as np
import pytest
from building import make_dicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from dicomsort.dicom.elements import ByteSource
from dicomsort.pixels import PixelsError, decoders, frames, render, source

LEAST = 448
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
Encoder = Callable[[NDArray[Any]], bytes]


def radiograph(rows: int = 1001, columns: int = 1403, top: int = 4095) -> NDArray[np.uint16]:
    """A smooth picture with a bright field in it, as large ones are: (rows, columns), uint16, 0 to ``top``."""
    y, x = np.mgrid[:rows, :columns]
    values = (np.sin(x / 90) * np.cos(y / 70) + 1) / 2
    values[rows // 3 : rows // 2, columns // 3 : columns // 2] = 0.9
    return np.asarray(values * top, np.uint16)


def j2k(pixels: NDArray[Any], **options: Any) -> bytes:
    return imagecodecs.jpeg2k_encode(pixels, **({"reversible": True, "codecformat": "j2k"} | options))


def coded(path: Path, frame: bytes, syntax: str, shape: tuple[int, ...], **tags: Any) -> Path:
    """A file of one encoded frame of 12 bits in words, grey unless ``tags`` say otherwise."""
    data = encapsulate([frame + b"\0" * (len(frame) % 2)])
    plain = np.zeros(shape, np.uint8)
    tags = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, **WINDOW} | tags
    kept = {name: value for name, value in tags.items() if value is not None}
    return make_dicom(path, pixels=plain, syntax=syntax, PixelData=data, **kept)


def decoded(path: Path, least: int = LEAST) -> NDArray[Any]:
    return frames.decode(source.read(ByteSource.of_bytes(path.read_bytes())), None, least).pixels


def whole(path: Path) -> NDArray[np.int16]:
    """The rendering of all pixels."""
    with mock.patch.object(decoders, "decode_reduced", return_value=None):
        return render(path).astype(np.int16)


BYTES = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256}
SIGNED = {"PixelRepresentation": 1, "WindowCenter": 0}
GREY: dict[str, tuple[str, Encoder, dict[str, Any]]] = {
    "JPEG": (uid.JPEGBaseline8Bit, lambda p: imagecodecs.jpeg8_encode((p >> 4).astype(np.uint8), level=95), BYTES),
    "JPEG in words": (
        uid.JPEGBaseline8Bit,
        lambda p: imagecodecs.jpeg8_encode((p >> 4).astype(np.uint8), level=95),
        {"WindowCenter": 128, "WindowWidth": 256},
    ),
    "JPEG 2000": (uid.JPEG2000Lossless, lambda p: j2k(p, bitspersample=12), {}),
    "JPEG 2000, lossy": (uid.JPEG2000, lambda p: j2k(p, level=70, reversible=False), {}),
    "JPEG 2000, 8 bits": (uid.JPEG2000Lossless, lambda p: j2k((p >> 4).astype(np.uint8)), BYTES),
    "JPEG 2000, signed": (uid.JPEG2000Lossless, lambda p: j2k(p.astype(np.int16) - 2048), SIGNED),
    "HTJ2K": (uid.HTJ2KLossless, lambda p: imagecodecs.htj2k_encode(p, reversible=True), {}),
}


@pytest.mark.parametrize("name", GREY)
@pytest.mark.parametrize(("shape", "expected"), [((1001, 1403), (501, 702)), ((1797, 900), (450, 225))])
def test_large_frames_are_decoded_smaller_and_look_the_same(
    tmp_path: Path, name: str, shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    syntax, encode, tags = GREY[name]
    path = coded(tmp_path / "a", encode(radiograph(*shape)), syntax, shape, **tags)
    small, full = decoded(path), decoded(path, least=max(shape))
    assert (small.shape, full.shape, small.dtype) == (expected, shape, full.dtype)
    difference = np.abs(render(path) - whole(path))
    assert difference.mean() < 1
    assert difference.max() < 40  # along the edges of the field


@pytest.mark.parametrize(("longer", "halved"), [(895, 895), (896, 448), (1791, 896), (1792, 448), (3583, 896)])
@pytest.mark.parametrize("name", ["JPEG", "JPEG 2000"])
def test_the_longer_side_keeps_twice_the_outputs(tmp_path: Path, name: str, longer: int, halved: int) -> None:
    syntax, encode, tags = GREY[name]
    shape = (64, longer)
    path = coded(tmp_path / "a", encode(radiograph(*shape)), syntax, shape, **tags)
    assert decoded(path).shape[1] == halved


@pytest.mark.parametrize("colour", ["RGB", "YBR_FULL_422"])
def test_colour_is_the_same_at_a_fraction(tmp_path: Path, colour: str) -> None:
    y, x = np.mgrid[:900, :1200]
    pixels = np.stack([x * 255 // 1199, y * 255 // 899, (x + y) * 255 // 2098], axis=2).astype(np.uint8)
    space = "RGB" if colour == "RGB" else "YCBCR"
    frame = imagecodecs.jpeg8_encode(pixels, level=95, colorspace="RGB", outcolorspace=space)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": colour, "PlanarConfiguration": 0, **BYTES}
    path = coded(tmp_path / "a", frame, uid.JPEGBaseline8Bit, pixels.shape[:2], **tags)
    assert decoded(path).shape == (450, 600, 3)
    assert np.abs(render(path) - whole(path)).max() <= 3
    path = coded(tmp_path / "b", j2k(pixels), uid.JPEG2000Lossless, pixels.shape[:2], **tags)
    assert decoded(path).shape == (450, 600, 3)
    assert np.abs(render(path) - whole(path)).max() <= 3


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("JPEG", {"WindowCenter": None}),  # the percentiles of less noise are others
        ("JPEG 2000", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("JPEG 2000", {"PixelRepresentation": 1}),
        ("JPEG 2000", {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}),
        ("JPEG 2000", {"PixelPaddingValue": 4095}),
        ("JPEG 2000", {"PixelPaddingValue": 0, "WindowWidth": None}),
    ],
)
def test_where_a_mean_is_no_value_all_pixels_are_decoded(tmp_path: Path, name: str, tags: dict[str, Any]) -> None:
    syntax, encode, own = GREY[name]
    shape = (1001, 1403)
    assert decoded(coded(tmp_path / "a", encode(radiograph(*shape)), syntax, shape, **(own | tags))).shape == shape


def test_padding_that_is_black_anyway_is_averaged(tmp_path: Path) -> None:
    shape = (1001, 1403)
    values = radiograph(*shape)
    values[:, :500] = 0
    path = coded(tmp_path / "a", j2k(values), uid.JPEG2000Lossless, shape, PixelPaddingValue=0)
    assert decoded(path).shape == (501, 702)
    difference = np.abs(render(path) - whole(path))
    assert difference.mean() < 0.5
    assert not render(path)[:, :79].any()


def test_a_codestream_of_few_levels_is_halved_as_often_as_it_can_be(tmp_path: Path) -> None:
    shape = (64, 3600)
    values = radiograph(*shape)
    for resolutions, expected in ((1, 3600), (2, 1800), (3, 900), (6, 450)):
        frame = j2k(values, resolutions=resolutions)
        assert decoded(coded(tmp_path / "a", frame, uid.JPEG2000Lossless, shape)).shape[1] == expected


@pytest.mark.parametrize("name", GREY)
def test_damage_is_judged_as_in_small_frames(tmp_path: Path, name: str) -> None:
    syntax, encode, tags = GREY[name]
    frame = encode(radiograph())
    for cut in (60, len(frame) // 2, len(frame) - 2000):
        path = coded(tmp_path / "a", frame[:cut], syntax, (1001, 1403), **tags)
        try:
            expected: NDArray[np.int16] | str = whole(path)
        except PixelsError as error:
            expected = str(error)
        try:
            received: NDArray[np.uint8] | str = render(path)
        except PixelsError as error:
            received = str(error)
        assert isinstance(received, str) == isinstance(expected, str)
        if isinstance(received, str):
            assert received == expected


@pytest.mark.parametrize("name", ["RG1_J2KR.dcm", "RG1_J2KI.dcm", "RG3_J2KR.dcm", "MR2_J2KI.dcm"])
def test_real_images_look_the_same(name: str) -> None:
    path = Path(get_testdata_file(name))
    assert max(decoded(path).shape) < 1000
    difference = np.abs(render(path) - whole(path))
    assert difference.mean() < 1
    assert difference.max() <= 26
