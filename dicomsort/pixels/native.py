"""One frame of uncompressed pixel data, PS3.5 8.1 and A.1 to A.3: found by its offset, read alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from dicomsort.pixels.layout import Frame, Layout, alignment, choose, keep_bits, to_frame
from dicomsort.pixels.problems import PixelsError, border
from dicomsort.pixels.values import integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.dicom.elements import ByteSource
    from dicomsort.pixels.source import Source

# Words whose bytes lie the other way round than the transfer syntax says make noise of an image: what is rough, and far
# smoother with its bytes exchanged, was written so.
_WORD = 16
_LONGEST = (1 << 16) - 1  # rows and columns are US
_PATCH, _LEAST = 256, 32  # pixels of a side that are looked at, and that there must be
_ROUGH, _SMOOTHER = 0.05, 0.25


def decode(content: ByteSource, start: int, length: int, source: Source, layout: Layout, frame: int | None) -> Frame:
    """Decode one uncompressed frame (PS3.5 8.1) of the ``length`` bytes of a content from ``start`` on."""
    if layout.photometric == "YBR_FULL_422" and length * 8 >= layout.bits * 3 // 2:
        layout = replace(layout, photometric="YBR_FULL")  # the chroma was never subsampled
    held = length * 8 // layout.bits
    if not held:
        raise PixelsError(f"truncated pixel data: {length} of {(layout.bits + 7) // 8} bytes")
    declared = integer(source.dataset, "NumberOfFrames", 1 if "NumberOfFrames" not in source.dataset else 0)
    count = min(declared, held) if declared > 0 else held
    index = choose(frame, count)
    plain = content.at(start + index * (layout.bits // 8), layout.bits // 8) if _is_plain(layout, source) else b""

    def read(*, little: bool) -> Frame:
        if len(plain) * 8 == layout.bits:
            return _read_plain(plain, layout, index, little=little)
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        with border("the pixel data cannot be read"):
            pixels, facts = get_decoder(syntax).as_array(
                content.stream(start), index=index, raw=True, **alignment(layout), **layout.options(count)
            )
        return to_frame(pixels, facts, layout, index)

    seen = read(little=source.little)
    if layout.allocated == _WORD and (roughness := _roughness(seen.pixels)) > _ROUGH:
        swapped = read(little=not source.little)
        if _roughness(swapped.pixels) < roughness * _SMOOTHER:
            return swapped
    return seen


def _read_plain(data: bytes, layout: Layout, index: int, *, little: bool) -> Frame:
    dtype = np.dtype(f"{'<' if little else '>'}{'ui'[layout.signed]}{layout.allocated // 8}")
    pixels = np.frombuffer(data, dtype).reshape(layout.rows, layout.columns)
    kept = pixels if layout.stored == layout.allocated else keep_bits(pixels, layout.stored)
    return Frame(kept, layout.photometric, layout.stored, index)


def _is_plain(layout: Layout, source: Source) -> bool:
    """Whether a frame is what most are, and nothing for pydicom: grey, in bytes or words with no bits below."""
    whole = layout.allocated == _WORD or (layout.allocated == 8 and source.little)  # noqa: PLR2004
    return (
        whole
        and layout.keyword == "PixelData"
        and layout.samples == 1
        and layout.shift == 0
        and max(layout.rows, layout.columns) <= _LONGEST
    )


def _roughness(pixels: NDArray[Any]) -> float:
    """Return the mean step between neighbours in the middle of an image, as a share of the range: noise has 1/3.

    An image too small to tell has 0.
    """
    rows, columns = (max(0, side - _PATCH) // 2 for side in pixels.shape[:2])
    patch = pixels[rows : rows + _PATCH, columns : columns + _PATCH].astype(np.float32)
    span = float(np.ptp(patch)) if min(patch.shape[:2]) >= _LEAST else 0.0
    if not span:
        return 0.0
    steps = (patch[1:] - patch[:-1], patch[:, 1:] - patch[:, :-1])
    return sum(float(np.abs(step, out=step).mean()) for step in steps) / (2 * span)
