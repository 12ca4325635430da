"""PNG and JPEG pictures of real images, no two alike: ``draw`` writes as many as wanted, on every core."""

from __future__ import annotations

import io
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from inboxes import packaged
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom import dcmread

SOURCES = ("693_UNCR.dcm", "MR2_UNCR.dcm", "RG1_UNCR.dcm", "RG3_UNCR.dcm", "MR-SIEMENS-DICOM-WithOverlays.dcm")
LEAST, MOST = 512, 1024  # pixels of the longer side


def draw(folder: Path, count: int) -> None:
    """Write pictures 0 to ``count`` - 1 into a new folder."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(_write, folder), range(count), chunksize=16))


def encoded(number: int) -> bytes:
    """Picture ``number``: PNG where it is even, else JPEG of quality 90."""
    buffer = io.BytesIO()
    if number % 2:
        picture(number).save(buffer, "JPEG", quality=90)
    else:
        picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def picture(number: int) -> Image.Image:
    """An image of ``SOURCES`` in turn: cut, mirrored, scaled, its greys shifted, with noise, by the number alone."""
    random = np.random.default_rng(number)
    image = Image.fromarray(_grey(SOURCES[number // 2 % len(SOURCES)]))
    width, height = (int(side * random.uniform(0.8, 1.0)) for side in image.size)
    left, top = (
        int(random.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True)
    )
    image = image.crop((left, top, left + width, top + height))
    if random.random() < 0.5:  # noqa: PLR2004 - one in two
        image = ImageOps.mirror(image)
    side = int(random.integers(LEAST, MOST + 1))
    image = ImageOps.contain(image, (side, side), Image.Resampling.BICUBIC)
    values = 255.0 * (np.asarray(image, np.float64) / 255.0) ** random.uniform(0.8, 1.2)
    values += random.normal(0.0, 2.0, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


@cache
def _grey(name: str) -> NDArray[np.uint8]:
    """The image of a test file, (rows, columns), its 0.5th to 99.5th percentile as 0 to 255, bright where dense."""
    dataset = dcmread(io.BytesIO(packaged(name)))
    pixels = dataset.pixel_array.astype(np.float64)
    low, high = np.percentile(pixels, (0.5, 99.5))
    values = np.clip((pixels - low) / (high - low), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = 1 - values
    grey: NDArray[np.uint8] = (255 * values).astype(np.uint8)
    return grey


def _write(folder: Path, number: int) -> None:
    name = f"{number:05d}.{'jpg' if number % 2 else 'png'}"
    (folder / name).write_bytes(encoded(number))
