"""Cross-validation by source: a bundle's recipe, trained anew without some of the sources, judges those.

Imports Keras inside functions only.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.errors import UsageError
from dicomsort.training.architectures import ARCHITECTURES
from dicomsort.training.dataset import folds
from dicomsort.training.predictions import HeldOut, Predictions, require_images
from dicomsort.training.progress import load_tensorflow
from dicomsort.training.tensors import Rendered, render_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle
    from dicomsort.training.architectures import Architecture
    from dicomsort.training.dataset import Dataset
    from dicomsort.training.progress import Reporter

    Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

RECIPE = ("epochs", "batch_size", "learning_rate", "validation_split", "seed")


@dataclass(frozen=True, slots=True)
class Folding:
    """How to hold sources out: in ``count`` parts (0: one by one), dealt out by ``seed``.

    ``changes``: name of a shortcut test -> change of a rendering, whose images the same models judge too.
    """

    count: int
    seed: int
    changes: Mapping[str, Change]


def by_folds(
    bundle: Bundle, dataset: Dataset, folding: Folding, reporter: Reporter
) -> tuple[Predictions, tuple[tuple[str, str], ...]]:
    """Judge every source by models of the bundle's recipe that never saw it; also return what was skipped, and why."""
    architecture = _crossable(bundle)
    with tempfile.TemporaryDirectory(prefix="dicomsort-evaluate-") as scratch:
        rendered = render_all(dataset, Path(scratch) / "images.npy", reporter)
        require_images(rendered.dataset, len(rendered.skipped))
        _require_sources(rendered.dataset)
        reporter.note("Loading TensorFlow")
        load_tensorflow()
        held = cross_validate(architecture, rendered, bundle.training["recipe"], folding, reporter)
    return held.calibrated(rendered.dataset), rendered.skipped


def cross_validate(
    architecture: Architecture, rendered: Rendered, recipe: Mapping[str, Any], folding: Folding, reporter: Reporter
) -> HeldOut:
    """Train the recipe's head once for each fold of sources on the features of the others, and judge the fold by it."""
    from dicomsort.training import fit
    from dicomsort.training.feeding import predict_rows

    dataset = rendered.dataset
    sources = len({item.group for item in dataset.items})
    count = min(folding.count or sources, sources)
    fold = folds(dataset, count, folding.seed, grouped=True)
    body = architecture.build(rendered.images.shape[1:])
    features = {}
    for name, change in {"plain": None, **folding.changes}.items():
        images: Any = rendered.images if change is None else Changed(rendered.images, change)
        with reporter.step(f"Computing features ({name})", len(rendered.rows)) as step:
            features[name] = predict_rows(body, images, rendered.rows, step)
    heads = fit._Heads(  # noqa: SLF001
        dataset, features["plain"], fit.Recipe(**{key: recipe[key] for key in RECIPE}), reporter
    )
    found = {name: np.zeros((len(dataset.items), len(dataset.labels)), np.float32) for name in features}
    for number, k in enumerate(np.unique(fold), 1):
        inside = np.flatnonzero(fold == k)
        head, _ = heads.fit(np.flatnonzero(fold != k), None, f"Fold {number} of {count}")
        for name, values in features.items():
            found[name][inside] = head.predict(values[inside], verbose=0)
    return HeldOut(found.pop("plain"), fold, _words(dataset, count, sources), by_source=True, variants=found)


class Changed:
    """Renderings, each changed when it is asked for: what a shortcut test feeds."""

    def __init__(self, images: NDArray[np.uint8], change: Change) -> None:
        """``images``: uint8 (N, H, W, 3)."""
        self._images, self._change = images, change

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return the changed images of these rows."""
        return np.stack([self._change(image) for image in self._images[rows]])


def _crossable(bundle: Bundle) -> Architecture:
    """Return the bundle's architecture; UsageError where it cannot be cross-validated."""
    architecture = ARCHITECTURES.get(bundle.arch)
    if architecture is None or architecture.recipe != "head":
        raise UsageError(
            "--cross-validate: expected a bundle that trains a head on a frozen network, received architecture "
            f"{bundle.arch!r}"
        )
    architecture.require()
    if not isinstance(recipe := bundle.training.get("recipe"), dict) or not set(RECIPE) <= set(recipe):
        raise UsageError(
            f"--cross-validate: expected a bundle that tells its recipe ({', '.join(RECIPE)}), received {recipe!r}"
        )
    return architecture


def _require_sources(dataset: Dataset) -> None:
    """Raise UsageError unless whole sources can be held out."""
    if not dataset.grouped():
        raise UsageError(
            f"--cross-validate source: data set {str(dataset.root)!r}: expected every file in a source's folder, and "
            "at least two sources a class, received fewer"
        )


def _words(dataset: Dataset, count: int, sources: int) -> str:
    unit = "whole sources, near-twins kept together" if dataset.joined() else "whole sources"
    kind = f"each of {sources} sources alone" if count == sources else f"{count} parts of {sources} sources in turn"
    return f"cross-validation, {kind} ({unit}): each image is judged by a model that never saw its source"
