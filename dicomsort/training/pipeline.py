"""From a data set to a bundle: the one module that knows the order of the steps."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from dicomsort.bundle import EVALUATION_NAME, check_target, staged
from dicomsort.bundle.spec import read_model
from dicomsort.errors import DicomsortError
from dicomsort.report import visible
from dicomsort.training.data.augment import varied_by
from dicomsort.training.data.dataset import MIN_IMAGES, read_groups, relabelled, require_trainable, scan
from dicomsort.training.data.rendered import Rendered, open_cache, render_all
from dicomsort.training.evaluate.compare import Judge, Verdict, beside_of, refusal, rival_at
from dicomsort.training.export.bundle import OUTPUTS, Run, calibrated, sheet_of, write
from dicomsort.training.fit.checkpoint import forget
from dicomsort.training.fit.quantize import words
from dicomsort.training.models.replay_set import keep_features
from dicomsort.training.progress import Reporter, load_tensorflow
from dicomsort.training.settings import Settings, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dicomsort.bundle import Bundle
    from dicomsort.engines.engine import Engine
    from dicomsort.training.data.dataset import Dataset
    from dicomsort.training.data.grouping import Kept
    from dicomsort.training.evaluate.calibration import Calibration
    from dicomsort.training.export.tflite import Exported
    from dicomsort.training.fit.recipe import Fitted, Recipe
    from dicomsort.training.models.architectures import Architecture

SKIPPED_SAID = 10
TRIALS = frozenset({"trials.csv", "trials.png"})  # what a search adds to its bundle
EARLIER = "screen.tflite"  # a second network, which bundles had until there was one
MAYBE = TRIALS | {EARLIER}  # what an earlier bundle may have beside ``OUTPUTS``


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left: the bundle's folder, metrics.json's figures, and the files that were skipped, with reasons.

    ``sheet`` is the picture of the most confident mistakes, beside the bundle.
    """

    folder: Path
    figures: dict[str, Any]
    held_out: str
    skipped: tuple[tuple[str, str], ...]
    sheet: Path


def train(settings: Settings, open_workers: Callable[[], Engine], reporter: Reporter) -> Trained:
    """Train and write the bundle ``settings.out``; it is placed whole or not at all.

    ``open_workers`` opens the engine that decodes the files, and makes variations where there are many cores.
    UsageError where a setting or the data set cannot be trained with; KeyboardInterrupt leaves a checkpoint from which
    the same settings go on.
    """
    settings, architecture = checked(settings)
    start = architecture.start
    rival = start and rival_at(settings.out, start, anyway=settings.replace_worse)
    if rival:
        check_target(beside_of(settings.out), OUTPUTS | MAYBE)
    dataset = scanned(settings, architecture)
    cache = open_cache(settings.cache) if settings.cache else None
    recipe = settings.recipe()
    with (
        staged(settings.out, OUTPUTS | MAYBE) as folder,
        tempfile.TemporaryDirectory(prefix="dicomsort-train-") as scratch,
        open_workers() as engine,
    ):
        reporter.note(f"Network {settings.arch}: {architecture.summary}")
        rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter, cache)
        rendered = replace(rendered, vary=varied_by(engine, recipe.augment))
        tell_skipped(rendered, reporter)
        _tell_kept(rendered.kept, reporter)
        require_trainable(rendered.dataset, dataset.counts(), len(rendered.skipped), 1 if start else MIN_IMAGES)
        exported = _exported(architecture, rendered, recipe, reporter)
        fitted = exported.fitted
        found = calibrated(architecture, rendered, fitted)
        verdict = _verdict(architecture, rendered, fitted, found, rival, recipe.seed)
        made = partial(_made, architecture, rendered, exported, found, verdict.started if verdict else None, reporter)
        if verdict and verdict.reasons and rival:
            _refuse(settings, rival, verdict, made)
        figures = made(settings, folder)
    forget(recipe.checkpoint)
    return Trained(settings.out, figures, fitted.held_out, rendered.skipped, sheet_of(settings.out))


