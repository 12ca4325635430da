"""Compares two bundles: on a data set, on the replay sets that both have, or by the figures of their cards.

The comparison is written as tables, as ``metrics.json`` and as a plot.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.bundle import calibrate
from dicomsort.content import COMPARED
from dicomsort.errors import UsageError
from dicomsort.report import visible
from dicomsort.training.data.dataset import read_groups, relabelled, scan
from dicomsort.training.evaluate import compare, metrics
from dicomsort.training.evaluate.evaluation import COMPARISON, FIGURES, Settings, by_model, outcome
from dicomsort.training.evaluate.metrics import Tally
from dicomsort.training.evaluate.plots import FAINT, HELD_OUT, INK, MUTED, TRAINING, save, styled
from dicomsort.training.evaluate.reporting import figures_in
from dicomsort.training.evaluate.tables import NUMBERS, ROWS, Table, at, number, percent, points
from dicomsort.training.models.replay_set import predictions_of, recall

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

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


WORST = 12
THRESHOLDS = ("decide", "contradict", "decide_and_distance")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of what ``compare_bundles`` tells that have rows."""
    names = names_of(report)
    for table in (
        _figures(report, names),
        _classes(report, names),
        _threshold_table(report, names),
        _agreement(report, names),
        _sources(report, names),
    ):
        if table.rows:
            yield table


def names_of(report: Mapping[str, Any]) -> list[str]:
    """Return what the two bundles are called in tables, which must not be the same."""
    names = [visible(report["bundles"][name]["name"]) for name in ("first", "second")]
    return names if names[0] != names[1] else [f"{name} ({which})" for name, which in zip(names, "AB", strict=True)]


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Return what must not be overlooked, in sentences without a stop."""
    both = [report["bundles"][name] for name in ("first", "second")]
    if report["of"] == OWN:
        if report["same_images"]:
            return ["Each bundle's own figures; both were trained on the same files, and held out what their card says"]
        return ["Each bundle's own figures, OF DIFFERENT IMAGES: a difference says nothing of which is the better one"]
    if report["of"] == KEPT:
        if not both[0]["trained_on"]:
            return []
        known = f"The network was trained on {both[0]['trained_on']:,} of these {report['images']:,} images"
        return [f"{known}: this shows what one of the two forgot, and no accuracy"]
    warned = []
    for each in both:
        if each["trained_on"] is None:
            warned.append(f"{visible(each['name'])} does not tell which files it was trained on")
        elif each["trained_on"]:
            warned.append(
                f"{visible(each['name'])} was trained on {each['trained_on']:,} of these {report['images']:,} images, "
                "which flatters it"
            )
    return warned


def _figures(report: Mapping[str, Any], names: list[str]) -> Table:
    rows: list[tuple[str, ...]] = [("images", *_counts(report), "", "")]
    for title, path in ROWS:
        cells = _cells(report, path, number if path in NUMBERS else percent, path in NUMBERS)
        if cells:
            rows.append((title, *cells))
    return Table("Figures", ("figure", *names, *_change_heads(report)), tuple(_cut(report, row) for row in rows))


def _classes(report: Mapping[str, Any], names: list[str]) -> Table:
    rows = []
    for label in report["labels"]:
        if report.get("support", {}).get(label) == 0:
            continue
        for key in ("recall", "precision"):
            cells = _cells(report, ("classes", label, key), percent)
            if cells:
                rows.append((f"{label} {key}", *cells))
    return Table("By class", ("class", *names, *_change_heads(report)), tuple(_cut(report, row) for row in rows))


def _threshold_table(report: Mapping[str, Any], names: list[str]) -> Table:
    rows = []
    for name in THRESHOLDS:
        for key, words in (("coverage", "images at or above"), ("accuracy", "right among them")):
            cells = _cells(report, ("thresholds", name, key), percent)
            if cells:
                rows.append((f"{name.replace('_', ' ')}: {words}", *cells))
    title = "Confidence (each bundle's own thresholds)"
    return Table(title, ("threshold", *names, *_change_heads(report)), tuple(_cut(report, row) for row in rows))


def _agreement(report: Mapping[str, Any], names: list[str]) -> Table:
    found = report.get("agreement")
    if not found:
        return Table("", (), ())
    rows = (
        (f"{names[0]} right", f"{found['both']:,}", f"{found['only_first']:,}"),
        (f"{names[0]} wrong", f"{found['only_second']:,}", f"{found['neither']:,}"),
    )
    return Table("Images", ("", f"{names[1]} right", f"{names[1]} wrong"), rows)


def _sources(report: Mapping[str, Any], names: list[str]) -> Table:
    moved = [row for row in report.get("sources", ()) if row["first"] != row["second"]]
    rows = tuple(
        (
            visible(row["source"]) or "(none)", row["label"], f"{row['images']:,}", percent(row["first"]),
            percent(row["second"]), points(row["second"] - row["first"]),
        )
        for row in moved[:WORST]
    )  # fmt: skip
    title = f"Recall by source, what changed most ({len(moved):,} of {len(report.get('sources', ())):,} changed)"
    return Table(title, ("source", "class", "images", *names, "change"), rows)


def _counts(report: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number of images that each was evaluated on."""
    if report["of"] == OWN:
        return tuple(f"{report['figures'][name]['images']:,}" for name in ("first", "second"))  # type: ignore[return-value]
    return (f"{report['images']:,}",) * 2


