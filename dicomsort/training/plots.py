"""The pictures in a bundle: accuracy and loss an epoch, and the confusion matrix."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TRAINING, HELD_OUT, INK, MUTED, FAINT = "#5b7fa6", "#c2410c", "#1f2933", "#9aa5b1", "#d9dee4"
STYLE: dict[Any, Any] = {
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
COLOURS = 256  # of a picture of lines and letters: a third of the bytes of one that has them all
AXES_POINTS, LINE_POINTS = 220, 15  # about the height of a history's axes, and of a line of text in it
ROWS_LABELLED = 30


def plot_history(history: Mapping[str, Sequence[float]], column: str, path: Path, kept: int | None = None) -> None:
    """Draw ``column`` (accuracy or loss) and its ``val_`` twin over the epochs.

    The epoch ``kept``, counted from 1, is marked: the one whose weights the bundle has; without it the best by column.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with styled():
        figure = Figure((6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        epochs = np.arange(1, len(history[column]) + 1)
        axes.plot(epochs, history[column], color=TRAINING, linewidth=2, marker="o", markersize=4)
        axes.plot(epochs, history[f"val_{column}"], color=HELD_OUT, linewidth=2, marker="o", markersize=4)
        held = np.array(history[f"val_{column}"])
        best = kept - 1 if kept else int(held.argmax() if column == "accuracy" else held.argmin())
        axes.scatter([epochs[best]], [held[best]], s=110, facecolors="none", edgecolors=HELD_OUT, linewidths=1.6)
        axes.axvline(epochs[best], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        shown = f"{held[best]:.1%}" if column == "accuracy" else f"{held[best]:.3f}"
        ring = f"ring: epoch {epochs[best]}, {'kept' if kept else 'the best'}, {shown} in validation"
        axes.set_title(ring, loc="right", color=HELD_OUT, fontsize=9, fontweight="normal")
        ends = (("training", history[column][-1], TRAINING), ("validation", float(held[-1]), HELD_OUT))
        for (name, value, colour), shift in zip(ends, _apart(ends[0][1], ends[1][1], axes.get_ylim()), strict=True):
            axes.annotate(
                f"{name} {value:.1%}" if column == "accuracy" else f"{name} {value:.3f}",
                (epochs[-1], value),
                xytext=(10, shift),
                textcoords="offset points",
                color=colour,
                va="center",
                annotation_clip=False,
            )
        axes.set_title(column.capitalize())
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(epochs[0] - 0.3, epochs[-1] + 0.3)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        if column == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        save(figure, path)


def plot_trials(trials: Sequence[tuple[int, float, bool]], path: Path) -> None:
    """Draw a search: (number, balanced accuracy, whether it was trained to its end) of each trial."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    numbers, scores, whole = (np.array(column) for column in zip(*trials, strict=True))
    with styled():
        figure = Figure((6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.step(numbers, np.maximum.accumulate(np.where(whole, scores, -np.inf)), color=FAINT, where="post", zorder=0)
        for chosen, colour, name in ((whole, TRAINING, "trained to the end"), (~whole, MUTED, "ended early")):
            axes.scatter(numbers[chosen], scores[chosen], color=colour, s=30, label=name)
        best = int(np.where(whole, scores, -np.inf).argmax())
        axes.scatter([numbers[best]], [scores[best]], s=110, facecolors="none", edgecolors=HELD_OUT, linewidths=1.6)
        axes.set_title(f"ring: trial {numbers[best]}, {scores[best]:.1%}", loc="right", color=HELD_OUT, fontsize=9)
        axes.set_title("Balanced accuracy, held out")
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.legend(frameon=False, fontsize=9)
        save(figure, path)


def plot_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix: rows are the truth, colour is the share of the row, cells give share and count."""
    from matplotlib.figure import Figure

    counts = np.array(matrix, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with styled():
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
                    f"{share:.1%}\n{int(counts[row, column]):,}" if share else "0",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if share > 0.55 else INK if share else MUTED,  # noqa: PLR2004 - where Blues turns dark
                )
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("judged as")
        axes.set_ylabel("truth")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title)
        save(figure, path)


def _apart(first: float, second: float, limits: tuple[float, float]) -> tuple[float, float]:
    """Return by how many points two labels at these heights must be moved so that neither covers the other."""
    gap = abs(first - second) / (limits[1] - limits[0]) * AXES_POINTS
    shift = max(0.0, (LINE_POINTS - gap) / 2)
    return (shift, -shift) if first > second else (-shift, shift)


def save(figure: Any, path: Path) -> None:
    """Write a figure without photographs as PNG, its few colours in a palette."""
    with io.BytesIO() as stream:
        figure.savefig(stream, dpi=DPI)
        with Image.open(stream) as picture:
            picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
                path, "PNG", optimize=True, pnginfo=mark()
            )


def mark() -> PngInfo:
    """What tells a picture of ours from others (``content.FIGURE``): the PNG's text ``Software``."""
    info = PngInfo()
    info.add_text("Software", "dicomsort")
    return info


def styled() -> Any:
    """Return the context in which all pictures look alike; no display is needed."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)
