"""Slices of the size that scanners make: copying them, moving them."""

from __future__ import annotations

from comparing import Setting, compare
from inboxes import templates
from measuring import ratios, spread
from report import Section, Table
from tools import COPY, CP_SYNC, MOVE, RENAME

COUNT = 500
TEXT = """Uncompressed CT and MR of real pixels, 512 KB each; the rest as above. Steady: (N - 1) / (time for N - time
for one)."""


def measure(setting: Setting) -> Section:
    """Each mode beside what it is to be compared with."""
    tools = (COPY, CP_SYNC, MOVE, RENAME)
    compared = compare(tools, (1, COUNT), setting, "slices")
    made = templates("slices")
    megabytes = sum(each.size for each in made) / len(made) / 1e6
    rows = []
    for tool in tools:
        steady = [rate * megabytes for rate in compared.steady(tool, COUNT)]
        rates = spread(compared.rates(tool, COUNT)), spread(compared.steady(tool, COUNT)), spread(steady)
        rows.append([tool.name, *rates, compared.cpu(tool, COUNT), compared.arrived(tool, COUNT)])
    pairs = ((COPY, CP_SYNC), (MOVE, RENAME))
    times = [
        [
            f"`{mine.name}` by `{other.name}`",
            spread(ratios(compared.seconds(mine, COUNT), compared.seconds(other, COUNT)), ".2f"),
            spread(ratios(compared.steady(other, COUNT), compared.steady(mine, COUNT)), ".2f"),
        ]
        for mine, other in pairs
    ]
    tables = [
        Table(("what", "files/s, whole process", "files/s, steady", "MB/s, steady", "CPU seconds", "arrived"), rows),
        Table(("time of … by time of …", "whole process", "steady"), times),
    ]
    return Section("b", f"{COUNT} slices of 512 KB", TEXT, tables)
