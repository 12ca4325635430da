"""From a data set to a bundle: the one module that knows the order of the steps."""

from __future__ import annotations

import csv
import json
import platform
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dicomsort
from dicomsort.bundle import calibrate, seal, staged
from dicomsort.errors import DicomsortError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import OTHER, RENDERING_VERSION
from dicomsort.report import visible
from dicomsort.training import calibration, metrics, plots
from dicomsort.training.cache import open_cache
from dicomsort.training.card import Story, write_card
from dicomsort.training.checkpoint import forget
from dicomsort.training.dataset import Dataset, fingerprint, read_groups, require_trainable, scan
from dicomsort.training.progress import Reporter, load_tensorflow
from dicomsort.training.settings import Settings, checked
from dicomsort.training.tensors import Rendered, render_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicomsort.engine import Engine
    from dicomsort.training.architectures import Architecture
    from dicomsort.training.export import Conversion
    from dicomsort.training.grouping import Kept
    from dicomsort.training.recipe import Fitted

OUTPUTS = frozenset(
    {
        "model.keras",
        "model.tflite",
        "bundle.json",
        "medical_image_classifier.h5",
        "history.csv",
        "accuracy.png",
        "loss.png",
        "confusion.png",
        "metrics.json",
        "card.md",
    }
)
# What folders that hold a header's class are called.
HEADER_NAMES = {"CT": {"ct"}, "MRI": {"mri", "mr"}, "XRAY": {"xray", "x-ray", "x_ray"}}
SKIPPED_SAID = 10
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left: the bundle's folder, metrics.json's figures, and the files that were skipped, with reasons."""

    folder: Path
    figures: dict[str, Any]
    held_out: str
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """A run whose model is trained and converted, and whose words and figures are still to be written."""

    settings: Settings
    architecture: Architecture
    rendered: Rendered
    fitted: Fitted
    kept: Conversion
    conversions: Sequence[Conversion]


def train(settings: Settings, open_workers: Callable[[], Engine], reporter: Reporter) -> Trained:
    """Train and write the bundle ``settings.out``; it is placed whole or not at all.

    ``open_workers`` opens the engine that decodes the files. UsageError where a setting or the data set cannot be
    trained with; KeyboardInterrupt leaves a checkpoint from which the same settings go on.
    """
    architecture = checked(settings)
    dataset = scan(settings.dataset, read_groups(settings.groups) if settings.groups else None)
    cache = open_cache(settings.cache) if settings.cache else None
    recipe = settings.recipe()
    with staged(settings.out, OUTPUTS) as folder, tempfile.TemporaryDirectory(prefix="dicomsort-train-") as scratch:
        reporter.note(f"Network {settings.arch}: {architecture.summary}")
        with open_workers() as engine:
            rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter, cache)
        _tell_skipped(rendered, reporter)
        _tell_kept(rendered.kept, reporter)
        require_trainable(rendered.dataset, len(rendered.skipped))
        reporter.note("Loading TensorFlow")
        load_tensorflow()
        from dicomsort.training import export, fit

        fitted = fit.fit(architecture, rendered, recipe, reporter)
        reporter.note("Converting to LiteRT")
        probes = rendered.images[rendered.rows[:: max(1, len(rendered.rows) // export.PROBES)]]
        kept, conversions = export.convert(fitted.model, architecture.precisions, probes)
        with _room_for(settings.out):
            export.save_keras(fitted.model, folder)
            (folder / "model.tflite").write_bytes(kept.model)
            figures = _write(folder, _Run(settings, architecture, rendered, fitted, kept, conversions))
    forget(recipe.checkpoint)
    return Trained(settings.out, figures, fitted.held_out, rendered.skipped)


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


def _tell_skipped(rendered: Rendered, reporter: Reporter) -> None:
    """Say how many files were skipped, and the first of them with their reasons."""
    if not rendered.skipped:
        return
    reporter.note(f"Skipped {len(rendered.skipped)} files that are no readable image:")
    for path, reason in rendered.skipped[:SKIPPED_SAID]:
        reporter.note(f"  {visible(path)}: {reason}")
    if len(rendered.skipped) > SKIPPED_SAID:
        reporter.note(f"  … and {len(rendered.skipped) - SKIPPED_SAID} more, all listed in metrics.json")


def _write(folder: Path, run: _Run) -> dict[str, Any]:
    """Write everything but the models into ``folder``; return the figures."""
    fitted, skipped = run.fitted, run.rendered.skipped
    dataset = run.rendered.dataset.only(fitted.held)
    fit = calibration.fit(fitted.probabilities, dataset.classes())
    figures = _measure(dataset, fitted, fit)
    spec = _spec(run.settings, run.rendered, fit)
    (folder / "card.md").write_text(write_card(_story(run, spec, figures, fit)), "utf-8", "backslashreplace")
    told = {"held_out": fitted.held_out, "split": fitted.split, "training": fitted.course}
    told |= {"kept_together": run.rendered.kept.as_json(), **figures, "skipped": dict(skipped)}
    (folder / "metrics.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    with (folder / "history.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("epoch", *fitted.history))
        writer.writerows((i, *values) for i, values in enumerate(zip(*fitted.history.values(), strict=True), 1))
    for column in ("accuracy", "loss"):
        plots.plot_history(fitted.history, column, folder / f"{column}.png", fitted.course.get("epoch_kept"))
    matrix = figures["confusion_matrix"]
    plots.plot_confusion(matrix["rows_are_truth"], dataset.labels, "Held-out images", folder / "confusion.png")
    seal(folder, spec)
    return figures


def _story(run: _Run, spec: dict[str, Any], figures: dict[str, Any], fit: calibration.Calibration) -> Story:
    """Return what the card tells."""
    settings = run.settings
    recipe = {
        "epochs": settings.epochs,
        "batch size": settings.batch_size,
        "Adam, learning rate": settings.learning_rate,
        "augmentation": settings.augment,
        "seed": settings.seed,
        **{name.replace("_", " "): value for name, value in run.fitted.course.items()},
    }
    return Story(
        spec,
        figures,
        run.architecture.summary,
        recipe,
        run.fitted.split,
        run.fitted.held_out,
        fit.notes,
        run.kept,
        run.conversions,
        run.rendered.skipped,
    )


def _measure(dataset: Dataset, fitted: Fitted, fit: calibration.Calibration) -> dict[str, Any]:
    """Return the figures of the held-out predictions; by source where sources were held out."""
    probabilities, truth = calibrate(fitted.probabilities, fit.temperature), dataset.classes()
    thresholds = {"decide": fit.decide, "contradict": fit.contradict}
    figures = metrics.measure(probabilities, truth, dataset.labels, thresholds)
    if OTHER in dataset.labels and len(dataset.labels) > 2 and (truth != dataset.labels.index(OTHER)).any():  # noqa: PLR2004
        figures["without_other"] = metrics.without(OTHER, probabilities, truth, dataset.labels)
    if fitted.by_source:
        sources = [item.source or item.group for item in dataset.items]
        figures["sources"] = metrics.by_source(probabilities, truth, dataset.labels, sources)
        recalls = [row["recall"] for row in figures["sources"]]
        figures["mean_recall_by_source"] = round(float(np.mean(recalls)), 4)
    return figures


def _spec(settings: Settings, rendered: Rendered, fit: calibration.Calibration) -> dict[str, Any]:
    """Return bundle.json's content, less what ``seal`` adds."""
    dataset = rendered.dataset
    mapping = {
        name: label for name, known in HEADER_NAMES.items() for label in dataset.labels if label.casefold() in known
    }
    return {
        "name": visible(settings.out.absolute().name)[:MAX_NAME] or "model",
        "arch": settings.arch,
        "labels": list(dataset.labels),
        "header_classes": mapping,
        "input_shape": list(INPUT_SHAPE),
        "rendering_version": RENDERING_VERSION,
        "temperature": fit.temperature,
        "thresholds": {"decide": fit.decide, "contradict": fit.contradict},
        "training": {
            "fingerprint": fingerprint(dataset.items, rendered.digests),
            "images": dataset.counts(),
            "recipe": settings.told(),
        },
        "created_with": {
            "dicomsort": dicomsort.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("tensorflow", "keras", "numpy")},
        },
    }
