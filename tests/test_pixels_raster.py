from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from dicomsort.pixels import MAX_PIXELS, PixelsError, render

GREY = (np.mgrid[:224, :224][1]).astype(np.uint8)


def saved(tmp_path: Path, image: Image.Image, kind: str, **options: Any) -> NDArray[np.int16]:
    image.save(tmp_path / "image", kind, **options)
    return render(tmp_path / "image").astype(np.int16)


def colours() -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(channel) for channel in (GREY, GREY.T.copy(), GREY[:, ::-1].copy())])


def test_png_of_8_bits_is_shown_as_it_is(tmp_path: Path) -> None:
    assert (saved(tmp_path, Image.fromarray(GREY), "PNG") == GREY[:, :, None]).all()
    assert (saved(tmp_path, colours(), "PNG") == np.asarray(colours())).all()


def test_png_of_16_bits_is_shown_by_its_percentiles(tmp_path: Path) -> None:
    deep = np.linspace(1000, 5095, 224 * 224).astype(np.uint16).reshape(224, 224)
    low, high = np.percentile(deep, [0.5, 99.5])
    shown = saved(tmp_path, Image.fromarray(deep), "PNG")
    assert np.abs(shown[:, :, 0] - np.clip((deep - low) / (high - low) * 255, 0, 255)).max() <= 2


def test_png_of_1_bit_and_of_a_palette(tmp_path: Path) -> None:
    mask = Image.fromarray(GREY > 99)
    assert (saved(tmp_path, mask, "PNG")[:, :, 0] == (GREY > 99) * 255).all()
    few = colours().quantize(64)
    assert (saved(tmp_path, few, "PNG") == np.asarray(few.convert("RGB"))).all()


def test_alpha_is_composited_over_black(tmp_path: Path) -> None:
    white, alpha = Image.new("L", (224, 224), 255), Image.fromarray(GREY)
    for image in (Image.merge("LA", [white, alpha]), Image.merge("RGBA", [white, white, white, alpha])):
        assert np.abs(saved(tmp_path, image, "PNG") - GREY[:, :, None]).max() <= 1
    few = Image.fromarray(GREY // 128).convert("P")
    few.putpalette([0, 200, 0, 200, 0, 0])
    shown = saved(tmp_path, few, "PNG", transparency=0)
    assert (shown[:, 0] == 0).all()
    assert (shown[:, 223] == (200, 0, 0)).all()


def test_jpeg_in_grey_colour_and_cmyk(tmp_path: Path) -> None:
    assert np.abs(saved(tmp_path, Image.fromarray(GREY), "JPEG", quality=95) - GREY[:, :, None]).mean() <= 1
    assert np.abs(saved(tmp_path, colours(), "JPEG", quality=95) - np.asarray(colours())).mean() <= 3
    assert np.abs(saved(tmp_path, colours(), "JPEG", quality=95, progressive=True) - np.asarray(colours())).mean() <= 3
    cmyk = colours().convert("CMYK")
    assert np.abs(saved(tmp_path, cmyk, "JPEG", quality=95) - np.asarray(colours())).mean() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = np.zeros((224, 112), np.uint8)
    upright[:112], upright[:56, :56] = 100, 250
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    assert np.abs(shown[:, 56:168, 0] - upright).mean() <= 1


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    large = Image.fromarray(GREY).resize((4000, 3000))
    by_png = saved(tmp_path, large, "PNG")
    assert np.abs(saved(tmp_path, large, "JPEG", quality=95) - by_png).mean() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.05])
def test_a_truncated_file_is_an_error(tmp_path: Path, kind: str, kept: float) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(buffer, kind)
    (tmp_path / "a").write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * kept)])
    with pytest.raises(PixelsError, match="the image cannot be decoded"):
        render(tmp_path / "a")


@pytest.mark.parametrize(("side", "reason"), [(12_000, f"exceeds the limit of {MAX_PIXELS}"), (60_000, "decoded")])
def test_an_image_beyond_the_limit_is_refused_unseen(tmp_path: Path, side: int, reason: str) -> None:
    Image.new("1", (8, 8)).save(tmp_path / "a", "PNG")
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(_resized(content, side))
    with pytest.raises(PixelsError, match=reason):
        render(tmp_path / "b")


def _resized(content: bytes, side: int) -> bytes:
    """The same PNG with another width and height in its header."""
    body = b"IHDR" + side.to_bytes(4) * 2 + content[24:29]
    return content[:12] + body + PngImagePlugin._crc32(body).to_bytes(4) + content[33:]


def test_a_raster_file_has_one_frame(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a", "PNG")
    assert (render(tmp_path / "a", 0) == render(tmp_path / "a")).all()
    with pytest.raises(PixelsError, match="frame 1 does not exist"):
        render(tmp_path / "a", 1)
