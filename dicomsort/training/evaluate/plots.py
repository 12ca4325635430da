"""Plots: accuracy and loss an epoch, confusion, reliability, coverage, recall by source, and the sheet of mistakes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dicomsort.errors import counted
from dicomsort.report import visible
from dicomsort.training.evaluate.calibration import BINS, bin_of

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
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
DPI = 144
COLOURS = 256  # of a picture of lines and letters: a third of the bytes of one that has them all
AXES_POINTS, LINE_POINTS = 220, 15  # about the height of a history's axes, and of a line of text in it
ROWS_LABELLED = 30
SHOWN_SOURCES = 40
COLUMNS = 6
NAME = 26
MIN_PATH_PARTS = 2
LOWEST, STEP = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class Mistake:
    """A cell of the sheet: the rendering uint8 (H, W, 3), truth, answer, its confidence, the relative path."""

    image: NDArray[np.uint8]
    truth: str
    answer: str
    confidence: float
    path: str


def _load_matplotlib() -> Any:
    """Import matplotlib without reading a matplotlibrc: it looks in the current folder, then where it is told to."""
    os.environ.update(MPLBACKEND="agg", MATPLOTLIBRC=os.devnull)
    with nullcontext() if "matplotlib" in sys.modules else chdir("/"):
        import matplotlib as mpl
    return mpl


@contextmanager
def new_figure(size: tuple[float, float], path: Path | None = None) -> Iterator[Any]:
    """Yield a figure of ``size`` in inches, in the style of all; write it to ``path`` when the block ends.

    The PNG has a palette, for few colours. No display is needed. A person's settings of matplotlib do not count.
    """
    mpl = _load_matplotlib()
    from matplotlib.figure import Figure

    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}), io.BytesIO() as stream:
        figure = Figure(size, layout="constrained")
        yield figure
        if path is None:
            return
        figure.savefig(stream, dpi=DPI)
        with Image.open(stream) as picture:
            few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        # by this text an earlier picture is recognised (``content.FIGURE``)
        mark = PngInfo()
        mark.add_text("Software", "dicomsort")
        few.save(path, "PNG", optimize=True, pnginfo=mark)


def in_percent(*axes: Any, decimals: int | None = None) -> None:
    """Label these axes, of shares, in percent."""
    from matplotlib.ticker import PercentFormatter

    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def _count(axes: Any, name: str) -> None:
    """Label the x-axis with whole numbers of ``name``."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True, axis="y")


def _ring(axes: Any, x: float, y: float, words: str, **style: Any) -> None:
    """Draw a ring around the point that was chosen, and explain it in the right corner."""
    axes.scatter([x], [y], s=110, facecolors="none", edgecolors=HELD_OUT, linewidths=1.6)
    axes.set_title(f"ring: {words}", loc="right", color=HELD_OUT, fontsize=9, **style)


