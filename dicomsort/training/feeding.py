"""Keras glue: batches from the mapped images, what is shown of an epoch, and predictions with a count.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.training.dataset import Indices
    from dicomsort.training.progress import Step

PREDICT_BATCH = 32


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras is untyped
    """Feeds rows of an array (N, …) as float32, with one-hot truth float32 (n, C) and, where given, weights (n,).

    ``rows`` are those of ``data``; ``truth`` and ``weights`` have one for each. With a ``seed`` each epoch has an order
    of its own.
    """

    def __init__(
        self,
        data: NDArray[Any],
        rows: Indices,
        truth: NDArray[np.float32],
        size: int,
        seed: int | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        self._data, self._rows, self._truth, self._size, self._weights = data, rows, truth, size, weights
        self._random = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(rows))
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], ...]:
        picked = self._order[index * self._size : (index + 1) * self._size]
        batch = self._data[self._rows[picked]].astype(np.float32)
        return (batch, self._truth[picked]) + (() if self._weights is None else (self._weights[picked],))

    def on_epoch_end(self) -> None:
        """Draw the next epoch's order."""
        if self._random is not None:
            self._order = self._random.permutation(len(self._rows))


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


def run(model: Any, data: Any, held: Any, epochs: int, learning_rate: Any, step: Step) -> dict[str, list[float]]:
    """Compile and fit as the reference does: Adam, categorical cross-entropy, accuracy; return the history.

    ``data`` shuffles itself, by a seed of its own. ``learning_rate`` is a number or a schedule of Keras.
    """
    model.compile(keras.optimizers.Adam(learning_rate), "categorical_crossentropy", metrics=["accuracy"])
    watch = [Watch(step, epochs)]
    done = model.fit(data, validation_data=held, epochs=epochs, shuffle=False, verbose=0, callbacks=watch)
    return {column: [float(value) for value in values] for column, values in done.history.items()}
