"""The recipe for networks with pretrained weights: the first layers stay frozen, the rest is trained, by source.

The activations of the frozen layers for the images and their variations are computed once. On these the rest is
trained: once for each fold of sources, to predict that fold, and finally on everything. The predictions of the folds
give the bias of the classes. Images are drawn so that classes, and in each its sources, are balanced. The weights are a
running average over the last steps (Polyak and Juditsky 1992); the learning rate warms up shortly and falls to 0 along
a cosine.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dicomsort.training.data.dataset import Dataset, DatasetError, Indices
from dicomsort.training.data.prefetch import Feed
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.data.splitting import folds, held_together
from dicomsort.training.fit.checkpoint import (
    Checkpoint,
    Saved,
    TrainingState,
    are_like,
    checkpoint_of,
    is_history,
    resumable,
)
from dicomsort.training.fit.feeding import DivergenceCallback, run, waiting
from dicomsort.training.fit.frozen_features import ChangedImages, activations_of, divide, view_all
from dicomsort.training.fit.held_out import HeldOutPredictions
from dicomsort.training.fit.hyperparameters import Hyperparameters, TrainedModel
from dicomsort.training.fit.quantize import Quantizer
from dicomsort.training.fit.samplers import BalancedSampler, ReplaySampler, ReplayTargets, truth_of
from dicomsort.training.models import ood
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.tflite_head import FeatureExtractor
from dicomsort.training.progress import Reporter

FOLDS = 5
WARM_UP = 0.1
DECAY, CLIP = 1e-3, 1.0
AVERAGED, MOST_AVERAGED = 0.1, 100  # the share of the steps that the running average covers, and their number at most
PREDICTED = 128
CHECKPOINT_LAYOUT = "probabilities, distances, variants, integers, integer_distances"  # in a checkpoint, in this order


def fit_mahalanobis(trainer: TransferTrainer, items: Indices) -> ood.MahalanobisModel | None:
    """Return the Mahalanobis model of ``items``, without OTHER where there are other classes."""
    known = trainer.dataset.known(items)
    features, _ = trainer.predict(trainer.views[0][known])
    return ood.fit(features, trainer.dataset.classes()[known])


@dataclass(frozen=True, slots=True)
class TransferTrainer:
    """A network in training: its ``frozen`` layers, and the ``trainable``, trained anew for each fold from ``start``.

    ``with_features`` are the trainable layers with two outputs, features and probabilities; ``trainable`` gives
    subclasses as well, where the data set has some: see ``frozen_features.divide``. ``views``: see ``view_all``;
    ``spent``: see ``feeding.ProgressCallback``; ``replay`` is shown between the images, None for nothing;
    ``start_share`` is the share of ``start`` in the final weights; ``mahalanobis(self, items)`` returns the Mahalanobis
    model of the training images, None where that is not known.
    """

    network: Any
    frozen: Any
    trainable: Any
    with_features: Any
    start: list[NDArray[Any]]
    views: NDArray[np.float16]
    rendered: Rendered
    hyper: Hyperparameters
    reporter: Reporter
    spent: list[tuple[float, float]]
    replay: ReplayTargets | None = None
    start_share: float = 0.0
    mahalanobis: Callable[[TransferTrainer, Indices], ood.MahalanobisModel | None] = fit_mahalanobis

    @property
    def dataset(self) -> Dataset:
        """The data set."""
        return self.rendered.dataset

    def fit(
        self, items: Indices, held_out: Indices | None, name: str, callbacks: Sequence[Any] = ()
    ) -> dict[str, list[float]]:
        """Train on ``items`` from ``start``; return the history, with the metrics of ``held_out`` if not None.

        Diverged where it diverges, unless other ``callbacks`` score each epoch.
        """
        hyper, data = self.hyper, self._data(items)
        callbacks = callbacks or [DivergenceCallback(hyper.learning_rate)]
        steps = hyper.epochs * len(data)
        warm = max(1, round(WARM_UP * steps))
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warm), warmup_target=hyper.learning_rate, warmup_steps=warm
        )
        for variable, value in zip(self.trainable.variables, self.start, strict=True):
            variable.assign(value)  # the seeds of dropout as well
        momentum = 1 - 1 / min(max(AVERAGED * steps, 1), MOST_AVERAGED)
        optimizer = keras.optimizers.AdamW(
            rate, weight_decay=DECAY, global_clipnorm=CLIP, use_ema=True, ema_momentum=momentum
        )
        # Optimizer and metric have their variables now, else TensorFlow traces the training step twice.
        optimizer.build(self.trainable.trainable_variables)
        self.trainable.compile(optimizer, self._loss(), metrics=[self._accuracy()])
        validation = None
        if held_out is not None:
            validation = self.views[0, held_out].astype(np.float32), truth_of(self.dataset)[held_out]
        with self.reporter.step(name, steps) as step, Feed(data, hyper.epochs) as feed:
            history, spent = run(self.trainable, feed, validation, hyper.epochs, step, callbacks)
        self.spent.extend(spent)
        share = self.start_share
        for variable, first in zip(self.trainable.variables, self.start, strict=True) if share else ():
            if np.issubdtype(first.dtype, np.floating):  # the others are seeds of dropout
                variable.assign(share * first + (1 - share) * keras.ops.convert_to_numpy(variable))
        return history

    def _data(self, items: Indices) -> BalancedSampler | ReplaySampler:
        drawn = BalancedSampler(self.views, self.dataset, items, self.hyper)
        if self.replay is None:
            return drawn
        return ReplaySampler(drawn, self.replay, self.hyper.batch_size, self.hyper.seed)

    def _accuracy(self) -> Any:
        """Return the accuracy of the classes."""
        classes = len(self.dataset.labels)

        def accuracy(truth: Any, given: Any) -> Any:
            return keras.metrics.categorical_accuracy(truth[:, :classes], given[:, :classes])

        return keras.metrics.MeanMetricWrapper(accuracy, "accuracy")

    def _loss(self) -> Any:
        """Return the cross-entropy among the classes that have images, and that of the subclasses where there are some.

        In fine-tuning, some may have none. The network would forget them: measured, within minutes.
        """
        classes = len(self.dataset.labels)
        replayed = [] if self.replay is None else [self.replay.truth]
        present = np.isin(np.arange(classes), np.concatenate([self.dataset.classes(), *replayed])).astype(np.float32)
        entropy = keras.losses.categorical_crossentropy
        if present.all() and self.trainable.output_shape[-1] == classes:
            return entropy  # by the logits, which Keras finds behind a softmax: no small probability is cut off

        def loss(truth: Any, given: Any) -> Any:
            of_classes = entropy(truth[:, :classes], given[:, :classes] * present)  # which makes the sum 1
            if given.shape[1] == classes:
                return of_classes
            return of_classes + entropy(truth[:, classes:], given[:, classes:])  # 0 where the subclass is not known

        return loss

    def predict(self, activations: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return features (N, D) and probabilities (N, C), float32, for activations (N, …)."""
        parts = []
        for start in range(0, len(activations), PREDICTED):
            batch = activations[start : start + PREDICTED].astype(np.float32)
            parts.append([np.asarray(part) for part in self.with_features.predict_on_batch(batch)])
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features, probabilities


