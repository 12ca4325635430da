"""One frame of uncompressed pixel data, PS3.5 8.1 and A.1 to A.3: found by its offset, read alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from dicomsort.pixels.layout import Frame, Layout, alignment, choose, to_frame
from dicomsort.pixels.problems import PixelsError, border
from dicomsort.pixels.source import Source, integer

if TYPE_CHECKING:
    from typing import BinaryIO

    from numpy.typing import NDArray

# Words whose bytes lie the other way round than the transfer syntax says make noise of an image: what is rough, and far
# smoother with its bytes exchanged, was written so.
_WORD = 16
_PATCH, _LEAST = 256, 32  # pixels of a side that are looked at, and that there must be
_ROUGH, _SMOOTHER = 0.05, 0.25


def decode(file: BinaryIO, length: int, source: Source, layout: Layout, frame: int | None) -> Frame:
    """Decode one uncompressed frame (PS3.5 8.1) of the ``length`` bytes at the file's position."""
    if layout.photometric == "YBR_FULL_422" and length * 8 >= layout.bits * 3 // 2:
        layout = replace(layout, photometric="YBR_FULL")  # the chroma was never subsampled
    held = length * 8 // layout.bits
    if not held:
        raise PixelsError(f"truncated pixel data: {length} of {(layout.bits + 7) // 8} bytes")
    declared = integer(source.dataset, "NumberOfFrames", 1 if "NumberOfFrames" not in source.dataset else 0)
    count = min(declared, held) if declared > 0 else held
    index = choose(frame, count)
    start = file.tell()

    def read(*, little: bool) -> Frame:
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        file.seek(start)
        with border("the pixel data cannot be read"):
            pixels, facts = get_decoder(syntax).as_array(
                file, index=index, raw=True, **alignment(layout), **layout.options(count)
            )
        return to_frame(pixels, facts, layout, index)

    seen = read(little=source.little)
    if layout.allocated == _WORD and (roughness := _roughness(seen.pixels)) > _ROUGH:
        swapped = read(little=not source.little)
        if _roughness(swapped.pixels) < roughness * _SMOOTHER:
            return swapped
    return seen


def _roughness(pixels: NDArray[Any]) -> float:
    """Return the mean step between neighbours in the middle of an image, as a share of the range: noise has 1/3.

    An image too small to tell has 0.
    """
    rows, columns = (max(0, side - _PATCH) // 2 for side in pixels.shape[:2])
    patch = pixels[rows : rows + _PATCH, columns : columns + _PATCH].astype(np.float32)
    span = float(np.ptp(patch)) if min(patch.shape[:2]) >= _LEAST else 0.0
    return sum(float(np.abs(np.diff(patch, axis=axis)).mean()) for axis in (0, 1)) / (2 * span) if span else 0.0
