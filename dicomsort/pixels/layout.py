"""How a frame is stored, and what comes of decoding it: the Image Pixel module, PS3.3 C.7.6.3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.pixels.limits import PixelsError
from dicomsort.pixels.values import integer, text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.pixels.source import Source

GREY = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a frame is stored: the Image Pixel module, PS3.3 C.7.6.3."""

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    shift: int  # unused bits below the stored ones: (0028,0102) *High Bit* tells
    signed: int
    planar: int
    keyword: str
    vr: str

    @property
    def bits(self) -> int:
        """Bits of one frame of uncompressed pixel data."""
        bits = self.rows * self.columns * self.samples * self.allocated
        return bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits

    def options(self, frames: int) -> dict[str, Any]:
        """Return these facts under the names that pydicom's decoders know."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "samples_per_pixel": self.samples,
            "photometric_interpretation": self.photometric,
            "bits_allocated": self.allocated,
            "bits_stored": self.stored,
            "pixel_representation": self.signed,
            "planar_configuration": self.planar,
            "number_of_frames": frames,
            "pixel_keyword": self.keyword,
            "pixel_vr": self.vr,
        }


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: (rows, columns) or (rows, columns, 3) of stored values, before any look-up table."""

    pixels: NDArray[Any]
    photometric: str  # of ``pixels``: a decoder may have turned YBR into RGB
    stored: int  # bits
    index: int  # which frame of the file it is


def read_layout(source: Source) -> Layout:
    """Read the Image Pixel module, and put right what contradicts itself: a grey image has one sample."""
    dataset, keyword = source.dataset, source.element.keyword
    photometric = text(dataset, "PhotometricInterpretation").upper()
    samples = integer(dataset, "SamplesPerPixel", 1)
    if not photometric:  # ACR-NEMA had none
        photometric = "RGB" if samples == 3 else "MONOCHROME2"  # noqa: PLR2004
    if photometric not in GREY | _COLOUR:
        raise PixelsError("the photometric interpretation is not supported")
    allocated = integer(dataset, "BitsAllocated")
    if allocated not in {1, 8, 16, 32, 64}:
        raise PixelsError(f"{allocated} bits allocated are not supported" if allocated else "no Bits Allocated")
    stored = integer(dataset, "BitsStored", allocated)
    stored = stored if 0 < stored <= allocated else allocated
    high = integer(dataset, "HighBit", stored - 1)
    return Layout(
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
        samples=1 if photometric in GREY else 3,
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        shift=high + 1 - stored if stored <= high < allocated else 0,
        signed=int(integer(dataset, "PixelRepresentation") == 1),
        planar=int(integer(dataset, "PlanarConfiguration") == 1),
        keyword=keyword,
        vr=source.element.vr,
    )


def choose(frame: int | None, count: int) -> int:
    """Return the index of the frame that is asked for among ``count``, the middle one where it is None."""
    if frame is None:
        return count // 2
    if not 0 <= frame < count:
        raise PixelsError(f"frame {frame} does not exist, the file holds {count}")
    return frame


def alignment(layout: Layout) -> dict[str, Any]:
    """Return pydicom's option that leaves values alone which ``to_frame`` will move."""
    return {"correct_unused_bits": False} if layout.shift else {}


def to_frame(pixels: NDArray[Any], facts: dict[str, Any], layout: Layout, index: int) -> Frame:
    """Make a frame of what a pydicom decoder returned: an array, and what it says the array is."""
    if layout.shift:
        pixels = _realign(pixels, layout)
    photometric = str(facts["photometric_interpretation"])
    return Frame(pixels, photometric.replace("PALETTE_COLOR", "PALETTE COLOR"), layout.stored, index)


def _realign(pixels: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Move values whose High Bit is not Bits Stored - 1 down, where the bits below them are indeed unused."""
    unused_below = not np.any(pixels & ((1 << layout.shift) - 1))
    return keep_bits(pixels >> layout.shift if unused_below else pixels, layout.stored)


def keep_bits(pixels: NDArray[Any], stored: int) -> NDArray[Any]:
    """Drop the bits above the ``stored`` lowest ones, and take the highest of those for the sign of signed values."""
    unused = pixels.dtype.itemsize * 8 - stored
    return np.asarray(np.right_shift(np.left_shift(pixels, unused), unused))
