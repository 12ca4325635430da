"""How a frame is stored, and what comes of decoding it: the Image Pixel module, PS3.3 C.7.6.3."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.pixels.limits import PixelsError
from dicomsort.pixels.source import PIXEL_ELEMENTS, Source
from dicomsort.pixels.values import integer, text

GREY = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How a frame is stored, by the names of pydicom's decoder options."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    shift: int  # unused bits below the stored ones, by High Bit (0028,0102)
    pixel_representation: int  # 1: signed
    planar_configuration: int
    pixel_keyword: str
    pixel_vr: str

    @property
    def bits(self) -> int:
        """Bits of one frame of uncompressed pixel data."""
        bits = self.rows * self.columns * self.samples_per_pixel * self.bits_allocated
        return bits * 2 // 3 if self.photometric_interpretation == "YBR_FULL_422" else bits

    def options(self, frames: int) -> dict[str, Any]:
        """Return the options of pydicom's decoders; values that ``to_frame`` will move, they leave alone."""
        options = asdict(self) | {"number_of_frames": frames}
        if options.pop("shift"):
            options["correct_unused_bits"] = False
        return options


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: (rows, columns) or (rows, columns, 3) of stored values, before any look-up table."""

    pixels: NDArray[Any]
    photometric_interpretation: str  # of ``pixels``: a decoder may have turned YBR into RGB
    bits_stored: int
    index: int  # which frame of the file it is


def read_layout(source: Source) -> PixelLayout:
    """Read the Image Pixel module, and correct what contradicts itself: a grey image has one sample."""
    dataset = source.dataset
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
    return PixelLayout(
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
        samples_per_pixel=1 if photometric in GREY else 3,
        photometric_interpretation=photometric,
        bits_allocated=allocated,
        bits_stored=stored,
        shift=high + 1 - stored if stored <= high < allocated else 0,
        pixel_representation=int(integer(dataset, "PixelRepresentation") == 1),
        planar_configuration=int(integer(dataset, "PlanarConfiguration") == 1),
        pixel_keyword=PIXEL_ELEMENTS[source.element.tag],
        pixel_vr=source.element.vr or "OW",
    )


def choose(frame: int | None, declared: int, present: int) -> tuple[int, int]:
    """Return the index of the requested frame, the middle one where it is None, and the number of frames.

    That is ``declared`` (0028,0008), but no more than are ``present``, and all of these where it is below 1.
    """
    count = min(declared, present) if declared > 0 else present
    if frame is None:
        return count // 2, count
    if not 0 <= frame < count:
        raise PixelsError(f"frame {frame} does not exist, the file holds {count}")
    return frame, count


def to_frame(pixels: NDArray[Any], properties: dict[str, Any], layout: PixelLayout, index: int) -> Frame:
    """Return the frame that a pydicom decoder returned as an array and the properties of its pixels.

    Values whose High Bit is not Bits Stored - 1 are moved down, where the bits below them are indeed unused.
    """
    if layout.shift:
        is_unused_below = not np.any(pixels & ((1 << layout.shift) - 1))
        pixels = drop_unused_bits(pixels >> layout.shift if is_unused_below else pixels, layout.bits_stored)
    photometric = str(properties["photometric_interpretation"])
    return Frame(pixels, photometric.replace("PALETTE_COLOR", "PALETTE COLOR"), layout.bits_stored, index)


def drop_unused_bits(pixels: NDArray[Any], bits_stored: int) -> NDArray[Any]:
    """Drop the bits above the ``bits_stored`` lowest, and take the highest of those for the sign of signed values."""
    unused = pixels.dtype.itemsize * 8 - bits_stored
    return np.asarray(np.right_shift(np.left_shift(pixels, unused), unused))