def _exported(architecture: Architecture, rendered: Rendered, recipe: Recipe, reporter: Reporter) -> Exported:
    """Train, and convert what was trained."""
    reporter.note("Loading TensorFlow")
    load_tensorflow()
    from dicomsort.training.export import tflite
    from dicomsort.training.fit import recipes

    fitted = recipes.fit(architecture, rendered, recipe, reporter)
    exported = tflite.export(architecture, rendered, fitted, recipe.seed, reporter)
    reporter.note(words(exported.told))
    return exported


def _refuse(
    settings: Settings, rival: Bundle, verdict: Verdict, made: Callable[[Settings, Path], dict[str, Any]]
) -> NoReturn:
    """Leave the bundle beside ``rival``, which it is not to replace, and raise DicomsortError."""
    beside = beside_of(settings.out)
    with staged(beside, OUTPUTS | MAYBE) as folder:
        made(replace(settings, out=beside), folder)
    forget(settings.recipe().checkpoint)
    raise DicomsortError(refusal(settings.out, rival, verdict.reasons, beside))


def _made(
    architecture: Architecture, rendered: Rendered, exported: Exported, found: Calibration,
    started: dict[str, Any] | None, reporter: Reporter, settings: Settings, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Write the bundle into ``folder``; return its figures."""
    from dicomsort.training.export import tflite

    evaluation = _evaluation(architecture, rendered, exported, settings.seed, reporter)
    with _room_for(settings.out):
        tflite.save_keras(exported.fitted.model, folder)
        (folder / "model.tflite").write_bytes(exported.kept.model)
        return write(folder, Run(settings, architecture, rendered, exported, found, evaluation, started))


def _verdict(
    architecture: Architecture, rendered: Rendered, fitted: Fitted, found: Calibration, rival: Bundle | None, seed: int
) -> Verdict | None:
    """Return what became of the bundle from which the training went on, and whether ``rival`` may be replaced."""
    if architecture.start is None:
        return None
    kept = architecture.remembered and architecture.remembered.part(rehearsed=False)
    return Judge(architecture.start, rendered, fitted, kept, found.temperature, seed).verdict(rival)


def _evaluation(
    architecture: Architecture, rendered: Rendered, exported: Exported, seed: int, reporter: Reporter
) -> bytes | str:
    """Return what the bundle keeps of its evaluation images, as it came from its start; or why it keeps none."""
    if start := architecture.start:
        return read_model(start, EVALUATION_NAME) if start.evaluation else f"{start.name} keeps none"
    held, folds = exported.fitted.held, exported.fitted.fold is not None
    trained = np.full(len(held), folds)  # what folds judged, the final model was trained on
    return keep_features(exported.kept.model, rendered, held, trained, seed, reporter)


def scanned(settings: Settings, architecture: Architecture) -> Dataset:
    """Return the files of the data set; where the training goes on from a bundle, with its labels."""
    groups = read_groups(settings.groups) if settings.groups else None
    if start := architecture.start:
        return relabelled(scan(settings.dataset, groups, least=1), start.labels)
    return scan(settings.dataset, groups)


@contextmanager
def _room_for(out: Path) -> Iterator[None]:
    """Tell of a full disk as what it is."""
    try:
        yield
    except OSError as error:
        raise DicomsortError(f"--out {str(out)!r}: expected room for the bundle, received {error}") from error


def _tell_kept(kept: Kept, reporter: Reporter) -> None:
    """Say what is kept on one side of every split."""
    reporter.note(f"Kept together: {kept.words()}")
    for names in kept.joined[:SKIPPED_SAID]:
        reporter.note(f"  one source, for a shared patient, near-duplicate or name: {visible(', '.join(names))}")
    if kept.blank:
        reporter.note(f"{kept.blank:,} images are of one colour; they tell nothing")


def tell_skipped(rendered: Rendered, reporter: Reporter) -> None:
    """Say how many files were skipped, and the first of them with their reasons."""
    if not rendered.skipped:
        return
    reporter.note(f"Skipped {len(rendered.skipped)} files that are no readable image:")
    for path, reason in rendered.skipped[:SKIPPED_SAID]:
        reporter.note(f"  {visible(path)}: {reason}")
    if len(rendered.skipped) > SKIPPED_SAID:
        reporter.note(f"  … and {len(rendered.skipped) - SKIPPED_SAID} more, all listed in metrics.json")
