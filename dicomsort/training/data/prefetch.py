"""A data loader: threads prepare batches while a model trains; it measures how long the model waits for them.

Imports TensorFlow inside functions only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from dicomsort.engines.processes import usable_cores

Batch = tuple[NDArray[Any], ...]

MADE_AHEAD = 8  # batches at least; twice the threads where these are more


class BatchSource(Protocol):
    """Batches by epoch and index, both counted from 0; ``len`` is their number in each epoch.

    Several threads ask at a time.
    """

    def __len__(self) -> int: ...

    def batch(self, epoch: int, index: int) -> Batch:
        """Return a batch: arrays of the same length, the first of which are images or activations."""
        ...


class Feed:
    """A source's batches in their order, epoch after epoch; leaving its context ends the threads.

    It feeds ``epochs`` at most; ``threads`` are by default as many as the process may use cores. While one epoch ends,
    and is evaluated, the first batches of the next are made already. ``waited`` is the time in seconds that was spent
    on waiting for a batch which was not ready yet; ``len`` is the number of batches from where ``go_to`` went.
    """

    def __init__(self, source: BatchSource, epochs: int, threads: int | None = None) -> None:
        self.source, self.waited, self.epoch, self._index = source, 0.0, 0, 0
        self._epochs, threads = epochs, threads or usable_cores()
        self._ahead = max(MADE_AHEAD, 2 * threads)
        self._pool = ThreadPoolExecutor(threads, "dicomsort-feed")
        self._made: deque[tuple[int, int, Future[Batch]]] = deque()
        self._next = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def go_to(self, epoch: int, index: int = 0) -> None:
        """Continue with this batch, and begin to make it and those that follow."""
        self.epoch, self._index = epoch, index
        self._seek(epoch, index)

    def __len__(self) -> int:
        return len(self.source) - self._index

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self._index, len(self.source)):
            self._seek(self.epoch, index)
            _, _, future = self._made.popleft()
            began = time.perf_counter()
            batch = future.result()
            self.waited += time.perf_counter() - began
            self._fill()
            yield batch

    def _seek(self, epoch: int, index: int) -> None:
        if not self._made or self._made[0][:2] != (epoch, index):
            for _, _, future in self._made:
                future.cancel()
            self._made.clear()
            self._next = (epoch, index)
            self._fill()

    def _fill(self) -> None:
        while len(self._made) < self._ahead and self._next[0] < self._epochs:
            epoch, index = self._next
            self._made.append((epoch, index, self._pool.submit(self.source.batch, epoch, index)))
            self._next = (epoch, index + 1) if index + 1 < len(self.source) else (epoch + 1, 0)


def as_dataset(feed: Feed) -> Any:
    """Return a tf.data.Dataset of the rest of the epoch that ``feed`` is in, and then of the later epochs.

    It prefetches nothing itself, so that ``feed.waited`` is all the time that a training waits.
    """
    import tensorflow as tf

    arrays = feed.source.batch(feed.epoch, 0)
    signature = tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays)
    dataset = tf.data.Dataset.from_generator(lambda: iter(feed), output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    return dataset.with_options(options).apply(tf.data.experimental.assert_cardinality(len(feed)))