def _cells(
    report: Mapping[str, Any],
    path: tuple[str, ...],
    write: Any,
    plain: bool = False,  # noqa: FBT001, FBT002
) -> tuple[str, ...]:
    """Return the figure of both, its change and the interval of that; () where either has none."""
    one, two = (at(report["figures"][name], path) for name in ("first", "second"))
    if not isinstance(one, float | int) or not isinstance(two, float | int):
        return ()
    shown: Any = (lambda value: f"{value:+.3f}") if plain else points
    drawn = at(report.get("intervals", {}), path)
    interval = f"{shown(drawn[0])} to {shown(drawn[1])}" if drawn else ""
    return (write(one), write(two), shown(two - one), interval)


def _change_heads(report: Mapping[str, Any]) -> tuple[str, ...]:
    return () if report["of"] == OWN else ("change, points", "95 % interval")


def _cut(report: Mapping[str, Any], row: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row without changes where figures are of different images."""
    return row[:3] if report["of"] == OWN else row


def title(report: Mapping[str, Any]) -> str:
    """Return what is compared, and on what, in a line."""
    first, second = names_of(report)
    if report["of"] == OWN:
        return f"{first} and {second}, each by its own figures"
    what = "evaluation images that both keep" if report["of"] == KEPT else "images"
    return f"{first} and {second} on {report['images']:,} {what} of {report['clusters']:,} {report['unit']}s"


SHOWN_CLASSES = 30
ROW_INCHES, LEAST_ROWS = 0.42, 3
SPAN = 0.05  # of a change that is shown at least, to each side


def write_comparison(report: Mapping[str, Any], out: Path) -> None:
    """Write figures and picture of what ``compare_bundles`` tells into the folder ``out``."""
    with outcome(out) as folder:
        (folder / FIGURES).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        plot_comparison(report, names_of(report), title(report), folder / COMPARISON)


def plot_comparison(report: Mapping[str, Any], names: Sequence[str], heading: str, path: Path) -> None:
    """Draw accuracy, balanced accuracy and recall by class of both, and, where there is one, the change beside them.

    ``report`` is what ``compare_bundles`` tells; ``names`` are those of the two bundles.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows = _rows(report)
    paired = "change" in report
    with styled():
        size = (9.6 if paired else 6.4, 1.9 + ROW_INCHES * max(LEAST_ROWS, len(rows)))
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(
            1, 2 if paired else 1, sharey=True, width_ratios=[3, 2] if paired else [1], squeeze=False
        )
        left = axes[0, 0]
        places = range(len(rows))
        for which, colour, marker, area in (("first", TRAINING, "o", 64), ("second", HELD_OUT, "D", 36)):
            values = [at(report["figures"][which], row[1]) for row in rows]
            name = names[0] if which == "first" else names[1]
            left.scatter(values, places, color=colour, marker=marker, s=area, zorder=3, label=name)
        for place, (_, where) in enumerate(rows):
            ends = [at(report["figures"][which], where) for which in ("first", "second")]
            left.plot(ends, [place, place], color=MUTED, linewidth=1.4, zorder=2)
        left.set_yticks(places, [row[0] for row in rows])
        left.invert_yaxis()
        left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=_decimals(report, rows)))
        left.grid(axis="x", color=FAINT, linewidth=0.7)
        left.tick_params(axis="y", length=0)
        left.set_axisbelow(True)
        figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc="outside lower left")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold")
        if paired:
            _draw_changes(axes[0, 1], report, rows)
        save(figure, path)


def _draw_changes(axes: Any, report: Mapping[str, Any], rows: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Draw the change of each row in points, with its interval; grey where that holds 0."""
    reach = SPAN
    for place, (_, where) in enumerate(rows):
        change, drawn = at(report["change"], where), at(report.get("intervals", {}), where)
        sure = bool(drawn) and (drawn[0] > 0 or drawn[1] < 0)
        colour = INK if sure else MUTED
        if drawn:
            axes.plot([100 * value for value in drawn], [place, place], color=colour, linewidth=2.2, zorder=2)
        axes.scatter([100 * change], [place], color=colour, s=40, zorder=3)
        reach = max(reach, abs(change), *(abs(value) for value in drawn or ()))
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(-112 * reach, 112 * reach)
    axes.set_xlabel("change, points; line: 95 % interval (dark: without 0)", fontsize=9)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)


def _rows(report: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Return what is drawn: its name and where it stands in the figures of both."""
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("accuracy", ("accuracy",)),
        ("balanced accuracy", ("balanced_accuracy",)),
    ]
    labels = [label for label in report["labels"] if report.get("support", {}).get(label) != 0][:SHOWN_CLASSES]
    rows += [(f"recall, {label}", ("classes", label, "recall")) for label in labels]
    figures = [report["figures"][which] for which in ("first", "second")]
    return [row for row in rows if all(isinstance(at(each, row[1]), float | int) for each in figures)]


def _decimals(report: Mapping[str, Any], rows: Sequence[tuple[str, tuple[str, ...]]]) -> int:
    """Return how many decimals percentages need to be told apart."""
    values = [at(report["figures"][which], row[1]) for which in ("first", "second") for row in rows]
    return 1 if max(values) - min(values) < SPAN else 0
