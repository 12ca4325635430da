"""What a comparison of two bundles leaves: metrics.json, and the picture of what each has right and of the change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dicomsort.training.cardtables import at
from dicomsort.training.comparetables import names_of, title
from dicomsort.training.evaluate import COMPARISON, FIGURES, outcome
from dicomsort.training.plots import FAINT, HELD_OUT, INK, MUTED, TRAINING, save, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SHOWN_CLASSES = 30
ROW_INCHES, LEAST_ROWS = 0.42, 3
SPAN = 0.05  # of a change that is shown at least, to each side


def write_comparison(told: Mapping[str, Any], out: Path) -> None:
    """Write figures and picture of what ``sidebyside`` tells into the folder ``out``."""
    with outcome(out) as folder:
        (folder / FIGURES).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        plot_comparison(told, names_of(told), title(told), folder / COMPARISON)


def plot_comparison(told: Mapping[str, Any], names: Sequence[str], heading: str, path: Path) -> None:
    """Draw accuracy, balanced accuracy and recall by class of both, and, where there is one, the change beside them.

    ``told`` is what ``sidebyside`` tells; ``names`` are those of the two bundles.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows = _rows(told)
    paired = "change" in told
    with styled():
        size = (9.6 if paired else 6.4, 1.9 + ROW_INCHES * max(LEAST_ROWS, len(rows)))
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(
            1, 2 if paired else 1, sharey=True, width_ratios=[3, 2] if paired else [1], squeeze=False
        )
        left = axes[0, 0]
        places = range(len(rows))
        for which, colour, marker, area in (("first", TRAINING, "o", 64), ("second", HELD_OUT, "D", 36)):
            values = [at(told["figures"][which], row[1]) for row in rows]
            name = names[0] if which == "first" else names[1]
            left.scatter(values, places, color=colour, marker=marker, s=area, zorder=3, label=name)
        for place, (_, where) in enumerate(rows):
            ends = [at(told["figures"][which], where) for which in ("first", "second")]
            left.plot(ends, [place, place], color=MUTED, linewidth=1.4, zorder=2)
        left.set_yticks(places, [row[0] for row in rows])
        left.invert_yaxis()
        left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=_decimals(told, rows)))
        left.grid(axis="x", color=FAINT, linewidth=0.7)
        left.tick_params(axis="y", length=0)
        left.set_axisbelow(True)
        figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc="outside lower left")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold")
        if paired:
            _draw_changes(axes[0, 1], told, rows)
        save(figure, path)


def _draw_changes(axes: Any, told: Mapping[str, Any], rows: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Draw the change of each row in points, with its interval; grey where that holds 0."""
    reach = SPAN
    for place, (_, where) in enumerate(rows):
        change, drawn = at(told["change"], where), at(told.get("intervals", {}), where)
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


def _rows(told: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Return what is drawn: its name and where it stands in the figures of both."""
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("accuracy", ("accuracy",)),
        ("balanced accuracy", ("balanced_accuracy",)),
    ]
    labels = [label for label in told["labels"] if told.get("support", {}).get(label) != 0][:SHOWN_CLASSES]
    rows += [(f"recall, {label}", ("classes", label, "recall")) for label in labels]
    figures = [told["figures"][which] for which in ("first", "second")]
    return [row for row in rows if all(isinstance(at(each, row[1]), float | int) for each in figures)]


def _decimals(told: Mapping[str, Any], rows: Sequence[tuple[str, tuple[str, ...]]]) -> int:
    """Return how many decimals percentages need to be told apart."""
    values = [at(told["figures"][which], row[1]) for which in ("first", "second") for row in rows]
    return 1 if max(values) - min(values) < SPAN else 0
