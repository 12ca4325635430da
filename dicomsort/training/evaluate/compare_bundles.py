"""Two bundles side by side: on a data set, on the evaluation images that both keep, or by the figures that each has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import calibrate
from dicomsort.content import COMPARED
from dicomsort.errors import UsageError
from dicomsort.training.data.dataset import read_groups, relabelled, scan
from dicomsort.training.evaluate import compare, metrics
from dicomsort.training.evaluate.evaluation import FIGURES, Settings, by_model
from dicomsort.training.evaluate.metrics import Tally
from dicomsort.training.evaluate.reporting import figures_in
from dicomsort.training.models.replay_set import predictions_of, recall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle
    from dicomsort.engines.engine import Engine
    from dicomsort.training.evaluate.predictions import Predictions
    from dicomsort.training.models.replay_set import ReplaySet
    from dicomsort.training.progress import Reporter

    Two = tuple[Bundle, Bundle]

SAME, KEPT, OWN = COMPARED
LISTED = 200  # paths of images that changed, of each kind
BOTH = ("first", "second")


def on_dataset(bundles: Two, settings: Settings, engine: Engine, reporter: Reporter) -> dict[str, Any]:
    """Return what metrics.json reports of two bundles on the same data set, in the labels' order of the first.

    UsageError where their labels are others, or the data set cannot be read.
    """
    first, second = bundles
    _require_same_labels(first, second)
    groups = read_groups(settings.groups) if settings.groups else None
    dataset = scan(settings.dataset, groups, least=1)
    one, two = (
        by_model(bundle, relabelled(dataset, bundle.labels), settings, engine, reporter) for bundle in (first, second)
    )
    ours, theirs = _aligned(one.predictions, two.predictions, first.labels, second.labels)
    found = compare.changes(*_tallies(ours, theirs), settings.seed)
    items = ours.dataset.items
    right = ours.right, theirs.right
    changed = {
        name: [items[i].path for i in np.flatnonzero(mine & ~other)[:LISTED]]
        for name, mine, other in (("only_first", *right), ("only_second", *right[::-1]))
    }
    return {
        "of": SAME,
        **_named(bundles, (one.report["trained_on"], two.report["trained_on"])),
        "unit": ours.unit,
        **_by_figure(found, first.labels),
        "sources": _by_source(ours, theirs),
        "changed": changed,
        "skipped": one.report["skipped"] | two.report["skipped"],
    }


def on_their_own(bundles: Two, seed: int) -> dict[str, Any]:
    """Return what metrics.json reports of two bundles without a data set.

    They are compared on the evaluation images that both keep, where they differ in the last layer alone; else by the
    figures that each bundle has, which may be of other images.
    """
    first, second = bundles
    kept = recall(first) if compare.of_one_line(first, second) else None
    images = kept.part(rehearsed=False) if kept else None
    if images:
        one, two = (predictions_of(bundle, images) for bundle in bundles)
        if one is not None and two is not None:
            return _on_replay_set(bundles, images, (one, two), seed)
    figures = _own(first), _own(second)
    return {
        "of": OWN,
        **_named(bundles, (None, None)),
        "same_images": first.training.get("fingerprint") == second.training.get("fingerprint"),
        "labels": list(first.labels),
        "figures": dict(zip(BOTH, figures, strict=True)),
    }


def _on_replay_set(
    bundles: Two, images: ReplaySet, raw: tuple[NDArray[np.float32], NDArray[np.float32]], seed: int
) -> dict[str, Any]:
    one, two = (calibrate(each, bundle.temperature) for bundle, each in zip(bundles, raw, strict=True))
    found = compare.on_replay_set(images, one, two, seed, [_thresholds(bundle, len(images)) for bundle in bundles])
    trained = found.pop("trained_on")
    return {"of": KEPT, **_named(bundles, (trained, trained)), **_by_figure(found, images.labels)}


def _by_figure(found: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return what ``compare.changes`` found with the figures of both in one place."""
    figures = {name: found.pop(name) for name in BOTH}
    return {"labels": list(labels), "figures": figures, **found}


def _tallies(one: Predictions, two: Predictions) -> tuple[Tally, Tally]:
    _, cluster = np.unique(np.array(one.clusters), return_inverse=True)
    return metrics.tally_of(one, cluster), metrics.tally_of(two, cluster)


def _aligned(
    one: Predictions, two: Predictions, labels: Sequence[str], others: Sequence[str]
) -> tuple[Predictions, Predictions]:
    """Return both for the images that both predicted; the second with the labels, clusters and classes of the first."""
    rows = {item.path: i for i, item in enumerate(two.dataset.items)}
    mine = [i for i, item in enumerate(one.dataset.items) if item.path in rows]
    theirs = [rows[one.dataset.items[i].path] for i in mine]
    first = _only(one, mine)
    second = replace(_only(two, theirs), dataset=first.dataset, clusters=first.clusters, unit=first.unit)
    return first, replace(second, probabilities=second.probabilities[:, [others.index(label) for label in labels]])


def _only(predictions: Predictions, rows: Sequence[int]) -> Predictions:
    return replace(
        predictions,
        dataset=predictions.dataset.only(rows),
        probabilities=predictions.probabilities[list(rows)],
        thresholds={name: values[list(rows)] for name, values in predictions.thresholds.items()},
        clusters=[predictions.clusters[i] for i in rows],
        distances=None if predictions.distances is None else predictions.distances[list(rows)],
        limits=None if predictions.limits is None else predictions.limits[list(rows)],
    )


def _by_source(first: Predictions, second: Predictions) -> list[dict[str, Any]]:
    """Return a row a class and source with the recall of both, the greatest change first; none without sources."""
    dataset = first.dataset
    sources = [item.source for item in dataset.items]
    if not any(sources):
        return []
    one, two = (
        {
            (row["label"], row["source"]): row
            for row in metrics.by_source(each.probabilities, dataset.classes(), dataset.labels, sources)
        }
        for each in (first, second)
    )
    rows = [
        {
            **{key: row[key] for key in ("label", "source", "images")},
            "first": row["recall"],
            "second": two[at]["recall"],
        }
        for at, row in one.items()
    ]
    return sorted(rows, key=lambda row: (-abs(row["second"] - row["first"]), row["label"], row["source"]))


def _thresholds(bundle: Bundle, count: int) -> dict[str, NDArray[np.float64]]:
    return {"decide": np.full(count, bundle.decide), "contradict": np.full(count, bundle.contradict)}


def _named(bundles: Two, trained: tuple[int | None, int | None]) -> dict[str, Any]:
    report = [
        {"name": bundle.name, "sha256": bundle.model_sha256, "trained_on": count}
        for bundle, count in zip(bundles, trained, strict=True)
    ]
    return {"bundles": dict(zip(BOTH, report, strict=True))}


def _require_same_labels(first: Bundle, second: Bundle) -> None:
    if set(first.labels) != set(second.labels):
        raise UsageError(
            f"--compare: expected two bundles with the same classes, received {', '.join(first.labels)} "
            f"({first.name}) and {', '.join(second.labels)} ({second.name})"
        )


def _own(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle's own figures; UsageError where it has none that can be read."""
    try:
        report = figures_in(bundle.folder)
        figures = {name: value for name, value in report.items() if name != "training_run"}
        return figures | {
            "accuracy": float(report["accuracy"]),
            "images": int(report["images"]),
            "classes": report["classes"],
        }
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UsageError(
            f"--compare: bundle {str(bundle.folder)!r}: expected its own {FIGURES}, as the two keep no common "
            "evaluation images, received none that can be read; give a DATASET that both shall judge"
        ) from error
