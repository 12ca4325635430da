"""One frame of uncompressed pixel data, PS3.5 8.1 and A.1 to A.3: found by its offset, read alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from dicomsort.pixels.layout import Frame, Layout, alignment, choose, to_frame
from dicomsort.pixels.problems import PixelsError, border
from dicomsort.pixels.source import Source, integer

if TYPE_CHECKING:
    from typing import BinaryIO


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
    syntax = uid.ExplicitVRLittleEndian if source.little else uid.ExplicitVRBigEndian
    with border("the pixel data cannot be read"):
        pixels, facts = get_decoder(syntax).as_array(
            file, index=index, raw=True, **alignment(layout), **layout.options(count)
        )
    return to_frame(pixels, facts, layout, index)
