"""Who makes variations of images: the threads that feed, or an engine's workers where threads cannot use all cores."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from dicomsort.errors import WorkerLost
from dicomsort.training.augment import STRENGTHS, vary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dicomsort.engine import Engine
    from dicomsort.training.augment import Strength

    Images = NDArray[np.uint8]
    Seeds = Sequence[tuple[int, ...]]
    Vary = Callable[[Images, Strength, Seeds], Images]

# Measured: a strong variation holds the interpreter's lock for a quarter of its time, a light one for a fifth, so that
# threads use this many cores at most.
THREADS_USE = 4


class _Task(NamedTuple):
    images: Images
    strength: Strength
    seeds: Seeds


def varied_by(engine: Engine, augment: str) -> Vary:
    """Return what varies images by the strength of that name, in the engine's workers where that is of use.

    Else the engine is closed: its workers would wait in vain.
    """
    if STRENGTHS[augment] is None or engine.workers <= THREADS_USE:
        engine.close()
        return vary
    return partial(_vary_by, engine)


def _vary_by(engine: Engine, images: Images, strength: Strength, seeds: Seeds) -> Images:
    try:
        return engine.submit(vary_task, _Task(images, strength, seeds)).result()
    except WorkerLost:  # to whatever: the images are no hostile file's
        return vary(images, strength, seeds)


def vary_task(task: _Task) -> Images:
    """Vary a batch of images; runs in a worker."""
    return vary(*task)
