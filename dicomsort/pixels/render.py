"""The one way from a file to the model's input, for training and for sorting."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicomsort.dicom import magic
from dicomsort.dicom.elements import ByteSource
from dicomsort.dicom.file_meta import MAGIC, PREAMBLE
from dicomsort.pixels import colour, frames, grayscale, png_jpeg, source
from dicomsort.pixels.layout import Frame
from dicomsort.pixels.limits import PixelsError, wrap_errors
from dicomsort.records import INPUT_SHAPE

_SIDE = INPUT_SHAPE[0]
_MIN_SIDE = 2 * _SIDE  # pixels of the longer side of a frame that is decoded smaller than it is


def render(path: str | os.PathLike[str], frame: int | None = None) -> NDArray[np.uint8]:
    """Render one frame of a PNG, JPEG or DICOM file, told by content, to (224, 224, 3) uint8 RGB, 0 black to 255 white.

    ``frame`` counts from 0; None is the middle one (a PNG or JPEG has frame 0 only). The frame keeps its aspect, is
    scaled so that its longer side has 224 pixels, and lies centred on black. Grey is the same in all three channels.

    Raises:
        PixelsError: the file has no pixels that can be rendered; nothing else is ever raised or printed.
    """
    return render_sized(path, frame)[0]


def render_sized(path: str | os.PathLike[str], frame: int | None = None) -> tuple[NDArray[np.uint8], int]:
    """Return what ``render`` returns, and the pixels of the frame's longer side, exact up to 448."""
    with _decoded(path, frame, _MIN_SIDE) as image:
        return as_array(fit(image)), max(image.size)


def picture(path: str | os.PathLike[str], frame: int | None = None) -> Image.Image:
    """Render as ``render`` does, to an image of mode RGB or, where it is grey, L."""
    with _decoded(path, frame, _MIN_SIDE) as image:
        return fit(image)


def show(path: str | os.PathLike[str], frame: int | None, side: int) -> Image.Image:
    """Render one frame for people, as ``render`` does but larger: mode L or RGB, its longer side at most ``side``.

    It has no border, and is not enlarged.

    Raises:
        PixelsError: the file has no pixels that can be rendered; nothing else is ever raised or printed.
    """
    with _decoded(path, frame, side) as image:
        image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return image


@contextmanager
def _decoded(path: str | os.PathLike[str], frame: int | None, min_side: int) -> Iterator[Image.Image]:
    """Yield a frame in grey or colour; a large one may come smaller, its longer side at least ``min_side``."""
    with _silenced(), wrap_errors("the file cannot be read"), _open(path) as content:
        head = content.at(0, PREAMBLE + len(MAGIC))
        if head.startswith((magic.PNG, magic.JPEG)) and not head.startswith(MAGIC, PREAMBLE):
            if frame not in {None, 0}:
                raise PixelsError(f"frame {frame} does not exist, the file holds 1")
            with wrap_errors("the image cannot be decoded"):
                yield png_jpeg.load(content.file(), min_side)
            return
        with wrap_errors("the header cannot be parsed"):
            image = source.read(content)
        with wrap_errors("the pixel data cannot be decoded"):
            decoded = frames.decode(image, frame, min_side)
        with wrap_errors("the pixel data cannot be shown"):
            yield Image.fromarray(_show(decoded, image.dataset))


def _show(decoded: Frame, dataset: Dataset) -> NDArray[np.uint8]:
    photometric = decoded.photometric_interpretation
    lacks_palette = photometric == "PALETTE COLOR" and "RedPaletteColorLookupTableDescriptor" not in dataset
    if lacks_palette or photometric.startswith("MONOCHROME"):
        inverted = photometric == "MONOCHROME1"
        return grayscale.to_grey(decoded.pixels, dataset, decoded.index, inverted=inverted)
    return np.ascontiguousarray(colour.to_rgb(decoded, dataset))


def as_array(rendered: Image.Image) -> NDArray[np.uint8]:
    """Return what ``picture`` returns as ``render`` does: (224, 224, 3) uint8 RGB."""
    return np.array(rendered.convert("RGB"))


def fit(image: Image.Image) -> Image.Image:
    """Scale an image of mode L or RGB by its longer side, and centre it on black: 224 x 224 of the same mode."""
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    if small.size == (_SIDE, _SIDE):
        return small
    canvas = Image.new(image.mode, (_SIDE, _SIDE))
    canvas.paste(small, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return canvas


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[ByteSource]:
    # A pipe without a writer must not block.
    with open(path, "rb", 0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PixelsError("not a regular file")
        yield ByteSource.of_file(file.fileno(), status.st_size)


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress warnings and log records of libraries, which may quote values of the file."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "PIL")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
