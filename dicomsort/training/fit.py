"""The recipes by name; here: train a softmax layer on the features of a frozen network.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from dicomsort.training.feeding import Batches, compiled, one_hot, predict_rows, run
from dicomsort.training.recipe import Fitted
from dicomsort.training.splitting import balance, folds, split
from dicomsort.training.whole import fit_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dicomsort.training.architectures import Architecture
    from dicomsort.training.dataset import Dataset, Indices
    from dicomsort.training.progress import Reporter
    from dicomsort.training.recipe import Recipe
    from dicomsort.training.tensors import Rendered

FOLDS = 10
HEAD_DROPOUT, HEAD_L2 = 0.5, 1e-4


def fit(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train ``architecture`` on rendered images by its recipe; the seed fixes splits, weights and order."""
    keras.utils.set_random_seed(recipe.seed)
    return RECIPES[architecture.recipe](architecture, rendered, recipe, reporter)


def fit_head(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Fitted:
    """Train a softmax layer on frozen features: once with sources held out, once a fold, at last on everything.

    The learning rate falls to 0 along a cosine.
    """
    dataset = rendered.dataset
    grouped = dataset.grouped()
    assert architecture.backbone is not None  # noqa: S101 - the registry gives this recipe one
    body = architecture.backbone(rendered.images.shape[1:])
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
        truth, recipe = one_hot(self.dataset), self.recipe
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
            history = run(compiled(head, rate), data, validation, recipe.epochs, step)
        return head, history


RECIPES: dict[str, Callable[[Architecture, Rendered, Recipe, Reporter], Fitted]] = {
    "whole": fit_whole,
    "head": fit_head,
}
