"""Renders every image of a data set once, by an engine's workers, into one file mapped to memory."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dicomsort import pixels
from dicomsort.engine import submit_batch
from dicomsort.errors import DicomsortError
from dicomsort.pixels import INPUT_SHAPE, PixelsError
from dicomsort.training.augment import vary
from dicomsort.training.cache import Picture, recall, remember
from dicomsort.training.grouping import Kept, keep_together
from dicomsort.training.identity import hash_picture, patient

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import DTypeLike, NDArray

    from dicomsort.engine import Engine
    from dicomsort.errors import WorkerLost
    from dicomsort.training.dataset import Dataset
    from dicomsort.training.progress import Reporter
    from dicomsort.training.varying import Vary

BATCH, MOST = 8, 64  # files a task, and how many where they are small: its time limit holds for all of them
BYTES = 1 << 20  # of a task's files, from which on they are not small
SMALL = 1 << 20  # bytes of a file that is read at once
AHEAD = 4  # tasks a worker whose results may wait
SALT_BYTES = 16


class Seen(NamedTuple):
    """What a worker found: SHA-256, salted hash of the patient, perceptual hash; or why the file is no image."""

    digest: str = ""
    patient: str = ""
    print: NDArray[np.uint64] | None = None
    problem: str = ""


class Room(NamedTuple):
    """Where workers put what they render: the array's file and the offset of its data; the cache, "" for none."""

    array: str
    offset: int
    cache: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A data set with its pixels.

    ``images``: uint8 (M, 224, 224, 3), mapped; ``rows[i]`` is the row of item i of ``dataset``. ``digests`` are the
    files' SHA-256, ``skipped`` the (relative path, reason) of files that are no readable image, ``kept`` counts what
    the items' ``group`` and ``kin`` keep together; ``vary`` makes variations of images.
    """

    dataset: Dataset
    images: NDArray[np.uint8]
    rows: NDArray[np.intp]
    digests: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    kept: Kept
    vary: Vary = vary


def render_all(
    dataset: Dataset, place: Path, engine: Engine, reporter: Reporter, cache: Path | None = None
) -> Rendered:
    """Render the data set's files into the new file ``place``, or take them from ``cache`` (see ``open_cache``).

    What one file costs is bound by the engine's limits: a file beyond them is skipped. ``place`` has lost its name when
    this returns, so that however the process ends no image is left behind. DicomsortError where ``place`` or ``cache``
    finds no room.
    """
    paths = [item.path for item in dataset.items]
    images = claim(place, (len(paths), *INPUT_SHAPE))
    room = Room(str(place), images.offset, str(cache or ""))
    task = partial(render_into, room, str(dataset.root), secrets.token_bytes(SALT_BYTES))
    seen: list[Seen] = []
    with reporter.step("Rendering images", len(paths)) as step:
        for answer in _answers(engine, task, _batches(dataset.root, paths)):
            seen += answer
            step.advance(len(answer))
    place.unlink()  # the mapping lasts
    good = [i for i, answer in enumerate(seen) if not answer.problem]
    skipped = tuple((path, answer.problem) for path, answer in zip(paths, seen, strict=True) if answer.problem)
    joined, kept = keep_together(dataset.only(good), [seen[i].print for i in good], [seen[i].patient for i in good])
    return Rendered(joined, images, np.array(good, np.intp), tuple(seen[i].digest for i in good), skipped, kept)


def render_into(room: Room, root: str, salt: bytes, files: Sequence[tuple[int, str]]) -> list[Seen]:
    """Render files (row, path below ``root``) into their rows; runs in a worker."""
    handle = os.open(room.array, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return [_render(room, handle, row, Path(root, path), salt) for row, path in files]
    finally:
        os.close(handle)


def _render(room: Room, handle: int, row: int, path: Path, salt: bytes) -> Seen:
    try:
        digest = _sha256(path)
        known = recall(Path(room.cache), digest) if room.cache else None
        picture = known or _rendered(path)
        owner = patient(path, salt)
    except PixelsError as error:
        return Seen(problem=str(error))
    except OSError as error:
        return Seen(problem=error.strerror or type(error).__name__)
    if room.cache and known is None:
        remember(Path(room.cache), digest, picture)
    _put(handle, room.offset + row * picture.image.nbytes, picture.image)
    return Seen(digest, owner, picture.print)


def _rendered(path: Path) -> Picture:
    shown = pixels.picture(path)
    return Picture(pixels.as_array(shown), hash_picture(shown))


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= SMALL:  # a buffer for more would cost more than hashing
            return hashlib.sha256(file.readall()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(handle: int, offset: int, image: NDArray[np.uint8]) -> None:
    """Write a rendering at its place; a write, unlike a mapping, counts as no memory and survives a full disk."""
    view = np.ascontiguousarray(image).data.cast("B")
    try:
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise DicomsortError(_no_room(image.nbytes, error)) from error


def _answers(
    engine: Engine, task: partial[list[Seen]], batches: Iterable[list[tuple[int, str]]]
) -> Iterator[list[Seen]]:
    """Yield the answers in the batches' order."""
    waiting: deque[Future[list[Seen]]] = deque()
    for batch in batches:
        waiting.append(submit_batch(engine, task, batch, _on_lost))
        if len(waiting) > AHEAD * engine.workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(root: Path, paths: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Yield the files' rows and paths in batches, of small files more."""
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


def _on_lost(_: tuple[int, str], error: WorkerLost) -> Seen:
    return Seen(problem=str(error))


def claim(place: Path, shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> np.memmap[Any, Any]:
    """Make the mapped file of an array, all of its room taken now: one that finds none later kills the process."""
    try:
        array = np.lib.format.open_memmap(place, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with place.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, place.stat().st_size)
    except OSError as error:
        raise DicomsortError(_no_room(math.prod(shape) * np.dtype(dtype).itemsize, error)) from error
    return array


def _no_room(size: int, error: OSError) -> str:
    return (
        f"rendering: expected {size >> 20} MiB of room for temporary files, received: {error.strerror}; "
        "set TMPDIR to a folder that has it"
    )
