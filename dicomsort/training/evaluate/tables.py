"""The tables of an evaluation, for the card and for the terminal alike; every cell is text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dicomsort.records import OTHER
from dicomsort.report import visible
from dicomsort.training.evaluate.metrics import KeyPath
from dicomsort.training.evaluate.predictions import NESTED

WORST = 12
# what a figure is called -> where it stands in metrics.json
ROWS: dict[str, KeyPath] = {
    "accuracy": ("accuracy",),
    "balanced accuracy": ("balanced_accuracy",),
    "mean recall by class and source": ("mean_recall_by_source",),
    f"accuracy, {OTHER} left out": ("without_other", "accuracy"),
    f"balanced accuracy, {OTHER} left out": ("without_other", "balanced_accuracy"),
    f"mean recall by class and source, {OTHER} left out": ("without_other", "mean_recall_by_source"),
    f"{OTHER} recall": ("other", "recall"),
    f"other classes' images sent to {OTHER}": ("other", "class_images_sent_to_other"),
    f"{OTHER} images named a class, confidently": ("other", "named_a_class"),
    f"{OTHER} images out of distribution": ("other", "out_of_distribution"),
    "other classes' images out of distribution": ("other", "class_images_out_of_distribution"),
    "right among the most confident 90 %": ("confident_90", "accuracy"),
    "expected calibration error": ("ece",),
    "log loss": ("log_loss",),
}
NUMBERS = {("ece",), ("log_loss",)}  # all other figures are shares
# The large files of a bundle: the same weights three times, each in the format that something else reads.
MEGABYTES = "megabytes"
PURPOSES = {
    "model.tflite": "what sort and predict run",
    "model.keras": "the Keras model; train --from reads it, except for efficientnet-lite0",
    "medical_image_classifier.h5": "for other tools; dicomsort never reads it",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table: all columns but the first are numbers, or short."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(report: Mapping[str, Any], limits: Mapping[str, Any] | None = None) -> Iterator[Table]:
    """Yield the tables of metrics.json's content that have rows; ``limits`` are the bundle's thresholds."""
    for build in (_figures, _classes, _confusion, partial(_thresholds, limits=limits), _sources, _shortcuts):
        table = build(report)
        if table.rows:
            yield table


def sizes(run: Mapping[str, Any]) -> Table:
    """Return the large files of a bundle; ``run`` is what metrics.json reports of its training."""
    report = run.get(MEGABYTES, {})
    rows = [(name, f"{report[name]:.1f}", purpose) for name, purpose in PURPOSES.items() if name in report]
    return Table("Size", ("file", "MB", "what it is for"), rows)


def percent(value: float | None) -> str:
    """Return a share as a percentage, "-" for None."""
    return "-" if value is None else f"{value:.1%}"


def number(value: float) -> str:
    """Return a figure that is no share."""
    return f"{value:.3f}"


def points(value: float) -> str:
    """Return a change of a share in points, with its sign."""
    return f"{100 * value:+.1f}"


def at(figures: Any, path: KeyPath) -> Any:
    """Return what stands at a path of names in dictionaries, None where there is nothing."""
    for name in path:
        figures = figures.get(name) if isinstance(figures, dict) else None
    return figures


def interval(report: Mapping[str, Any], path: KeyPath, write: Callable[[float], str]) -> str:
    """Return the 95 % interval of the figure at ``path``, "" where there is none."""
    bounds = at(report, ("intervals", *path))
    return f"{write(bounds[0])} to {write(bounds[1])}" if bounds else ""


def _figures(report: Mapping[str, Any]) -> Table:
    rows = [("images", f"{report['images']:,}", "")]
    for title, path in ROWS.items():
        value, write = at(report, path), number if path in NUMBERS else percent
        if value is not None:
            rows.append((title, write(value), interval(report, path, write)))
    return Table("Figures", ("figure", "value", "95 % interval"), rows)


def _classes(report: Mapping[str, Any]) -> Table:
    keys = ("precision", "recall", "f1")
    rows = [
        (label, *(with_interval(report, ("classes", label, key)) for key in keys), f"{row['support']:,}")
        for label, row in report["classes"].items()
    ]
    return Table("By class (95 % interval)", ("class", "precision", "recall", "F1", "images"), rows)


def _confusion(report: Mapping[str, Any]) -> Table:
    labels, counts = report["confusion_matrix"]["labels"], report["confusion_matrix"]["rows_are_truth"]
    rows = [(label, *map(str, row)) for label, row in zip(labels, counts, strict=True)]
    return Table("Confusion (rows: truth)", ("truth", *labels), rows)


def _thresholds(report: Mapping[str, Any], limits: Mapping[str, Any] | None) -> Table:
    """Where thresholds are those of other folds, show the bundle's own ``limits`` beside their mean."""
    nested = report.get("calibration") == NESTED
    beside = limits if nested and limits else None
    rows = []
    for name, row in report["thresholds"].items():
        value = number(row["threshold"]) if "threshold" in row else ""
        own = [] if beside is None else [number(beside[name]) if value and name in beside else ""]
        figures = (with_interval(report, ("thresholds", name, key)) for key in ("coverage", "accuracy"))
        rows.append((name.replace("_", " "), *own, value, *figures))
    values = ("the bundle's", "used here, the folds' mean") if beside else ("the folds' mean" if nested else "value",)
    return Table("Confidence", ("threshold", *values, "images at or above", "right among them"), rows)


def _sources(report: Mapping[str, Any]) -> Table:
    worst = [row for row in report.get("sources", ()) if row["recall"] < 1][:WORST]
    rows = [
        (source_of(row), row["label"], f"{row['images']:,}", percent(row["recall"]), row["mistaken_for"])
        for row in worst
    ]
    title = "Where it is worst (a source is a folder in a class's folder)"
    return Table(title, ("source", "class", "images", "recall", "mostly mistaken for"), rows)


def source_of(row: Mapping[str, Any]) -> str:
    """Return the name of a row's source as a cell."""
    return visible(row["source"]) or "(none)"


def _shortcuts(report: Mapping[str, Any]) -> Table:
    rows = [
        (name, percent(row["accuracy"]), points(row["change"]), interval(report, ("shortcuts", name, "change"), points))
        for name, row in report.get("shortcuts", {}).items()
    ]
    return Table("Shortcut tests", ("image changed by", "accuracy", "change, points", "95 % interval"), rows)


def with_interval(report: Mapping[str, Any], path: KeyPath) -> str:
    """Return the share at ``path`` with its interval in brackets."""
    bounds = interval(report, path, percent)
    return f"{percent(at(report, path))} ({bounds})" if bounds else percent(at(report, path))
