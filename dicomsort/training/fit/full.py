"""The recipe that trains a whole network on pixels; interrupted, it goes on where it was.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from dicomsort.records import RENDERING_VERSION
from dicomsort.training.data.augment import STRENGTHS
from dicomsort.training.data.dataset import DatasetError, fingerprint
from dicomsort.training.data.prefetch import Feed
from dicomsort.training.data.splitting import balance, folds, split
from dicomsort.training.fit.checkpoint import Checkpoint, Progress, Saved, StopRequest, held_back
from dicomsort.training.fit.feeding import (  # fmt: skip
    Batches,
    compiled,
    fast_precision,
    in_float32,
    one_hot,
    predict_rows,
    run,
    waiting,
)
from dicomsort.training.fit.held_out import HeldOutPredictions
from dicomsort.training.fit.recipe import Hyperparameters, TrainedModel
from dicomsort.training.models import ood
from dicomsort.training.models.outputs import featured

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.training.data.dataset import Dataset, Indices
    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.models.architectures import Architecture
    from dicomsort.training.models.ood import MahalanobisModel
    from dicomsort.training.progress import Reporter

SAVE_SECONDS = 300.0  # within long epochs
MEASURED = 2000  # training images at most tell where features lie
CALIBRATION_FOLDS = 5  # in which held-out predictions calibrate each other
UNBALANCED = 3  # times as many images in the largest class as in the smallest


def fit_full(
    architecture: Architecture, rendered: Rendered, recipe: Hyperparameters, reporter: Reporter
) -> TrainedModel:
    """Train all weights on pixels, with a random share of the images, or of the sources, held out."""
    dataset = rendered.dataset
    grouped, words = _held_out(dataset, recipe)
    train, held = split(dataset, recipe.validation_split, recipe.seed, grouped=grouped)
    if not recipe.balance:
        _warn_unbalanced(dataset, reporter)
    build = partial(architecture.build, rendered.images.shape[1:], len(dataset.labels))
    with fast_precision() as mixed:
        model = compiled(build(), recipe.learning_rate)
    precision = "mixed" if mixed else "float32"
    place = recipe.checkpoint and Checkpoint(recipe.checkpoint, identify(model, rendered, recipe, precision=precision))
    keeper = CheckpointCallback(model, recipe, place or None, reporter)
    keeper.restore()
    _train(keeper, rendered, train, held)
    model = in_float32(model, build) if mixed else model
    with reporter.step("Predicting held-out images", len(held)) as step:
        probabilities = predict_rows(model, rendered.images, rendered.rows[held], step)
    mahalanobis, distances = _measured(model, rendered, train, held, reporter)
    chosen = dataset.only(held)
    fold = folds(chosen, CALIBRATION_FOLDS, recipe.seed, grouped=grouped)
    how = f"the validation split: {words}"
    held_out = HeldOutPredictions(held, chosen.classes(), fold, how, grouped, probabilities, distances)
    return TrainedModel(model, mahalanobis, held_out, None, keeper.progress.history, words, keeper.course())


def _measured(
    model: Any, rendered: Rendered, train: Indices, held: Indices, reporter: Reporter
) -> tuple[MahalanobisModel, NDArray[np.float32]]:
    """Return where the features of the training images lie, and how far from them each of ``held`` is."""
    known = rendered.dataset.known(train)
    known = known[:: -(-len(known) // MEASURED)]
    body = featured(model)
    with reporter.step("Measuring distances", len(known) + len(held)) as step:
        features = predict_rows(body, rendered.images, rendered.rows[known], step)
        mahalanobis = ood.fit(features, rendered.dataset.classes()[known])
        return mahalanobis, mahalanobis.distances(predict_rows(body, rendered.images, rendered.rows[held], step))


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Keeps history, best weights and checkpoint of a compiled model's training, and ends it early."""

    def __init__(self, model: Any, recipe: Hyperparameters, checkpoint: Checkpoint | None, reporter: Reporter) -> None:
        super().__init__()
        self.trained, self.recipe, self.reporter = model, recipe, reporter
        self.progress, self.asked, self.batches = Progress(), StopRequest(), 0
        self.spent: list[tuple[float, float]] = []
        self._checkpoint = checkpoint
        self._best: list[NDArray[np.float32]] = []
        self._sums: list[NDArray[np.float32]] = []
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one of this training; say so, or why not."""
        if self._checkpoint is None or self.recipe.fresh:
            return
        saved, problem = self._checkpoint.load()
        if problem:
            self.reporter.note(f"Starting anew: there is a checkpoint, but {problem}")
        if saved is None:
            return
        for variable, value in zip(self._variables(), saved.variables, strict=True):
            variable.assign(value)
        self.progress, self._best, self._sums = saved.progress, list(saved.best), list(saved.sums)
        done = f"epoch {saved.progress.epoch + 1} of {self.recipe.epochs}, batch {saved.progress.batch + 1}"
        self.reporter.note(f"Going on from the checkpoint in {self._checkpoint.folder.name}: {done}")

    def finished(self) -> bool:
        """Tell whether the last epoch, or the last that patience allows, has ended."""
        waited = self.progress.epoch - 1 - self.progress.best
        return self.progress.epoch >= self.recipe.epochs or bool(
            self.recipe.patience and waited >= self.recipe.patience
        )

    def finish(self) -> None:
        """Put the best weights in, where patience asks for them. The checkpoint stays."""
        if self.recipe.patience and self._best:
            self.trained.set_weights(self._best)

    def course(self) -> dict[str, Any]:
        """Return what metrics.json tells of the training; epochs are counted from 1.

        ``waiting`` is the share of time that was spent on waiting for batches, in the first epoch only if it was alone.
        """
        run = self.progress.epoch
        kept = self.progress.best + 1 if self.recipe.patience else run
        return {
            "epochs_run": run,
            "epoch_kept": kept,
            "kept": f"epoch {kept} of {run}{self._why(kept)}",
            "waiting": waiting(self.spent[1:] or self.spent),
        }

    def _why(self, kept: int) -> str:
        """Say why the weights of this epoch are kept, and why the training ended where it was to go on."""
        recipe, run = self.recipe, self.progress.epoch
        if not recipe.patience:
            return ", the last (--patience 0)"
        loss = self.progress.history["val_loss"][kept - 1]
        ended = f"; {recipe.epochs} were asked for, and {recipe.patience} in a row were not better"
        return f", with the lowest validation loss ({loss:.3f}){ended if run < recipe.epochs else ''}"

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Save now and then; end here where that was asked for."""
        self.progress.batch += 1
        # Keras clears the sums where an epoch begins, and makes them only then; all of them are plain sums.
        for variable, part in zip(self.trained.metrics_variables, self._sums, strict=False):
            variable.assign_add(part)
        self._sums = []
        if self.progress.batch == self.batches:
            return  # the epoch's end saves
        if self.asked.yes or time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()
            self.asked.check()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note the figures, keep the best weights, save."""
        history = self.progress.history
        for column, value in (logs or {}).items():
            history.setdefault(column, []).append(float(value))
        loss = np.nan_to_num(history["val_loss"], nan=np.inf)
        if int(loss.argmin()) == epoch:
            self.progress.best = epoch
            self._best = self.trained.get_weights() if self.recipe.patience else []
        self.progress.epoch, self.progress.batch = epoch + 1, 0
        self._save()
        self.trained.stop_training = self.finished()
        self.asked.check()

    def _variables(self) -> list[Any]:
        """Return what the next batch depends on: weights and seeds, the optimizer's state."""
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


