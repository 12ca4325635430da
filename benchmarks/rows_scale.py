"""From ten thousand files to a million: rates, memory, and whether time grows with the number of files alone."""

from __future__ import annotations

import statistics

from comparing import Compared, Setting, compare
from measuring import ratios, spread
from report import Section, Table
from tools import MOVE

TEXT = """`sort --move` of MR of 3.7 KB (the pixels thinned out), 50 of a study, 25 of a series, with default options.
Memory is the peak of all processes together (PSS, looked at five times a second). Slope: the time by ten times that of
a tenth of the files, 1 where time grows with the number of files alone."""


def measure(setting: Setting) -> Section:
    """A row a size."""
    compared = compare((MOVE,), setting.sizes, setting, "tiny", watched=1)
    rows = []
    for size in setting.sizes:
        row = [f"{size:,}", spread(compared.rates(MOVE, size)), spread(compared.seconds(MOVE, size), ".1f")]
        rows.append([*row, spread(compared.memory(MOVE, size)), _slope(compared, size), compared.arrived(MOVE, size)])
    columns = ("files", "files/s", "seconds", "peak memory, MB", "slope", "arrived")
    data = {
        str(size): {
            "rate": statistics.median(compared.rates(MOVE, size)),
            "memory": statistics.median(compared.memory(MOVE, size)),
        }
        for size in setting.sizes
    }
    return Section("c", "Scale", TEXT, [Table(columns, rows, 0)], {"sizes": data})


def _slope(compared: Compared, size: int) -> str:
    tenth = size // 10
    if (MOVE.name, tenth) not in compared.taken:
        return ""
    return spread([each / 10 for each in ratios(compared.seconds(MOVE, size), compared.seconds(MOVE, tenth))], ".2f")
