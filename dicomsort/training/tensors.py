"""Renders every image of a data set once, by an engine's workers, into one file mapped to memory."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dicomsort.engine import submit_batch
from dicomsort.errors import DicomsortError
from dicomsort.pixels import INPUT_SHAPE, PixelsError, render
from dicomsort.training.cache import recall, remember
from dicomsort.training.grouping import Kept, keep_together
from dicomsort.training.identity import patient, perceptual_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import DTypeLike, NDArray

    from dicomsort.engine import Engine
    from dicomsort.errors import WorkerLost
    from dicomsort.training.dataset import Dataset
    from dicomsort.training.progress import Reporter

BATCH = 8  # files a task: its time limit holds for all of them
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
    the items' ``group`` and ``kin`` keep together.
    """

    dataset: Dataset
    images: NDArray[np.uint8]
    rows: NDArray[np.intp]
    digests: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    kept: Kept


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
        for answer in _answers(engine, task, list(enumerate(paths))):
            seen += answer
            step.advance(len(answer))
    place.unlink()  # the mapping lasts
    good = [i for i, answer in enumerate(seen) if not answer.problem]
    skipped = tuple((path, answer.problem) for path, answer in zip(paths, seen, strict=True) if answer.problem)
    joined, kept = keep_together(dataset.only(good), [seen[i].print for i in good], [seen[i].patient for i in good])
    return Rendered(joined, images, np.array(good, np.intp), tuple(seen[i].digest for i in good), skipped, kept)


def render_into(room: Room, root: str, salt: bytes, files: Sequence[tuple[int, str]]) -> list[Seen]:
    """Render files (row, path below ``root``) into their rows; runs in a worker."""
    return [_render(room, row, Path(root, path), salt) for row, path in files]


def _render(room: Room, row: int, path: Path, salt: bytes) -> Seen:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        known = recall(Path(room.cache), digest) if room.cache else None
        image = render(path) if known is None else known
        owner = patient(path, salt)
    except PixelsError as error:
        return Seen(problem=str(error))
    except OSError as error:
        return Seen(problem=error.strerror or type(error).__name__)
    if room.cache and known is None:
        remember(Path(room.cache), digest, image)
    _put(room, row, image)
    return Seen(digest, owner, perceptual_hash(image))


def _put(room: Room, row: int, image: NDArray[np.uint8]) -> None:
    """Write a rendering into its row; a write, unlike a mapping, counts as no memory and survives a full disk."""
    handle = os.open(room.array, os.O_WRONLY)
    try:
        view = memoryview(image.tobytes())
        offset = room.offset + row * len(view)
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise DicomsortError(_no_room(image.nbytes, error)) from error
    finally:
        os.close(handle)


def _answers(engine: Engine, task: partial[list[Seen]], files: list[tuple[int, str]]) -> Iterator[list[Seen]]:
    """Yield the answers in the files' order."""
    waiting: deque[Future[list[Seen]]] = deque()
    for start in range(0, len(files), BATCH):
        waiting.append(submit_batch(engine, task, files[start : start + BATCH], _on_lost))
        if len(waiting) > AHEAD * engine.workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


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
