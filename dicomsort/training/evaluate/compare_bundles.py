"""Compares two bundles: on a data set, on the replay set that both have, or by the figures of their cards.

The comparison is written as tables, as ``metrics.json`` and as a plot.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dicomsort.bundle import Bundle, calibrate
from dicomsort.engines.engine import Engine
from dicomsort.errors import UsageError, counted
from dicomsort.own_files import COMPARED
from dicomsort.report import visible
from dicomsort.training.data.dataset import relabelled
from dicomsort.training.evaluate import compare, metrics
from dicomsort.training.evaluate.evaluation import (
    COMPARISON,
    EvaluationSettings,
    by_model,
    outcome,
    rendered_once,
    scanned,
)
from dicomsort.training.evaluate.metrics import KeyPath
from dicomsort.training.evaluate.plots import HELD_OUT, INK, MUTED, TRAINING, in_percent, new_figure
from dicomsort.training.evaluate.predictions import Predictions, own_thresholds
from dicomsort.training.evaluate.reporting import FIGURES, figures_in, write_figures
from dicomsort.training.evaluate.tables import NUMBERS, ROWS, Table, at, interval, number, percent, points, source_of
from dicomsort.training.models.replay_set import load_replay_set, predictions_of
from dicomsort.training.progress import Reporter

Bundles = tuple[Bundle, Bundle]
SAME, REPLAY_SET, OWN = COMPARED
BOTH = ("first", "second")
LISTED = 200  # paths of images that changed, of each kind
WORST = 12
THRESHOLDS = ("decide", "decide_and_distance")
AGREEMENT = ("both", "only_first", "only_second", "neither")
THRESHOLD_ROWS: dict[str, KeyPath] = {
    f"{name.replace('_', ' ')}: {words}": ("thresholds", name, key)
    for name in THRESHOLDS
    for key, words in (("coverage", "images at or above"), ("accuracy", "right among them"))
}
SHOWN_CLASSES = 30
ROW_INCHES, LEAST_ROWS = 0.42, 3
SPAN = 0.05  # of a change that is shown at least, to each side


def on_dataset(bundles: Bundles, settings: EvaluationSettings, engine: Engine, reporter: Reporter) -> dict[str, Any]:
    """Return what metrics.json reports of two bundles on the same data set, in the labels' order of the first.

    UsageError where their labels differ, or the data set cannot be read.
    """
    first, second = bundles
    if set(first.labels) != set(second.labels):
        raise UsageError(
            f"--compare: expected two bundles with the same classes, received {', '.join(first.labels)} "
            f"({first.name}) and {', '.join(second.labels)} ({second.name})"
        )
    rendered = rendered_once(relabelled(scanned(settings), first.labels), engine, reporter)
    in_order = [replace(rendered, dataset=relabelled(rendered.dataset, bundle.labels)) for bundle in bundles]
    parts = [by_model(*each, settings, engine, reporter) for each in zip(bundles, in_order, strict=True)]
    one, two = _aligned(parts[0].predictions, parts[1].predictions)
    changes = compare.changes(metrics.tally_of(one), metrics.tally_of(two), settings.seed)
    changed = {
        name: [one.dataset.items[i].path for i in np.flatnonzero(right & ~other)[:LISTED]]
        for name, right, other in (("only_first", one.right, two.right), ("only_second", two.right, one.right))
    }
    return {
        **_header(SAME, bundles, *(each.report["trained_on"] for each in parts)),
        "unit": one.unit,
        **_by_figure(changes, first.labels),
        "sources": _by_source(one, two),
        "changed": changed,
        "skipped": parts[0].report["skipped"] | parts[1].report["skipped"],
    }


def on_their_own(bundles: Bundles, seed: int) -> dict[str, Any]:
    """Return what metrics.json reports of two bundles without a data set.

    They are compared on the evaluation images that both have, if they differ in the last layer alone; else by the
    figures of each bundle, which may be of other images.
    """
    first, second = bundles
    replay = load_replay_set(first) if compare.of_one_line(first, second) else None
    images = replay and replay.part(rehearsed=False)
    if images:
        one, two = (predictions_of(bundle, images) for bundle in bundles)
        if one is not None and two is not None:
            both = calibrate(one, first.temperature), calibrate(two, second.temperature)
            thresholds = [own_thresholds(bundle, each) for bundle, each in zip(bundles, both, strict=True)]
            changes = compare.on_replay_set(images, *both, seed, thresholds)
            trained = changes.pop("trained_on")
            return _header(REPLAY_SET, bundles, trained, trained) | _by_figure(changes, images.labels)
    return {
        **_header(OWN, bundles, None, None),
        "same_images": first.training.get("fingerprint") == second.training.get("fingerprint"),
        "labels": list(first.labels),
        "figures": {name: _own_figures(bundle) for name, bundle in zip(BOTH, bundles, strict=True)},
    }


def _by_figure(changes: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the result of ``compare.changes`` with the figures of both under one key."""
    figures = {name: changes.pop(name) for name in BOTH}
    return {"labels": list(labels), "figures": figures, **changes}


