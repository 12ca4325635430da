"""Renderings kept on disk from one training to the next: a file each, named by the SHA-256 of what was rendered.

It is an LZ4 frame with a checksum (lz4.org; ``lz4 -d`` reads it), which holds a head, the perceptual hash and the
pixels, one channel where all three are the same. A PNG is smaller, but on 300 images of 93 sources to recall one took
longer (0.68 ms) than to decode and render the file again (0.46 ms); this takes 0.03. They show what the images show:
the folder is for its owner alone.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import imagecodecs
import numpy as np

from dicomsort.errors import DicomsortError, UsageError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION

if TYPE_CHECKING:
    from numpy.typing import NDArray


HASH_BYTES = 32
_HEAD = b"\1\0\0"  # version of this layout and of ``identity.perceptual_hash``; channels; whether there is a hash


class Picture(NamedTuple):
    """A rendering, uint8 (224, 224, 3), and its perceptual hash, uint64 (4,), None where it is blank."""

    image: NDArray[np.uint8]
    print: NDArray[np.uint64] | None


def open_cache(folder: Path) -> Path:
    """Make the cache's folder for this rendering version and return it; UsageError where it cannot be written."""
    place = folder / f"rendering-{RENDERING_VERSION}"
    try:
        _make(place)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        msg = f"--cache {str(folder)!r}: expected a folder that can be written, received {error.strerror}"
        raise UsageError(msg) from error
    return place


def _make(folder: Path) -> None:
    """Make a folder for its owner alone, where there is none; OSError where a link or a file has its name."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if folder.is_symlink() or not folder.is_dir():
            raise OSError(errno.ENOTDIR, f"{folder.name}, which is a link or a file") from None


def recall(place: Path, digest: str) -> Picture | None:
    """Return what is kept of the file with this SHA-256, None where there is nothing, or something damaged."""
    try:
        data = imagecodecs.lz4f_decode(_path(place, digest).read_bytes())
        format_, channels, hashed = data[: len(_HEAD)]
        pixels = np.frombuffer(data, np.uint8, offset=len(_HEAD) + HASH_BYTES).reshape(*INPUT_SHAPE[:2], channels)
    except (OSError, RuntimeError, ValueError):
        return None
    if format_ != _HEAD[0] or channels not in {1, 3}:
        return None
    print_ = np.frombuffer(data, np.uint64, HASH_BYTES // 8, len(_HEAD)) if hashed else None
    return Picture(np.repeat(pixels, 3, axis=2) if channels == 1 else pixels, print_)


def remember(place: Path, digest: str, picture: Picture) -> None:
    """Keep a rendering and its hash; a reader never meets a half. DicomsortError where there is no room."""
    path = _path(place, digest)
    red, green, blue = (picture.image[..., channel] for channel in range(3))
    grey = bool((red == green).all() and (red == blue).all())
    head = bytes([_HEAD[0], 1 if grey else 3, picture.print is not None])
    hashed = bytes(HASH_BYTES) if picture.print is None else picture.print.tobytes()
    part = ""
    try:
        _make(path.parent)
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            data = head + hashed + (red if grey else picture.image).tobytes()
            stream.write(imagecodecs.lz4f_encode(data, contentchecksum=True))
        os.replace(part, path)
    except OSError as error:
        Path(part).unlink(missing_ok=True) if part else None
        raise DicomsortError(
            f"--cache: expected room for the renderings, received {error.strerror or error}"
        ) from error


def _path(place: Path, digest: str) -> Path:
    return place / digest[:2] / f"{digest}.lz4"
