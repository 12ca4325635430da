"""From stored values to grey, as PS3.3 C.11 and PS3.4 N.2 order it: Modality LUT, VOI LUT, polarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from dicomsort.pixels.values import item, number, numbers, raw, text

Values = NDArray[np.float32]
Transform = Callable[[Values], Values]
Padding = tuple[float, float]  # the lowest and the highest stored value that is no part of the image
# Of the values that are no padding, shown as black and white where there is no window, or one that shows nothing
PERCENTILES = (0.5, 99.5)
_ANGIOGRAPHY = {uid.XRayAngiographicImageStorage, uid.XRayRadiofluoroscopicImageStorage}
_SAMPLE = 1 << 15  # values that percentiles are taken of, on a regular grid
_BLOCK = 1 << 20  # values that are transformed at once where no table can hold them all
_BLACK = 0.5 / 255  # of black to white: what is less becomes 0
_LEAST_CONTRAST = 1 / 8  # of black to white: a window that shows the image in less than this shows nothing


def to_grey(stored: NDArray[Any], dataset: Dataset, index: int, *, inverted: bool) -> NDArray[np.uint8]:
    """Render frame ``index``, (rows, columns) stored values, to uint8 of its shape: 0 black, 255 white, padding black.

    ``inverted`` is MONOCHROME1, whose lowest values are white.
    """
    modality = _modality(dataset, index)
    padding = _padding(dataset, stored.dtype)
    step = max(1, int(np.ceil(np.sqrt(stored.size / _SAMPLE))))
    sample = stored[::step, ::step]
    mask = _padding_mask(sample, padding)
    low, high = _extent(modality((sample.ravel() if mask is None else sample[~mask]).astype(np.float32)))
    voi = _voi(dataset, index, exact=stored.dtype.kind == "f")
    if voi is None or float(np.ptp(voi(np.array([low, high], np.float32)))) < _LEAST_CONTRAST:
        voi = _ramp(low, high) if low < high else np.zeros_like

    def show(part: NDArray[Any]) -> NDArray[np.uint8]:
        grey = voi(modality(part.astype(np.float32)))
        grey = (1 - grey if inverted else grey) * np.float32(255) + np.float32(0.5)
        mask = _padding_mask(part, padding)
        if mask is not None:
            grey[mask] = 0
        return grey.astype(np.uint8)

    rows = max(1, _BLOCK // stored.shape[1])
    blocks = [stored[top : top + rows] for top in range(0, len(stored), rows)]
    if stored.dtype.kind in "ui" and stored.dtype.itemsize <= 2:  # noqa: PLR2004 - a table holds all values
        lowest, highest = int(stored.min()), int(stored.max())
        if highest - lowest < stored.size:
            native, unsigned = stored.dtype.newbyteorder("="), np.dtype(f"u{stored.dtype.itemsize}")
            values = np.arange(lowest, highest + 1).astype(native)
            table, first = show(values), values.view(unsigned)[0]
            indices = (block.astype(native, copy=False).view(unsigned) - first for block in blocks)
            return np.concatenate([table.take(each) for each in indices])
    return np.concatenate([show(block) for block in blocks])


def _padding(dataset: Dataset, dtype: np.dtype[Any]) -> Padding | None:
    """Return the lowest and the highest padding value (PS3.3 C.7.5.1.1.2, in floating point C.7.6.24), None if none."""
    if dtype.kind == "f":
        found = numbers(dataset, "FloatPixelPaddingValue") or numbers(dataset, "DoubleFloatPixelPaddingValue")
        return (found[0], found[0]) if found else None
    found = numbers(dataset, "PixelPaddingValue")[:1]
    if not found:
        return None
    found += numbers(dataset, "PixelPaddingRangeLimit")[:1]
    # Some writers give the two's complement as an unsigned number, others the reverse.
    span, signed = 1 << 8 * dtype.itemsize, dtype.kind == "i"
    wrapped = [value % span - (span if signed and value % span >= span // 2 else 0) for value in found]
    return min(wrapped), max(wrapped)


def has_window(dataset: Dataset, index: int) -> bool:
    """Return whether a frame has a VOI LUT or a window."""
    return _voi(dataset, index, exact=False) is not None


def padding_is_black(dataset: Dataset, index: int, dtype: np.dtype[Any], *, inverted: bool) -> bool:
    """Return whether a frame's window shows its padding black anyway: then it may be averaged with its neighbours."""
    padding = _padding(dataset, dtype)
    if padding is None:
        return True
    voi = _voi(dataset, index, exact=dtype.kind == "f")
    if voi is None:
        return False
    grey = voi(_modality(dataset, index)(np.array(padding, np.float32)))
    return bool((1 - grey if inverted else grey).max() < _BLACK)


def _padding_mask(stored: NDArray[Any], padding: Padding | None) -> NDArray[np.bool_] | None:
    """Mask the padding among stored values, None where there can be none; what is not finite is padding too."""
    mask = ~np.isfinite(stored) if stored.dtype.kind == "f" else None
    if padding is None:
        return mask
    within: NDArray[np.bool_] = (stored >= padding[0]) & (stored <= padding[1])
    return within if mask is None else mask | within


def _macro(dataset: Dataset, index: int, name: str) -> Dataset:
    """Return a functional group macro (PS3.3 C.7.6.16): of the frame, else shared by all, else the data set itself."""
    for groups, place in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        group = item(dataset, groups, place)
        if group is not None and (macro := item(group, name)) is not None:
            return macro
    return dataset


