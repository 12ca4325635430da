"""The pictures in a bundle: accuracy and loss an epoch, and the confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TRAINING, HELD_OUT, INK, FAINT = "#8aa4bf", "#c2410c", "#1f2933", "#d9dee4"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
}
DPI = 144
ROWS_LABELLED = 30


def plot_history(history: Mapping[str, Sequence[float]], column: str, path: Path) -> None:
    """Draw ``column`` (accuracy or loss) and its ``val_`` twin over the epochs, the best held-out epoch marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with _style():
        figure = Figure((6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        epochs = np.arange(1, len(history[column]) + 1)
        axes.plot(epochs, history[column], color=TRAINING, linewidth=2, marker="o", markersize=4)
        axes.plot(epochs, history[f"val_{column}"], color=HELD_OUT, linewidth=2, marker="o", markersize=4)
        held = np.array(history[f"val_{column}"])
        best = int(held.argmax() if column == "accuracy" else held.argmin())
        axes.scatter([epochs[best]], [held[best]], s=110, facecolors="none", edgecolors=HELD_OUT, linewidths=1.6)
        for name, values, colour in (("training", history[column], TRAINING), ("validation", held, HELD_OUT)):
            text = f"{values[-1]:.1%}" if column == "accuracy" else f"{values[-1]:.3f}"
            axes.annotate(
                f"{name} {text}",
                (epochs[-1], values[-1]),
                xytext=(8, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                annotation_clip=False,
            )
        axes.set_title(column.capitalize())
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        if column == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.savefig(path, dpi=DPI)


def plot_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix: rows are the truth, colour is the share of the row, cells give share and count."""
    from matplotlib.figure import Figure

    counts = np.array(matrix, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with _style():
        side = 2.4 + 0.85 * min(len(labels), ROWS_LABELLED)
        figure = Figure((side + 0.4, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(labels) <= ROWS_LABELLED:
            for row, column in np.ndindex(shares.shape):
                share = shares[row, column]
                axes.text(
                    column,
                    row,
                    f"{share:.1%}\n{int(counts[row, column])}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if share > 0.55 else INK,  # noqa: PLR2004 - where Blues turns dark
                )
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("judged as")
        axes.set_ylabel("truth")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title)
        figure.savefig(path, dpi=DPI)


def _style() -> Any:
    """Return the context in which all pictures look alike; no display is needed."""
    import matplotlib as mpl

    return mpl.rc_context(dict(STYLE))
