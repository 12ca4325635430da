"""What safety costs: the same files by headers alone, beside copying, and beside moving without a flush."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from comparing import Compared, Setting, compare
from measuring import OURS, ratios, run, spread
from report import Section, Table
from tools import CP_SYNC, Tool, ours

COUNT = 10_000
UNFLUSHED = """
import sys
from dicomsort.files import Files
assert callable(Files.flush) and callable(Files.flush_system)
Files.flush = lambda self, descriptor: None
Files.flush_system = lambda self, path: True
from dicomsort.cli import main
main()
"""
TEXT = f"""{COUNT:,} small files as above, sorted by their headers alone; the time for one file is taken off."""


def measure(setting: Setting) -> Section:
    """Rates, and the two ratios that matter."""
    by_header = ("--evidence", "header")
    copying, moving = ours("copy", *by_header), ours("move", *by_header)
    unflushed = Tool(f"{moving.name}, no flush", "moves", partial(_unflushed, by_header))
    tools = (CP_SYNC, copying, moving, unflushed)
    compared = compare(tools, (1, COUNT), setting)
    rows = [[tool.name, spread(compared.steady(tool, COUNT)), compared.cpu(tool, COUNT)] for tool in tools]
    times = [
        ["`--copy` by `cp -r; sync -f`", _times(compared, copying, CP_SYNC), "1.3"],
        ["`--move` by `--move` without flushing", _times(compared, moving, unflushed), "1.18 (15 % of its speed)"],
    ]
    tables = [
        Table(("what", "files/s", "CPU seconds, whole process"), rows),
        Table(("time of … by time of …", "measured", "at most wanted"), times),
    ]
    return Section("f", "What safety costs", TEXT, tables)


def _times(compared: Compared, one: Tool, other: Tool) -> str:
    return spread(ratios(compared.steady(other, COUNT), compared.steady(one, COUNT)), ".2f")


def _unflushed(options: tuple[str, ...], source: Path, target: Path) -> None:
    settle = ("--settle", "0", "--quiet")
    run([sys.executable, "-c", UNFLUSHED, "sort", source, target, "--move", *settle, *options], OURS, (0, 3))
