"""The one way from a file to the model's input, for training and for sorting."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dicomsort.dicom.elements import ByteSource
from dicomsort.pixels import colour, frames, grayscale, png_jpeg, source
from dicomsort.pixels.limits import PixelsError, border
from dicomsort.records import RENDERING_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dicomsort.pixels.layout import Frame

__all__ = ["INPUT_SHAPE", "RENDERING_VERSION", "as_array", "picture", "render", "show"]

INPUT_SHAPE = (224, 224, 3)

_SIDE = INPUT_SHAPE[0]
_LEAST = 2 * _SIDE  # pixels of the longer side of what is decoded smaller than it is
_RASTER_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_CHATTY = ("pydicom", "PIL")


def render(path: str | os.PathLike[str], frame: int | None = None) -> NDArray[np.uint8]:
    """Render one frame of a PNG, JPEG or DICOM file, told by content, to (224, 224, 3) uint8 RGB, 0 black to 255 white.

    ``frame`` counts from 0; None is the middle one (a PNG or JPEG has frame 0 only). The frame keeps its aspect, is
    scaled so that its longer side has 224 pixels, and lies centred on black. Grey is the same in all three channels.

    Raises:
        PixelsError: the file has no pixels that can be rendered; nothing else is ever raised or printed.
    """
    return as_array(picture(path, frame))


def picture(path: str | os.PathLike[str], frame: int | None = None) -> Image.Image:
    """Render as ``render`` does, to an image of mode RGB or, where it is grey, L."""
    with _decoded(path, frame, _LEAST) as image:
        return fit(image)


def show(path: str | os.PathLike[str], frame: int | None, side: int) -> Image.Image:
    """Render one frame for people, as ``render`` does but larger: mode L or RGB, its longer side at most ``side``.

    Nothing is added around it, and nothing is made larger than it is.

    Raises:
        PixelsError: the file has no pixels that can be rendered; nothing else is ever raised or printed.
    """
    with _decoded(path, frame, side) as image:
        image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return image


@contextmanager
def _decoded(path: str | os.PathLike[str], frame: int | None, least: int) -> Iterator[Image.Image]:
    """Yield a frame in grey or colour; a large one may be smaller than it is, its longer side at least ``least``."""
    with _quiet(), border("the file cannot be read"), _open(path) as content:
        head = content.at(0, 132)
        if head.startswith(_RASTER_MAGIC) and head[128:] != b"DICM":
            if frame not in {None, 0}:
                raise PixelsError(f"frame {frame} does not exist, the file holds 1")
            with border("the image cannot be decoded"):
                yield png_jpeg.load(content.file(), least)
            return
        with border("the header cannot be parsed"):
            image = source.read(content)
        with border("the pixel data cannot be decoded"):
            decoded = frames.decode(image, frame, least)
        with border("the pixel data cannot be shown"):
            yield Image.fromarray(_show(decoded, image))


def _show(decoded: Frame, image: source.Source) -> NDArray[np.uint8]:
    bare = decoded.photometric == "PALETTE COLOR" and not colour.has_palette(image.dataset)
    if bare or decoded.photometric.startswith("MONOCHROME"):
        return grayscale.to_grey(
            decoded.pixels, image.dataset, decoded.index, inverted=decoded.photometric == "MONOCHROME1"
        )
    return np.ascontiguousarray(colour.to_rgb(decoded, image.dataset))


def as_array(rendered: Image.Image) -> NDArray[np.uint8]:
    """Return what ``picture`` gives as ``render`` does."""
    wide = rendered if rendered.mode == "RGB" else Image.merge("RGB", (rendered, rendered, rendered))
    return np.frombuffer(bytearray(wide.tobytes()), np.uint8).reshape(INPUT_SHAPE)


def fit(image: Image.Image) -> Image.Image:
    """Scale an image of mode L or RGB to the longer side, and centre it on black: 224 x 224 of the same mode."""
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
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings and log records, which may quote values of the file, to themselves."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
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
