"""The pictures of an evaluation: reliability, accuracy against coverage, recall by source, the sheet of mistakes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomsort.report import visible
from dicomsort.training.calibration import BINS, bin_of
from dicomsort.training.plots import DPI, FAINT, HELD_OUT, INK, LINE_POINTS, MUTED, TRAINING, save, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

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