@contextmanager
def opened(
    architecture: Architecture,
    rendered: Rendered,
    hyper: Hyperparameters,
    reporter: Reporter,
    extractor: FeatureExtractor | None = None,
) -> Iterator[TransferTrainer]:
    """Yield the network with the activations of its frozen layers, in a temporary file; ``extractor`` replaces them."""
    network = architecture.build(rendered.images.shape[1:], len(rendered.dataset.labels))
    subclasses = rendered.dataset.subclasses().shape[1]
    frozen, trainable, with_features = divide(network, architecture.trained_from, subclasses)
    frozen = extractor or frozen
    with tempfile.TemporaryDirectory(prefix="dicomsort-train-") as scratch:
        start = [keras.ops.convert_to_numpy(variable) for variable in trainable.variables]
        spent: list[tuple[float, float]] = []
        views = view_all(frozen, rendered, hyper.augment, hyper.seed, Path(scratch) / "views.npy", reporter, spent)
        yield TransferTrainer(network, frozen, trainable, with_features, start, views, rendered, hyper, reporter, spent)


def fit_transfer(
    architecture: Architecture, rendered: Rendered, hyper: Hyperparameters, reporter: Reporter
) -> TrainedModel:
    """Train the layers from ``architecture.trained_from``: once a fold of sources, finally on everything."""
    dataset = rendered.dataset
    grouped = dataset.grouped()
    fold = folds(dataset, FOLDS, hyper.seed, grouped=grouped)
    if len(np.unique(fold)) < 2:  # noqa: PLR2004 - one to train on and one to hold out
        raise DatasetError(held_together(dataset))
    made = Quantizer.for_training(architecture, rendered, hyper.seed, reporter, len(fold))
    quantizer = made if isinstance(made, Quantizer) else None
    with opened(architecture, rendered, hyper, reporter) as trainer:
        weights = f"{architecture.summary}, from {architecture.trained_from}"
        trained = fit_in_folds(trainer, fold, weights, by_source=grouped, quantizer=quantizer)
        return with_class_bias(trained, dataset.labels) if grouped else trained


