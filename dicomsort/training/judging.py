"""What workers do for an evaluation: render files, change them as the shortcut tests ask, and let the model judge.

What workers run are module-level functions on picklable values; the module is light to import.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.bundle import Predictor, load
from dicomsort.engine import R, submit_batch
from dicomsort.pixels import PixelsError, render
from dicomsort.records import RENDERING_VERSION
from dicomsort.training.identity import patient, perceptual_hash
from dicomsort.training.shortcuts import SHORTCUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from dicomsort.engine import Engine
    from dicomsort.errors import WorkerLost
    from dicomsort.training.progress import Step

    Row = NDArray[np.float32]

BATCH = 8  # files a task
AHEAD = 4  # tasks that wait, for each worker


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a file: ``problem`` says why it could not be judged, the rest is empty then.

    ``probabilities``: float32 (C,), calibrated; ``distance`` None where the model has none; ``variants``: name of a
    shortcut test -> probabilities; ``digest``: SHA-256 of the file; ``patient``: a salted hash, "" where none is named;
    ``print``: perceptual hash, None for a blank image.
    """

    problem: str = ""
    probabilities: Row | None = None
    distance: float | None = None
    variants: Mapping[str, Row] = field(default_factory=dict)
    digest: str = ""
    patient: str = ""
    print: NDArray[np.uint64] | None = None


def judge(bundle: str, root: str, salt: bytes, shortcuts: Sequence[str], paths: Sequence[str]) -> list[Judged]:
    """Judge the middle frame of each file (path below ``root``), plain and changed by each of ``shortcuts``."""
    return [_judge(_predictor(bundle), Path(root, path), salt, shortcuts) for path in paths]


def thumbnails(root: str, paths: Sequence[str]) -> list[NDArray[np.uint8] | None]:
    """Render files once more, to be looked at: uint8 (224, 224, 3), None where that fails by now."""
    return [_rendered(Path(root, path)) for path in paths]


def spread(
    engine: Engine,
    task: Callable[[list[str]], list[R]],
    paths: Sequence[str],
    on_lost: Callable[[str, WorkerLost], R],
    step: Step,
) -> list[R]:
    """Return what ``task`` gives for each path, in their order, worked out by the engine and counted on ``step``."""
    waiting: deque[Future[list[R]]] = deque()
    results: list[R] = []
    for start in range(0, len(paths), BATCH):
        waiting.append(submit_batch(engine, task, paths[start : start + BATCH], on_lost))
        while waiting and (len(waiting) > AHEAD * engine.workers or start + BATCH >= len(paths)):
            part = waiting.popleft().result()
            results += part
            step.advance(len(part))
    return results


def _judge(predictor: Predictor, path: Path, salt: bytes, shortcuts: Sequence[str]) -> Judged:
    try:
        image = render(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        owner = patient(path, salt)
    except PixelsError as error:
        return Judged(str(error))
    except OSError as error:
        return Judged(error.strerror or type(error).__name__)
    changed = [SHORTCUTS[name](image) for name in shortcuts]
    found = predictor.predict(np.stack([image, *changed]))
    plain, *others = found.probabilities
    distance = None if np.isnan(found.distances[0]) else float(found.distances[0])
    return Judged("", plain, distance, dict(zip(shortcuts, others, strict=True)), digest, owner, perceptual_hash(image))


def _rendered(path: Path) -> NDArray[np.uint8] | None:
    try:
        return render(path)
    except (PixelsError, OSError):
        return None


@lru_cache(maxsize=1)
def _predictor(bundle: str) -> Predictor:
    return Predictor(load(Path(bundle), RENDERING_VERSION))
