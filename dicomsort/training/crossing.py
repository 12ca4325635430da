"""Cross-validation by source: a bundle's recipe, trained anew without some of the sources, judges those.

Imports Keras inside functions only.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomsort.bundle.spec import read_model
from dicomsort.errors import UsageError
from dicomsort.training import comparing
from dicomsort.training.architectures import ARCHITECTURES, varied
from dicomsort.training.predictions import HeldOut, Predictions, require_images
from dicomsort.training.progress import load_tensorflow
from dicomsort.training.quantize import INT8, Quantizer
from dicomsort.training.recipe import Recipe, Said
from dicomsort.training.restore import precision
from dicomsort.training.splitting import folds
from dicomsort.training.tensors import Rendered, render_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicomsort.bundle import Bundle
    from dicomsort.engine import Engine
    from dicomsort.training.architectures import Architecture
    from dicomsort.training.dataset import Dataset
    from dicomsort.training.progress import Reporter

RECIPE = ("epochs", "batch_size", "learning_rate", "validation_split", "seed", "augment")


@dataclass(frozen=True, slots=True)
class Folding:
    """How to hold sources out: in ``count`` parts (0: one by one), dealt out by ``seed``."""

    count: int
    seed: int


def by_folds(
    bundle: Bundle, dataset: Dataset, folding: Folding, engine: Engine, reporter: Reporter
) -> tuple[Predictions, tuple[tuple[str, str], ...]]:
    """Judge every source by models of the bundle's recipe that never saw it; also return what was skipped, and why."""
    architecture, integers = _crossable(bundle), precision(read_model(bundle)) == INT8
    with tempfile.TemporaryDirectory(prefix="dicomsort-evaluate-") as scratch:
        rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter)
        require_images(rendered.dataset, len(rendered.skipped))
        _require_sources(rendered.dataset)
        reporter.note("Loading TensorFlow")
        load_tensorflow()
        held = _cross_validate(architecture, rendered, bundle.training["recipe"], folding, reporter, integers=integers)
    return held.calibrated(rendered.dataset), rendered.skipped


def _cross_validate(
    architecture: Architecture, rendered: Rendered, recipe: Mapping[str, Any], folding: Folding, reporter: Reporter,
    *, integers: bool,
) -> HeldOut:  # fmt: skip
    """Train what the recipe trains once for each fold of sources on the others, and judge the fold by it.

    In ``integers`` where the bundle's model computes so.
    """
    from dicomsort.training.folding import cross_validate
    from dicomsort.training.staged import opened

    dataset = rendered.dataset
    sources = len({item.group for item in dataset.items})
    count = min(folding.count or sources, sources)
    fold = folds(dataset, count, folding.seed, grouped=True)
    asked = Recipe(**{key: recipe[key] for key in RECIPE})
    with opened(architecture, rendered, asked, reporter) as staged:
        judged, _ = cross_validate(staged, fold, None, Quantizer(rendered, asked.seed, reporter) if integers else None)
    said, plain = Said(judged.probabilities, judged.distances), None
    if judged.int8:
        said, plain = judged.int8, judged.probabilities
    words = _words(dataset, count, sources)
    return HeldOut(said.probabilities, fold, words, True, said.distances, judged.variants, plain=plain)


def _crossable(bundle: Bundle) -> Architecture:
    """Return the bundle's architecture; UsageError where it cannot be cross-validated."""
    architecture = ARCHITECTURES.get(bundle.arch)
    if architecture is None or architecture.recipe != "staged":
        raise UsageError(
            "--cross-validate: expected a bundle trained from pretrained weights, received architecture "
            f"{bundle.arch!r}"
        )
    if bundle.training.get(comparing.KEY):
        raise UsageError(
            "--cross-validate: expected a bundle trained from published weights, received one started from another "
            "bundle, which may have seen the sources"
        )
    architecture.require()
    if not isinstance(recipe := bundle.training.get("recipe"), dict) or not set(RECIPE) <= set(recipe):
        raise UsageError(
            f"--cross-validate: expected a bundle that tells its recipe ({', '.join(RECIPE)}), received {recipe!r}"
        )
    return varied(architecture, bundle.arch, recipe.get("variation") or {})


def _require_sources(dataset: Dataset) -> None:
    """Raise UsageError unless whole sources can be held out."""
    if not dataset.grouped():
        raise UsageError(
            f"--cross-validate source: data set {str(dataset.root)!r}: expected every file in a source's folder, and "
            "at least two sources a class, received fewer"
        )


def _words(dataset: Dataset, count: int, sources: int) -> str:
    unit = dataset.sources_held()
    kind = f"each of {sources} sources alone" if count == sources else f"{count} parts of {sources} sources in turn"
    return f"cross-validation, {kind} ({unit}): each image is judged by a model that never saw its source"