def _aligned(one: Predictions, two: Predictions) -> tuple[Predictions, Predictions]:
    """Return both for the images that both predicted; the second with the labels, clusters and classes of the first."""
    rows = {item.path: i for i, item in enumerate(two.dataset.items)}
    common = [i for i, item in enumerate(one.dataset.items) if item.path in rows]
    first, second = one.only(common), two.only([rows[one.dataset.items[i].path] for i in common])
    columns = [two.dataset.labels.index(label) for label in one.dataset.labels]
    second = replace(second, dataset=first.dataset, clusters=first.clusters, unit=first.unit)
    return first, replace(second, probabilities=second.probabilities[:, columns])


def _by_source(first: Predictions, second: Predictions) -> list[dict[str, Any]]:
    """Return a row a class and source with the recall of both, the greatest change first; none without sources."""
    dataset = first.dataset
    sources = [item.source for item in dataset.items]
    if not any(sources):
        return []
    one, two = (
        metrics.by_source(each.probabilities, dataset.classes(), dataset.labels, sources) for each in (first, second)
    )
    recalls = {(row["label"], row["source"]): row["recall"] for row in two}
    rows = [
        {key: row[key] for key in ("label", "source", "images")}
        | {"first": row["recall"], "second": recalls[row["label"], row["source"]]}
        for row in one
    ]
    return sorted(rows, key=lambda row: (-abs(row["second"] - row["first"]), row["label"], row["source"]))


def _header(of: str, bundles: Bundles, *trained_on: int | None) -> dict[str, Any]:
    rows = {
        name: {"name": bundle.name, "sha256": bundle.model_sha256, "trained_on": count}
        for name, bundle, count in zip(BOTH, bundles, trained_on, strict=True)
    }
    return {"of": of, "bundles": rows}


def _own_figures(bundle: Bundle) -> dict[str, Any]:
    """Return a bundle's own figures; UsageError where it has none that can be read, or shares outside 0..1."""
    try:
        report = figures_in(bundle.folder)
        figures = {name: value for name, value in report.items() if name != "training_run"}
        figures |= {"accuracy": float(report["accuracy"]), "images": int(report["images"])}
        figures |= {"classes": report["classes"]}
        json.dumps(figures, allow_nan=False)
        _check_shares(figures)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UsageError(
            f"--compare: bundle {str(bundle.folder)!r}: expected its own {FIGURES}, as the two keep no common "
            "evaluation images, received none whose shares are 0 to 1; give a DATASET that both shall judge"
        ) from error
    return figures


def _check_shares(figures: Mapping[str, Any]) -> None:
    """Raise ValueError where a share is outside 0..1: a difference of two such may be infinite."""
    paths = {*ROWS.values(), *_class_rows([*figures["classes"]]).values(), *THRESHOLD_ROWS.values()} - NUMBERS
    shares = [value for path in paths if isinstance(value := at(figures, path), float | int)]
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError("expected shares from 0 to 1")


