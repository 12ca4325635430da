"""Small real files: dicomsort, what the machine can do, and other sorters."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from comparing import Compared, Setting, compare
from inboxes import VARIED
from measuring import ratios, spread
from peers import installed
from report import Section, Table
from tools import COPY, CP, CP_SYNC, HEADERS, MOVE, RENAME, WALK, Tool, peer

WHOLE, MANY = 2_000, 20_000
COMPARED = ("tool", "", "files/s", "`--move` is … times as fast", "`--copy` is …")
TEXT = """CT and MR of 39 and 10 KB (25 KB on average), 50 of a study, 25 of a series, in nested folders. dicomsort with
default options (and `--settle 0 --quiet`): the pixels of every series are checked, every file is hashed, journalled and
flushed. The other sorters, each in a virtual environment of its own, read headers, and rename or copy; none of them
flushes anything, as tracing shows. Everything runs in turn, warm cache; medians, in brackets the least and the
most. Every ratio is of one repetition. Rename, walk and header loop run in a Python process that had started before.
Varied files are CT, MR and CR of 4 to 117 KB (39 on average), in ten transfer syntaxes, 40 of a study, 20 a series."""


def measure(setting: Setting) -> Section:
    """Rows of whole processes and of steady rates."""
    found = installed(setting.peers)
    tools = [MOVE, COPY, CP, CP_SYNC, RENAME, WALK, HEADERS, *(peer(each) for each in found if each.version)]
    unlike = replace(setting, folder=setting.folder / "varied", shape=VARIED)
    missing = {each.peer.package: each.problem for each in found if not each.version}
    varied = compare(tools, (1, WHOLE), unlike, "varied", watched=WHOLE)
    small = compare(tools, (1, WHOLE, MANY), setting, watched=MANY)
    tables = []
    for compared, many, what in ((varied, WHOLE, "varied files"), (small, MANY, "small files")):
        able, failed = [tool for tool in tools if tool.name not in compared.failed], missing | compared.failed
        tables += [_whole(able, compared, failed, what), _steady(able, compared, failed, many, what)]
    able = [tool for tool in tools if tool.name not in small.failed]
    return Section("a", "Small files", TEXT, tables, {"tools": _data(able, small)})


def _whole(tools: Sequence[Tool], compared: Compared, missing: dict[str, str], what: str) -> Table:
    columns = (*COMPARED, "CPU seconds", "arrived")
    rows = []
    for tool in tools:
        row = [_name(tool), tool.way, spread(compared.rates(tool, WHOLE))]
        row += _faster(tool, {each: compared.rates(each, WHOLE) for each in (MOVE, COPY, tool)})
        rows.append([*row, compared.cpu(tool, WHOLE), compared.arrived(tool, WHOLE)])
    rows += [[name, problem, *[""] * (len(columns) - 2)] for name, problem in missing.items()]
    return Table(columns, rows, 2, f"Whole processes, {WHOLE:,} {what}")


def _steady(tools: Sequence[Tool], compared: Compared, missing: dict[str, str], count: int, what: str) -> Table:
    columns = (*COMPARED, "one file, s", "peak memory, MB", "arrived")
    rows = []
    for tool in tools:
        row = [_name(tool), tool.way, spread(compared.steady(tool, count))]
        row += _faster(tool, {each: compared.steady(each, count) for each in (MOVE, COPY, tool)})
        row += [f"{statistics.median(compared.seconds(tool, 1)):.3f}", _memory(tool, compared, count)]
        rows.append([*row, compared.arrived(tool, count)])
    rows += [[name, problem, *[""] * (len(columns) - 2)] for name, problem in missing.items()]
    title = f"Steady rates, (N - 1) / (time for N - time for one), N = {count:,} {what}; memory of all processes (PSS)"
    return Table(columns, rows, 2, title)


def _name(tool: Tool) -> str:
    return f"**dicomsort {tool.name}**" if tool in {MOVE, COPY} else tool.name


def _faster(tool: Tool, rates: dict[Tool, list[float]]) -> list[str]:
    """How many times as fast ``--move`` and ``--copy`` are."""
    return [spread(ratios(rates[mine], rates[tool]), ".2f") if tool != mine else "1" for mine in (MOVE, COPY)]


def _memory(tool: Tool, compared: Compared, count: int) -> str:
    peak = statistics.median(compared.memory(tool, count))
    return f"{peak:,.0f}" if peak else ""


def _data(tools: Sequence[Tool], compared: Compared) -> list[dict[str, object]]:
    """For the picture: rates of each tool."""
    return [
        {
            "name": f"dicomsort {tool.name}" if tool in {MOVE, COPY} else tool.name,
            "way": tool.way,
            "whole": compared.rates(tool, WHOLE),
            "steady": compared.steady(tool, MANY),
        }
        for tool in tools
    ]
