"""Judges a data set by a bundle, or its recipe by held-out sources, and writes what came of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dicomsort.bundle import SPEC_NAME, Bundle, require_answer
from dicomsort.bundle.predictor import ModelOutput
from dicomsort.bundle.spec import load_reference
from dicomsort.engines.engine import Engine, batched, map_in_order
from dicomsort.errors import UsageError, WorkerLost
from dicomsort.files import look_up
from dicomsort.outputs import Gate
from dicomsort.own_files import kind_of
from dicomsort.report import visible
from dicomsort.training.data import fingerprint
from dicomsort.training.data.dataset import Dataset, relabelled, scan_with_tables
from dicomsort.training.data.rendered import Rendered, render_all
from dicomsort.training.data.robustness import SHORTCUTS
from dicomsort.training.evaluate import reporting
from dicomsort.training.evaluate.card import write_card
from dicomsort.training.evaluate.cross_validation import by_folds, crossable
from dicomsort.training.evaluate.predictions import (
    ImagePrediction,
    Predictions,
    name_clusters,
    own_thresholds,
    predict_images,
    require_images,
)
from dicomsort.training.evaluate.reporting import CARD, FIGURES
from dicomsort.training.progress import Reporter

WARM = ("dicomsort.training.evaluate.predictions", "dicomsort.training.data.rendered")
BATCH = 8  # images a task
OUTPUTS = frozenset({CARD, FIGURES, reporting.SHEET, *reporting.PICTURES})
COMPARISON = "comparison.png"


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """An evaluation as the user asked for it.

    ``folds``: None judges by the bundle's own model; a number judges by models trained anew, with that many parts of
    the sources held out in turn (0: each source alone). ``update`` also replaces the bundle's own figures and card.
    """

    dataset: Path
    out: Path
    groups: Path | None = None
    seed: int = 0
    shortcuts: bool = False
    folds: int | None = None
    update: bool = False
    subclasses: Path | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Predictions, the row of each in the rendered images, and the content of metrics.json."""

    predictions: Predictions
    rows: Sequence[int]
    report: dict[str, Any]


def evaluate(bundle: Bundle, settings: EvaluationSettings, engine: Engine, reporter: Reporter) -> Evaluated:
    """Judge the data set, and write figures, card and pictures to ``settings.out``.

    UsageError where the data set, the bundle or a setting cannot be evaluated with.
    """
    settings = replace(settings, out=check_out(settings.out, settings.dataset))
    if settings.update and settings.folds is None:
        raise UsageError("--update: expected --cross-validate source beside it, received figures of another kind")
    if settings.update and not os.access(bundle.folder, os.W_OK):
        expected = f"--update {str(bundle.folder)!r}: expected a folder that can be written"
        raise UsageError(f"{expected}, received one that cannot")
    if settings.folds is not None:
        crossable(bundle)
    _check_subclasses(bundle, settings)
    rendered = rendered_once(relabelled(scanned(settings), bundle.labels), engine, reporter)
    if settings.folds is None:
        evaluated = by_model(bundle, rendered, settings, engine, reporter)
    else:
        predictions = by_folds(bundle, rendered, settings.folds, settings.seed, reporter)
        evaluated = _evaluated(bundle, predictions, rendered.rows.tolist(), rendered.skipped, settings.seed, 0)
    predictions = evaluated.predictions
    chosen = reporting.mistakes(predictions)
    images = [rendered.images[evaluated.rows[i]] for i in chosen]
    content = _content(bundle, evaluated.report, reporter)
    with outcome(settings.out) as folder:
        reporting.write(folder, *content, predictions)
        reporting.draw_mistakes(folder / reporting.SHEET, predictions, chosen, images)
    if settings.update:
        with outcome(bundle.folder, "--update") as folder:
            reporting.write(folder, *content, predictions)
    return evaluated


def scanned(settings: EvaluationSettings) -> Dataset:
    """Return the files of the data set, with its own labels."""
    return scan_with_tables(settings.dataset, settings.groups, settings.subclasses, least=1)


def _check_subclasses(bundle: Bundle, settings: EvaluationSettings) -> None:
    """Raise UsageError unless subclasses are given just where a recipe is trained again that has some."""
    has_some = settings.folds is not None and bool((bundle.training.get("recipe") or {}).get("subclasses"))
    if has_some and not settings.subclasses:
        raise UsageError("--cross-validate: expected --subclasses beside it, as the bundle was trained, received none")
    if settings.subclasses and not has_some:
        expected = "--subclasses: expected --cross-validate beside it, and a bundle that was trained with subclasses"
        raise UsageError(f"{expected}, received one of them at most")


def rendered_once(dataset: Dataset, engine: Engine, reporter: Reporter) -> Rendered:
    """Render the data set into a temporary file; DatasetError where no image is left."""
    with tempfile.TemporaryDirectory(prefix="dicomsort-evaluate-") as scratch:
        rendered = render_all(dataset, Path(scratch) / "images.npy", engine, reporter)
    require_images(rendered.dataset, len(rendered.skipped))
    return rendered


