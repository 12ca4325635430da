"""Runs tools in turn, again and again, on fresh inboxes, and checks that every file arrived."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from inboxes import SHAPE, Shape, arrived, files_below, fill, roll_back
from measuring import Taken, ToolFailed, timed
from tools import Tool

ONES = 3  # the time for one file is taken off that for many, which may not be much longer


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how to measure: a folder to work in, repetitions, venvs of peers, sizes of the rows of scale."""

    folder: Path
    repeat: int
    peers: Path
    sizes: tuple[int, ...]
    shape: Shape = SHAPE


@dataclass
class Compared:
    """What each tool took for each number of files, a value a repetition; and why a tool has none."""

    taken: dict[tuple[str, int], list[Taken]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def seconds(self, tool: Tool, count: int) -> list[float]:
        """Wall times."""
        return [taken.seconds for taken in self.taken[tool.name, count]]

    def rates(self, tool: Tool, count: int) -> list[float]:
        """Files a second of the whole process."""
        return [count / seconds for seconds in self.seconds(tool, count)]

    def steady(self, tool: Tool, count: int) -> list[float]:
        """Files a second without the start: (N - 1) / (time for N - time for one)."""
        pairs = zip(self.seconds(tool, count), self.seconds(tool, 1), strict=True)
        return [(count - 1) / (many - one) for many, one in pairs]

    def arrived(self, tool: Tool, count: int) -> str:
        """How many files arrived, in the worst repetition; nothing for a tool that only reads."""
        found = [taken.arrived for taken in self.taken[tool.name, count] if taken.arrived is not None]
        return f"{min(found):,} of {count:,}" if found else ""

    def cpu(self, tool: Tool, count: int) -> str:
        """CPU seconds of the whole process and those that it started."""
        return f"{statistics.median(taken.cpu for taken in self.taken[tool.name, count]):.2f}"

    def memory(self, tool: Tool, count: int) -> list[float]:
        """Peaks in MB."""
        return [taken.memory / 1e6 for taken in self.taken[tool.name, count]]


def compare(
    tools: Sequence[Tool], counts: Sequence[int], setting: Setting, kind: str = "small", watched: int = 0
) -> Compared:
    """Each repetition runs every tool once for each count, for one file a few times.

    Memory is watched from ``watched`` files on (0: never). A foreign tool that fails is left out from then on, and
    named; any other must succeed.
    """
    compared = Compared()
    benches = {count: _Bench(setting.folder / f"{count}", count, kind, setting.shape) for count in counts}
    for repetition in range(setting.repeat):
        for count, bench in benches.items():
            for tool in tools:
                if tool.name in compared.failed:
                    continue
                print(f"{repetition + 1}/{setting.repeat}: {tool.name}, {count:,} files", file=sys.stderr, flush=True)
                times = ONES if count == 1 else 1
                try:
                    runs = [bench.measured(tool, watched=0 < watched <= count) for _ in range(times)]
                except ToolFailed as error:
                    if not tool.foreign:
                        raise
                    compared.failed[tool.name] = str(error)
                else:
                    compared.taken.setdefault((tool.name, count), []).append(median(runs))
    return compared


def median(runs: list[Taken]) -> Taken:
    """The one of the middle wall time."""
    return sorted(runs, key=lambda taken: taken.seconds)[len(runs) // 2]


class _Bench:
    """An inbox, laid out anew when a tool has moved its files away.

    Nothing is removed, and files that were moved are taken back: ext4 looks long for a free inode where many were given
    back a moment ago.
    """

    def __init__(self, place: Path, count: int, kind: str, shape: Shape) -> None:
        self._place = place
        self._count, self._kind, self._shape = count, kind, shape
        self._inbox = place / "inbox"
        self._places = fill(self._inbox, count, kind, shape)
        self._runs = 0

    def measured(self, tool: Tool, *, watched: bool) -> Taken:
        """Run once, and check."""
        self._runs += 1
        target = self._place / f"target{self._runs}"
        try:
            taken = timed(lambda: tool.task(self._inbox, target), watched=watched)
            if tool.way == "reads":
                return taken
            found = arrived(target, self._places)
            left = sum(1 for _ in files_below(self._inbox)) if tool.way == "moves" else 0
        except ToolFailed:
            self._lay_out({})
            raise
        if tool.way == "moves":
            self._lay_out(found)
        if not tool.foreign and (len(found), left) != (self._count, 0):
            raise ToolFailed(f"expected {self._count} files to arrive, received {len(found)}, and {left} left")
        return replace(taken, arrived=len(found))

    def _lay_out(self, found: dict[bytes, str]) -> None:
        self._inbox = self._place / f"inbox{self._runs}"
        if len(found) == self._count:
            roll_back(found, self._inbox, self._places)
        else:
            self._places = fill(self._inbox, self._count, self._kind, self._shape)
