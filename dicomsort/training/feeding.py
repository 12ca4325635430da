"""Keras glue: batches from the mapped images, what is shown of an epoch, and predictions with a count.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from dicomsort.training.augment import augment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dicomsort.training.augment import Strength
    from dicomsort.training.dataset import Dataset, Indices
    from dicomsort.training.progress import Step

PREDICT_BATCH = 32
WAITING = 8  # batches made ahead


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras is untyped
    """Feeds rows of an array (N, …) as float32, with one-hot truth float32 (n, C) and, where given, weights (n,).

    ``rows`` are those of ``data``; ``truth`` and ``weights`` have one for each. With a ``seed`` each epoch has an order
    of its own, and with a ``strength`` each of its images (uint8) a variation of its own; both depend on seed, epoch
    and item alone, not on what was fed before or by which thread.
    """

    def __init__(
        self,
        data: NDArray[Any],
        rows: Indices,
        truth: NDArray[np.float32],
        size: int,
        seed: int | None = None,
        weights: NDArray[np.float32] | None = None,
        strength: Strength | None = None,
    ) -> None:
        super().__init__(workers=_threads() if strength else 1, max_queue_size=WAITING)
        self._data, self._rows, self._truth, self._size, self._weights = data, rows, truth, size, weights
        self._seed, self._strength = seed, strength
        self.begin(0)

    def begin(self, epoch: int, skip: int = 0) -> None:
        """Go to an epoch, counted from 0, less its first ``skip`` batches."""
        self.epoch, self._skip = epoch, skip
        count = len(self._rows)
        self._order = np.arange(count) if self._seed is None else self._random(0).permutation(count)

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._size) - self._skip

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], ...]:
        start = (self._skip + index) * self._size
        picked = self._order[start : start + self._size]
        batch = self._data[self._rows[picked]]
        if self._strength is not None:
            varied = (augment(batch[i], self._strength, self._random(1, int(k))) for i, k in enumerate(picked))
            batch = np.stack(list(varied))
        fed = (batch.astype(np.float32), self._truth[picked])
        return fed if self._weights is None else (*fed, self._weights[picked])

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self._seed or 0, self.epoch, *purpose))


class Begin(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Brings batches to each epoch: Keras' own calls at a data set's epochs come once too often."""

    def __init__(self, data: Batches) -> None:
        super().__init__()
        self._data = data

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Go to the epoch, unless the batches are in it already."""
        if self._data.epoch != epoch:
            self._data.begin(epoch)


class Watch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Counts batches and shows loss and accuracy beside the count."""

    def __init__(self, step: Step, epochs: int) -> None:
        super().__init__()
        self._step, self._epochs, self._epoch = step, epochs, 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Remember the epoch."""
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Count a batch."""
        self._step.advance(1, self._text(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Show the validation figures."""
        self._step.advance(0, self._text(logs))

    def _text(self, logs: dict[str, float] | None) -> str:
        figures = " ".join(f"{name} {value:.3f}" for name, value in (logs or {}).items())
        return f"epoch {self._epoch}/{self._epochs} {figures}"


def predict_rows(model: Any, images: NDArray[np.uint8], rows: Indices, step: Step) -> NDArray[np.float32]:
    """Return the model's float32 output for ``rows`` of ``images`` (uint8), counted on ``step``."""
    parts = []
    for start in range(0, len(rows), PREDICT_BATCH):
        batch = images[rows[start : start + PREDICT_BATCH]].astype(np.float32)
        parts.append(np.asarray(model.predict_on_batch(batch), np.float32))
        step.advance(len(batch))
    return np.concatenate(parts)


def compiled(model: Any, learning_rate: Any) -> Any:
    """Return the model, compiled as the reference is: Adam, categorical cross-entropy, accuracy.

    ``learning_rate`` is a number or a schedule of Keras. The optimizer's state is there from now on.
    """
    model.compile(keras.optimizers.Adam(learning_rate), "categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    return model


def run(
    model: Any, data: Batches, held: Batches | None, epochs: int, step: Step, callbacks: Sequence[Any] = ()
) -> dict[str, list[float]]:
    """Fit a compiled model from where ``data`` is up to ``epochs``; return the history.

    ``data`` shuffles itself, by a seed of its own. Only its present epoch may have begun already.
    """
    watch = [Begin(data), Watch(step, epochs), *callbacks]
    done = model.fit(
        data, validation_data=held, epochs=epochs, initial_epoch=data.epoch, shuffle=False, verbose=0, callbacks=watch
    )
    return {column: [float(value) for value in values] for column, values in done.history.items()}


def one_hot(dataset: Dataset) -> NDArray[np.float32]:
    """Return the items' classes, one-hot float32 (N, C)."""
    return np.eye(len(dataset.labels), dtype=np.float32)[dataset.classes()]


@contextmanager
def fast_precision() -> Iterator[bool]:
    """Build models in mixed precision where there is a GPU, else in float32; yield whether it is mixed."""
    mixed = has_gpu()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16" if mixed else "float32")
    try:
        yield mixed
    finally:
        keras.config.set_dtype_policy(before)


def has_gpu() -> bool:
    """Tell whether TensorFlow has a GPU to train on."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def in_float32(model: Any, build: Callable[[], Any]) -> Any:
    """Return a model of ``build``, in float32, with the weights of ``model``, trained in mixed precision."""
    plain = build()
    plain.set_weights(model.get_weights())
    return plain


def _threads() -> int:
    """Return the cores that this process may use: Pillow and NumPy work outside the interpreter's lock."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
