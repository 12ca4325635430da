"""One trial of a search: a training, scored each epoch on the same held-out images.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from numpy.typing import NDArray

from dicomsort.training.data.prefetch import Feed
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.data.splitting import split
from dicomsort.training.fit.feeding import balanced_accuracy, compiled, predict_rows, run, training_batches
from dicomsort.training.fit.transfer import opened
from dicomsort.training.progress import Reporter
from dicomsort.training.settings import Settings, checked

Report = Callable[[int, float], None]


class Scores(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Reports the balanced accuracy of ``predict()``, float (n, C), as each epoch ends; ``values`` has them all."""

    def __init__(self, predict: Callable[[], NDArray[np.float32]], truth: NDArray[np.int64], report: Report) -> None:
        super().__init__()
        self._predict, self._truth, self._report = predict, truth, report
        self.values: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Score."""
        self.values.append(balanced_accuracy(self._predict().argmax(1), self._truth))
        self._report(epoch, self.values[-1])


def attempt(settings: Settings, rendered: Rendered, reporter: Reporter, report: Report) -> float:
    """Return the balanced accuracy, of the best epoch, on held-out sources (images, where there are too few).

    ``report(epoch, score)`` may raise to end the trial.
    """
    _, architecture = checked(settings)
    dataset, images, hyper = rendered.dataset, rendered.images, settings.hyperparameters()
    keras.utils.set_random_seed(settings.seed)
    grouped = dataset.grouped() and settings.split != "random"
    train, held_out = split(dataset, settings.validation_split, settings.seed, grouped=grouped)
    classes = dataset.classes()[held_out]
    try:
        if architecture.recipe == "transfer":
            with opened(architecture, rendered, hyper, reporter) as trainer:
                scores = Scores(lambda: trainer.predict(trainer.views[0][held_out])[1], classes, report)
                trainer.fit(train, None, "Training", [scores])
            return max(scores.values)
        build = partial(architecture.build, images.shape[1:], len(dataset.labels))
        model, data = compiled(build, hyper.learning_rate), training_batches(rendered, train, hyper)
        scores = Scores(lambda: predict_rows(model, images, rendered.rows[held_out]), classes, report)
        with reporter.step("Training", hyper.epochs * len(data)) as step, Feed(data, hyper.epochs) as feed:
            run(model, feed, None, hyper.epochs, step, [scores])
        return max(scores.values)
    finally:
        keras.backend.clear_session()
