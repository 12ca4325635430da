"""The recipe that trains a whole network on pixels; an interrupted training resumes where it was.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dicomsort.training.data.dataset import Dataset, DatasetError, Indices
from dicomsort.training.data.prefetch import Feed, as_dataset
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.data.splitting import folds, split
from dicomsort.training.fit import feeding
from dicomsort.training.fit.checkpoint import (
    Checkpoint,
    Saved,
    StopRequest,
    TrainingState,
    are_like,
    checkpoint_of,
    deferred_signals,
    is_history,
    resumable,
)
from dicomsort.training.fit.feeding import Batches, predict_rows
from dicomsort.training.fit.held_out import HeldOutPredictions
from dicomsort.training.fit.hyperparameters import OTHER_SOURCES, Hyperparameters, TrainedModel
from dicomsort.training.models import ood
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.ood import MahalanobisModel
from dicomsort.training.models.outputs import featured
from dicomsort.training.progress import Reporter

SAVE_SECONDS = 300.0  # within long epochs
MEASURED = 2000  # training images, at most, that the Mahalanobis model is fitted on
CALIBRATION_FOLDS = 5  # in which held-out predictions calibrate each other
SUMS = [np.zeros((), np.float32)] * 4  # of an epoch's metrics: total and count of loss, and of accuracy
UNBALANCED = 3  # the ratio of the largest to the smallest class from which a warning is due


def fit_full(
    architecture: Architecture, rendered: Rendered, hyper: Hyperparameters, reporter: Reporter
) -> TrainedModel:
    """Train all weights on pixels, with a random share of the images, or of the sources, held out.

    Where images are held out though whole sources could be, a second training without some sources tells what to expect
    of images from elsewhere.
    """
    dataset = rendered.dataset
    grouped, words = _held_out(dataset, hyper)
    train, items = split(dataset, hyper.validation_split, hyper.seed, grouped=grouped)
    if not hyper.balance:
        _warn_unbalanced(dataset, reporter)
    build = partial(architecture.build, rendered.images.shape[1:], len(dataset.labels))
    model, mixed = feeding.compiled(build, hyper.learning_rate), feeding.has_gpu()
    checkpoint = checkpoint_of(model, rendered, hyper, precision="mixed" if mixed else "float32")
    callback = CheckpointCallback(model, hyper, checkpoint, reporter)
    _train(callback, rendered, train, items)
    if mixed:
        model = build()  # in float32
        model.set_weights(callback.trained.get_weights())
    with reporter.step("Predicting held-out images", len(items)) as step:
        probabilities = predict_rows(model, rendered.images, rendered.rows[items], step)
    mahalanobis, distances = _measured(model, rendered, train, items, reporter)
    chosen = dataset.only(items)
    fold = folds(chosen, CALIBRATION_FOLDS, hyper.seed, grouped=grouped)
    how = f"the validation split: {words}"
    held_out = HeldOutPredictions(items, chosen.classes(), fold, how, grouped, probabilities, distances)
    course = callback.course()
    if hyper.split is None and dataset.grouped():
        try:
            course[OTHER_SOURCES] = _on_other_sources(build, rendered, hyper, reporter)
        except feeding.Diverged as error:
            unknown = "What to expect of images from elsewhere is not known"
            reporter.note(f"{unknown}: without the sources that are held out, {error}")
    return TrainedModel(model, mahalanobis, held_out, None, callback.progress.history, words, course)


def _on_other_sources(
    build: Callable[[], Any], rendered: Rendered, hyper: Hyperparameters, reporter: Reporter
) -> dict[str, Any]:
    """Train once more without some sources of each class; return how many of their images are right."""
    dataset = rendered.dataset
    train, items = split(dataset, hyper.validation_split, hyper.seed, grouped=True)
    keras.utils.set_random_seed(hyper.seed)
    model = feeding.compiled(build, hyper.learning_rate)
    callback = CheckpointCallback(model, replace(hyper, checkpoint=None), None, reporter)
    _train(callback, rendered, train, items, "Training without the sources that are held out")
    with reporter.step("Predicting held-out sources", len(items)) as step:
        predicted = predict_rows(model, rendered.images, rendered.rows[items], step).argmax(1)
    truth = dataset.classes()[items]
    return {
        "images": len(items),
        "sources": len({dataset.items[item].group for item in items}),
        "accuracy": round(float((predicted == truth).mean()), 4),
        "balanced_accuracy": round(feeding.balanced_accuracy(predicted, truth), 4),
    }


def _measured(
    model: Any, rendered: Rendered, train: Indices, held_out: Indices, reporter: Reporter
) -> tuple[MahalanobisModel, NDArray[np.float32]]:
    """Return the Mahalanobis model of the training images, and the distances of ``held_out``."""
    known = rendered.dataset.known(train)
    known = known[:: -(-len(known) // MEASURED)]
    body = featured(model)
    with reporter.step("Measuring distances", len(known) + len(held_out)) as step:
        features = predict_rows(body, rendered.images, rendered.rows[known], step)
        mahalanobis = ood.fit(features, rendered.dataset.classes()[known])
        return mahalanobis, mahalanobis.distances(predict_rows(body, rendered.images, rendered.rows[held_out], step))


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Records history, best weights and checkpoints of a compiled model's training, and stops it early."""

    def __init__(self, model: Any, hyper: Hyperparameters, checkpoint: Checkpoint | None, reporter: Reporter) -> None:
        super().__init__()
        self.trained, self.hyper, self.reporter = model, hyper, reporter
        self.progress, self.stop, self.batches = TrainingState(), StopRequest(), 0
        self.spent: list[tuple[float, float]] = []
        self._checkpoint = checkpoint
        self._best: list[NDArray[np.float32]] = []
        self._sums: list[NDArray[np.float32]] = []
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Resume from the checkpoint, if there is one of this training."""

        def done(progress: TrainingState) -> str:
            return f"epoch {progress.epoch + 1} of {self.hyper.epochs}, batch {progress.batch + 1}"

        if saved := self._checkpoint and self._checkpoint.resume(self.reporter, done, self._fits):
            for variable, value in zip(self._variables(), saved.variables, strict=True):
                variable.assign(value)
            self.progress, self._best, self._sums = saved.progress, list(saved.best), list(saved.sums)

    def _fits(self, saved: Saved) -> bool:
        """Return whether a checkpoint is of this model and of epochs and batches that there are."""
        past, best = saved.progress, self.trained.weights if self.hyper.patience and saved.progress.epoch else []
        return (
            (past.epoch, past.batch) < (self.hyper.epochs, 1)
            and past.batch < self.batches
            and (past.best >= 0) == (past.epoch > 0)
            and past.best < max(past.epoch, 1)
            and is_history(past.history, past.epoch)
            and are_like(saved.variables, self._variables())
            and are_like(saved.sums, SUMS if past.batch else [])
            and are_like(saved.best, best)
        )

    def finished(self) -> bool:
        """Return whether the last epoch has ended, or early stopping ends the training: see ``patience``."""
        waited = self.progress.epoch - 1 - self.progress.best
        return self.progress.epoch >= self.hyper.epochs or bool(self.hyper.patience and waited >= self.hyper.patience)

    def finish(self) -> None:
        """Restore the best weights, where there is a patience. The checkpoint stays."""
        if self.hyper.patience and self._best:
            self.trained.set_weights(self._best)

    def course(self) -> dict[str, Any]:
        """Return the report for metrics.json; epochs are counted from 1.

        ``waiting`` is the share of time that was spent on waiting for batches, without the first epoch if there are
        others.
        """
        epochs = self.progress.epoch
        chosen = self.progress.best + 1 if self.hyper.patience else epochs
        return {
            "epochs_run": epochs,
            "epoch_kept": chosen,
            "kept": f"epoch {chosen} of {epochs}{self._why(chosen)}",
            "waiting": feeding.waiting(self.spent[1:] or self.spent),
        }

    def _why(self, epoch: int) -> str:
        """Return in words why this epoch's weights are retained, and why the training stopped early."""
        hyper = self.hyper
        if not hyper.patience:
            return ", the last (--patience 0)"
        loss = self.progress.history["val_loss"][epoch - 1]
        ended = f"; {hyper.epochs} were asked for, and {hyper.patience} in a row were not better"
        return f", with the lowest validation loss ({loss:.3f}){ended if self.progress.epoch < hyper.epochs else ''}"

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Save at intervals; end here on a request to stop."""
        self.progress.batch += 1
        # Keras clears the sums where an epoch begins, and makes them only then; all of them are plain sums.
        for variable, part in zip(self.trained.metrics_variables, self._sums, strict=False):
            variable.assign_add(part)
        self._sums = []
        if self.progress.batch == self.batches:
            return  # the epoch's end saves
        if self.stop.yes or time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()
            self.stop.check()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record the metrics and the best weights, save."""
        history = self.progress.history
        for column, value in (logs or {}).items():
            history.setdefault(column, []).append(float(value))
        loss = np.nan_to_num(history["val_loss"], nan=np.inf)
        is_best = int(loss.argmin()) == epoch
        if is_best or not self.hyper.patience:  # else a better epoch's weights are retained
            feeding.require_finite(self.trained, logs or {}, epoch, self.hyper.learning_rate)
        if is_best:
            self.progress.best = epoch
            self._best = self.trained.get_weights() if self.hyper.patience else []
        self.progress.epoch, self.progress.batch = epoch + 1, 0
        self._save()
        self.trained.stop_training = self.finished()
        self.stop.check()

    def _variables(self) -> list[Any]:
        """Return the state that the next batch depends on: weights and seeds, and the optimizer's."""
        return [*self.trained.variables, *self.trained.optimizer.variables]

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        variables, metrics = self._variables(), self.trained.metrics_variables if self.progress.batch else []
        arrays = [[keras.ops.convert_to_numpy(variable) for variable in kind] for kind in (variables, metrics)]
        try:
            self._checkpoint.save(Saved(self.progress, arrays[0], arrays[1], self._best))
        except OSError as error:
            self.reporter.note(f"No checkpoint: {error.strerror or error}; an interrupted training will start anew")
            self._checkpoint = None
        self._saved = time.monotonic()