def plot_history(history: Mapping[str, Sequence[float]], column: str, path: Path, kept: int | None = None) -> None:
    """Draw ``column`` (accuracy or loss) and its ``val_`` twin over the epochs.

    The epoch ``kept``, counted from 1, is marked: the one whose weights the bundle has; without it the best by column.
    """
    write = ("{:.1%}" if column == "accuracy" else "{:.3f}").format
    training, validation = history[column], np.array(history[f"val_{column}"])
    epochs = np.arange(1, len(training) + 1)
    best = kept - 1 if kept else int(validation.argmax() if column == "accuracy" else validation.argmin())
    with new_figure((6.4, 4.0), path) as figure:
        axes = figure.subplots()
        axes.plot(epochs, training, color=TRAINING, linewidth=2, marker="o", markersize=4)
        axes.plot(epochs, validation, color=HELD_OUT, linewidth=2, marker="o", markersize=4)
        chosen = f"epoch {epochs[best]}, {'kept' if kept else 'the best'}, {write(validation[best])} in validation"
        _ring(axes, epochs[best], validation[best], chosen, fontweight="normal")
        axes.axvline(epochs[best], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        ends = (("training", training[-1], TRAINING), ("validation", float(validation[-1]), HELD_OUT))
        for (name, value, colour), shift in zip(ends, _apart(ends[0][1], ends[1][1], axes.get_ylim()), strict=True):
            axes.annotate(
                f"{name} {write(value)}",
                (epochs[-1], value),
                xytext=(10, shift),
                textcoords="offset points",
                color=colour,
                va="center",
                annotation_clip=False,
            )
        axes.set_title(column.capitalize())
        _count(axes, "epoch")
        axes.set_xlim(epochs[0] - 0.3, epochs[-1] + 0.3)
        if column == "accuracy":
            in_percent(axes.yaxis)


def plot_trials(trials: Sequence[tuple[int, float, bool]], path: Path) -> None:
    """Draw a search: (number, balanced accuracy, whether it was trained to its end) of each trial."""
    numbers, scores, complete = (np.array(column) for column in zip(*trials, strict=True))
    of_complete = np.where(complete, scores, -np.inf)
    best = int(of_complete.argmax())
    with new_figure((6.4, 4.0), path) as figure:
        axes = figure.subplots()
        axes.step(numbers, np.maximum.accumulate(of_complete), color=FAINT, where="post", zorder=0)
        for chosen, colour, name in ((complete, TRAINING, "trained to the end"), (~complete, MUTED, "ended early")):
            axes.scatter(numbers[chosen], scores[chosen], color=colour, s=30, label=name)
        _ring(axes, numbers[best], scores[best], f"trial {numbers[best]}, {scores[best]:.1%}")
        axes.set_title("Balanced accuracy, held out")
        _count(axes, "trial")
        in_percent(axes.yaxis)
        axes.legend()


def plot_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix: rows are the truth, colour is the share of the row, cells give share and count."""
    counts = np.array(matrix, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.85 * min(len(labels), ROWS_LABELLED)
    with new_figure((side + 0.4, side), path) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(labels) <= ROWS_LABELLED:
            for (row, column), share in np.ndenumerate(shares):
                text = f"{share:.1%}\n{int(counts[row, column]):,}" if share else "0"
                colour = "white" if share > 0.55 else INK if share else MUTED  # noqa: PLR2004 - where Blues turns dark
                axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="judged as", ylabel="truth", title=title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def plot_reliability(right: NDArray[np.bool_], confidence: NDArray[np.float32], ece: float, path: Path) -> None:
    """Draw the accuracy in each bin of confidence against the confidence; a dot's area is its share of the images."""
    place = bin_of(confidence)
    bins = np.unique(place)
    share = np.bincount(place, minlength=BINS)[bins] / len(place)
    mean, accuracy = (np.array([float(values[place == b].mean()) for b in bins]) for values in (confidence, right))
    with new_figure((5.2, 5.2), path) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0.1, 0.12, "confidence = accuracy", color=MUTED, rotation=45, rotation_mode="anchor", fontsize=9)
        axes.vlines(mean, mean, accuracy, color=HELD_OUT, linewidth=1.2, alpha=0.6)
        axes.scatter(mean, accuracy, s=18 + 900 * share, color=TRAINING, edgecolors="white", linewidths=0.8, zorder=3)
        biggest = int(share.argmax())
        axes.annotate(
            f"{share[biggest]:.0%} of the images",
            (mean[biggest], accuracy[biggest]),
            xytext=(-22, -4),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
        )
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="right among them", aspect="equal")
        axes.set_title(f"Reliability: expected calibration error {ece:.3f}")
        in_percent(axes.xaxis, axes.yaxis)
        axes.grid(visible=True)
        axes.set_axisbelow(True)


