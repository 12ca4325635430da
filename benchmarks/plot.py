"""The picture of a run: files a second by tool, and files a second and memory over the number of files."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from report import Section

OURS, PEER, YARDSTICK = "#c8471e", "#2f6f9f", "#8d979f"
KINDS = {OURS: "dicomsort", PEER: "other sorters", YARDSTICK: "yardsticks of the machine"}
YARDSTICKS = ("cp", "os.rename", "walk", "pydicom,")
INK, FAINT = "#22282d", "#d9dde0"
STYLE: Any = {
    "font.size": 9, "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
}  # fmt: skip


def draw(path: Path, sections: dict[str, Section]) -> bool:
    """Write the PNG from what sections there are; False where none has anything to show."""
    tools = sections["a"].data["tools"] if "a" in sections else []
    sizes = sections["c"].data["sizes"] if "c" in sections else {}
    if not (tools or sizes):
        return False
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 6.2), dpi=110, layout="constrained")
        columns = figure.add_gridspec(2, 2, width_ratios=[1.6, 1]) if tools and sizes else figure.add_gridspec(2, 1)
        if tools:
            _bars(figure.add_subplot(columns[:, 0]), tools)
        if sizes:
            rates, memory = figure.add_subplot(columns[0, -1]), figure.add_subplot(columns[1, -1])
            _line(rates, sizes, "rate", "files/s of sort --move")
            _line(memory, sizes, "memory", "peak memory of all its processes, MB")
            memory.set_xlabel("files sorted")
        figure.savefig(path)
    return True


def _bars(axes: Axes, tools: list[dict[str, Any]]) -> None:
    """Two bars a tool: steady with its spread, and below it, thin, the whole process."""
    tools = sorted(tools, key=lambda tool: statistics.median(tool["steady"]))
    for place, tool in enumerate(tools):
        colour = _colour(tool["name"])
        for key, above, height, alpha in (("steady", 0.14, 0.44, 1.0), ("whole", -0.26, 0.22, 0.5)):
            middle, least, most = statistics.median(tool[key]), min(tool[key]), max(tool[key])
            error = [[middle - least], [most - middle]]
            ends = {"ecolor": INK, "lw": 0.8}
            axes.barh(place + above, middle, height, color=colour, alpha=alpha, xerr=error, error_kw=ends)
            size = 9 if key == "steady" else 7
            point, beside = (most, place + above), (5, -0.5)
            axes.annotate(f"{middle:,.0f}", point, beside, textcoords="offset points", va="center", fontsize=size)
    axes.set_xscale("log")
    rates = [rate for tool in tools for rate in (*tool["steady"], *tool["whole"])]
    axes.set_xlim(10 ** math.floor(math.log10(min(rates))) / 2, max(rates) * 2.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_yticks(range(len(tools)), [f"{tool['name']}  ({tool['way']})" for tool in tools])
    for label, tool in zip(axes.get_yticklabels(), tools, strict=True):
        label.set_fontweight("bold" if _colour(tool["name"]) == OURS else "normal")
    axes.set_title("files/s: steady over 20,000 files (thick), whole process of 2,000 (thin)")
    axes.legend(handles=[Patch(color=colour, label=name) for colour, name in KINDS.items()], loc="lower right")
    _plain(axes)
    axes.grid(axis="x", color=FAINT, lw=0.7)


def _line(axes: Axes, sizes: dict[str, Any], key: str, title: str) -> None:
    counts = [int(size) for size in sizes]
    values = [size[key] for size in sizes.values()]
    axes.plot(counts, values, "o-", color=OURS, lw=1.8, markersize=5)
    for count, value in zip(counts, values, strict=True):
        axes.annotate(f"{value:,.0f}", (count, value), xytext=(0, 7), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.set_xlim(min(counts) / 1.8, max(counts) * 1.8)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(0, max(values) * 1.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title(title)
    _plain(axes)
    axes.grid(axis="y", color=FAINT, lw=0.7)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, which="both")
    axes.set_axisbelow(True)


def _colour(name: str) -> str:
    if name.startswith("dicomsort "):
        return OURS
    return YARDSTICK if name.startswith(YARDSTICKS) else PEER
