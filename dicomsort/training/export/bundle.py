"""Writes a bundle: models, figures, pictures, card, and the contract that seals them."""

from __future__ import annotations

import csv
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dicomsort
from dicomsort.bundle import EVALUATION_NAME, MODEL_NAME, SPEC_NAME, Bundle, seal
from dicomsort.pixels import INPUT_SHAPE
from dicomsort.records import RENDERING_VERSION
from dicomsort.report import visible
from dicomsort.training.data import fingerprint
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.evaluate import compare, plots, reporting
from dicomsort.training.evaluate.calibration import Calibration
from dicomsort.training.evaluate.compare import Comparison
from dicomsort.training.evaluate.predictions import cross_calibrated
from dicomsort.training.evaluate.tables import MEGABYTES, PURPOSES
from dicomsort.training.export.tflite import Exported, save_keras
from dicomsort.training.fit.finetune import Finetune
from dicomsort.training.fit.hyperparameters import TrainedModel
from dicomsort.training.models import replay_set
from dicomsort.training.models.architectures import Architecture
from dicomsort.training.models.tflite_weights import INT8
from dicomsort.training.settings import Settings

HISTORY = ("history.csv", "accuracy.png", "loss.png")
OUTPUTS = frozenset(
    (*PURPOSES, EVALUATION_NAME, SPEC_NAME, *HISTORY, reporting.FIGURES, reporting.CARD, *reporting.PICTURES)
)
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A model that is trained, converted and calibrated; its files are still to be written.

    ``comparison`` is None where the training did not start from a bundle.
    """

    settings: Settings
    architecture: Architecture
    rendered: Rendered
    trained: TrainedModel
    exported: Exported
    calibration: Calibration
    comparison: Comparison | None

    @property
    def start(self) -> Bundle | None:
        """The bundle that was trained further, None where there is none."""
        return self.architecture.bundle if isinstance(self.architecture, Finetune) else None


def write(folder: Path, result: TrainingResult) -> dict[str, Any]:
    """Write the bundle into ``folder``; return the figures."""
    trained, exported, rendered = result.trained, result.exported, result.rendered
    save_keras(trained.model, folder)
    (folder / MODEL_NAME).write_bytes(exported.model.model)
    limit = result.calibration.distance if result.start else None
    judged = rendered.dataset.only(exported.held_out.items)
    predictions = cross_calibrated(exported.held_out, judged, result.settings.target, limit)
    figures = reporting.report_of(predictions, result.settings.seed)
    figures |= {"skipped": dict(rendered.skipped), "training_run": _training_run(result, folder)}
    spec = _spec(result)
    if isinstance(exported.replay_set, bytes):
        (folder / EVALUATION_NAME).write_bytes(exported.replay_set)
        spec[replay_set.KEY] = {}
    reporting.write(folder, spec, figures, predictions)
    with (folder / "history.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("epoch", *trained.history))
        writer.writerows((i, *values) for i, values in enumerate(zip(*trained.history.values(), strict=True), 1))
    for column in ("accuracy", "loss"):
        plots.plot_history(trained.history, column, folder / f"{column}.png", trained.course.get("epoch_kept"))
    chosen = reporting.mistakes(predictions)
    images = [rendered.images[row] for row in rendered.rows[exported.held_out.items[chosen]]]
    reporting.draw_mistakes(result.settings.sheet, predictions, chosen, images)
    seal(folder, spec)
    return figures


def _training_run(result: TrainingResult, folder: Path) -> dict[str, Any]:
    """Return what metrics.json reports of the training, whose models are in ``folder``; evaluations copy it."""
    exported, replay = result.exported, result.exported.replay_set
    started = {compare.KEY: result.comparison.started} if result.comparison else {}
    return started | {
        "summary": result.architecture.summary,
        "split": result.trained.split,
        "course": result.trained.course,
        "kept_together": asdict(result.rendered.grouping),
        "data": reporting.describe(result.rendered.dataset),
        "notes": list(result.calibration.notes),
        replay_set.KEY: replay if isinstance(replay, str) else replay_set.report_of(replay),
        MEGABYTES: {name: round((folder / name).stat().st_size / 1e6, 2) for name in PURPOSES},
        "litert": [made.as_json(kept=made is exported.model) for made in exported.conversions],
        INT8: exported.int8,
    }


def _spec(result: TrainingResult) -> dict[str, Any]:
    """Return bundle.json's content, less what ``seal`` adds."""
    settings, rendered, start = result.settings, result.rendered, result.start
    dataset, fit = rendered.dataset, result.calibration
    started = result.comparison and result.comparison.started
    training = {compare.KEY: compare.lineage(start, started)} if start else {}
    return {
        "name": visible(settings.out.absolute().name)[:MAX_NAME] or "model",
        "arch": settings.arch,
        "labels": list(dataset.labels),
        "header_classes": result.architecture.header_classes(dataset.labels),
        "input_shape": list(INPUT_SHAPE),
        "rendering_version": RENDERING_VERSION,
        "temperature": fit.temperature,
        "thresholds": {"decide": fit.decide, "contradict": fit.contradict, "distance": fit.distance},
        "training": training
        | {
            "fingerprint": fingerprint.of_files(dataset.items, rendered.digests),
            fingerprint.KEY: fingerprint.encode(rendered.digests, start.training if start else None),
            "images": dataset.counts(),
            "recipe": settings.as_json(),
        },
        "created_with": {
            "dicomsort": dicomsort.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("tensorflow", "keras", "numpy")},
        },
    }
