"""Renders every image of a data set once, by an engine's workers, into one file that is mapped to memory.

A cache holds renderings from one training to the next: a file each, named by the SHA-256 of the source file. It is an
LZ4 frame with a checksum (lz4.org; ``lz4 -d`` reads it) with a head, the perceptual hash and the pixels, one channel
where all three are the same. A PNG is smaller, but over 300 images of 93 sources reading one took longer (0.68 ms) than
decoding and rendering the file again (0.46 ms); LZ4 takes 0.03 ms. The cache's folder is for its owner alone, as it
shows the images.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dicomsort import pixels
from dicomsort.engines.engine import Engine, map_in_order
from dicomsort.errors import DicomsortError, UsageError, WorkerLost, counted
from dicomsort.files import hashed, opened_file
from dicomsort.pixels import INPUT_SHAPE, PixelsError
from dicomsort.records import RENDERING_VERSION
from dicomsort.report import visible
from dicomsort.training.data.augment import Vary, vary
from dicomsort.training.data.dataset import Dataset
from dicomsort.training.data.grouping import ImageGroups, keep_together, patient, perceptual_hash
from dicomsort.training.progress import Reporter

HASH_BYTES = 32
SHOWN = 10  # files, or groups, that a training lists
_HEAD = b"\1\0\0"  # version of this layout and of ``grouping.perceptual_hash``; channels; whether there is a hash
_LARGEST = len(_HEAD) + HASH_BYTES + math.prod(INPUT_SHAPE)


class RenderedImage(NamedTuple):
    """A rendering, uint8 (224, 224, 3), and its perceptual hash, uint64 (4,), None where it is blank."""

    image: NDArray[np.uint8]
    phash: NDArray[np.uint64] | None


def place_of(folder: Path) -> Path:
    """Return the folder of a cache that has the pictures of this rendering version."""
    return folder / f"rendering-{RENDERING_VERSION}"


def open_cache(folder: Path) -> Path:
    """Make the cache's folder for this rendering version and return it; UsageError where it cannot be written."""
    place = place_of(folder)
    try:
        _make(place)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UsageError(
            f"--cache {str(folder)!r}: expected a folder that can be written, received {error.strerror}"
        ) from error
    return place


