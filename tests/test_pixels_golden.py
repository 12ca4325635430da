"""The rendering, pinned. A change here is a new ``RENDERING_VERSION``; then run this file to write new pictures."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file

from dicomsort.pixels import RENDERING_VERSION, render

THUMBNAILS = Path(__file__).parent / "golden" / f"pixels-{RENDERING_VERSION}.npz"
EXACT = {  # no lossy decoder has a part in these: the first half of the SHA-256 of the output's bytes
    "CT_small.dcm": "b1e9f748609a04d43f576cd54207bfce",
    "MR_small_bigendian.dcm": "97f8a3a7d3d572c301f175b58804d654",
    "examples_palette.dcm": "2df59553633c35947447c2e44ed32ac7",
    "rtdose_1frame.dcm": "434879b912030fb16ebd71f8d6919375",
    "liver_1frame.dcm": "8a0070b1bc8f94bb3cbcd2c6209cdec1",
    "SC_rgb_rle_16bit.dcm": "6181d3cb9459201ba63df3be075c4293",
}
LOSSY = (
    "examples_ybr_color.dcm",
    "examples_jpeg2k.dcm",
    "JPGExtended.dcm",
    "693_J2KI.dcm",
    "JPEGLSNearLossless_16.dcm",
)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Means over 16 x 16 blocks: (14, 14, 3), 0 to 255."""
    return pixels.reshape(14, 16, 14, 16, 3).mean(axis=(1, 3), dtype=np.float32)


def digest(name: str) -> str:
    return hashlib.sha256(render(get_testdata_file(name)).tobytes()).hexdigest()[:32]


@pytest.mark.parametrize("name", EXACT)
def test_pictures_of_lossless_files_are_the_same_to_the_last_bit(name: str) -> None:
    assert digest(name) == EXACT[name]


@pytest.mark.parametrize("name", [*EXACT, *LOSSY])
def test_pictures_look_the_same(name: str) -> None:
    with np.load(THUMBNAILS) as golden:
        difference = np.abs(thumbnail(render(get_testdata_file(name))) - golden[name])
    assert difference.max() <= 2
    assert difference.mean() <= 0.5


def test_a_png_is_scaled_to_the_same_bits(tmp_path: Path) -> None:
    y, x = np.mgrid[:300, :500]
    buffer = io.BytesIO()
    Image.fromarray(((x * 7 + y * 3) % 256).astype(np.uint8)).save(buffer, "PNG")
    (tmp_path / "a").write_bytes(buffer.getvalue())
    assert hashlib.sha256(render(tmp_path / "a").tobytes()).hexdigest()[:32] == "a707df25579160705f0fe48b169fccc3"


if __name__ == "__main__":
    np.savez_compressed(THUMBNAILS, **{n: thumbnail(render(get_testdata_file(n))) for n in (*EXACT, *LOSSY)})
    print(*(f"{name} {digest(name)}" for name in EXACT), sep="\n")  # noqa: T201