def with_class_bias(trained: TrainedModel, labels: Sequence[str]) -> TrainedModel:
    """Add to the last layer's bias that of the held-out predictions, and to these; see ``class_bias``."""
    bias = (trained.int8 or trained.held_out).class_bias()
    kernel, before = trained.head
    trained.model.get_layer("probabilities").set_weights([kernel, before + bias.astype(np.float32)])
    course = trained.course | {"class_bias": dict(zip(labels, np.round(bias, 3).tolist(), strict=True))}
    int8 = trained.int8 and trained.int8.biased(bias)
    return replace(trained, held_out=trained.held_out.biased(bias), int8=int8, course=course)


def fit_in_folds(
    trainer: TransferTrainer,
    fold: NDArray[np.int64],
    weights: str,
    *,
    by_source: bool,
    quantizer: Quantizer | None = None,
) -> TrainedModel:
    """Train once for each fold on the others, then on everything; ``weights`` describes the initial ones."""
    hyper, count, unit = trainer.hyper, len(np.unique(fold)), trainer.dataset.sources_held()
    if not by_source:
        unit = "images at random (there are no sources to tell apart), patients and near-duplicates kept together"
    how = f"cross-validation in {count} folds by {unit}: each image is judged by a model not trained on its fold"
    held_out = HeldOutPredictions.zeros(trainer.dataset, fold, how, by_source=by_source)
    everything = np.arange(len(fold))
    with resumable(trainer.hyper.checkpoint, trainer.reporter):
        checkpoint = checkpoint_of(
            trainer.network, trainer.rendered, hyper, architecture=weights, judged=CHECKPOINT_LAYOUT
        )
        int8, history = cross_validate(trainer, held_out, checkpoint, quantizer)
        trainer.fit(everything, None, "Training on everything")
    mahalanobis = trainer.mahalanobis(trainer, everything)
    if mahalanobis is None:
        held_out = replace(held_out, distances=None)
    averaged = f"no single epoch, but the running average of the weights, after epoch {hyper.epochs}, the last"
    course: dict[str, Any] = {"epochs_run": hyper.epochs, "kept": averaged, "waiting": waiting(trainer.spent)}
    if subclasses := trainer.dataset.subclasses().shape[1]:
        course["subclasses"] = subclasses
    split = f"the first of {count} folds, {unit}"
    return TrainedModel(trainer.network, mahalanobis, held_out, int8, history, split, course)


