"""The recipe for networks with pretrained weights: their beginning stays as it is, the rest is trained, by source.

What the frozen part sees in the images and their variations is computed once. On that the rest is trained: once for
each fold of sources, to judge the fold that it has not seen, at last on everything. Images are drawn so that classes,
and in each its sources, come alike; the weights kept are a running average of those on the way (Polyak and Juditsky
1992), while the learning rate rises shortly and falls to 0 along a cosine.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import keras
import numpy as np

from dicomsort.training import distance
from dicomsort.training.checkpoint import Checkpoint, Progress, Saved
from dicomsort.training.dataset import DatasetError
from dicomsort.training.feeding import Begin, Watch, one_hot, waiting
from dicomsort.training.prefetching import Feed, as_dataset
from dicomsort.training.recipe import Fitted
from dicomsort.training.shortcuts import SHORTCUTS
from dicomsort.training.splitting import folds, held_together
from dicomsort.training.views import Drawn, Shown, divide, look, view_all
from dicomsort.training.whole import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dicomsort.training.architectures import Architecture
    from dicomsort.training.dataset import Dataset, Indices
    from dicomsort.training.progress import Reporter
    from dicomsort.training.recipe import Recipe
    from dicomsort.training.tensors import Rendered
    from dicomsort.training.views import Views

FOLDS = 5
WARM_UP = 0.1
DECAY, CLIP = 1e-3, 1.0
AVERAGED, MOST_AVERAGED = 0.1, 100  # the share of the steps that the running average is over, and their number at most
PREDICTED = 128
# Of the weights of a bundle from which a training goes on, averaged with what it came to (Wortsman et al. 2022,
# arXiv:2109.01903): what the new images do not show is not forgotten.
KEPT = 0.5


@dataclass(frozen=True, slots=True)
class Staged:
    """A network in training: ``trunk``, which stays, and ``tail``, trained again and again from ``start``.

    ``both`` is the tail with two outputs, features and probabilities; ``views`` is what the trunk sees; ``kept`` is the
    share of ``start`` in the weights that a training ends with; ``spent`` see ``feeding.Begin``.
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
    kept: float
    spent: list[tuple[float, float]]

    @property
    def dataset(self) -> Dataset:
        """The data set that it is trained on."""
        return self.rendered.dataset

    def fit(
        self, items: Indices, held: Indices | None, name: str, callbacks: Sequence[Any] = ()
    ) -> dict[str, list[float]]:
        """Train on ``items``; return the history, with the figures of ``held`` where given."""
        data, recipe = Drawn(self.views, self.dataset, items, self.recipe), self.recipe
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
        self.tail.compile(optimizer, self._loss(), metrics=["accuracy"])
        validation = (
            None if held is None else (self.views.seen[0, held].astype(np.float32), one_hot(self.dataset)[held])
        )
        with self.reporter.step(name, steps) as step, Feed(data, recipe.epochs) as feed:
            begin = Begin(feed)
            done = self.tail.fit(
                as_dataset(feed), validation_data=validation, epochs=recipe.epochs, shuffle=False, verbose=0,
                callbacks=[begin, Watch(step, recipe.epochs), *callbacks],
            )  # fmt: skip
        self.spent.extend(begin.spent)
        if self.kept:
            for variable, value in zip(self.tail.variables, self.start, strict=True):
                if np.issubdtype(value.dtype, np.floating):
                    variable.assign(self.kept * value + (1 - self.kept) * keras.ops.convert_to_numpy(variable))
        return {column: [float(value) for value in values] for column, values in done.history.items()}

    def _loss(self) -> Any:
        """Return the cross-entropy; where the training goes on from a bundle, among the classes that have images.

        Else a class without images would only ever be argued against, and unlearnt: measured, all of it within minutes.
        """
        if not self.kept:
            return "categorical_crossentropy"
        there = np.isin(np.arange(len(self.dataset.labels)), self.dataset.classes()).astype(np.float32)
        return lambda truth, said: keras.losses.categorical_crossentropy(truth, said * there)  # which makes the sum 1

    def see(self, activations: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return features (N, D) and probabilities (N, C), float32, for activations (N, …)."""
        parts = []
        for start in range(0, len(activations), PREDICTED):
            batch = activations[start : start + PREDICTED].astype(np.float32)
            parts.append([np.asarray(part) for part in self.both.predict_on_batch(batch)])
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features, probabilities


@dataclass(frozen=True, slots=True)
class Judged:
    """What models that were not trained on an item say of it, filled fold by fold; shapes as in ``Fitted``."""

    probabilities: NDArray[np.float32]
    distances: NDArray[np.float32]
    variants: dict[str, NDArray[np.float32]]

    @classmethod
    def empty(cls, count: int, classes: int) -> Self:
        """Return room for ``count`` items."""
        room = np.zeros((1 + len(SHORTCUTS), count, classes), np.float32)
        return cls(room[0], np.zeros(count, np.float32), dict(zip(SHORTCUTS, room[1:], strict=True)))

    def arrays(self) -> list[NDArray[np.float32]]:
        """Return all that is filled, in a fixed order."""
        return [self.probabilities, self.distances, *self.variants.values()]

    def take(self, staged: Staged, outside: Indices, inside: Indices) -> None:
        """Judge the items ``inside``, plain and changed by each shortcut test, by what was trained on ``outside``."""
        space = space_of(staged, outside)
        features, self.probabilities[inside] = staged.see(staged.views.seen[0][inside])
        self.distances[inside] = space.distances(features)
        with staged.reporter.step("Judging changed images", len(inside) * len(SHORTCUTS)) as step:
            for name, change in SHORTCUTS.items():
                shown = Shown(staged.rendered, inside, partial(_changed, change))
                for _, items, activations in look(staged.trunk, shown, 1, step, staged.spent):
                    self.variants[name][items] = staged.see(activations)[1]


def _changed(change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], *args: Any) -> NDArray[np.uint8]:
    return np.stack([change(image) for image in args[-1]])


def space_of(staged: Staged, items: Indices) -> distance.Space:
    """Return where the features of ``items`` lie, those of OTHER left out where there are other classes."""
    known = staged.dataset.known(items)
    features, _ = staged.see(staged.views.seen[0][known])
    return distance.fit(features, staged.dataset.classes()[known])


@contextmanager
def opened(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Iterator[Staged]:
    """Yield the network with all that its trunk sees, in temporary files."""
    network = architecture.build(rendered.images.shape[1:], len(rendered.dataset.labels))
    trunk, tail, both = divide(network, architecture.trained_from)
    if architecture.start:
        network.get_layer("features").trainable = False
    with tempfile.TemporaryDirectory(prefix="dicomsort-train-") as scratch:
        start = [keras.ops.convert_to_numpy(variable) for variable in tail.variables]
        kept = KEPT if architecture.start else 0.0
        spent: list[tuple[float, float]] = []
        views = view_all(trunk, rendered, recipe.augment, recipe.seed, Path(scratch) / "views.npy", reporter, spent)
        yield Staged(network, trunk, tail, both, start, views, rendered, recipe, reporter, kept, spent)


def cross_validate(
    staged: Staged, fold: NDArray[np.int64], checkpoint: Checkpoint | None = None
) -> tuple[Judged, dict[str, list[float]]]:
    """Judge each fold by what is trained on the others; also return the history with the first fold held out.

    What each fold gave is kept in ``checkpoint``, and not done again.
    """
    numbers = np.unique(fold)
    judged = Judged.empty(len(fold), len(staged.dataset.labels))
    progress = _restored(checkpoint, judged, staged, len(numbers))
    for i, k in enumerate(numbers[progress.epoch :], progress.epoch + 1):
        inside, outside = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        held = None if progress.history else inside
        course = staged.fit(outside, held, f"Cross-validation, fold {i} of {len(numbers)}")
        judged.take(staged, outside, inside)
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


def fit_staged(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train what lies behind ``architecture.trained_from``: once a fold of sources, at last on everything."""
    dataset = rendered.dataset
    grouped = dataset.grouped()
    fold = folds(dataset, FOLDS, recipe.seed, grouped=grouped)
    count = len(np.unique(fold))
    if count < 2:  # noqa: PLR2004 - one to train on and one to hold out
        raise DatasetError(held_together(dataset))
    everything = np.arange(len(fold))
    with opened(architecture, rendered, recipe, reporter) as staged:
        before = staged.see(staged.views.seen[0])[1] if architecture.start else None
        with _told(recipe, reporter):
            judged, history = cross_validate(staged, fold, _checkpoint(staged, architecture))
            staged.fit(everything, None, "Training on everything")
        # A site's few images say nothing of where all that the starting bundle was trained on lies.
        space = None if architecture.start else space_of(staged, everything)
    unit = _unit(dataset, grouped=grouped)
    held_out = f"cross-validation in {count} folds by {unit}: each image is judged by a model not trained on its fold"
    distances = None if architecture.start else judged.distances
    return Fitted(
        staged.network, history, everything, judged.probabilities, f"the first of {count} folds, {unit}", held_out,
        grouped, {"waiting": waiting(staged.spent)}, fold, distances, judged.variants, space, before,
    )  # fmt: skip


def _checkpoint(staged: Staged, architecture: Architecture) -> Checkpoint | None:
    """Return the place for what the folds give; ``architecture`` names its weights."""
    place, network = staged.recipe.checkpoint, f"{architecture.summary}, from {architecture.trained_from}"
    if place is None:
        return None
    return Checkpoint(place, identify(staged.network, staged.rendered, staged.recipe, architecture=network))


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
