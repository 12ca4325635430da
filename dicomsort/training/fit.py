"""The two recipes: train a whole network on pixels, or a softmax layer on the features of a frozen one.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from dicomsort.training.dataset import folds, split
from dicomsort.training.feeding import Batches, predict_rows, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dicomsort.training.architectures import Architecture
    from dicomsort.training.dataset import Dataset, Indices
    from dicomsort.training.progress import Reporter
    from dicomsort.training.tensors import Rendered

FOLDS = 10
HEAD_DROPOUT, HEAD_L2 = 0.5, 1e-4


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of a training run."""

    epochs: int
    batch_size: int
    learning_rate: float
    validation_split: float
    seed: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model and what was held out while it, or its like, was trained.

    ``history``: column -> a value an epoch. ``held``: items with held-out predictions; ``probabilities``: float32
    (len(held), C) of those, not calibrated. ``split`` and ``held_out`` say in words how it was split, ``by_source``
    whether whole sources were held out.
    """

    model: Any
    history: dict[str, list[float]]
    held: Indices
    probabilities: NDArray[np.float32]
    split: str
    held_out: str
    by_source: bool = False


def fit(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train ``architecture`` on rendered images by its recipe; the seed fixes splits, weights and order."""
    keras.utils.set_random_seed(recipe.seed)
    return RECIPES[architecture.recipe](architecture, rendered, recipe, reporter)


def fit_whole(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train all weights on pixels, with a random share of the images held out."""
    dataset = rendered.dataset
    train, held = split(dataset, recipe.validation_split, recipe.seed, grouped=False)
    model = architecture.build(rendered.images.shape[1:], len(dataset.labels))
    truth, size = _one_hot(dataset), recipe.batch_size
    data = Batches(rendered.images, rendered.rows[train], truth[train], size, recipe.seed)
    validation = Batches(rendered.images, rendered.rows[held], truth[held], size)
    with reporter.step("Training", recipe.epochs * len(data)) as step:
        history = run(model, data, validation, recipe.epochs, recipe.learning_rate, step)
    with reporter.step("Predicting held-out images", len(held)) as step:
        probabilities = predict_rows(model, rendered.images, rendered.rows[held], step)
    words = f"{recipe.validation_split:.0%} of the images at random, whatever their source"
    return Fitted(model, history, held, probabilities, words, f"the validation split: {words}")


def fit_head(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train a softmax layer on frozen features: once with sources held out, once a fold, at last on everything.

    The learning rate falls to 0 along a cosine.
    """
    dataset = rendered.dataset
    grouped = dataset.grouped()
    body = architecture.build(rendered.images.shape[1:])
    with reporter.step("Computing features", len(rendered.rows)) as step:
        features = predict_rows(body, rendered.images, rendered.rows, step)
    heads = _Heads(dataset, features, recipe, reporter)
    train, held = split(dataset, recipe.validation_split, recipe.seed, grouped=grouped)
    _, history = heads.fit(train, held, "Training with a validation split")
    fold = folds(dataset, FOLDS, recipe.seed, grouped=grouped)
    probabilities = np.zeros((len(features), len(dataset.labels)), np.float32)
    for k in range(FOLDS):
        inside = np.flatnonzero(fold == k)
        if len(inside):
            head, _ = heads.fit(np.flatnonzero(fold != k), None, f"Cross-validation, fold {k + 1} of {FOLDS}")
            probabilities[inside] = head.predict(features[inside], verbose=0)
    everything = np.arange(len(features))
    head, _ = heads.fit(everything, None, "Training on everything")
    unit = "images at random (there are no sources to tell apart)"
    if grouped:
        unit = "whole sources, near-twins kept together" if dataset.joined() else "whole sources"
    return Fitted(
        keras.Model(body.input, head(body.output), name=body.name),
        history,
        everything,
        probabilities,
        f"{recipe.validation_split:.0%} of each class, {unit}",
        f"cross-validation in {FOLDS} folds by {unit}: each image is judged by a head that was not trained on its fold",
        grouped,
    )


@dataclass(frozen=True, slots=True)
class _Heads:
    """Trains softmax layers on parts of the same features, float32 (N, D)."""

    dataset: Dataset
    features: NDArray[np.float32]
    recipe: Recipe
    reporter: Reporter

    def fit(self, train: Indices, held: Indices | None, name: str) -> tuple[Any, dict[str, list[float]]]:
        """Return a head, (N, D) to (N, C) probabilities, trained on the items ``train``, and its history."""
        truth, recipe = _one_hot(self.dataset), self.recipe
        head = keras.Sequential(
            [
                keras.Input(self.features.shape[1:], name="features"),
                keras.layers.Dropout(HEAD_DROPOUT, seed=recipe.seed),
                keras.layers.Dense(
                    truth.shape[1],
                    activation="softmax",
                    # Random weights would stay random in those directions that only unseen sources have.
                    kernel_initializer="zeros",
                    kernel_regularizer=keras.regularizers.L2(HEAD_L2),
                    name="probabilities",
                ),
            ],
            name="head",
        )
        weights = balance(self.dataset.only(train))
        data = Batches(self.features, train, truth[train], recipe.batch_size, recipe.seed, weights)
        validation = None if held is None else Batches(self.features, held, truth[held], recipe.batch_size)
        steps = recipe.epochs * len(data)
        rate = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps)
        with self.reporter.step(name, steps) as step:
            history = run(head, data, validation, recipe.epochs, rate, step)
        return head, history


def balance(dataset: Dataset) -> NDArray[np.float32]:
    """Return a weight for each item, float32 (N,), mean 1: all classes weigh the same, and in each all its sources."""
    keys = [f"{item.label}/{item.group}" for item in dataset.items]
    _, source, counts = np.unique(keys, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[source]
    weights /= np.bincount(dataset.classes(), weights)[dataset.classes()]
    result: NDArray[np.float32] = (weights / weights.mean()).astype(np.float32)
    return result


def _one_hot(dataset: Dataset) -> NDArray[np.float32]:
    """Return the items' classes, one-hot float32 (N, C)."""
    return np.eye(len(dataset.labels), dtype=np.float32)[dataset.classes()]


RECIPES: dict[str, Callable[[Architecture, Rendered, Recipe, Reporter], Fitted]] = {
    "whole": fit_whole,
    "head": fit_head,
}