def _train(
    callback: CheckpointCallback, rendered: Rendered, train: Indices, held_out: Indices, name: str = "Training"
) -> None:
    """Train to the end; on Ctrl-C or SIGTERM finish the batch, save, report how to resume, raise KeyboardInterrupt."""
    hyper, truth = callback.hyper, feeding.one_hot(rendered.dataset)[held_out]
    data = feeding.training_batches(rendered, train, hyper)
    unseen = Batches(rendered.images, rendered.rows[held_out], truth, hyper.batch_size)
    callback.batches = len(data)
    callback.restore()
    progress = callback.progress
    done = progress.epoch * len(data) + progress.batch
    with (
        callback.reporter.step(name, hyper.epochs * len(data), done) as step,
        Feed(data, hyper.epochs) as feed,
        Feed(unseen, 1) as validation,
        deferred_signals(
            lambda: callback.reporter.note("Interrupted: finishing the batch, then saving; again to end at once")
        ) as stop,
        resumable(hyper.checkpoint, callback.reporter),
    ):
        callback.stop = stop
        fit = partial(feeding.run, callback.trained, feed, as_dataset(validation), step=step, callbacks=[callback])
        if progress.batch:  # the rest of an epoch
            feed.go_to(progress.epoch, progress.batch)
            callback.spent += fit(progress.epoch + 1)[1]
        if not callback.finished():
            feed.go_to(progress.epoch)
            callback.spent += fit(hyper.epochs)[1]
        step.end()
    callback.finish()


def _held_out(dataset: Dataset, hyper: Hyperparameters) -> tuple[bool, str]:
    """Return whether whole sources are held out, and in words what is held out."""
    if hyper.split == "source":
        if not dataset.grouped():
            raise DatasetError(
                "--split source: expected two or more source folders for each class (folders that are kept together "
                "count as one), received fewer; see --split random"
            )
        return True, f"{hyper.validation_split:.0%} of each class's sources, whole"
    kin = "patients and near-duplicates kept together" if any(item.kin for item in dataset.items) else ""
    words = f"{hyper.validation_split:.0%} of the images at random, whatever their source"
    return False, f"{words}; {kin}" if kin else words


def _warn_unbalanced(dataset: Dataset, reporter: Reporter) -> None:
    counts = dataset.counts()
    if max(counts.values()) > UNBALANCED * min(counts.values()):
        listed = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        reporter.note(f"The classes are unbalanced ({listed}): --balance makes them weigh the same")