def cross_validate(
    trainer: TransferTrainer,
    held_out: HeldOutPredictions,
    checkpoint: Checkpoint | None,
    quantizer: Quantizer | None,
) -> tuple[HeldOutPredictions | None, dict[str, list[float]]]:
    """Fill ``held_out``: each of its folds is predicted by a network trained on the others.

    Returns the same of these networks in int8, where there is a ``quantizer`` that can convert them all, and the
    history with the first fold held out. Each fold is saved in ``checkpoint``, and a resumed training skips it.
    """
    int8_probabilities = np.full_like(held_out.probabilities, np.nan)
    int8_distances = np.full(len(held_out.items), np.nan, np.float32)
    arrays = [*held_out.arrays(), int8_probabilities, int8_distances]
    count = len(numbers := np.unique(held_out.fold))
    fits = partial(_fits, folds=count, epochs=trainer.hyper.epochs, arrays=arrays)
    saved = checkpoint and checkpoint.resume(
        trainer.reporter, lambda past: f"{past.epoch} of {count} folds are done", fits
    )
    progress = saved.progress if saved else TrainingState()
    for array, before in zip(arrays, saved.variables if saved else arrays, strict=True):
        array[...] = before
    for i, k in enumerate(numbers[progress.epoch :], progress.epoch + 1):
        inside, outside = np.flatnonzero(held_out.fold == k), np.flatnonzero(held_out.fold != k)
        validation = None if progress.history else inside
        history = trainer.fit(outside, validation, f"Cross-validation, fold {i} of {count}")
        mahalanobis = predict_fold(trainer, held_out, outside, inside)
        found = quantizer and quantizer.predict_fold(trainer.network, mahalanobis, outside, inside)
        if found:
            int8_probabilities[inside], int8_distances[inside] = found[0], np.nan if found[1] is None else found[1]
        progress.history, progress.epoch = progress.history or history, i
        if checkpoint:
            try:
                checkpoint.save(Saved(progress, arrays, [], []))
            except OSError as error:
                trainer.reporter.note(f"No checkpoint: {error.strerror or error}")
    if np.isnan(int8_probabilities).any():
        return None, progress.history
    distances = None if np.isnan(int8_distances).all() else int8_distances
    return held_out.with_int8(int8_probabilities, distances), progress.history


def _fits(saved: Saved, folds: int, epochs: int, arrays: Sequence[NDArray[Any]]) -> bool:
    """Return whether a checkpoint is of such a cross-validation, with a fold done."""
    held = [*saved.variables, *saved.sums, *saved.best]
    return 0 < saved.progress.epoch <= folds and is_history(saved.progress.history, epochs) and are_like(held, arrays)


def predict_fold(
    trainer: TransferTrainer, held_out: HeldOutPredictions, outside: Indices, inside: Indices
) -> ood.MahalanobisModel | None:
    """Predict the images ``inside``, unchanged and changed by each robustness test; the training was on ``outside``.

    Returns the Mahalanobis model of ``outside``.
    """
    mahalanobis = trainer.mahalanobis(trainer, outside)
    features, held_out.probabilities[inside] = trainer.predict(trainer.views[0][inside])
    if mahalanobis is not None and held_out.distances is not None:
        held_out.distances[inside] = mahalanobis.distances(features)
    with trainer.reporter.step("Predicting changed images", len(inside) * len(SHORTCUTS)) as step:
        for name, change in SHORTCUTS.items():
            changed = ChangedImages(trainer.rendered, inside, partial(_changed, change))
            for _, items, activations in activations_of(trainer.frozen, changed, 1, step, trainer.spent):
                held_out.variants[name][items] = trainer.predict(activations)[1]
    return mahalanobis


def _changed(change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], *args: Any) -> NDArray[np.uint8]:
    return np.stack([change(image) for image in args[-1]])
