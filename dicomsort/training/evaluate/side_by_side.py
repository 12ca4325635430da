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
from dicomsort.training.evaluate.compare import of_one_line, said_of
from dicomsort.training.evaluate.evaluation import FIGURES, Settings, by_model
from dicomsort.training.evaluate.metrics import Tally
from dicomsort.training.evaluate.reporting import figures_in
from dicomsort.training.models.replay_set import recall

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
    """Return what metrics.json tells of two bundles that judge the same data set, in the labels' order of the first.

    UsageError where their labels are others, or the data set cannot be judged.
    """
    first, second = bundles
    _require_same_labels(first, second)
    groups = read_groups(settings.groups) if settings.groups else None
    found = scan(settings.dataset, groups, least=1)
    one, two = (
        by_model(bundle, relabelled(found, bundle.labels), settings, engine, reporter) for bundle in (first, second)
    )
    said = _aligned(one.predictions, two.predictions, [second.labels.index(label) for label in first.labels])
    told = _changes(_tallies(said), said[0].dataset.labels, settings.seed)
    items = said[0].dataset.items
    right = said[0].right, said[1].right
    shown = {
        name: [items[i].path for i in np.flatnonzero(mine & ~other)[:LISTED]]
        for name, mine, other in (("only_first", *right), ("only_second", right[1], right[0]))
    }
    return {
        "of": SAME,
        **_named(bundles, (one.told["trained_on"], two.told["trained_on"])),
        "images": len(items),
        "unit": said[0].unit,
        "clusters": len(set(said[0].clusters)),
        **told,
        "agreement": compare.agreement(*right),
        "sources": _by_source(said),
        "changed": shown,
        "skipped": one.told["skipped"] | two.told["skipped"],
    }


def on_their_own(bundles: Two, seed: int) -> dict[str, Any]:
    """Return what metrics.json tells of two bundles without a data set.

    They are compared on the evaluation images that both keep, where they differ in the last layer alone; else by the
    figures that each bundle has, which may be of other images.
    """
    first, second = bundles
    kept = recall(first) if of_one_line(first, second) else None
    judged = kept.part(rehearsed=False) if kept else None
    if judged:
        said = said_of(first, judged), said_of(second, judged)
        if said[0] is not None and said[1] is not None:
            return _on_kept(bundles, judged, (said[0], said[1]), seed)
    told = _own(first), _own(second)
    return {
        "of": OWN,
        **_named(bundles, (None, None)),
        "same_images": first.training.get("fingerprint") == second.training.get("fingerprint"),
        "labels": list(first.labels),
        "figures": dict(zip(BOTH, told, strict=True)),
    }


def _on_kept(
    bundles: Two, kept: ReplaySet, said: tuple[NDArray[np.float32], NDArray[np.float32]], seed: int
) -> dict[str, Any]:
    names, cluster = np.unique(kept.clusters, return_inverse=True)
    tallies = [
        Tally(calibrate(raw, bundle.temperature), kept.truth, kept.labels, cluster, _limits(bundle, len(kept)))
        for bundle, raw in zip(bundles, said, strict=True)
    ]
    right = [raw.argmax(1) == kept.truth for raw in said]
    trained = int(kept.trained.sum())
    return {
        "of": KEPT,
        **_named(bundles, (trained, trained)),
        "images": len(kept),
        "unit": kept.unit,
        "clusters": len(names),
        **_changes((tallies[0], tallies[1]), kept.labels, seed),
        "agreement": compare.agreement(right[0], right[1]),
    }


def _changes(tallies: tuple[Tally, Tally], labels: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the figures of both and what changed, those of classes without images left out."""
    told = compare.changes(*tallies, seed)
    found = np.bincount(tallies[0].truth, minlength=len(labels))
    support = {label: int(count) for label, count in zip(labels, found, strict=True)}
    figures = {name: told[name] for name in BOTH}
    return {"labels": list(labels), "support": support, "figures": figures} | {
        name: told[name] for name in ("change", "intervals") if name in told
    }


def _tallies(said: tuple[Predictions, Predictions]) -> tuple[Tally, Tally]:
    _, cluster = np.unique(np.array(said[0].clusters), return_inverse=True)
    return metrics.tally_of(said[0], cluster), metrics.tally_of(said[1], cluster)


def _aligned(one: Predictions, two: Predictions, places: Sequence[int]) -> tuple[Predictions, Predictions]:
    """Return both for the images that both judged; the second with the labels, clusters and classes of the first."""
    rows = {item.path: i for i, item in enumerate(two.dataset.items)}
    mine = [i for i, item in enumerate(one.dataset.items) if item.path in rows]
    theirs = [rows[one.dataset.items[i].path] for i in mine]
    first = _only(one, mine)
    second = replace(_only(two, theirs), dataset=first.dataset, clusters=first.clusters, unit=first.unit)
    return first, replace(second, probabilities=second.probabilities[:, list(places)])


def _only(said: Predictions, rows: Sequence[int]) -> Predictions:
    return replace(
        said,
        dataset=said.dataset.only(rows),
        probabilities=said.probabilities[list(rows)],
        thresholds={name: values[list(rows)] for name, values in said.thresholds.items()},
        clusters=[said.clusters[i] for i in rows],
        distances=None if said.distances is None else said.distances[list(rows)],
        limits=None if said.limits is None else said.limits[list(rows)],
    )


def _by_source(said: tuple[Predictions, Predictions]) -> list[dict[str, Any]]:
    """Return a row a class and source with the recall of both, the greatest change first; none without sources."""
    dataset = said[0].dataset
    sources = [item.source for item in dataset.items]
    if not any(sources):
        return []
    one, two = (
        {
            (row["label"], row["source"]): row
            for row in metrics.by_source(each.probabilities, dataset.classes(), dataset.labels, sources)
        }
        for each in said
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


def _limits(bundle: Bundle, count: int) -> dict[str, NDArray[np.float64]]:
    return {"decide": np.full(count, bundle.decide), "contradict": np.full(count, bundle.contradict)}


def _named(bundles: Two, trained: tuple[int | None, int | None]) -> dict[str, Any]:
    told = [
        {"name": bundle.name, "sha256": bundle.model_sha256, "trained_on": count}
        for bundle, count in zip(bundles, trained, strict=True)
    ]
    return {"bundles": dict(zip(BOTH, told, strict=True))}


def _require_same_labels(first: Bundle, second: Bundle) -> None:
    if set(first.labels) != set(second.labels):
        raise UsageError(
            f"--compare: expected two bundles with the same classes, received {', '.join(first.labels)} "
            f"({first.name}) and {', '.join(second.labels)} ({second.name})"
        )


def _own(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle's own figures; UsageError where it has none that can be read."""
    try:
        told = figures_in(bundle.folder)
        figures = {name: value for name, value in told.items() if name != "training_run"}
        return figures | {
            "accuracy": float(told["accuracy"]),
            "images": int(told["images"]),
            "classes": told["classes"],
        }
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UsageError(
            f"--compare: bundle {str(bundle.folder)!r}: expected its own {FIGURES}, as the two keep no common "
            "evaluation images, received none that can be read; give a DATASET that both shall judge"
        ) from error
