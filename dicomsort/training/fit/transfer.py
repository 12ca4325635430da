"""The recipe for networks with pretrained weights: the first layers stay frozen, the rest is trained, by source.

What the frozen layers give for the images and their variations is computed once. On that the rest is trained: once for
each fold of sources, to predict the fold that it has not seen, at last on everything. Images are drawn so that classes,
and in each its sources, come alike. The weights are a running average of those on the way (Polyak and Juditsky 1992),
while the learning rate rises shortly and falls to 0 along a cosine.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import keras
import numpy as np

from dicomsort.bundle.spec import read_model
from dicomsort.training.data.dataset import DatasetError
from dicomsort.training.data.prefetch import Feed, as_dataset
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.data.splitting import folds, held_together
from dicomsort.training.fit.checkpoint import Checkpoint, Progress, Saved
from dicomsort.training.fit.feeding import FeedTimer, ProgressCallback, one_hot, waiting
from dicomsort.training.fit.frozen_features import Drawn, Rehearsal, Rehearsing, Shown, divide, look, view_all
from dicomsort.training.fit.full import identify
from dicomsort.training.fit.quantize import Quantizer
from dicomsort.training.fit.recipe import Fitted, Said
from dicomsort.training.models import ood
from dicomsort.training.models.replay_set import probe_images, require_of
from dicomsort.training.models.tflite_head import Body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dicomsort.training.data.dataset import Dataset, Indices
    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.fit.frozen_features import Views
    from dicomsort.training.fit.recipe import Recipe
    from dicomsort.training.models.architectures import Architecture
    from dicomsort.training.progress import Reporter


@dataclass(frozen=True, slots=True)
class Judged:
    """What models that were not trained on an item say of it, filled fold by fold; shapes as in ``Fitted``.

    ``integers`` and ``integer_distances`` are what they say in int8, NaN where they were not asked.
    """

    probabilities: NDArray[np.float32]
    distances: NDArray[np.float32]
    variants: dict[str, NDArray[np.float32]]
    integers: NDArray[np.float32]
    integer_distances: NDArray[np.float32]

    @classmethod
    def empty(cls, count: int, classes: int) -> Self:
        """Return room for ``count`` items."""
        room = np.zeros((2 + len(SHORTCUTS), count, classes), np.float32)
        single = np.zeros((2, count), np.float32)
        room[1], single[1] = np.nan, np.nan
        return cls(room[0], single[0], dict(zip(SHORTCUTS, room[2:], strict=True)), room[1], single[1])

    def arrays(self) -> list[NDArray[np.float32]]:
        """Return all that is filled, in a fixed order."""
        return [self.probabilities, self.distances, *self.variants.values(), self.integers, self.integer_distances]

    def take(self, staged: Staged, outside: Indices, inside: Indices) -> ood.MahalanobisModel | None:
        """Judge the items ``inside``, plain and changed by each shortcut test, by what was trained on ``outside``.

        Returns where the features of ``outside`` lie (see ``space_of``).
        """
        space = space_of(staged, outside)
        features, self.probabilities[inside] = staged.see(staged.views.seen[0][inside])
        if space is not None:
            self.distances[inside] = space.distances(features)
        with staged.reporter.step("Judging changed images", len(inside) * len(SHORTCUTS)) as step:
            for name, change in SHORTCUTS.items():
                shown = Shown(staged.rendered, inside, partial(_changed, change))
                for _, items, activations in look(staged.trunk, shown, 1, step, staged.spent):
                    self.variants[name][items] = staged.see(activations)[1]
        return space

    def take_integers(self, said: Said, inside: Indices) -> None:
        """Keep what a network says of the items ``inside`` in int8."""
        self.integers[inside] = said.probabilities
        if said.distances is not None:
            self.integer_distances[inside] = said.distances

    @property
    def int8(self) -> Said | None:
        """What the networks say in int8, None unless all were asked."""
        if np.isnan(self.integers).any():
            return None
        return Said(self.integers, None if np.isnan(self.integer_distances).all() else self.integer_distances)


def _changed(change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], *args: Any) -> NDArray[np.uint8]:
    return np.stack([change(image) for image in args[-1]])


def space_of(staged: Staged, items: Indices) -> ood.MahalanobisModel | None:
    """Return where the features of ``items`` lie, those of OTHER left out where there are other classes.

    Where the training goes on from a bundle, that one's images, for a site's few say nothing of where all the others
    lie, and the features stay as they are; None where the bundle does not tell.
    """
    if staged.architecture.start:
        return staged.architecture.space
    known = staged.dataset.known(items)
    features, _ = staged.see(staged.views.seen[0][known])
    return ood.fit(features, staged.dataset.classes()[known])


def cross_validate(
    staged: Staged, fold: NDArray[np.int64], checkpoint: Checkpoint | None = None, quantizer: Quantizer | None = None
) -> tuple[Judged, dict[str, list[float]]]:
    """Judge each fold by what is trained on the others; also return the history with the first fold held out.

    What each fold gave is kept in ``checkpoint``, and not done again. ``quantizer``, where given, has each of these
    models judge its fold in int8 too.
    """
    numbers = np.unique(fold)
    judged = Judged.empty(len(fold), len(staged.dataset.labels))
    progress = _restored(checkpoint, judged, staged, len(numbers))
    for i, k in enumerate(numbers[progress.epoch :], progress.epoch + 1):
        inside, outside = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        held = None if progress.history else inside
        course = staged.fit(outside, held, f"Cross-validation, fold {i} of {len(numbers)}")
        space = judged.take(staged, outside, inside)
        if quantizer and (said := quantizer.judge(staged.network, space, outside, inside)):
            judged.take_integers(said, inside)
        progress.history, progress.epoch = progress.history or course, i
        if checkpoint:
            try:
                checkpoint.save(Saved(progress, judged.arrays(), [], []))
            except OSError as error:
                staged.reporter.note(f"No checkpoint: {error.strerror or error}")
    return judged, progress.history


def _restored(checkpoint: Checkpoint | None, judged: Judged, staged: Staged, count: int) -> Progress:
    """Put what a checkpoint holds into ``judged`` and return how many folds that is; say so, or why not."""
    saved, problem = checkpoint.load() if checkpoint and not staged.recipe.fresh else (None, "")
    if problem:
        staged.reporter.note(f"Starting anew: there is a checkpoint, but {problem}")
    if checkpoint is None or saved is None:
        return Progress()
    for array, before in zip(judged.arrays(), saved.variables, strict=True):
        array[...] = before
    done = f"{saved.progress.epoch} of {count} folds are done"
    staged.reporter.note(f"Going on from the checkpoint in {checkpoint.folder.name}: {done}")
    return saved.progress


FOLDS = 5
WARM_UP = 0.1
DECAY, CLIP = 1e-3, 1.0
AVERAGED, MOST_AVERAGED = 0.1, 100  # the share of the steps that the running average is over, and their number at most
PREDICTED = 128
# Of the weights of a bundle from which a training goes on, averaged with what it came to (Wortsman et al. 2022,
# arXiv:2109.01903), where nothing is rehearsed: what the new images do not show is not all forgotten.
KEPT = 0.5


@dataclass(frozen=True, slots=True)
class Staged:
    """A network in training: ``trunk``, which stays, and ``tail``, trained again and again from ``start``.

    The trunk of a bundle is its LiteRT model's: what is trained behind it gets the features of the model that ships.
    ``both`` is the tail with two outputs, features and probabilities; ``views`` is what the trunk sees; ``spent`` see
    ``feeding.Begin``; ``rehearsal`` is what is shown between the images, None for nothing.
    """

    network: Any
    trunk: Any
    tail: Any
    both: Any
    start: list[NDArray[Any]]
    views: Views
    rendered: Rendered
    recipe: Recipe
    reporter: Reporter
    architecture: Architecture
    spent: list[tuple[float, float]]
    rehearsal: Rehearsal | None = None

    @property
    def dataset(self) -> Dataset:
        """The data set that it is trained on."""
        return self.rendered.dataset

    @property
    def kept(self) -> float:
        """The share of ``start`` in the weights that a training ends with."""
        return KEPT if self.architecture.start and self.rehearsal is None else 0.0

    def fit(
        self, items: Indices, held: Indices | None, name: str, callbacks: Sequence[Any] = ()
    ) -> dict[str, list[float]]:
        """Train on ``items``; return the history, with the figures of ``held`` where given."""
        recipe, data = self.recipe, self._data(items)
        steps = recipe.epochs * len(data)
        warm = max(1, round(WARM_UP * steps))
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warm), warmup_target=recipe.learning_rate, warmup_steps=warm
        )
        for variable, value in zip(self.tail.variables, self.start, strict=True):
            variable.assign(value)  # what draws for dropout begins anew as well
        momentum = 1 - 1 / min(max(AVERAGED * steps, 1), MOST_AVERAGED)
        optimizer = keras.optimizers.AdamW(
            rate, weight_decay=DECAY, global_clipnorm=CLIP, use_ema=True, ema_momentum=momentum
        )
        optimizer.build(self.tail.trainable_variables)  # else TensorFlow traces the training step twice
        self.tail.compile(optimizer, self._loss(), metrics=["accuracy"])
        validation = (
            None if held is None else (self.views.seen[0, held].astype(np.float32), one_hot(self.dataset)[held])
        )
        with self.reporter.step(name, steps) as step, Feed(data, recipe.epochs) as feed:
            begin = FeedTimer(feed)
            done = self.tail.fit(
                as_dataset(feed), validation_data=validation, epochs=recipe.epochs, shuffle=False, verbose=0,
                callbacks=[begin, ProgressCallback(step, recipe.epochs), *callbacks],
            )  # fmt: skip
        self.spent.extend(begin.spent)
        if self.kept:
            for variable, value in zip(self.tail.variables, self.start, strict=True):
                if np.issubdtype(value.dtype, np.floating):
                    variable.assign(self.kept * value + (1 - self.kept) * keras.ops.convert_to_numpy(variable))
        return {column: [float(value) for value in values] for column, values in done.history.items()}

    def _data(self, items: Indices) -> Drawn | Rehearsing:
        """Return what is drawn from ``items``, and from what is rehearsed."""
        drawn = Drawn(self.views, self.dataset, items, self.recipe)
        if self.rehearsal is None:
            return drawn
        return Rehearsing(drawn, self.rehearsal, self.recipe.batch_size, self.recipe.seed)

    def _loss(self) -> Any:
        """Return the cross-entropy among the classes that have images.

        Where the training goes on from a bundle, some may have none. They would only ever be argued against, and
        unlearnt: measured, all of it within minutes.
        """
        shown = [] if self.rehearsal is None else [self.rehearsal.truth]
        there = np.isin(np.arange(len(self.dataset.labels)), np.concatenate([self.dataset.classes(), *shown]))
        if there.all():
            return "categorical_crossentropy"
        there = there.astype(np.float32)
        return lambda truth, said: keras.losses.categorical_crossentropy(truth, said * there)  # which makes the sum 1

    def see(self, activations: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return features (N, D) and probabilities (N, C), float32, for activations (N, …)."""
        parts = []
        for start in range(0, len(activations), PREDICTED):
            batch = activations[start : start + PREDICTED].astype(np.float32)
            parts.append([np.asarray(part) for part in self.both.predict_on_batch(batch)])
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features, probabilities


