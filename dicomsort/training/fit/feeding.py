"""Keras glue: batches from the mapped images, a progress callback, training and predictions with a count.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dicomsort.errors import DicomsortError
from dicomsort.training.data.augment import STRENGTHS, Strength, Vary, vary
from dicomsort.training.data.balancing import balance
from dicomsort.training.data.dataset import Dataset, Indices
from dicomsort.training.data.prefetch import Feed, as_dataset
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.fit.hyperparameters import Hyperparameters
from dicomsort.training.progress import Step

PREDICT_BATCH = 32


@dataclass
class Batches:
    """Rows of an array (N, …), with one-hot truth float32 (n, C) and, where given, weights (n,); see ``BatchSource``.

    ``rows`` are those of ``data``; ``truth`` and ``weights`` have one for each. With a ``seed`` each epoch has an order
    of its own, and with a ``strength`` each of its images (uint8) a variation of its own, made by ``vary``; both depend
    on seed, epoch and item alone, not on what was fed before or by which thread.
    """

    data: NDArray[Any]
    rows: Indices
    truth: NDArray[np.float32]
    size: int
    seed: int | None = None
    weights: NDArray[np.float32] | None = None
    strength: Strength | None = None
    vary: Vary = vary
    _orders: dict[int, tuple[int, NDArray[np.intp]]] = field(init=False, default_factory=dict)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.size)

    def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """Return images as they are in ``data`` (a network makes them float32), truth, and weights if there are any."""
        chosen = self._ordered(epoch)[index * self.size : (index + 1) * self.size]
        images = self.data[self.rows[chosen]]
        if self.strength is not None:
            seeds = [(self.seed or 0, epoch, 1, int(item)) for item in chosen]
            images = self.vary(images, self.strength, seeds)
        fed = (images, self.truth[chosen])
        return fed if self.weights is None else (*fed, self.weights[chosen])

    def _ordered(self, epoch: int) -> NDArray[np.intp]:
        if self.seed is None:
            return np.arange(len(self.rows))
        known, order = self._orders.get(epoch % 2, (-1, np.arange(0)))  # batches of two epochs are made at a time
        if known != epoch:
            order = np.random.default_rng((self.seed, epoch, 0)).permutation(len(self.rows))
            self._orders[epoch % 2] = (epoch, order)
        return order


def waiting(spent: Sequence[tuple[float, float]]) -> float | None:
    """Return the share of time, 0 to 1, that was spent on waiting for batches: see ``ProgressCallback.spent``."""
    waited, took = (sum(part) for part in zip(*spent, strict=True)) if spent else (0.0, 0.0)
    return round(waited / took, 4) if took else None


class ProgressCallback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Brings a feed to each epoch, counts batches, and shows loss and accuracy beside the count.

    ``spent`` has the seconds that were waited and all that batches took, for each epoch, without validation.
    """

    def __init__(self, feed: Feed, step: Step, epochs: int) -> None:
        super().__init__()
        self._feed, self._step, self._epochs = feed, step, epochs
        self._epoch, self._began, self._waited = 0, 0.0, 0.0
        self.spent: list[tuple[float, float]] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Go to the epoch, unless the feed is in it already."""
        if self._feed.epoch != epoch:
            self._feed.go_to(epoch)
        self._epoch, self._began, self._waited = epoch + 1, time.perf_counter(), self._feed.waited
        self.spent.append((0.0, 0.0))

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Count a batch, and measure the time."""
        self.spent[-1] = (self._feed.waited - self._waited, time.perf_counter() - self._began)
        self._step.advance(1, self._text(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Show the validation metrics."""
        self._step.advance(0, self._text(logs))

    def _text(self, logs: dict[str, float] | None) -> str:
        figures = " ".join(f"{name} {value:.3f}" for name, value in (logs or {}).items())
        return f"epoch {self._epoch}/{self._epochs} {figures}"


class Diverged(DicomsortError):
    """A training whose loss or weights are no finite numbers any more."""


def require_finite(model: Any, logs: Mapping[str, float], epoch: int, learning_rate: float) -> None:
    """Raise Diverged unless the losses of an epoch (counted from 0), and the weights after it, are finite."""
    losses = {name: value for name, value in logs.items() if name.endswith("loss") and not math.isfinite(value)}
    if not losses and all(np.isfinite(weight).all() for weight in model.get_weights()):
        return
    received = ", ".join(f"{name} {value}" for name, value in losses.items()) or "weights that are not"
    raise Diverged(
        f"the training diverged in epoch {epoch + 1}: expected loss and weights to be finite, received {received}; "
        f"train with a --learning-rate smaller than {learning_rate:g}"
    )


class DivergenceCallback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Ends a training that diverges, as the epoch ends."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self._learning_rate = learning_rate

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Look at the losses and the weights."""
        require_finite(self.model, logs or {}, epoch, self._learning_rate)


def predict_rows(model: Any, images: NDArray[np.uint8], rows: Indices, step: Step | None = None) -> NDArray[np.float32]:
    """Return the model's float32 output for ``rows`` of ``images`` (uint8), counted on ``step``."""
    parts = []
    for start in range(0, len(rows), PREDICT_BATCH):
        batch = images[rows[start : start + PREDICT_BATCH]].astype(np.float32)
        parts.append(np.asarray(model.predict_on_batch(batch), np.float32))
        if step is not None:
            step.advance(len(batch))
    return np.concatenate(parts)


def training_batches(rendered: Rendered, items: Indices, hyper: Hyperparameters) -> Batches:
    """Return the batches of ``items`` to train on: shuffled, varied and weighed as ``hyper`` says."""
    weights = balance(rendered.dataset.only(items)) if hyper.balance else None
    return Batches(
        rendered.images, rendered.rows[items], one_hot(rendered.dataset)[items], hyper.batch_size, hyper.seed, weights,
        STRENGTHS[hyper.augment], rendered.vary,
    )  # fmt: skip


def compiled(build: Callable[[], Any], learning_rate: float) -> Any:
    """Return the model of ``build``, compiled with Adam, categorical cross-entropy and accuracy.

    It is in mixed precision where there is a GPU, else in float32. The optimizer's state is built.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16" if has_gpu() else "float32")
    try:
        model = build()
        accuracy = keras.metrics.CategoricalAccuracy("accuracy")  # by its name it would be made in the training step
        model.compile(keras.optimizers.Adam(learning_rate), "categorical_crossentropy", metrics=[accuracy])
        model.optimizer.build(model.trainable_variables)
        return model
    finally:
        keras.config.set_dtype_policy(before)


def run(
    model: Any, feed: Feed, validation: Any, epochs: int, step: Step, callbacks: Sequence[Any] = ()
) -> tuple[dict[str, list[float]], list[tuple[float, float]]]:
    """Fit a compiled model from where ``feed`` is up to ``epochs``; return history and ``ProgressCallback.spent``.

    ``feed`` shuffles itself, by a seed of its own; only its present epoch may have begun already. ``validation`` is
    Keras' ``validation_data``.
    """
    progress = ProgressCallback(feed, step, epochs)
    done = model.fit(
        as_dataset(feed), validation_data=validation, epochs=epochs, initial_epoch=feed.epoch, shuffle=False,
        verbose=0, callbacks=[progress, *callbacks],
    )  # fmt: skip
    return {column: [float(value) for value in values] for column, values in done.history.items()}, progress.spent


def balanced_accuracy(predicted: NDArray[np.intp], truth: NDArray[np.int64]) -> float:
    """Return the mean recall over the classes that occur in ``truth``, both (N,)."""
    right = predicted == truth
    return float(np.mean([right[truth == label].mean() for label in np.unique(truth)]))


def one_hot(dataset: Dataset) -> NDArray[np.float32]:
    """Return the items' classes, one-hot, float32 (N, C)."""
    return np.eye(len(dataset.labels), dtype=np.float32)[dataset.classes()]


def has_gpu() -> bool:
    """Return whether TensorFlow has a GPU to train on."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