def _modality(dataset: Dataset, index: int) -> Transform:
    """Return the Modality LUT transformation, PS3.3 C.11.1: the table where there is one, else the rescale."""
    # PS3.3 C.8.7.1.1.2: this table leads back to the X-ray intensity; the values are shown as they are stored.
    relationship = text(dataset, "PixelIntensityRelationship")
    shown_as_stored = text(dataset, "SOPClassUID") in _ANGIOGRAPHY and relationship in {"LOG", "DISP"}
    if not shown_as_stored and (lut := _lut(dataset, "ModalityLUTSequence")):
        return lut[0]
    source = _macro(dataset, index, "PixelValueTransformationSequence")
    slope = np.float32(number(source, "RescaleSlope", 1) or 1)
    intercept = np.float32(number(source, "RescaleIntercept", 0))
    if slope == 1 and intercept == 0:
        return lambda values: values
    return lambda values: values * slope + intercept


def _voi(dataset: Dataset, index: int, *, exact: bool) -> Transform | None:
    """Return the VOI LUT transformation to 0…1, PS3.3 C.11.2: the first table, else the first window, else None."""
    source = _macro(dataset, index, "FrameVOILUTSequence")
    if lut := _lut(source, "VOILUTSequence"):
        look_up, largest = lut
        top = np.float32((1 << largest.bit_length()) - 1 or 1)  # of the bits that are used
        return lambda values: look_up(values) / top
    centre, width = number(source, "WindowCenter", None), number(source, "WindowWidth", 0)
    if centre is None or width <= 0:
        return None
    function = text(source, "VOILUTFunction") or "LINEAR"
    # LINEAR is made for whole numbers: floating point pixels 0…1 in a window 0…1 would all be white.
    return _window(centre, width, "LINEAR_EXACT" if exact and function == "LINEAR" else function)


def _window(centre: float, width: float, function: str) -> Transform:
    """Return a window of PS3.3 C.11.2.1.2 and C.11.2.1.3: LINEAR, LINEAR_EXACT or SIGMOID, to 0…1."""
    if function == "SIGMOID":
        scale = np.float32(-4 / width)
        return lambda values: 1 / (1 + np.exp(np.clip(scale * (values - np.float32(centre)), -60, 60)))
    if function == "LINEAR" and width >= 1:
        centre, width = centre - 0.5, width - 1
    return _ramp(centre - width / 2, centre + width / 2)


def _ramp(low: float, high: float) -> Transform:
    """Return the line from 0 at ``low`` to 1 at ``high``, a step where they are the same."""
    if high <= low:
        return lambda values: (values > np.float32(low)).astype(np.float32)
    scale = np.float32(1 / (high - low))
    return lambda values: np.clip((values - np.float32(low)) * scale, 0, 1)


def _extent(values: Values) -> tuple[float, float]:
    """Return the percentiles of values, or their extremes where nearly all are the same, as in a mask."""
    if not values.size:
        return 0.0, 0.0
    low, high = _percentiles(values)
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def _percentiles(values: Values) -> list[float]:
    """Return ``PERCENTILES`` as np.percentile does, but faster for few values."""
    last = values.size - 1
    places = [last * (share / 100) for share in PERCENTILES]
    below = [int(place) for place in places]
    above = [min(place + 1, last) for place in below]
    ordered = np.partition(values, sorted({*below, *above, last}))
    if np.isnan(ordered[last]):
        return [np.nan for _ in places]
    found = []
    for place, low, high in zip(places, below, above, strict=True):
        step, share = float(ordered[high] - ordered[low]), place - low
        found.append(float(ordered[high]) - step * (1 - share) if share >= 0.5 else float(ordered[low]) + step * share)  # noqa: PLR2004
    return found


def _lut(dataset: Dataset, keyword: str) -> tuple[Transform, int] | None:
    """Return the look-up table in a sequence (PS3.3 C.11.1.1, C.11.2.1.1) and its largest entry, None if damaged.

    Values below the first mapped one give the first entry, values beyond the last one the last.
    """
    table = item(dataset, keyword)
    if table is None or len(descriptor := numbers(table, "LUTDescriptor")) != 3:  # noqa: PLR2004
        return None
    count, first = int(descriptor[0]) % (1 << 16) or 1 << 16, int(descriptor[1])
    if first >= 1 << 15 and first + count > 1 << 16:
        first -= 1 << 16  # a negative one that was read as unsigned
    stored = lut_entries(table, "LUTData", count)
    if stored is None:
        return None
    entries = stored.astype(np.float32)

    def look_up(values: Values) -> Values:
        index = np.clip(np.nan_to_num(values) - np.float32(first), 0, count - 1)
        return np.asarray(entries.take(index.astype(np.intp)), np.float32)

    return look_up, int(stored.max())


def lut_entries(dataset: Dataset, keyword: str, count: int) -> NDArray[np.uint16] | None:
    """Return the entries of a look-up table as (count,) uint16, words or bytes by its length; None if too few."""
    found = raw_words(dataset, keyword, wide=lambda size: size >= 2 * count)
    return found[:count] if found is not None and 0 < count <= len(found) else None


def raw_words(dataset: Dataset, keyword: str, wide: Callable[[int], bool]) -> NDArray[np.uint16] | None:
    """Return an element's bytes as they lie in the file, as (n,) uint16 of words or, where not ``wide``, of bytes.

    pydicom would make a Python number of each, which takes longer than rendering.
    """
    found = raw(dataset, keyword)
    if found is None:
        return None
    _, value, little = found
    dtype = np.dtype(f"{'<' if little else '>'}u2" if wide(len(value)) else "u1")
    return np.frombuffer(value, dtype, count=len(value) // dtype.itemsize).astype(np.uint16)