def names_of(report: Mapping[str, Any]) -> list[str]:
    """Return what the two bundles are called in tables, which must not be the same."""
    names = [visible(report["bundles"][name]["name"]) for name in BOTH]
    return names if names[0] != names[1] else [f"{name} ({which})" for name, which in zip(names, "AB", strict=True)]


def title(report: Mapping[str, Any]) -> str:
    """Return in a line what is compared, and on what."""
    first, second = names_of(report)
    if report["of"] == OWN:
        return f"{first} and {second}, each by its own figures"
    what = ("evaluation image", " that both keep") if report["of"] == REPLAY_SET else ("image", "")
    images = counted(report["images"], what[0]) + what[1]
    return f"{first} and {second} on {images} of {counted(report['clusters'], report['unit'])}"


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Return what must not be overlooked, in sentences without a stop."""
    if report["of"] == OWN:
        if report["same_images"]:
            return ["Each bundle's own figures; both were trained on the same files, and held out what their card says"]
        return ["Each bundle's own figures, OF DIFFERENT IMAGES: a difference does not show which is better"]
    both = [report["bundles"][name] for name in BOTH]
    of_these = f"of these {counted(report['images'], 'image')}"
    if report["of"] == REPLAY_SET:
        if count := both[0]["trained_on"]:
            words = "this shows what one of the two forgot, and no accuracy"
            return [f"The network was trained on {count:,} {of_these}: {words}"]
        return []
    flattering = []
    for name, count in ((visible(each["name"]), each["trained_on"]) for each in both):
        if count is None:
            flattering.append(f"{name} does not tell which files it was trained on")
        elif count:
            flattering.append(f"{name} was trained on {count:,} {of_these}, which flatters it")
    return flattering


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of a comparison that have rows."""
    names = names_of(report)
    for table in (
        _change_table("Figures", ("figure", *names), report, ROWS, [("images", *_counts(report), "", "")]),
        _change_table("By class", ("class", *names), report, _class_rows(_labels(report))),
        _change_table("Confidence (each bundle's own thresholds)", ("threshold", *names), report, THRESHOLD_ROWS),
        _agreement(report, names),
        _sources(report, names),
    ):
        if table.rows:
            yield table


def _class_rows(labels: Sequence[str]) -> dict[str, KeyPath]:
    return {f"{label} {key}": ("classes", label, key) for label in labels for key in ("recall", "precision")}


def _labels(report: Mapping[str, Any]) -> list[str]:
    """Return the labels without those that are known to have no images."""
    return [label for label in report["labels"] if report.get("support", {}).get(label) != 0]


def _change_table(
    title: str,
    head: Sequence[str],
    report: Mapping[str, Any],
    paths: Mapping[str, KeyPath],
    rows: Sequence[Sequence[str]] = (),
) -> Table:
    """Return a table of the figures of both, after ``rows``; with changes unless figures are of different images."""
    rows = [*rows, *((name, *cells) for name, path in paths.items() if (cells := _cells(report, path)))]
    if report["of"] == OWN:
        return Table(title, head, [row[: len(head)] for row in rows])
    return Table(title, (*head, "change, points", "95 % interval"), rows)


def _cells(report: Mapping[str, Any], path: KeyPath) -> tuple[str, ...]:
    """Return the figure of both, its change and the interval of that; () where either has none."""
    one, two = _figures_at(report, path)
    if not isinstance(one, float | int) or not isinstance(two, float | int):
        return ()
    write, write_change = (number, "{:+.3f}".format) if path in NUMBERS else (percent, points)
    return write(one), write(two), write_change(two - one), interval(report, path, write_change)


def _figures_at(report: Mapping[str, Any], path: KeyPath) -> list[Any]:
    return [at(report["figures"][name], path) for name in BOTH]


def _counts(report: Mapping[str, Any]) -> list[str]:
    counts = _figures_at(report, ("images",)) if report["of"] == OWN else [report["images"]] * 2
    return [f"{count:,}" for count in counts]


