"""Writes what a training leaves beside the models: figures, pictures, card, and the contract that seals them."""

from __future__ import annotations

import csv
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dicomsort
from dicomsort.bundle import EVALUATION_NAME, seal
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import OTHER, RENDERING_VERSION
from dicomsort.report import visible
from dicomsort.training.data import fingerprint as fingerprint_module
from dicomsort.training.data.dataset import fingerprint
from dicomsort.training.data.splitting import folds
from dicomsort.training.evaluate import calibration, compare, plots, reporting
from dicomsort.training.evaluate.card import write_card
from dicomsort.training.evaluate.predictions import HeldOut
from dicomsort.training.evaluate.tables import MEGABYTES, PURPOSES
from dicomsort.training.fit.quantize import INT8
from dicomsort.training.models import replay_set

if TYPE_CHECKING:
    from pathlib import Path

    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.evaluate.predictions import Predictions
    from dicomsort.training.export.tflite import Exported
    from dicomsort.training.fit.recipe import Fitted
    from dicomsort.training.models.architectures import Architecture
    from dicomsort.training.settings import Settings

OUTPUTS = frozenset(
    {
        "model.keras",
        "model.tflite",
        EVALUATION_NAME,
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
MAX_NAME = 64
CALIBRATION_FOLDS = 5  # in which held-out predictions calibrate each other


@dataclass(frozen=True, slots=True)
class Run:
    """A run whose model is trained and converted, and whose words and figures are still to be written.

    ``calibration`` is the bundle's; ``evaluation`` the file of the features that it keeps, or why it keeps none;
    ``started`` what ``comparing`` tells of the bundle from which it went on, None where there is none.
    """

    settings: Settings
    architecture: Architecture
    rendered: Rendered
    exported: Exported
    calibration: calibration.Calibration
    evaluation: bytes | str
    started: dict[str, Any] | None = None

    @property
    def fitted(self) -> Fitted:
        """What was trained, with the held-out predictions of the network that ships."""
        return self.exported.fitted


def write(folder: Path, run: Run) -> dict[str, Any]:
    """Write everything but the models into ``folder``; return the figures."""
    fitted = run.fitted
    dataset = run.rendered.dataset.only(fitted.held)
    fit, fold = run.calibration, fitted.fold
    if fold is None:
        fold = folds(dataset, CALIBRATION_FOLDS, run.settings.seed, grouped=fitted.by_source)
    limit = fit.distance if run.architecture.start else None
    held = HeldOut(
        fitted.probabilities, fold, fitted.held_out, fitted.by_source, fitted.distances, fitted.variants, limit,
        fitted.plain,
    )  # fmt: skip
    predictions = held.calibrated(dataset)
    told = reporting.tell(predictions, run.settings.seed)
    told |= {"skipped": dict(run.rendered.skipped), "training_run": _training_run(run, fit, folder)}
    spec = _spec(run, fit) | _place_evaluation(folder, run)
    (folder / "card.md").write_text(write_card(spec, told), "utf-8", "backslashreplace")
    (folder / "metrics.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    with (folder / "history.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("epoch", *fitted.history))
        writer.writerows((i, *values) for i, values in enumerate(zip(*fitted.history.values(), strict=True), 1))
    for column in ("accuracy", "loss"):
        plots.plot_history(fitted.history, column, folder / f"{column}.png", fitted.course.get("epoch_kept"))
    reporting.draw(folder, told, predictions)
    _draw_mistakes(run, predictions)
    seal(folder, spec)
    return told


def calibrated(architecture: Architecture, rendered: Rendered, fitted: Fitted) -> calibration.Calibration:
    """Return the calibration that what was held out tells, or that of the bundle from which the training went on."""
    dataset = rendered.dataset.only(fitted.held)
    other = dataset.labels.index(OTHER) if OTHER in dataset.labels else None
    start, distances = architecture.start, fitted.distances
    found = calibration.fit(fitted.probabilities, dataset.classes(), distances, other)
    if start is None:
        return found
    beyond = [] if distances is None else distances.tolist()
    return calibration.going_on(start, fitted.space, dataset.counts(), found, beyond, fitted.remembered)


def _place_evaluation(folder: Path, run: Run) -> dict[str, Any]:
    """Write the features that the bundle keeps, and return bundle.json's block for them."""
    if isinstance(run.evaluation, str):
        return {}
    (folder / EVALUATION_NAME).write_bytes(run.evaluation)
    return {replay_set.KEY: {}}


def sheet_of(out: Path) -> Path:
    """Return where the sheet of mistakes of the bundle ``out`` lies: beside it, for it shows images of the data set."""
    return out.absolute().with_name(f"{out.absolute().name}-{reporting.SHEET}")


def _draw_mistakes(run: Run, predictions: Predictions) -> None:
    chosen = reporting.mistakes(predictions)
    rows = run.rendered.rows[run.fitted.held[chosen]]
    reporting.draw_mistakes(sheet_of(run.settings.out), predictions, chosen, [run.rendered.images[row] for row in rows])


def _training_run(run: Run, fit: calibration.Calibration, folder: Path) -> dict[str, Any]:
    """Return what the card tells of the training, whose models are in ``folder``; later evaluations carry it on."""
    started = {} if run.started is None else {compare.KEY: run.started}
    return started | {
        "summary": run.architecture.summary,
        "split": run.fitted.split,
        "course": run.fitted.course,
        "kept_together": run.rendered.kept.as_json(),
        "data": reporting.describe(run.rendered.dataset),
        "notes": list(fit.notes),
        replay_set.KEY: run.evaluation if isinstance(run.evaluation, str) else replay_set.told(run.evaluation),
        MEGABYTES: {name: round((folder / name).stat().st_size / 1e6, 2) for name in PURPOSES},
        "litert": [made.as_json(kept=made is run.exported.kept) for made in run.exported.conversions],
        INT8: run.exported.told,
    }


def _spec(run: Run, fit: calibration.Calibration) -> dict[str, Any]:
    """Return bundle.json's content, less what ``seal`` adds."""
    settings, rendered = run.settings, run.rendered
    dataset, start = rendered.dataset, run.architecture.start
    training = {compare.KEY: compare.lineage(start, run.started)} if start else {}
    return {
        "name": visible(settings.out.absolute().name)[:MAX_NAME] or "model",
        "arch": settings.arch,
        "labels": list(dataset.labels),
        "header_classes": run.architecture.header_classes(dataset.labels),
        "input_shape": list(INPUT_SHAPE),
        "rendering_version": RENDERING_VERSION,
        "temperature": fit.temperature,
        "thresholds": {"decide": fit.decide, "contradict": fit.contradict, "distance": fit.distance},
        "training": training
        | {
            "fingerprint": fingerprint(dataset.items, rendered.digests),
            fingerprint_module.KEY: fingerprint_module.encode(rendered.digests, start.training if start else None),
            "images": dataset.counts(),
            "recipe": settings.told(),
        },
        "created_with": {
            "dicomsort": dicomsort.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("tensorflow", "keras", "numpy")},
        },
    }
