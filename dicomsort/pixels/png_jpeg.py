"""PNG and JPEG files, by Pillow: to an image of mode L or RGB, upright and without alpha."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from pydicom.dataset import Dataset

from dicomsort.pixels.grayscale import to_grey
from dicomsort.pixels.limits import check_size

# Turns the stored image upright, by Orientation (EXIF 2.32 4.6.4)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load(file: BinaryIO, min_side: int) -> Image.Image:
    """Decode a PNG or JPEG file; a JPEG may come back smaller, its longer side no less than ``min_side`` pixels."""
    image = Image.open(file, formats=("PNG", "JPEG"))
    check_size(image.height, image.width)
    if image.format == "JPEG":
        scale = min_side / max(image.size)
        image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    flat = _flatten(image)
    return flat.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else flat


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits, shown by percentiles
        return Image.fromarray(to_grey(np.asarray(image), Dataset(), 0, inverted=False))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")
