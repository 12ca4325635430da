"""Predictions for an evaluation by a bundle's recipe, trained anew without some sources.

Keras is imported inside functions only.
"""

from __future__ import annotations

from dicomsort.bundle import Bundle
from dicomsort.bundle.spec import read_model
from dicomsort.config import TRAINING, checked
from dicomsort.errors import UsageError
from dicomsort.training.data.augment import STRENGTHS
from dicomsort.training.data.dataset import Dataset
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.data.splitting import folds
from dicomsort.training.evaluate import calibration, compare
from dicomsort.training.evaluate.predictions import Predictions, cross_calibrated
from dicomsort.training.fit.held_out import HeldOutPredictions
from dicomsort.training.fit.hyperparameters import Hyperparameters
from dicomsort.training.fit.quantize import Quantizer
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture, varied
from dicomsort.training.models.tflite_weights import INT8, precision
from dicomsort.training.progress import Reporter, load_tensorflow

RECIPE = ("epochs", "batch_size", "learning_rate", "validation_split", "seed", "augment")


def by_folds(bundle: Bundle, rendered: Rendered, count: int, seed: int, reporter: Reporter) -> Predictions:
    """Judge every source by models of the bundle's recipe that never saw it.

    The sources are held out in ``count`` parts (0: one by one), chosen by ``seed``. For each part the recipe is trained
    on the other parts. The models compute in int8 where the bundle's does.
    """
    is_int8 = precision(read_model(bundle)) == INT8
    dataset = rendered.dataset
    if not dataset.grouped():
        raise UsageError(
            f"--cross-validate source: data set {str(dataset.root)!r}: expected every file in a source's folder, "
            "and at least two sources a class, received fewer"
        )
    reporter.note("Loading TensorFlow")
    load_tensorflow()
    from dicomsort.training.fit.transfer import cross_validate, opened

    sources = len({item.group for item in dataset.items})
    count = min(count or sources, sources)
    fold = folds(dataset, count, seed, grouped=True)
    hyper = Hyperparameters(**{key: bundle.training["recipe"][key] for key in RECIPE})
    held_out = HeldOutPredictions.zeros(dataset, fold, _words(dataset, count, sources), by_source=True)
    quantizer = Quantizer(rendered, hyper.seed, reporter) if is_int8 else None
    with opened(crossable(bundle), rendered, hyper, reporter) as trainer:
        int8, _ = cross_validate(trainer, held_out, None, quantizer)
    found = int8 or held_out
    found = found.biased(found.class_bias())  # as the recipe does
    return cross_calibrated(found, dataset, bundle.training["recipe"].get("target", calibration.TARGET))


def crossable(bundle: Bundle) -> Architecture:
    """Return the bundle's architecture; UsageError where it cannot be cross-validated."""
    architecture = ARCHITECTURES.get(bundle.arch)
    expected = "--cross-validate: expected a bundle"
    if architecture is None or architecture.recipe != "transfer":
        raise UsageError(f"{expected} trained from pretrained weights, received architecture {bundle.arch!r}")
    if bundle.training.get(compare.KEY):
        received = "one started from another bundle, which may have seen the sources"
        raise UsageError(f"{expected} trained from published weights, received {received}")
    architecture.require()
    recipe = bundle.training.get("recipe") or {}
    if not set(RECIPE) <= set(recipe):
        raise UsageError(f"{expected} that tells its recipe ({', '.join(RECIPE)}), received {recipe!r}")
    for name in (*RECIPE, "target"):
        if name in recipe:
            checked(TRAINING[name], recipe[name], f"bundle {str(bundle.folder)!r}: training.recipe.{name}")
    if recipe["augment"] not in STRENGTHS:
        raise UsageError(f"{expected} with augment among {', '.join(STRENGTHS)}, received {recipe['augment']!r}")
    return varied(architecture, bundle.arch, recipe.get("variation") or {})


def _words(dataset: Dataset, count: int, sources: int) -> str:
    unit = dataset.sources_held()
    kind = f"each of {sources} sources alone" if count == sources else f"{count} parts of {sources} sources in turn"
    return f"cross-validation, {kind} ({unit}): each image is judged by a model that never saw its source"
