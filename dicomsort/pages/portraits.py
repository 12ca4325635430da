"""Portraits of files, made by workers with limits: a hostile file costs its own picture and nothing else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice

from dicomsort.engine import Engine, submit_batch
from dicomsort.errors import WorkerLost
from dicomsort.tasks import Asked, Portrait, portray

BATCH = 4  # portraits a task: few, so that none meets its time limit for its neighbours' sake
AHEAD = 4  # tasks a worker that are sent before the first is waited for


def portraits(engine: Engine, root: str, asked: Iterable[Asked]) -> Iterator[Portrait]:
    """Yield a portrait of each, in that order; ``problem`` tells of one that cost a worker its life or its time.

    Paths are below ``root``. Some are made ahead of what is taken, but no more than the workers need to be busy.
    """
    rest = iter(asked)
    under_way: deque[Future[list[Portrait]]] = deque()
    while batch := list(islice(rest, BATCH)):
        under_way.append(submit_batch(engine, partial(portray, root), batch, _lost))
        if len(under_way) > AHEAD * engine.workers:
            yield from under_way.popleft().result()
    while under_way:
        yield from under_way.popleft().result()


def _lost(_: Asked, error: WorkerLost) -> Portrait:
    return Portrait(b"", str(error))
