"""Where the time of a move goes: by stage, and by function of the process that plans and places."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from comparing import Setting, compare
from measuring import OURS, run, spread
from report import Section, Table
from tools import Tool

COUNT, SHOWN = 20_000, 25
WAITS = {"'acquire' of '_thread.lock' objects", "'get' of '_queue.SimpleQueue' objects", "posix.read", "posix.waitpid"}
START, TOTAL = "start: interpreter, imports, first workers", "all"
TEXT = f"""`sort --move` of {COUNT:,} small files as above. Stages are those that the pipeline tells its progress of;
deciding includes the plan and its sealing, placing the manifest. Functions: own seconds (wall) in all threads
of the driving process but for waiting on locks and pipes; by cProfile, which slows calls of small functions most."""


def measure(setting: Setting) -> Section:
    """Stages without a profile, then one run with it."""
    staged = _runs(setting, "stages")
    profiled = _runs(replace(setting, repeat=1), "functions")
    rounds = [_stages(*each) for each in staged]
    functions, began, ended = profiled[0]
    tables = [_stage_table(rounds), _function_table(functions, ended - began, rounds)]
    return Section("g", "Where the time goes", TEXT, tables)


def _runs(setting: Setting, what: str) -> list[tuple[list[Any], float, float]]:
    """What staged.py told of each run, and when it began and ended."""
    told, script = setting.folder / "told", Path(__file__).with_name("staged.py")
    runs = []

    def task(inbox: Path, outbox: Path) -> None:
        began = time.monotonic()
        arguments = ("sort", inbox, outbox, "--move", "--settle", "0", "--quiet")
        run([sys.executable, script, told, what, *arguments], OURS, (0, 3))
        runs.append((json.loads(told.read_text("utf-8")), began, time.monotonic()))

    compare([Tool(f"sort --move, {what}", "moves", task)], (COUNT,), replace(setting, folder=setting.folder / what))
    return runs


def _stages(seen: list[Any], began: float, ended: float) -> dict[str, tuple[float, float, float]]:
    """Wall, own CPU, workers' CPU seconds of each stage, the start and the end included."""
    marks = [(START, began, 0.0, 0.0), *seen]
    marks.append(("", ended, *marks[-1][2:]))
    spent: dict[str, tuple[float, float, float]] = {}
    for mark, following in pairwise(marks):
        wall, own, workers = (after - before for before, after in zip(mark[1:], following[1:], strict=True))
        spent[mark[0]] = (wall, own, workers)
    spent[TOTAL] = tuple(map(sum, zip(*spent.values(), strict=True)))  # type: ignore[assignment]
    return spent


def _stage_table(rounds: list[dict[str, tuple[float, float, float]]]) -> Table:
    rows = []
    for name in rounds[0]:
        walls, own, workers = ([each[name][place] for each in rounds] for place in range(3))
        share = statistics.median(each[name][0] / each[TOTAL][0] for each in rounds)
        rows.append([name, spread(walls, ".2f"), f"{share:.0%}", spread(own, ".2f"), spread(workers, ".2f")])
    columns = ("stage", "seconds", "share", "CPU seconds, driving process", "CPU seconds, workers")
    return Table(columns, rows)


def _function_table(functions: list[Any], seconds: float, rounds: list[dict[str, tuple[float, float, float]]]) -> Table:
    waiting = sum(own for name, own, _, _ in functions if name in WAITS)
    functions = [function for function in functions if function[0] not in WAITS]
    total = sum(own for _, own, _, _ in functions)
    rows = [
        [f"`{name}`", f"{own:.2f}", f"{own / total:.1%}", f"{whole:.2f}", f"{calls:,}"]
        for name, own, whole, calls in functions[:SHOWN]
    ]
    usual = statistics.median(each[TOTAL][0] for each in rounds)
    title = (
        f"The {SHOWN} most expensive functions; {total:.1f} s in all threads together, waiting ({waiting:.1f} s) left "
        f"out; this run took {seconds:.1f} s, {usual:.1f} without the profile"
    )
    return Table(("function", "own, s", "share", "with callees, s", "calls"), rows, 1, title)
