"""Robustness tests: changes that keep what an image shows, and that a model must not depend on.

All are made on the rendering (``pixels.render``), without randomness. An image lies centred on black, with its longer
side filling the square; borders and crops are those of the image itself, not of the square.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicomsort.pixels.render import as_array, fit

Pixels = NDArray[np.uint8]

BORDER = 0.1
QUALITY = 30
SIDE = 96
CROP = 0.75
TEXT = "HOSPITAL 12 L"
LINES = 15  # of text that would fill the square
MIN_SIDE = 8


def mask_borders(image: Pixels) -> Pixels:
    """Blacken the outer 10 % of the image on each side."""
    top, left, bottom, right = _box(image)
    high, wide = round((bottom - top) * BORDER), round((right - left) * BORDER)
    changed = np.zeros_like(image)
    inner = (slice(top + high, bottom - high), slice(left + wide, right - wide))
    changed[inner] = image[inner]
    return changed


def default_font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font: it is decoded anew each time, and threads that share one must take turns."""
    return _font_of(size, threading.get_ident())


@lru_cache(maxsize=1 << 10)
def _font_of(size: float, _thread: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def paste_text(image: Pixels) -> Pixels:
    """Burn text into two corners of the image, as workstations do: white with a black edge."""
    picture = Image.fromarray(image)
    draw, size = ImageDraw.Draw(picture), len(image) / LINES
    top, left, bottom, right = _box(image)
    font = default_font(size)
    for text, place, anchor in (
        (TEXT, (left + size / 2, top + size / 2), "lt"),
        ("R", (right - size / 2, bottom - size / 2), "rs"),
    ):
        draw.text(place, text, font=font, fill="white", stroke_width=1, stroke_fill="black", anchor=anchor)
    return np.array(picture)


def invert(image: Pixels) -> Pixels:
    """Invert the grey levels within the image; the black around it stays."""
    changed = image.copy()
    top, left, bottom, right = _box(image)
    changed[top:bottom, left:right] = 255 - changed[top:bottom, left:right]
    return changed


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """Save as JPEG, and load again."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert(picture.mode)


def recompress(image: Pixels) -> Pixels:
    """Save as JPEG of quality 30, and load again."""
    return np.array(as_jpeg(Image.fromarray(image), QUALITY))


def downscale(image: Pixels) -> Pixels:
    """Scale down to 96 pixels a side, and up again."""
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.array(small.resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR))


def crop(place: float, image: Pixels) -> Pixels:
    """Cut out 75 % of each side, from the top left (``place`` 0) to the bottom right (1), and render that."""
    top, left, bottom, right = _box(image)
    high, wide = round((bottom - top) * CROP), round((right - left) * CROP)
    first, start = top + round((bottom - top - high) * place), left + round((right - left - wide) * place)
    return as_array(fit(Image.fromarray(image[first : first + high, start : start + wide])))


# name -> change of a rendering, uint8 (H, W, 3) to the same
SHORTCUTS: dict[str, Callable[[Pixels], Pixels]] = {
    "borders masked": mask_borders,
    "text pasted": paste_text,
    "inverted": invert,
    "JPEG quality 30": recompress,
    "96 pixels": downscale,
    "crop, centre": partial(crop, 0.5),
    "crop, corner": partial(crop, 0.0),
}


def _box(image: Pixels) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the image in the square: all but black bars of equal width on two sides.

    The longer side fills the square, so bars lie on one pair of sides at most; a dark image keeps its whole square.
    """
    lit = image.max(2) > 0
    spans = []
    for axis in (1, 0):
        filled = np.flatnonzero(lit.any(axis))
        gap = min(int(filled[0]), lit.shape[1 - axis] - 1 - int(filled[-1])) if len(filled) else 0
        spans.append(gap if lit.shape[1 - axis] - 2 * gap >= MIN_SIDE else 0)
    high, wide = spans
    high, wide = (high, 0) if high >= wide else (0, wide)
    return high, wide, image.shape[0] - high, image.shape[1] - wide