def by_model(
    bundle: Bundle, rendered: Rendered, settings: EvaluationSettings, engine: Engine, reporter: Reporter
) -> Evaluated:
    """Judge every image by the bundle's model, in the engine's workers; one whose worker is lost is skipped."""
    shortcuts = tuple(SHORTCUTS) if settings.shortcuts else ()
    images = (np.array(rendered.images[row]) for row in rendered.rows)
    results: list[ImagePrediction] = []
    with reporter.step("Judging images", len(rendered.rows)) as step:
        task = partial(predict_images, bundle.reference, shortcuts)
        for answers in map_in_order(engine, task, batched(images, BATCH), _lost):
            results += answers
            step.advance(len(answers))
    good = {i: result.output for i, result in enumerate(results) if result.output}
    if not good:
        require_answer(bundle, engine.submit)
    lost = ((rendered.dataset.items[i].path, result.problem) for i, result in enumerate(results) if i not in good)
    skipped = [*rendered.skipped, *lost]
    dataset = rendered.dataset.only(good)
    require_images(dataset, len(skipped))
    known = fingerprint.compare(bundle.training, dataset.items, [rendered.digests[i] for i in good])
    predictions = _predictions(bundle, dataset, list(good.values()), shortcuts, known.words())
    return _evaluated(bundle, predictions, rendered.rows[list(good)].tolist(), skipped, settings.seed, known.count)


def _lost(_: object, error: WorkerLost) -> ImagePrediction:
    return ImagePrediction(problem=str(error))


def _evaluated(
    bundle: Bundle,
    predictions: Predictions,
    rows: Sequence[int],
    skipped: Sequence[tuple[str, str]],
    seed: int,
    trained_on: int | None,
) -> Evaluated:
    """Return predictions and report; the model was trained on ``trained_on`` of the images (None: not known)."""
    report = {
        "model": {"name": bundle.name, "sha256": bundle.model_sha256},
        "trained_on": trained_on,
        **reporting.report_of(predictions, seed),
        "skipped": {visible(path): reason for path, reason in skipped},
    }
    return Evaluated(predictions, rows, report)


def _predictions(
    bundle: Bundle, dataset: Dataset, outputs: Sequence[ModelOutput], shortcuts: Sequence[str], held_out: str
) -> Predictions:
    """Return the outputs as arrays, with the bundle's own thresholds for every image."""
    clusters, unit = name_clusters(dataset)
    probabilities, *changed = np.stack([output.probabilities for output in outputs], axis=1)
    distances = np.array([output.distances[0] for output in outputs], np.float32)
    return Predictions(
        dataset,
        probabilities,
        own_thresholds(bundle, probabilities),
        held_out,
        clusters,
        unit,
        distances=None if np.isnan(distances).any() else distances,
        limits=None if bundle.distance is None else np.full(len(outputs), bundle.distance),
        variants=dict(zip(shortcuts, changed, strict=True)),
    )


def check_out(out: Path, dataset: Path | None = None) -> Path:
    """Return the real path of ``out``; UsageError where figures could not be written there, or must not be."""
    gate = Gate({"DATASET": str(dataset)} if dataset else {})
    target = Path(gate.check_folder("--out", out))
    if (target / SPEC_NAME).exists():
        raise UsageError(f"--out {str(out)!r}: expected a folder for figures, received a bundle; --update is for that")
    gate.check_folder("--out", target, foreign_in)
    return target


def foreign_in(folder: str) -> str:
    """Return which file has the name of a result but is not one; empty where results may be written to the folder."""
    there = [name for name in sorted({*OUTPUTS, COMPARISON}) if os.path.lexists(f"{folder}/{name}")]
    wrong = [name for name in there if (kind := kind_of(name)) and kind.problem(f"{folder}/{name}")]
    figures = look_up(f"{folder}/{FIGURES}")  # with it the rest is ours
    if figures is None or not figures.st_size:
        wrong = [name for name in there if name != FIGURES] or wrong
    return f"its {wrong[0]} is of something else" if wrong else ""


def _content(bundle: Bundle, report: dict[str, Any], reporter: Reporter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of bundle.json and of metrics.json, without a training_run that no card can be made of."""
    load_reference(bundle.reference)
    spec: dict[str, Any] = json.loads((bundle.folder / SPEC_NAME).read_text("utf-8"))
    whole = {**report, "training_run": _training_run(bundle)}
    try:
        write_card(spec, whole)
    except (AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        received = f"received another ({type(error).__name__}: {visible(str(error))})"
        where = f"bundle {str(bundle.folder)!r}: {FIGURES}"
        reporter.note(f"{where}: training_run: expected what a training writes, {received}; card and figures lack it")
        whole["training_run"] = {}
    return spec, whole


def _training_run(bundle: Bundle) -> dict[str, Any]:
    """Return what the bundle's own metrics.json reports of its training; {} where there is none."""
    try:
        run = reporting.figures_in(bundle.folder).get("training_run")
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


@contextmanager
def outcome(folder: Path, option: str = "--out") -> Iterator[Path]:
    """Yield an empty folder whose files take their places in ``folder``, of ``option``, when the block ends well."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".evaluate-", dir=folder) as part:
            yield Path(part)
            if wrong := foreign_in(str(folder)):
                raise UsageError(f"{option} {str(folder)!r}: expected a folder of earlier results: {wrong}")
            for path in sorted(Path(part).iterdir()):
                path.chmod(0o644)
                path.replace(folder / path.name)
    except OSError as error:
        msg = f"{option} {str(folder)!r}: expected a folder that can be written, received {error.strerror}"
        raise UsageError(msg) from error