def _agreement(report: Mapping[str, Any], names: Sequence[str]) -> Table:
    head = ("", f"{names[1]} right", f"{names[1]} wrong")
    if not report.get("agreement"):
        return Table("Images", head, ())
    both, only_first, only_second, neither = (f"{report['agreement'][name]:,}" for name in AGREEMENT)
    rows = ((f"{names[0]} right", both, only_first), (f"{names[0]} wrong", only_second, neither))
    return Table("Images", head, rows)


def _sources(report: Mapping[str, Any], names: Sequence[str]) -> Table:
    sources = report.get("sources", ())
    changed = [row for row in sources if row["first"] != row["second"]]
    rows = [
        (
            source_of(row), row["label"], f"{row['images']:,}", percent(row["first"]), percent(row["second"]),
            points(row["second"] - row["first"]),
        )
        for row in changed[:WORST]
    ]  # fmt: skip
    title = f"Recall by source, what changed most ({len(changed):,} of {len(sources):,} changed)"
    return Table(title, ("source", "class", "images", *names, "change"), rows)


def write_comparison(report: Mapping[str, Any], out: Path) -> None:
    """Write figures and picture of a comparison into the folder ``out``."""
    with outcome(out) as folder:
        write_figures(folder, report)
        plot_comparison(report, folder / COMPARISON)


def plot_comparison(report: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy, balanced accuracy and recall by class of both, and, where there is one, the change beside them."""
    names, rows, paired = names_of(report), _rows(report), "change" in report
    size = (9.6 if paired else 6.4, 1.9 + ROW_INCHES * max(LEAST_ROWS, len(rows)))
    with new_figure(size, path) as figure:
        widths = [3, 2] if paired else [1]
        left, *right = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
        places = range(len(rows))
        figures = [_figures_at(report, where) for where in rows.values()]
        for which, colour, marker, area in ((0, TRAINING, "o", 64), (1, HELD_OUT, "D", 36)):
            values = [pair[which] for pair in figures]
            left.scatter(values, places, color=colour, marker=marker, s=area, zorder=3, label=names[which])
        for place, pair in enumerate(figures):
            left.plot(pair, [place, place], color=MUTED, linewidth=1.4, zorder=2)
        left.set_yticks(places, list(rows))
        left.invert_yaxis()
        flat = [value for pair in figures for value in pair]
        in_percent(left.xaxis, decimals=1 if max(flat) - min(flat) < SPAN else 0)  # enough to distinguish them
        _style(left)
        figure.legend(*left.get_legend_handles_labels(), ncols=2, loc="outside lower left")
        figure.suptitle(title(report), x=0.01, ha="left", fontsize=12, fontweight="bold")
        if right:
            _draw_changes(right[0], report, rows.values())


def _draw_changes(axes: Any, report: Mapping[str, Any], paths: Iterable[KeyPath]) -> None:
    """Draw the change of each row in points, with its interval; grey where that holds 0."""
    reach = SPAN
    for place, path in enumerate(paths):
        change, bounds = at(report["change"], path), at(report, ("intervals", *path))
        colour = INK if bounds and (bounds[0] > 0 or bounds[1] < 0) else MUTED
        if bounds:
            axes.plot([100 * value for value in bounds], [place, place], color=colour, linewidth=2.2, zorder=2)
        axes.scatter([100 * change], [place], color=colour, s=40, zorder=3)
        reach = max(reach, abs(change), *(abs(value) for value in bounds or ()))
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(-112 * reach, 112 * reach)
    axes.set_xlabel("change, points; line: 95 % interval (dark: without 0)", fontsize=9)
    _style(axes)


def _style(axes: Any) -> None:
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)


def _rows(report: Mapping[str, Any]) -> dict[str, KeyPath]:
    """Return the figures that are drawn: those that both bundles have."""
    rows: dict[str, KeyPath] = {"accuracy": ("accuracy",), "balanced accuracy": ("balanced_accuracy",)}
    rows |= {f"recall, {label}": ("classes", label, "recall") for label in _labels(report)[:SHOWN_CLASSES]}
    return {
        name: path
        for name, path in rows.items()
        if all(isinstance(figure, float | int) for figure in _figures_at(report, path))
    }
