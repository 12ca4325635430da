"""Large compressed frames decoded at a half, a quarter or an eighth of their size, as JPEG and JPEG 2000 allow.

What is left out would be averaged away by the scaling to the model's input.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Jpeg2KImagePlugin, JpegImagePlugin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.pixels.codestream import Codestream

_MOST = 3  # halvings: libjpeg's smallest scale is 1/8
_BYTE, _WORD = 8, 16
_RAW = b"\xff\x4f\xff\x51"  # JPEG 2000 without boxes, which may name another colour space than the header
_JPEG_MODES = {"YCBCR": "YCbCr", "RGB": "RGB"}


def decode(data: bytes, stream: Codestream, colour: str, least: int) -> NDArray[Any] | None:
    """Decode a frame with its sides halved as often as leaves the longer one ``least`` pixels, at most three times.

    (rows, columns), or (rows, columns, 3): components of a JPEG, whose ``colour`` is YCBCR or RGB, come back as RGB.
    The values are the codestream's own, unsigned or signed. None where it cannot be halved or is damaged: that is for
    the full decoder to judge.
    """
    times = _halvings(stream, max(stream.rows, stream.columns) // least)
    if not times or not (stream.codec == "jpeg" or data.startswith(_RAW)):
        return None
    found: NDArray[Any] | None = None
    with contextlib.suppress(Exception):
        found = _jpeg(data, times, colour) if stream.codec == "jpeg" else _jpeg2000(data, times, stream)
    shape = (-(-stream.rows >> times), -(-stream.columns >> times))
    return found if found is not None and found.shape[:2] == shape and found.size else None


def _halvings(stream: Codestream, most: int) -> int:
    """Return how often a frame can be halved, the longer side not to less than 1/``most``."""
    grey, colour = stream.samples == 1, stream.samples == 3  # noqa: PLR2004
    if stream.codec == "jpeg":
        levels = _MOST if stream.bits == _BYTE and (grey or colour) else 0
    elif stream.codec in {"jpeg2k", "htj2k"}:
        known = (grey and stream.bits <= _WORD) or (colour and stream.bits == _BYTE and not stream.signed)
        levels = min(_MOST, stream.levels) if known else 0
    else:
        levels = 0
    return min(levels, max(most, 1).bit_length() - 1)


def _jpeg(data: bytes, times: int, colour: str) -> NDArray[Any]:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.draft(None, (image.width >> times, image.height >> times))
    if image.mode == "RGB":  # what the header says wins over what libjpeg would guess
        image.tile = [image.tile[0]._replace(args=("RGB", _JPEG_MODES[colour]))]
    return np.asarray(image)


def _jpeg2000(data: bytes, times: int, stream: Codestream) -> NDArray[Any]:
    image = _Halved(io.BytesIO(data), times)
    pixels = np.asarray(image)
    if stream.samples > 1:
        return pixels
    # Pillow moves values to the top of 8 or 16 bits, and signed ones up until none is negative.
    pixels = pixels >> (8 * pixels.dtype.itemsize - stream.bits)
    if not stream.signed:
        return pixels
    return (pixels.astype(np.int32) - (1 << (stream.bits - 1))).astype(f"i{pixels.dtype.itemsize}")


class _Halved(Jpeg2KImagePlugin.Jpeg2KImageFile):
    """Pillow's ``reduce`` rounds the sides to the nearest, OpenJPEG up: where they differ, Pillow fails."""

    def __init__(self, file: io.BytesIO, times: int) -> None:
        super().__init__(file)
        self._size = (-(-self.width >> times), -(-self.height >> times))
        whole = self.tile[0]
        codec, _, *rest = cast("tuple[str, int, int, int, int]", whole.args)
        self.tile = [whole._replace(extents=(0, 0, *self._size), args=(codec, times, *rest))]
