"""From a data set to a bundle: the one module that knows the order of the steps."""

from __future__ import annotations

import csv
import json
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dicomsort
from dicomsort.bundle import seal, staged
from dicomsort.errors import UsageError
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION
from dicomsort.report import visible
from dicomsort.training import calibration, plots, reporting, seen
from dicomsort.training.architectures import ARCHITECTURES, Architecture
from dicomsort.training.card import write_card
from dicomsort.training.dataset import fingerprint, folds, read_groups, require_trainable, scan
from dicomsort.training.predictions import HeldOut
from dicomsort.training.progress import Reporter, load_tensorflow
from dicomsort.training.tensors import Rendered, render_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomsort.training.export import Conversion
    from dicomsort.training.fit import Fitted

OUTPUTS = frozenset(
    {
        "model.keras",
        "model.tflite",
        "bundle.json",
        "medical_image_classifier.h5",
        "history.csv",
        "accuracy.png",
        "loss.png",
        "metrics.json",
        "card.md",
        *reporting.PICTURES,
    }
)
# What folders that hold a header's class are called.
HEADER_NAMES = {"CT": {"ct"}, "MRI": {"mri", "mr"}, "XRAY": {"xray", "x-ray", "x_ray"}}
SKIPPED_SAID = 10
MAX_NAME = 64
CALIBRATION_FOLDS = 5  # in which held-out predictions calibrate each other


@dataclass(frozen=True, slots=True)
class Settings:
    """A training run as the user asked for it; ``groups`` is a CSV file (source, group) or None."""

    dataset: Path
    out: Path
    arch: str = "cnn"
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.001
    validation_split: float = 0.2
    seed: int = 0
    groups: Path | None = None


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
    rendered: Rendered
    fitted: Fitted
    kept: Conversion
    conversions: Sequence[Conversion]


def train(settings: Settings, reporter: Reporter) -> Trained:
    """Train and write the bundle ``settings.out``; it is placed whole or not at all.

    UsageError where a setting or the data set cannot be trained with; WorkerLost where rendering dies.
    """
    architecture = _checked(settings)
    dataset = scan(settings.dataset, read_groups(settings.groups) if settings.groups else None)
    with staged(settings.out, OUTPUTS) as folder, tempfile.TemporaryDirectory(prefix="dicomsort-train-") as scratch:
        rendered = render_all(dataset, Path(scratch) / "images.npy", reporter)
        _tell_skipped(rendered, reporter)
        require_trainable(rendered.dataset, len(rendered.skipped))
        reporter.note("Loading TensorFlow")
        load_tensorflow()
        from dicomsort.training import export, fit

        recipe = fit.Recipe(
            settings.epochs, settings.batch_size, settings.learning_rate, settings.validation_split, settings.seed
        )
        fitted = fit.fit(architecture, rendered, recipe, reporter)
        reporter.note("Converting to LiteRT")
        probes = rendered.images[rendered.rows[:: max(1, len(rendered.rows) // export.PROBES)]]
        kept, conversions = export.convert(fitted.model, architecture.precisions, probes)
        export.save_keras(fitted.model, folder)
        (folder / "model.tflite").write_bytes(kept.model)
        figures = _write(folder, _Run(settings, rendered, fitted, kept, conversions))
    return Trained(settings.out, figures, fitted.held_out, rendered.skipped)


def _checked(settings: Settings) -> Architecture:
    """Return the architecture; UsageError names the first setting that cannot be."""
    if settings.arch not in ARCHITECTURES:
        raise UsageError(f"--arch: expected one of {', '.join(ARCHITECTURES)}, received {settings.arch!r}")
    for option, value, holds, expected in (
        ("--epochs", settings.epochs, settings.epochs >= 1, "1 or more"),
        ("--batch-size", settings.batch_size, settings.batch_size >= 1, "1 or more"),
        ("--learning-rate", settings.learning_rate, 0 < settings.learning_rate <= 1, "above 0, at most 1"),
        ("--validation-split", settings.validation_split, 0 < settings.validation_split < 1, "between 0 and 1"),
        ("--seed", settings.seed, 0 <= settings.seed < 1 << 32, "0 to 4294967295"),
    ):
        if not holds:
            raise UsageError(f"{option}: expected {expected}, received {value}")
    architecture = ARCHITECTURES[settings.arch]
    architecture.require()
    return architecture


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
    fitted = run.fitted
    dataset = run.rendered.dataset.only(fitted.held)
    fit = calibration.fit(fitted.probabilities, dataset.classes())
    fold = folds(dataset, CALIBRATION_FOLDS, run.settings.seed, grouped=fitted.by_source)
    held = HeldOut(fitted.probabilities, fold, fitted.held_out, fitted.by_source)
    predictions = held.calibrated(dataset)
    told = reporting.tell(predictions, run.settings.seed)
    told |= {"skipped": dict(run.rendered.skipped), "training_run": _training_run(run, fit)}
    spec = _spec(run.settings, run.rendered, fit)
    (folder / "card.md").write_text(write_card(spec, told), "utf-8", "backslashreplace")
    (folder / "metrics.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    with (folder / "history.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("epoch", *fitted.history))
        writer.writerows((i, *values) for i, values in enumerate(zip(*fitted.history.values(), strict=True), 1))
    for column in ("accuracy", "loss"):
        plots.plot_history(fitted.history, column, folder / f"{column}.png")
    reporting.draw(folder, told, predictions)
    seal(folder, spec)
    return told


def _training_run(run: _Run, fit: calibration.Calibration) -> dict[str, Any]:
    """Return what the card tells of the training, which later evaluations carry on."""
    return {
        "summary": ARCHITECTURES[run.settings.arch].summary,
        "split": run.fitted.split,
        "data": reporting.describe(run.rendered.dataset),
        "notes": list(fit.notes),
        "litert": [made.as_json(kept=made is run.kept) for made in run.conversions],
    }


def _spec(settings: Settings, rendered: Rendered, fit: calibration.Calibration) -> dict[str, Any]:
    """Return bundle.json's content, less what ``seal`` adds."""
    dataset = rendered.dataset
    mapping = {
        name: label for name, known in HEADER_NAMES.items() for label in dataset.labels if label.casefold() in known
    }
    run = {key: value for key, value in asdict(settings).items() if key not in {"dataset", "out", "groups"}}
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
            seen.KEY: seen.encode(rendered.digests),
            "images": dataset.counts(),
            "recipe": run,
        },
        "created_with": {
            "dicomsort": dicomsort.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("tensorflow", "keras", "numpy")},
        },
    }