@contextmanager
def opened(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Iterator[Staged]:
    """Yield the network with all that its trunk sees, in temporary files."""
    shape, remembered = rendered.images.shape[1:], architecture.remembered
    network = architecture.build(shape, len(rendered.dataset.labels))
    trunk, tail, both = divide(network, architecture.trained_from)
    if architecture.start:
        trunk = Body(read_model(architecture.start))
        if remembered:
            require_of(architecture.start, remembered, trunk.predict_on_batch(probe_images(shape)))
    with tempfile.TemporaryDirectory(prefix="dicomsort-train-") as scratch:
        start = [keras.ops.convert_to_numpy(variable) for variable in tail.variables]
        spent: list[tuple[float, float]] = []
        views = view_all(trunk, rendered, recipe.augment, recipe.seed, Path(scratch) / "views.npy", reporter, spent)
        staged = Staged(network, trunk, tail, both, start, views, rendered, recipe, reporter, architecture, spent)
        kept = remembered and remembered.part(rehearsed=True)
        yield replace(staged, rehearsal=Rehearsal(kept, staged.see(kept.features)[1])) if kept else staged


def fit_staged(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train what lies behind ``architecture.trained_from``: once a fold of sources, at last on everything."""
    dataset = rendered.dataset
    grouped = _grouped(dataset, architecture)
    fold = folds(dataset, FOLDS, recipe.seed, grouped=grouped)
    if architecture.start and len(np.unique(fold)) < 2:  # noqa: PLR2004 - each class has one source, all in one fold
        fold = np.unique(dataset.units(grouped=grouped), return_inverse=True)[1] % FOLDS
    count = len(np.unique(fold))
    if count < 2:  # noqa: PLR2004 - one to train on and one to hold out
        raise DatasetError(_one_alone(dataset) if architecture.start else held_together(dataset))
    everything = np.arange(len(fold))
    made = None if architecture.start else Quantizer.fitting(architecture, rendered, recipe.seed, reporter, len(fold))
    quantizer = made if isinstance(made, Quantizer) else None
    with opened(architecture, rendered, recipe, reporter) as staged:
        before = _asked(staged)
        with _told(recipe, reporter):
            judged, history = cross_validate(staged, fold, _checkpoint(staged, architecture), quantizer)
            staged.fit(everything, None, "Training on everything")
        space, after = space_of(staged, everything), _asked(staged)
    unit = _unit(dataset, grouped=grouped)
    held_out = f"cross-validation in {count} folds by {unit}: each image is judged by a model not trained on its fold"
    return Fitted(
        staged.network, history, everything, judged.probabilities, f"the first of {count} folds, {unit}", held_out,
        grouped, _course(staged), fold, None if space is None else judged.distances, judged.variants, space,
        before.images if architecture.start else None,
        judged.int8,
        (before.remembered, after.remembered) if architecture.remembered else None,
    )  # fmt: skip


class _Asked(NamedTuple):
    """What a network says, float32 (n, C): of all images, and of its start's that are judged, never learnt."""

    images: NDArray[np.float32]
    remembered: NDArray[np.float32]


def _asked(staged: Staged) -> _Asked:
    """Ask the network as it is, where it goes on from a bundle."""
    nothing = np.zeros((0, len(staged.dataset.labels)), np.float32)
    if staged.architecture.start is None:
        return _Asked(nothing, nothing)
    kept = staged.architecture.remembered
    judged = kept and kept.part(rehearsed=False)
    images = staged.see(staged.views.seen[0])[1]
    return _Asked(images, staged.see(judged.features)[1] if judged else nothing)


def _course(staged: Staged) -> dict[str, Any]:
    """Return what metrics.json tells of the training."""
    epochs = staged.recipe.epochs
    kept = f"no single epoch, but the running average of the weights, after epoch {epochs}, the last"
    return {"epochs_run": epochs, "kept": kept, "waiting": waiting(staged.spent)}


def _grouped(dataset: Dataset, architecture: Architecture) -> bool:
    """Tell whether whole sources are held out.

    Where the training goes on from a bundle, a class may have one source alone: its images are still known from there.
    """
    return any(item.group for item in dataset.items) if architecture.start else dataset.grouped()


def _one_alone(dataset: Dataset) -> str:
    return (
        f"data set {str(dataset.root)!r}: expected images of two sources (folders in a class's folder) or more, so "
        f"that one can be held out and judged, received {len(dataset.items)} of one, or near-duplicates of one image"
    )


def _checkpoint(staged: Staged, architecture: Architecture) -> Checkpoint | None:
    """Return the place for what the folds give; ``architecture`` names its weights."""
    kept = architecture.start and architecture.start.evaluation
    rehearsed = f", rehearsing {kept.sha256}" if kept else ""
    place, network = staged.recipe.checkpoint, f"{architecture.summary}, from {architecture.trained_from}{rehearsed}"
    if place is None:
        return None
    judged = ", ".join(field.name for field in fields(Judged))  # what is kept of each fold
    return Checkpoint(
        place, identify(staged.network, staged.rendered, staged.recipe, architecture=network, judged=judged)
    )


@contextmanager
def _told(recipe: Recipe, reporter: Reporter) -> Iterator[None]:
    """Say how an interrupted training goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if recipe.checkpoint and recipe.checkpoint.is_dir():
            reporter.note(f"The same command goes on from {recipe.checkpoint.name}; --fresh starts anew")
        raise


def _unit(dataset: Dataset, *, grouped: bool) -> str:
    if not grouped:
        return "images at random (there are no sources to tell apart), patients and near-duplicates kept together"
    return dataset.sources_held()
