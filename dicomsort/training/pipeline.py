"""From a data set to a bundle: the steps of a training, in their order.

scan -> render -> split and fit -> export, with held-out predictions of what ships -> calibrate -> compare -> write
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from dicomsort.bundle import Bundle, check_target, staged
from dicomsort.engines.engine import Engine
from dicomsort.errors import DicomsortError, counted
from dicomsort.report import visible
from dicomsort.training.data.augment import varied_by
from dicomsort.training.data.dataset import MIN_IMAGES, Dataset, relabelled, require_trainable, scan_with_tables
from dicomsort.training.data.grouping import ImageGroups
from dicomsort.training.data.rendered import SHOWN, Rendered, open_cache, render_all, skipped_lines
from dicomsort.training.evaluate import calibration
from dicomsort.training.evaluate.compare import compared, refusal, rival_at
from dicomsort.training.evaluate.predictions import name_clusters
from dicomsort.training.export import tflite
from dicomsort.training.export.bundle import OUTPUTS, TrainingResult, write
from dicomsort.training.fit.checkpoint import forget
from dicomsort.training.fit.finetune import Finetune
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.progress import Reporter, load_tensorflow
from dicomsort.training.settings import Settings, checked

TRIALS = frozenset({"trials.csv", "trials.png"})  # what a search adds to its bundle
# What a bundle that is replaced may hold; the last is a second network, which bundles had once.
REPLACEABLE = OUTPUTS | TRIALS | {"screen.tflite"}


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a run: the bundle's folder, metrics.json's figures, and the skipped files with reasons.

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
    UsageError where a setting or the data set cannot be trained with; KeyboardInterrupt leaves a checkpoint, from which
    the same settings resume.
    """
    settings, architecture = checked(settings)
    hyper = settings.hyperparameters()
    rival = _rival(settings, architecture)
    dataset = scanned(settings, architecture)
    with staged(settings.out, REPLACEABLE) as folder:
        reporter.note(f"Network {settings.arch}: {architecture.summary}")
        with rendering(dataset, settings, architecture, open_workers, reporter) as rendered:
            _note_groups(rendered.grouping, reporter)
            reporter.note("Loading TensorFlow")
            load_tensorflow()
            from dicomsort.training.fit import recipes

            trained = recipes.fit(architecture, rendered, hyper, reporter)
            exported = tflite.export(architecture, rendered, trained, hyper.seed, reporter)
            clusters, _ = name_clusters(rendered.dataset.only(exported.held_out.items))
            calibrated = calibration.of_training(
                architecture, trained, exported.held_out, dataset.labels, clusters, settings.target
            )
            comparison = compared(architecture, rendered, trained, calibrated, rival, hyper.seed)
            result = TrainingResult(settings, architecture, rendered, trained, exported, calibrated, comparison)
            if comparison and rival and comparison.worse:
                _refuse(result, rival, comparison.worse)
            figures = _written(folder, result)
    forget(hyper.checkpoint)
    return Trained(settings.out, figures, exported.held_out.how, rendered.skipped, settings.sheet)


@contextmanager
def rendering(
    dataset: Dataset,
    settings: Settings,
    architecture: Architecture,
    open_workers: Callable[[], Engine],
    reporter: Reporter,
    strength: str | None = None,
) -> Iterator[Rendered]:
    """Yield the data set rendered, in a temporary file; ``strength`` is the greatest variation that is asked for.

    DatasetError where a class has too few images that can be read.
    """
    cache = open_cache(settings.cache) if settings.cache else None
    with tempfile.TemporaryDirectory(prefix="dicomsort-train-") as scratch, open_workers() as engine:
        rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter, cache)
        rendered = replace(rendered, vary=varied_by(engine, strength or settings.augment))
        for line in skipped_lines(rendered.skipped):
            reporter.note(line)
        least = 1 if isinstance(architecture, Finetune) else MIN_IMAGES
        require_trainable(rendered.dataset, dataset.counts(), len(rendered.skipped), least)
        yield rendered


def scanned(settings: Settings, architecture: Architecture) -> Dataset:
    """Return the files of the data set; in fine-tuning, with the labels of the bundle."""
    if isinstance(architecture, Finetune):
        dataset = scan_with_tables(settings.dataset, settings.groups, None, least=1)
        return relabelled(dataset, architecture.bundle.labels)
    return scan_with_tables(settings.dataset, settings.groups, settings.subclasses)


def _rival(settings: Settings, architecture: Architecture) -> Bundle | None:
    """Return the bundle that fine-tuning replaces unless it is worse, None where there is none."""
    if not isinstance(architecture, Finetune):
        return None
    rival = rival_at(settings.out, architecture.bundle, anyway=settings.replace_worse)
    if rival:
        check_target(settings.refused, REPLACEABLE)
    return rival


def _refuse(result: TrainingResult, rival: Bundle, reasons: tuple[str, ...]) -> NoReturn:
    """Write the bundle beside ``rival``, which it is not to replace, and raise DicomsortError."""
    out, beside = result.settings.out, result.settings.refused
    with staged(beside, REPLACEABLE) as folder:
        _written(folder, replace(result, settings=replace(result.settings, out=beside)))
    forget(result.settings.checkpoint)
    raise DicomsortError(refusal(out, rival, reasons, beside))


def _written(folder: Path, result: TrainingResult) -> dict[str, Any]:
    """Write the bundle into ``folder``, and return its figures; DicomsortError where a disk is full."""
    try:
        return write(folder, result)
    except OSError as error:
        out = str(result.settings.out)
        raise DicomsortError(f"--out {out!r}: expected room for the bundle, received {error}") from error


def _note_groups(grouping: ImageGroups, reporter: Reporter) -> None:
    reporter.note(f"Kept together: {grouping.words()}")
    for names in grouping.joined[:SHOWN]:
        reporter.note(f"  one source, for a shared patient, near-duplicate or name: {visible(', '.join(names))}")
    if grouping.blank:
        words = "image is of one colour, and tells nothing", "images are of one colour, and tell nothing"
        reporter.note(counted(grouping.blank, *words))