def plot_coverage(
    right: NDArray[np.bool_], confidence: NDArray[np.float32], thresholds: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Draw the accuracy among the most confident images against their share; the thresholds are marked."""
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(right) + 1)
    accuracy, share = np.cumsum(right[order]) / count, count / len(right)
    first = max(0, min(len(right) - 1, len(right) // 50))  # the first images' accuracy is noise
    marks = [
        (name, float(row["coverage"] or 0), row["accuracy"])
        for name, row in thresholds.items()
        if row["accuracy"] is not None
    ]
    marks.append(("all images", 1.0, float(accuracy[-1])))
    with new_figure((6.4, 4.2), path) as figure:
        axes = figure.subplots()
        axes.plot(share[first:], accuracy[first:], color=TRAINING, linewidth=2)
        lowest = min(float(accuracy[first:].min()), *(y for _, _, y in marks))
        low = min(lowest - (1 - lowest) * 0.15, 1 - STEP)
        axes.set(xlim=(0, 1.02), ylim=(low, 1 + (1 - low) * 0.08), ylabel="right among them")
        axes.scatter([x for _, x, _ in marks], [y for _, _, y in marks], s=44, color=HELD_OUT, zorder=3)
        _label_marks(axes, marks)
        axes.set(xlabel="share of the images, the most confident first", title="Accuracy against coverage")
        in_percent(axes.xaxis, axes.yaxis)
        axes.grid(visible=True, axis="y")


def plot_sources(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the recall of each class and source with a mistake, the worst first, at most 40."""
    worst = [row for row in rows if row["recall"] < 1]
    shown = worst[:SHOWN_SOURCES] or rows[:1]
    places, recalls = np.arange(len(shown)), np.array([row["recall"] for row in shown])
    with new_figure((7.2, 1.5 + 0.23 * len(shown)), path) as figure:
        axes = figure.subplots()
        axes.hlines(places, recalls, 1, color=FAINT, linewidth=3)
        colours = np.where(recalls < LOWEST, HELD_OUT, TRAINING)
        axes.scatter(recalls, places, s=34, color=colours, zorder=3, clip_on=False)
        for y, row in enumerate(shown):
            wrong, mostly = round(row["images"] * (1 - row["recall"])), row.get("mistaken_for")
            words = f"{wrong:,} of {row['images']:,} wrong" + (f", mostly as {mostly}" if mostly else "")
            axes.text(1.02, y, words, va="center", fontsize=8)
        axes.set_yticks(places, [_short(f"{row['label']}  {row['source']}".strip(), 2 * NAME) for row in shown])
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.set(xlim=(-0.02, 1.01), ylim=(len(shown) - 0.4, -0.6))
        in_percent(axes.xaxis)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=True, axis="x")
        axes.set_axisbelow(True)
        left = f", the {len(shown)} worst of {len(worst)}" if len(worst) > len(shown) else ""
        unit = "source" if any(row["source"] for row in rows) else "class"
        perfect = len(rows) - len(worst)
        axes.set_title(f"Recall by {unit}{left}; all images right in {perfect} of {len(rows)}", x=-0.3)


def plot_mistakes(cells: Sequence[Mistake], total: int, images: int) -> bytes:
    """Return a PNG of the most confident of ``total`` mistakes among ``images``.

    It shows truth, answer, confidence, source and file of each.
    """
    lines = max(1, -(-len(cells) // COLUMNS))
    with new_figure((2.0 * COLUMNS, 0.7 + 2.55 * lines)) as figure, io.BytesIO() as stream:
        title = f"The {len(cells)} most confident of {total:,} mistakes" if cells else "No mistakes"
        figure.suptitle(
            f"{title} among {counted(images, 'image')}", x=0.01, ha="left", weight="bold", fontsize=13, color=INK
        )
        grid = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
        for axes in grid:
            axes.axis("off")
        for axes, cell in zip(grid, cells, strict=False):
            axes.imshow(cell.image)
            axes.set_title(f"{cell.truth} → {cell.answer} {cell.confidence:.1%}", fontsize=9, pad=4, color=INK)
            parts = cell.path.split("/")
            source = _short(parts[1] if len(parts) > MIN_PATH_PARTS else "", NAME)
            words = f"{source}\n{_short(parts[-1], NAME)}".strip()
            axes.text(0.5, -0.02, words, transform=axes.transAxes, ha="center", va="top", fontsize=7, color=INK)
        figure.savefig(stream, format="png", dpi=DPI * 0.75, metadata={"Software": "dicomsort"})
        return stream.getvalue()


def _apart(first: float, second: float, limits: tuple[float, float]) -> tuple[float, float]:
    """Return by how many points two labels at these heights must be moved so that neither covers the other."""
    gap = abs(first - second) / (limits[1] - limits[0]) * AXES_POINTS
    shift = max(0.0, (LINE_POINTS - gap) / 2)
    return (shift, -shift) if first > second else (-shift, shift)


def _label_marks(axes: Any, marks: Sequence[tuple[str, float, float]]) -> None:
    """Write names and figures left of and below the marks, none on another: the curve falls, so there is room."""
    low, high = axes.get_ylim()
    last = float("inf")
    for name, x, y in sorted(marks, key=lambda mark: mark[1]):
        words = f"{name.replace('_', ' ')}: {y:.1%} of {x:.0%}" if name != "all images" else f"all: {y:.1%}"
        height = (y - low) / (high - low) * AXES_POINTS
        last = min(height - 14, last - LINE_POINTS)
        axes.annotate(
            words, (x, y), xytext=(-6, last - height), textcoords="offset points", ha="right", va="center", fontsize=9
        )


def _short(text: str, limit: int) -> str:
    """Return the printable text, its middle cut out where it is longer than ``limit``."""
    text = visible(text)
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
