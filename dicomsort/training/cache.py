"""Renderings kept on disk from one training to the next: a PNG file each, named by the SHA-256 of what was rendered.

They show what the images show: the folder is for its owner alone.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dicomsort.errors import DicomsortError, UsageError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_cache(folder: Path) -> Path:
    """Make the cache's folder for this rendering version and return it; UsageError where it cannot be written."""
    place = folder / f"rendering-{RENDERING_VERSION}"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.chmod(0o700)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        msg = f"--cache {str(folder)!r}: expected a folder that can be written, received {error.strerror}"
        raise UsageError(msg) from error
    return place


def recall(place: Path, digest: str) -> NDArray[np.uint8] | None:
    """Return the rendering of the file with this SHA-256, None where there is none, or a damaged one."""
    try:
        with Image.open(_path(place, digest), formats=["PNG"]) as picture:
            if (picture.height, picture.width) != INPUT_SHAPE[:2]:
                return None
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None


def remember(place: Path, digest: str, image: NDArray[np.uint8]) -> None:
    """Keep a rendering, uint8 (224, 224, 3); a reader never meets a half. DicomsortError where there is no room."""
    path = _path(place, digest)
    grey = bool((image == image[..., :1]).all())
    part = ""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            Image.fromarray(image[..., 0] if grey else image).save(stream, "PNG", compress_level=1)
        os.replace(part, path)
    except OSError as error:
        Path(part).unlink(missing_ok=True) if part else None
        raise DicomsortError(
            f"--cache: expected room for the renderings, received {error.strerror or error}"
        ) from error


def _path(place: Path, digest: str) -> Path:
    return place / digest[:2] / f"{digest}.png"
