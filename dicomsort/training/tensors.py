"""Renders every image of a data set once, in parallel, into one file mapped to memory."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.errors import DicomsortError, WorkerLost
from dicomsort.pixels import INPUT_SHAPE, PixelsError, render

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dicomsort.training.dataset import Dataset
    from dicomsort.training.progress import Reporter

BATCH = 16


@dataclass(frozen=True, slots=True)
class Rendered:
    """A data set with its pixels.

    ``images``: uint8 (M, 224, 224, 3), mapped; ``rows[i]`` is the row of item i of ``dataset``. ``digests`` are the
    files' SHA-256, ``skipped`` the (relative path, reason) of files that are no readable image.
    """

    dataset: Dataset
    images: NDArray[np.uint8]
    rows: NDArray[np.intp]
    digests: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def render_all(dataset: Dataset, cache: Path, reporter: Reporter) -> Rendered:
    """Render the data set's files into ``cache``.

    WorkerLost where a worker process dies, DicomsortError where ``cache`` finds no room.
    """
    paths = [item.path for item in dataset.items]
    images = _claim(cache, (len(paths), *INPUT_SHAPE))
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    answers: list[tuple[str, str]] = []
    context = multiprocessing.get_context("spawn")
    with (
        reporter.step("Rendering images", len(paths)) as step,
        ProcessPoolExecutor(min(os.cpu_count() or 1, len(batches)), context, _leave_signals) as pool,
    ):
        jobs = [pool.submit(_render, cache, dataset.root, i * BATCH, batch) for i, batch in enumerate(batches)]
        try:
            for job in jobs:
                answers += job.result()
                step.advance(BATCH)
        except BrokenProcessPool as error:
            msg = f"rendering: expected {len(paths)} images, received {len(answers)} before a worker process died"
            raise WorkerLost(msg) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    good = [i for i, (_, problem) in enumerate(answers) if not problem]
    skipped = tuple((path, problem) for path, (_, problem) in zip(paths, answers, strict=True) if problem)
    return Rendered(dataset.only(good), images, np.array(good, np.intp), tuple(answers[i][0] for i in good), skipped)


def _claim(cache: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make the mapped file, all of its room taken now: one that finds none later kills the process."""
    try:
        images: NDArray[np.uint8] = np.lib.format.open_memmap(cache, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):
            with cache.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, cache.stat().st_size)
    except OSError as error:
        msg = (
            f"rendering: expected {math.prod(shape) >> 20} MiB of room for temporary files, received: "
            f"{error.strerror}; set TMPDIR to a folder that has it"
        )
        raise DicomsortError(msg) from error
    return images


def _leave_signals() -> None:
    """Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render(cache: Path, root: Path, start: int, paths: Sequence[str]) -> list[tuple[str, str]]:
    """Render files below ``root`` into the rows of ``cache`` from ``start``; return (SHA-256, why not) for each."""
    images = np.lib.format.open_memmap(cache, "r+")
    answers = []
    for row, path in enumerate(paths, start):
        try:
            images[row] = render(root / path)
            answers.append((hashlib.sha256((root / path).read_bytes()).hexdigest(), ""))
        except PixelsError as error:
            answers.append(("", str(error)))
        except OSError as error:
            answers.append(("", error.strerror or type(error).__name__))
    images.flush()
    return answers
