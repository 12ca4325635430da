"""Plots: accuracy and loss an epoch, confusion, reliability, coverage, recall by source, and the sheet of mistakes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dicomsort.report import visible
from dicomsort.training.evaluate.calibration import BINS, bin_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

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


SHOWN_SOURCES = 40
COLUMNS = 6
NAME = 26
MIN_PATH_PARTS = 2
LOWEST, STEP = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class Mistake:
    """A cell of the sheet: the rendering uint8 (H, W, 3) or None, truth, answer, its confidence, the relative path."""

    image: NDArray[np.uint8] | None
    truth: str
    answer: str
    confidence: float
    path: str


def plot_reliability(right: NDArray[np.bool_], confidence: NDArray[np.float32], ece: float, path: Path) -> None:
    """Draw the accuracy in each bin of confidence against the confidence; a dot's area is its share of the images."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    place = bin_of(confidence)
    bins = np.unique(place)
    share = np.bincount(place, minlength=BINS)[bins] / len(place)
    mean, accuracy = (np.array([float(values[place == b].mean()) for b in bins]) for values in (confidence, right))
    with styled():
        figure = Figure((5.2, 5.2), layout="constrained")
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
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        save(figure, path)


def plot_coverage(
    right: NDArray[np.bool_],
    confidence: NDArray[np.float32],
    thresholds: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> None:
    """Draw the accuracy among the most confident images against their share; the thresholds are marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(right) + 1)
    accuracy, share = np.cumsum(right[order]) / count, count / len(right)
    drawn = max(0, min(len(right) - 1, len(right) // 50))  # the first images' accuracy is noise
    marked = [
        (name, float(row["coverage"] or 0), row["accuracy"])
        for name, row in thresholds.items()
        if row["accuracy"] is not None
    ]
    marked.append(("all images", 1.0, float(accuracy[-1])))
    with styled():
        figure = Figure((6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(share[drawn:], accuracy[drawn:], color=TRAINING, linewidth=2)
        lowest = min(float(accuracy[drawn:].min()), *(y for _, _, y in marked))
        low = min(lowest - (1 - lowest) * 0.15, 1 - STEP)
        axes.set(
            xlim=(0, 1.02), ylim=(low, 1 + (1 - low) * 0.08), xlabel="share of the images, the most confident first"
        )
        axes.scatter([x for _, x, _ in marked], [y for _, _, y in marked], s=44, color=HELD_OUT, zorder=3)
        _label_marks(axes, marked)
        axes.set_ylabel("right among them")
        axes.set_title("Accuracy against coverage")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        save(figure, path)


def plot_sources(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the recall of each class and source with a mistake, the worst first, at most 40."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    worst = [row for row in rows if row["recall"] < 1]
    shown = worst[:SHOWN_SOURCES] or rows[:1]
    with styled():
        figure = Figure((7.2, 1.5 + 0.23 * len(shown)), layout="constrained")
        axes = figure.subplots()
        places, recalls = np.arange(len(shown)), np.array([row["recall"] for row in shown])
        axes.hlines(places, recalls, 1, color=FAINT, linewidth=3)
        axes.scatter(
            recalls, places, s=34, color=np.where(recalls < LOWEST, HELD_OUT, TRAINING), zorder=3, clip_on=False
        )
        for y, row in enumerate(shown):
            wrong, mostly = round(row["images"] * (1 - row["recall"])), row.get("mistaken_for")
            words = f"{wrong:,} of {row['images']:,} wrong" + (f", mostly as {mostly}" if mostly else "")
            axes.text(1.02, y, words, va="center", fontsize=8)
        axes.set_yticks(places, [_short(f"{row['label']}  {row['source']}".strip(), 2 * NAME) for row in shown])
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.set(xlim=(-0.02, 1.01), ylim=(len(shown) - 0.4, -0.6))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        perfect = len(rows) - len(worst)
        left = f", the {len(shown)} worst of {len(worst)}" if len(worst) > len(shown) else ""
        unit = "source" if any(row["source"] for row in rows) else "class"
        axes.set_title(f"Recall by {unit}{left}; all images right in {perfect} of {len(rows)}", x=-0.3)
        save(figure, path)


def plot_mistakes(cells: Sequence[Mistake], total: int, images: int) -> bytes:
    """Draw the most confident of ``total`` mistakes among ``images``: truth, answer, confidence, source, file.

    Return the picture as PNG.
    """
    from matplotlib.figure import Figure

    lines = max(1, -(-len(cells) // COLUMNS))
    with styled():
        figure = Figure((2.0 * COLUMNS, 0.7 + 2.55 * lines), layout="constrained")
        title = f"The {len(cells)} most confident of {total:,} mistakes" if cells else "No mistakes"
        figure.suptitle(f"{title} among {images:,} images", x=0.01, ha="left", weight="bold", fontsize=13, color=INK)
        grid = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
        for axes in grid:
            axes.axis("off")
        for axes, cell in zip(grid, cells, strict=False):
            if cell.image is not None:
                axes.imshow(cell.image)
            axes.set_title(f"{cell.truth} → {cell.answer} {cell.confidence:.1%}", fontsize=9, pad=4, color=INK)
            parts = cell.path.split("/")
            source = _short(parts[1] if len(parts) > MIN_PATH_PARTS else "", NAME)
            words = f"{source}\n{_short(parts[-1], NAME)}".strip()
            axes.text(0.5, -0.02, words, transform=axes.transAxes, ha="center", va="top", fontsize=7, color=INK)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=DPI * 0.75, metadata={"Software": "dicomsort"})
        return stream.getvalue()


def _label_marks(axes: Any, marks: Sequence[tuple[str, float, float]]) -> None:
    """Write names and figures left of and below the marks, none on another: the curve falls, so there is room."""
    low, high = axes.get_ylim()
    last = float("inf")
    for name, x, y in sorted(marks, key=lambda mark: mark[1]):
        words = f"{name.replace('_', ' ')}: {y:.1%} of {x:.0%}" if name != "all images" else f"all: {y:.1%}"
        height = (y - low) / (high - low) * 220
        target = min(height - 14, last - LINE_POINTS)
        last = target
        axes.annotate(
            words, (x, y), xytext=(-6, target - height), textcoords="offset points", ha="right", va="center", fontsize=9
        )


def _short(text: str, limit: int) -> str:
    """Return the printable text, its middle cut out where it is longer than ``limit``."""
    text = visible(text)
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