def _train(keeper: CheckpointCallback, rendered: Rendered, train: Indices, held: Indices) -> None:
    """Train to the end; on Ctrl-C or SIGTERM finish the batch, save, say how to go on, and raise KeyboardInterrupt."""
    recipe, truth, progress = keeper.recipe, one_hot(rendered.dataset), keeper.progress
    weights = balance(rendered.dataset.only(train)) if recipe.balance else None
    size, strength = recipe.batch_size, STRENGTHS[recipe.augment]
    data = Batches(
        rendered.images, rendered.rows[train], truth[train], size, recipe.seed, weights, strength, rendered.vary
    )
    held_out = Batches(rendered.images, rendered.rows[held], truth[held], size)
    keeper.batches = len(data)
    done = progress.epoch * len(data) + progress.batch
    with (
        keeper.reporter.step("Training", recipe.epochs * len(data), done) as step,
        Feed(data, recipe.epochs) as feed,
        Feed(held_out, 1) as validation,
        held_back(
            lambda: keeper.reporter.note("Interrupted: finishing the batch, then saving; again to end at once")
        ) as asked,
    ):
        keeper.asked = asked
        try:
            if progress.batch:  # the rest of an epoch
                feed.go_to(progress.epoch, progress.batch)
                keeper.spent += run(keeper.trained, feed, validation, progress.epoch + 1, step, [keeper])[1]
            if not keeper.finished():
                feed.go_to(progress.epoch)
                keeper.spent += run(keeper.trained, feed, validation, recipe.epochs, step, [keeper])[1]
        except KeyboardInterrupt:
            if recipe.checkpoint:
                keeper.reporter.note(f"The same command goes on from {recipe.checkpoint.name}; --fresh starts anew")
            raise
        step.end()
    keeper.finish()


def _held_out(dataset: Dataset, recipe: Hyperparameters) -> tuple[bool, str]:
    """Return whether whole sources are held out, and what is, in words."""
    if recipe.split == "source":
        if not dataset.grouped():
            msg = "--split source: expected a folder a source in every class's folder, two or more of them that are "
            raise DatasetError(msg + "not kept together, received fewer; see --split random")
        return True, f"{recipe.validation_split:.0%} of each class's sources, whole"
    kin = "patients and near-duplicates kept together" if any(item.kin for item in dataset.items) else ""
    words = f"{recipe.validation_split:.0%} of the images at random, whatever their source"
    return False, f"{words}; {kin}" if kin else words


def _warn_unbalanced(dataset: Dataset, reporter: Reporter) -> None:
    counts = dataset.counts()
    if max(counts.values()) > UNBALANCED * min(counts.values()):
        listed = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        reporter.note(f"The classes are unbalanced ({listed}): --balance makes them weigh the same")


def identify(model: Any, rendered: Rendered, recipe: Hyperparameters, **more: str) -> dict[str, Any]:
    """Return what must be the same for a training to go on, by the names under which a difference is told."""
    numbers = asdict(replace(recipe, checkpoint=None, fresh=False))
    items = rendered.dataset.items
    together = hashlib.sha256(json.dumps([(item.path, item.group, item.kin) for item in items]).encode())
    return {
        **numbers,
        "network": hashlib.sha256(
            json.dumps([model.name, *(list(v.shape) for v in model.variables)]).encode()
        ).hexdigest(),
        "data set": fingerprint(items, rendered.digests),
        "groups": together.hexdigest(),
        "rendering": RENDERING_VERSION,
        "Keras": keras.__version__,
        **more,
    }
