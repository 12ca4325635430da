"""From stored values to colour: palettes (PS3.3 C.7.6.3.1.5, C.7.9.2), YBR (C.7.6.3.1.2) and deep RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicomsort.pixels.grayscale import lut_entries, raw_words
from dicomsort.pixels.layout import Frame
from dicomsort.pixels.limits import PixelsError
from dicomsort.pixels.values import numbers

_MOST_ENTRIES = 1 << 16
_DAMAGED = "the palette is damaged"
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


def to_rgb(frame: Frame, dataset: Dataset) -> NDArray[np.uint8]:
    """Render a colour frame: (rows, columns, 3) uint8, 0…255."""
    if frame.photometric_interpretation == "PALETTE COLOR":
        return _apply_palette(frame.pixels, dataset)
    pixels = _to_bytes(frame.pixels, frame.bits_stored)
    if frame.photometric_interpretation.startswith("YBR_FULL"):
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "YCbCr").convert("RGB"))
    return pixels


def _to_bytes(pixels: NDArray[Any], bits_stored: int) -> NDArray[np.uint8]:
    """Scale unsigned samples to eight bits."""
    if bits_stored > 8:  # noqa: PLR2004
        return np.asarray(pixels >> (bits_stored - 8), np.uint8)
    if bits_stored < 8:  # noqa: PLR2004
        top = (1 << bits_stored) - 1
        return np.asarray(np.minimum(pixels, top) * np.float32(255 / top) + np.float32(0.5), np.uint8)
    return pixels.astype(np.uint8, copy=False)


def _apply_palette(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    if pixels.dtype.kind not in "ui" or pixels.dtype.itemsize > 2:  # noqa: PLR2004
        raise PixelsError("a palette needs stored values of 8 or 16 bits")
    channels, first = [], 0
    for name in ("Red", "Green", "Blue"):
        descriptor = numbers(dataset, f"{name}PaletteColorLookupTableDescriptor")
        if len(descriptor) != 3:  # noqa: PLR2004
            raise PixelsError(_DAMAGED)
        count = int(descriptor[0]) % _MOST_ENTRIES or _MOST_ENTRIES
        first = int(descriptor[1])
        entries = lut_entries(dataset, f"{name}PaletteColorLookupTableData", count)
        if entries is None:
            entries = _segments(dataset, f"Segmented{name}PaletteColorLookupTableData", int(descriptor[2]))
        channels.append(entries)
    if len({len(entries) for entries in channels}) != 1:
        raise PixelsError(_DAMAGED)
    entries = np.stack(channels, axis=1)
    # Entries of 16 bits often hold numbers of 8.
    palette = (entries >> 8 if entries.max() > 255 else entries).astype(np.uint8)  # noqa: PLR2004
    return palette.take(np.clip(pixels.astype(np.int32) - first, 0, len(palette) - 1), axis=0)


def _segments(dataset: Dataset, keyword: str, bits: int) -> NDArray[np.uint16]:
    """Expand a segmented look-up table, PS3.3 C.7.9.2, to (entries,) uint16, at most 65,536."""
    wide = bits > 8  # noqa: PLR2004
    data = raw_words(dataset, keyword, lambda _: wide)
    entries: list[int] = []
    try:
        _expand([] if data is None else data.tolist(), 0, None, entries, 2 if wide else 1)
    except IndexError:
        entries = []
    if not entries:
        raise PixelsError(_DAMAGED)
    return np.array(entries, np.uint16)


def _expand(data: list[int], at: int, segments: int | None, out: list[int], width: int) -> None:
    """Append the segments from ``at`` on, all or a number of them; an indirect one repeats others, and never nests."""
    done = 0
    while at + 1 < len(data) and done != segments:
        kind, length = data[at : at + 2]
        if kind == _DISCRETE:
            out += data[at + 2 : at + 2 + length]
            at += 2 + length
        elif kind == _LINEAR:
            start, stop = out[-1], data[at + 2]
            out += [start + round((stop - start) * place / length) for place in range(1, length + 1)]
            at += 3
        elif kind == _INDIRECT and segments is None:
            words = data[at + 2 : at + 2 + 4 // width]  # a byte offset of 32 bits, least significant word first
            offset = sum(word << 8 * width * place for place, word in enumerate(words))
            _expand(data, offset // width, length, out, width)
            at += 2 + len(words)
        else:
            raise PixelsError(_DAMAGED)
        done += 1
        if len(out) > _MOST_ENTRIES:
            raise PixelsError(_DAMAGED)
