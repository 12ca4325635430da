"""The report on predictions: metrics.json, the card, the pictures, the sheet of mistakes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort import own_files
from dicomsort.errors import counted
from dicomsort.files import Files, opened_file
from dicomsort.jsonlines import parse
from dicomsort.training.data.dataset import Dataset, read_table
from dicomsort.training.evaluate import metrics, plots
from dicomsort.training.evaluate.card import write_card
from dicomsort.training.evaluate.predictions import Predictions

CARD, FIGURES = "card.md", "metrics.json"
PICTURES = ("confusion.png", "reliability.png", "coverage.png", "sources.png")
SHEET = "mistakes.png"
MISTAKES = 24
MISTAKES_FILE = own_files.Replaced("--out", own_files.SHEET, 0o666)
NO_LICENCE = "not listed"


def figures_in(folder: Path) -> dict[str, Any]:
    """Return the content of a bundle's own metrics.json; OSError or ValueError where there is none that can be read."""
    with opened_file(str(folder / FIGURES)) as stream:
        report = parse(stream.read(own_files.METRICS.most))
    if not isinstance(report, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - as for other content
    return report


def report_of(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
    """Return what was measured, on what, and how, ready for JSON."""
    return {
        "held_out": predictions.held_out,
        "by_source": predictions.by_source,
        "calibration": predictions.calibration,
        "data": describe(predictions.dataset),
        **metrics.report(predictions, seed),
    }


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return images by class and source, and the licences by number of images where the data set lists them.

    ``manifest.csv`` in the data set's folder lists them, in the columns ``licence`` and ``path`` or ``source``.
    """
    report: dict[str, Any] = {"images": dataset.counts()}
    counts = Counter((item.label, source) for item in dataset.items if (source := item.source))
    if counts:
        report["sources"] = {
            label: {source: count for (i, source), count in sorted(counts.items()) if i == index}
            for index, label in enumerate(dataset.labels)
        }
    if licences := _licences(dataset):
        report["licences"] = licences
    return report


def write_figures(folder: Path, report: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    (folder / FIGURES).write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def write(folder: Path, spec: Mapping[str, Any], report: dict[str, Any], predictions: Predictions) -> None:
    """Write metrics.json, card.md and the pictures that show no image; ``spec`` is bundle.json's content."""
    write_figures(folder, report)
    (folder / CARD).write_text(write_card(spec, report), "utf-8", "backslashreplace")
    draw(folder, report, predictions)


def draw(folder: Path, report: dict[str, Any], predictions: Predictions) -> None:
    """Write the four pictures of what ``report_of`` returned into ``folder``; none shows an image of the data set."""
    matrix = report["confusion_matrix"]
    title = f"{counted(report['images'], 'image')}, {'sources held out' if predictions.by_source else 'images judged'}"
    plots.plot_confusion(matrix["rows_are_truth"], matrix["labels"], title, folder / "confusion.png")
    plots.plot_reliability(predictions.right, predictions.confidence, report["ece"], folder / "reliability.png")
    plots.plot_coverage(predictions.right, predictions.confidence, report["thresholds"], folder / "coverage.png")
    rows = report.get("sources") or [
        {"label": label, "source": "", "images": row["support"], "recall": row["recall"]}
        for label, row in report["classes"].items()
        if row["support"]
    ]
    plots.plot_sources(rows, folder / "sources.png")


def mistakes(predictions: Predictions) -> list[int]:
    """Return the most confident mistakes, the worst first, at most 24."""
    wrong = np.flatnonzero(~predictions.right)
    order = np.argsort(-predictions.confidence[wrong], kind="stable")
    return [int(i) for i in wrong[order][:MISTAKES]]


def draw_mistakes(
    place: Path, predictions: Predictions, chosen: Sequence[int], images: Sequence[NDArray[np.uint8]]
) -> None:
    """Write the sheet of ``chosen`` mistakes, whose renderings are ``images``, in place of an earlier one.

    Not into a bundle: it shows images. UsageError where something else has its name.
    """
    items, labels = predictions.dataset.items, predictions.dataset.labels
    answers, confidence = predictions.probabilities.argmax(1), predictions.confidence
    cells = [
        plots.Mistake(image, labels[items[i].label], labels[answers[i]], float(confidence[i]), items[i].path)
        for i, image in zip(chosen, images, strict=True)
    ]
    total = int((~predictions.right).sum())
    MISTAKES_FILE.write(Files(), place, plots.plot_mistakes(cells, total, len(items)))


def _licences(dataset: Dataset) -> dict[str, int]:
    """Return licence -> images, the most common first, {} where no table lists them."""
    try:
        rows = [row for row in read_table(dataset.root / "manifest.csv") if row.get("licence")]
    except (OSError, UnicodeError, csv.Error):
        return {}
    listed = {row[key]: row["licence"] for key in ("source", "path") for row in rows if row.get(key)}
    counts = Counter(listed.get(item.path) or listed.get(item.source) or NO_LICENCE for item in dataset.items)
    return dict(counts.most_common()) if listed else {}
