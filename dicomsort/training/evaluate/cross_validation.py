"""Predictions for an evaluation: by a bundle's model in workers, or by its recipe trained anew without some sources.

What workers run are module-level functions on picklable values. Keras is imported inside functions only.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.bundle import Bundle, BundleReference, Predictor, predictor_of
from dicomsort.bundle.spec import read_model
from dicomsort.config import TRAINING, checked
from dicomsort.engines.engine import Engine, R, submit_batch
from dicomsort.errors import UsageError, WorkerLost
from dicomsort.pixels import PixelsError, render
from dicomsort.training.data.augment import STRENGTHS
from dicomsort.training.data.rendered import render_all
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.data.splitting import folds, patient, perceptual_hash
from dicomsort.training.evaluate import calibration, compare
from dicomsort.training.evaluate.predictions import Predictions, cross_calibrated, require_images
from dicomsort.training.fit.held_out import HeldOutPredictions
from dicomsort.training.fit.quantize import Quantizer
from dicomsort.training.fit.recipe import Hyperparameters
from dicomsort.training.models.architectures import ARCHITECTURES, Architecture, varied
from dicomsort.training.models.tflite_weights import INT8, precision
from dicomsort.training.progress import Reporter, Step, load_tensorflow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from dicomsort.training.data.dataset import Dataset

    Row = NDArray[np.float32]

BATCH = 8  # files a task
AHEAD = 4  # tasks that wait, for each worker

RECIPE = ("epochs", "batch_size", "learning_rate", "validation_split", "seed", "augment")


def by_folds(
    bundle: Bundle, dataset: Dataset, count: int, seed: int, engine: Engine, reporter: Reporter
) -> tuple[Predictions, tuple[tuple[str, str], ...]]:
    """Judge every source by models of the bundle's recipe that never saw it; also return what was skipped, and why.

    The sources are held out in ``count`` parts (0: one by one), chosen by ``seed``. For each part the recipe is trained
    on the other parts. The models compute in int8 where the bundle's does.
    """
    architecture, is_int8 = _crossable(bundle), precision(read_model(bundle)) == INT8
    with tempfile.TemporaryDirectory(prefix="dicomsort-evaluate-") as scratch:
        rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter)
        dataset = rendered.dataset
        require_images(dataset, len(rendered.skipped))
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
        held_out = HeldOutPredictions.room(dataset, fold, _words(dataset, count, sources), by_source=True)
        quantizer = Quantizer(rendered, hyper.seed, reporter) if is_int8 else None
        with opened(architecture, rendered, hyper, reporter) as trainer:
            int8, _ = cross_validate(trainer, held_out, None, quantizer)
    target = bundle.training["recipe"].get("target", calibration.TARGET)
    return cross_calibrated(int8 or held_out, dataset, target), rendered.skipped


def _crossable(bundle: Bundle) -> Architecture:
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
    for name in RECIPE:
        checked(TRAINING[name], recipe[name], f"bundle {str(bundle.folder)!r}: training.recipe.{name}")
    if "target" in recipe:
        checked(TRAINING["target"], recipe["target"], f"bundle {str(bundle.folder)!r}: training.recipe.target")
    if recipe["augment"] not in STRENGTHS:
        raise UsageError(f"{expected} with augment among {', '.join(STRENGTHS)}, received {recipe['augment']!r}")
    return varied(architecture, bundle.arch, recipe.get("variation") or {})


def _words(dataset: Dataset, count: int, sources: int) -> str:
    unit = dataset.sources_held()
    kind = f"each of {sources} sources alone" if count == sources else f"{count} parts of {sources} sources in turn"
    return f"cross-validation, {kind} ({unit}): each image is judged by a model that never saw its source"


@dataclass(frozen=True, slots=True)
class FilePrediction:
    """What a model predicts for a file: ``problem`` says why nothing, the rest is empty then.

    ``probabilities``: float32 (C,), calibrated; ``distance`` None where the model has none; ``variants``: name of a
    robustness test -> probabilities; ``digest``: SHA-256 of the file; ``patient``: a salted hash, "" where none is
    named; ``print``: perceptual hash, None for a blank image.
    """

    problem: str = ""
    probabilities: Row | None = None
    distance: float | None = None
    variants: Mapping[str, Row] = field(default_factory=dict)
    digest: str = ""
    patient: str = ""
    print: NDArray[np.uint64] | None = None


def predict_files(
    bundle: BundleReference, root: str, salt: bytes, shortcuts: Sequence[str], paths: Sequence[str]
) -> list[FilePrediction]:
    """Predict the middle frame of each file (path below ``root``), plain and changed by each of ``shortcuts``."""
    return [_predict(predictor_of(bundle), Path(root, path), salt, shortcuts) for path in paths]


def thumbnails(root: str, paths: Sequence[str]) -> list[NDArray[np.uint8] | None]:
    """Render files once more, to be looked at: uint8 (224, 224, 3), None where that fails by now."""
    return [_rendered(Path(root, path)) for path in paths]


def spread(
    engine: Engine,
    task: Callable[[list[str]], list[R]],
    paths: Sequence[str],
    on_lost: Callable[[str, WorkerLost], R],
    step: Step,
) -> list[R]:
    """Return what ``task`` gives for each path, in their order, worked out by the engine and counted on ``step``."""
    waiting: deque[Future[list[R]]] = deque()
    results: list[R] = []
    for start in range(0, len(paths), BATCH):
        waiting.append(submit_batch(engine, task, paths[start : start + BATCH], on_lost))
        while waiting and (len(waiting) > AHEAD * engine.workers or start + BATCH >= len(paths)):
            part = waiting.popleft().result()
            results += part
            step.advance(len(part))
    return results


def _predict(predictor: Predictor, path: Path, salt: bytes, shortcuts: Sequence[str]) -> FilePrediction:
    try:
        image = render(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        owner = patient(path, salt)
    except PixelsError as error:
        return FilePrediction(str(error))
    except OSError as error:
        return FilePrediction(error.strerror or type(error).__name__)
    output = predictor.predict(np.stack([image, *(SHORTCUTS[name](image) for name in shortcuts)]))
    plain, *changed = output.probabilities
    variants = dict(zip(shortcuts, changed, strict=True))
    distance = None if np.isnan(output.distances[0]) else float(output.distances[0])
    return FilePrediction("", plain, distance, variants, digest, owner, perceptual_hash(image))


def _rendered(path: Path) -> NDArray[np.uint8] | None:
    try:
        return render(path)
    except (PixelsError, OSError):
        return None
