"""The picture of a run: files a second by tool, and files a second and memory over the number of files."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import Section

OURS, PEER, YARDSTICK = "#c8471e", "#2f6f9f", "#9aa3ab"
YARDSTICKS = ("cp", "os.rename", "walk", "pydicom,")
INK, FAINT = "#22282d", "#d9dde0"


def draw(path: Path, sections: dict[str, Section]) -> bool:
    """Write the PNG from what sections there are; False where none has anything to show."""
    tools = sections["a"].data["tools"] if "a" in sections else []
    sizes = sections["c"].data["sizes"] if "c" in sections else {}
    if not (tools or sizes):
        return False
    style: Any = {
        "font.size": 9,
        "axes.edgecolor": FAINT,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(12, 5.6), dpi=110, layout="constrained")
        grid = figure.add_gridspec(2, 2 if tools and sizes else 1, width_ratios=[1.7, 1] if tools and sizes else [1])
        if tools:
            _bars(figure.add_subplot(grid[:, 0]), tools)
        if sizes:
            rates = figure.add_subplot(grid[0, -1])
            _line(rates, sizes, "rate", "files/s", "dicomsort sort --move: files/s over the number of files")
            _line(figure.add_subplot(grid[1, -1], sharex=rates), sizes, "memory", "MB", "peak memory of all processes")
        figure.savefig(path)
    return True


def _bars(axes: Axes, tools: list[dict[str, Any]]) -> None:
    tools = sorted(tools, key=lambda tool: statistics.median(tool["steady"]))
    for place, tool in enumerate(tools):
        steady, whole = statistics.median(tool["steady"]), statistics.median(tool["whole"])
        spread = [[steady - min(tool["steady"])], [max(tool["steady"]) - steady]]
        axes.barh(place, steady, 0.62, color=_colour(tool["name"]), xerr=spread, error_kw={"ecolor": INK, "lw": 0.8})
        axes.plot(whole, place, "|", color="white", markersize=13, markeredgewidth=2)
        axes.plot(whole, place, "|", color=INK, markersize=11, markeredgewidth=1)
        axes.annotate(
            f"{steady:,.0f}", (max(tool["steady"]), place), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    axes.set_yticks(range(len(tools)), [f"{tool['name']} ({tool['way']})" for tool in tools])
    for label, tool in zip(axes.get_yticklabels(), tools, strict=True):
        label.set_fontweight("bold" if _colour(tool["name"]) == OURS else "normal")
    axes.margins(x=0.15)
    axes.set_title("files/s, steady over 20,000 files; | whole process, 2,000 files", loc="left", fontsize=10)
    _plain(axes, "x")


def _line(axes: Axes, sizes: dict[str, Any], key: str, unit: str, title: str) -> None:
    counts = [int(size) for size in sizes]
    values = [size[key] for size in sizes.values()]
    axes.plot(counts, values, "o-", color=OURS, lw=1.6, markersize=5)
    for count, value in zip(counts, values, strict=True):
        axes.annotate(f"{value:,.0f}", (count, value), xytext=(0, 7), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.set_xlim(min(counts) / 1.8, max(counts) * 1.8)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(0, max(values) * 1.25)
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left", fontsize=10)
    _plain(axes, "y")


def _plain(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, which="both")
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", color=FAINT, lw=0.7)


def _colour(name: str) -> str:
    if name.startswith("dicomsort "):
        return OURS
    return YARDSTICK if name.startswith(YARDSTICKS) else PEER