def _make(folder: Path) -> None:
    """Make a folder for its owner alone, where there is none; OSError where a link or a file has its name."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if folder.is_symlink() or not folder.is_dir():
            raise OSError(errno.ENOTDIR, f"{folder.name}, which is a link or a file") from None


def load_cached(place: Path, digest: str) -> RenderedImage | None:
    """Return the cached rendering of the file with this SHA-256, None where it is missing, damaged or another file."""
    try:
        with opened_file(str(_path(place, digest))) as file:
            data = imagecodecs.lz4f_decode(file.read(2 * _LARGEST), out=_LARGEST + 1)
        format_, channels, has_hash = data[: len(_HEAD)]
        pixels = np.frombuffer(data, np.uint8, offset=len(_HEAD) + HASH_BYTES).reshape(*INPUT_SHAPE[:2], channels)
    except (OSError, RuntimeError, ValueError):
        return None
    if format_ != _HEAD[0] or channels not in {1, 3}:
        return None
    phash = np.frombuffer(data, np.uint64, HASH_BYTES // 8, len(_HEAD)) if has_hash else None
    return RenderedImage(np.repeat(pixels, 3, axis=2) if channels == 1 else pixels, phash)


def store_cached(place: Path, digest: str, picture: RenderedImage) -> None:
    """Cache a rendering and its hash, atomically; DicomsortError where there is no room."""
    path = _path(place, digest)
    red, green, blue = (picture.image[..., channel] for channel in range(3))
    grey = bool((red == green).all() and (red == blue).all())
    head = bytes([_HEAD[0], 1 if grey else 3, picture.phash is not None])
    phash = bytes(HASH_BYTES) if picture.phash is None else picture.phash.tobytes()
    part = ""
    try:
        _make(path.parent)
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            data = head + phash + (red if grey else picture.image).tobytes()
            stream.write(imagecodecs.lz4f_encode(data, contentchecksum=True))
        os.replace(part, path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            return  # it has the name, and will be rendered each time
        raise DicomsortError(
            f"--cache: expected room for the renderings, received {error.strerror or error}"
        ) from error


def _path(place: Path, digest: str) -> Path:
    return place / digest[:2] / f"{digest}.lz4"


BATCH, MOST = 8, 64  # files a task, and how many where they are small: its time limit holds for all of them
BYTES = 1 << 20  # of a task's files, from which on they are not small
SALT_BYTES = 16


class RenderedFile(NamedTuple):
    """A worker's result: SHA-256, salted hash of the patient, perceptual hash; or why the file is no image."""

    digest: str = ""
    patient: str = ""
    phash: NDArray[np.uint64] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A data set with its pixels.

    ``images``: uint8 (M, 224, 224, 3), mapped; ``rows[i]`` is the row of item i of ``dataset``. ``digests`` are the
    files' SHA-256, ``skipped`` the (relative path, reason) of files that are no readable image, ``grouping`` counts
    the images that stay together; ``vary`` makes variations of images.
    """

    dataset: Dataset
    images: NDArray[np.uint8]
    rows: NDArray[np.intp]
    digests: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    grouping: ImageGroups
    vary: Vary = vary


def render_all(
    dataset: Dataset, place: Path, engine: Engine, reporter: Reporter, cache: Path | None = None
) -> Rendered:
    """Render the data set's files into the new file ``place``, or take them from ``cache`` (see ``open_cache``).

    A file beyond the engine's limits is skipped. ``place`` is unlinked when this returns, so that however the process
    ends no image is left behind. DicomsortError where there is no room for ``place`` or ``cache``.
    """
    paths = [item.path for item in dataset.items]
    images = allocated_memmap(place, (len(paths), *INPUT_SHAPE))
    task = partial(render_into, place, images.offset, cache, dataset.root, secrets.token_bytes(SALT_BYTES))
    results: list[RenderedFile] = []
    with reporter.step("Rendering images", len(paths)) as step:
        for answers in map_in_order(engine, task, _batches(dataset.root, paths), _lost):
            results += answers
            step.advance(len(answers))
    place.unlink()  # the mapping lasts
    good = [i for i, answer in enumerate(results) if not answer.problem]
    skipped = tuple((path, answer.problem) for path, answer in zip(paths, results, strict=True) if answer.problem)
    hashes, patients = ([getattr(results[i], name) for i in good] for name in ("phash", "patient"))
    joined, grouping = keep_together(dataset.only(good), hashes, patients)
    return Rendered(joined, images, np.array(good, np.intp), tuple(results[i].digest for i in good), skipped, grouping)


def render_into(
    place: Path, offset: int, cache: Path | None, root: Path, salt: bytes, files: Sequence[tuple[int, str]]
) -> list[RenderedFile]:
    """Render files (row, path below ``root``) into the array at ``offset`` of ``place``; runs in a worker."""
    handle = os.open(place, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return [_render(handle, offset, row, root / path, cache, salt) for row, path in files]
    finally:
        os.close(handle)


def _render(handle: int, offset: int, row: int, path: Path, cache: Path | None, salt: bytes) -> RenderedFile:
    try:
        digest = _sha256(path)
        known = load_cached(cache, digest) if cache else None
        picture = known or _rendered(path)
        owner = patient(path, salt)
    except PixelsError as error:
        return RenderedFile(problem=str(error))
    except OSError as error:
        return RenderedFile(problem=error.strerror or type(error).__name__)
    if cache and known is None:
        store_cached(cache, digest, picture)
    _put(handle, offset + row * picture.image.nbytes, picture.image)
    return RenderedFile(digest, owner, picture.phash)


def _rendered(path: Path) -> RenderedImage:
    shown = pixels.picture(path)
    return RenderedImage(pixels.as_array(shown), perceptual_hash(shown))


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashed(file.fileno())


def _put(handle: int, offset: int, image: NDArray[np.uint8]) -> None:
    """Write a rendering at its place; a write, unlike a mapping, counts as no memory and survives a full disk."""
    view = np.ascontiguousarray(image).data.cast("B")
    try:
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise DicomsortError(_no_room(image.nbytes, error)) from error


def _lost(_: tuple[int, str], error: WorkerLost) -> RenderedFile:
    return RenderedFile(problem=str(error))


def _batches(root: Path, paths: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Yield the files' rows and paths in batches, larger ones of small files."""
    batch: list[tuple[int, str]] = []
    size = 0
    for row, path in enumerate(paths):
        batch.append((row, path))
        with suppress(OSError):  # the worker will say why
            size += (root / path).stat().st_size
        if len(batch) >= (BATCH if size > BYTES else MOST):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def allocated_memmap(
    place: Path, shape: tuple[int, ...], dtype: DTypeLike = np.uint8, *, named: bool = True
) -> np.memmap[Any, Any]:
    """Return a new mapped file of an array, all of it allocated now: a full disk would kill the process later.

    One that is not ``named`` loses its name at once, so that a process that is killed leaves no gigabytes.
    DicomsortError where there is no room.
    """
    try:
        array = np.lib.format.open_memmap(place, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with place.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, place.stat().st_size)
        if not named:
            place.unlink()
    except OSError as error:
        raise DicomsortError(_no_room(math.prod(shape) * np.dtype(dtype).itemsize, error)) from error
    return array


def _no_room(size: int, error: OSError) -> str:
    return (
        f"rendering: expected {size >> 20} MiB of room for temporary files, received: {error.strerror}; "
        "set TMPDIR to a folder that has it"
    )


def skipped_lines(skipped: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield in lines which files were skipped, and why; nothing where none was."""
    if skipped:
        yield f"Skipped {counted(len(skipped), 'file that is', 'files that are')} no readable image:"
        yield from (f"  {visible(path)}: {reason}" for path, reason in skipped[:SHOWN])
    if len(skipped) > SHOWN:
        yield f"  … and {len(skipped) - SHOWN} more, all listed in metrics.json"
