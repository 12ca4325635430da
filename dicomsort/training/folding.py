"""Judges each fold of a data set by a network that was trained on the others, for the staged recipe.

Imports Keras: import this module inside a function, after everything that can fail early.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dicomsort.training import distance
from dicomsort.training.checkpoint import Checkpoint, Progress, Saved
from dicomsort.training.recipe import Said
from dicomsort.training.shortcuts import SHORTCUTS
from dicomsort.training.views import Shown, look

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dicomsort.training.dataset import Indices
    from dicomsort.training.quantize import Quantizer
    from dicomsort.training.staged import Staged


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

    def take(self, staged: Staged, outside: Indices, inside: Indices) -> distance.Space | None:
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


def space_of(staged: Staged, items: Indices) -> distance.Space | None:
    """Return where the features of ``items`` lie, those of OTHER left out where there are other classes.

    Where the training goes on from a bundle, that one's images, for a site's few say nothing of where all the others
    lie, and the features stay as they are; None where the bundle does not tell.
    """
    if staged.architecture.start:
        return staged.architecture.space
    known = staged.dataset.known(items)
    features, _ = staged.see(staged.views.seen[0][known])
    return distance.fit(features, staged.dataset.classes()[known])


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
