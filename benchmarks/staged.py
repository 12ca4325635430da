"""Run ``dicomsort`` and tell where its time went: ``python benchmarks/staged.py OUT stages|functions ARGUMENTS...``.

OUT gets JSON. ``stages``: for each stage that the pipeline tells its progress of, when it began (seconds of the
monotonic clock), and the CPU seconds of this process and of its workers until then; the last entry is the end.
``functions``: own seconds, seconds with what it calls, and calls, of each function, in all threads.
"""

from __future__ import annotations

import cProfile
import importlib
import json
import os
import pstats
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from measuring import ROOT, descendants, status_of

TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Patch what watches, run, write."""
    out, what, *arguments = sys.argv[1:]
    sys.argv = ["dicomsort", *arguments]
    stages = Stages()
    profiles = [cProfile.Profile()] if what == "functions" else []
    from dicomsort import cli

    watched: AbstractContextManager[Any] = nullcontext()
    if profiles:
        profile_threads(profiles)
        profiles[0].enable()
    else:
        command: Any = importlib.import_module("dicomsort.cli.sort")
        watched = mock.patch.object(command, "progress_bars", stages.progress_bars)
    try:
        with watched:
            cli.main()
    finally:
        for profile in profiles:
            with suppress(ValueError):
                profile.disable()
        stages.stage("end", None)
        told = functions(profiles) if profiles else stages.seen
        Path(out).write_text(json.dumps(told), "utf-8")


class Stages:
    """Notes when each stage begins."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, float, float]] = []

    @contextmanager
    def progress_bars(self, *, quiet: bool) -> Iterator[Stages]:
        """In place of the progress that a person sees."""
        del quiet
        yield self

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins."""
        del total
        own = resource.getrusage(resource.RUSAGE_SELF)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        workers = ended.ru_utime + ended.ru_stime + sum(map(spent, descendants(os.getpid())))
        self.seen.append((name, time.monotonic(), own.ru_utime + own.ru_stime, workers))

    def advance(self, steps: int = 1) -> None:
        """Steps are not noted."""


def spent(process: int) -> float:
    """CPU seconds of a running process."""
    fields = status_of(process)
    return (int(fields[11]) + int(fields[12])) / TICKS if fields else 0.0  # utime, stime


def profile_threads(profiles: list[cProfile.Profile]) -> None:
    """Let every thread that begins from now on have a profile of its own; Python 3.12 and later allow one alone."""
    begin: Callable[[threading.Thread], None] = threading.Thread.run

    def profiled(self: threading.Thread) -> None:
        profile = cProfile.Profile()
        with suppress(ValueError):
            profile.enable()
            profiles.append(profile)
        try:
            begin(self)
        finally:
            with suppress(ValueError):
                profile.disable()

    threading.Thread.run = profiled  # type: ignore[method-assign]


def functions(profiles: list[cProfile.Profile]) -> list[tuple[str, float, float, int]]:
    """Name, own seconds, seconds with callees, calls; the most expensive first."""
    total: Any = pstats.Stats(profiles[0])
    for profile in profiles[1:]:
        with suppress(TypeError):  # a thread that called nothing
            total.add(profile)
    found = [(named(*key), own, whole, calls) for key, (_, calls, own, whole, _) in total.stats.items()]
    return sorted(found, key=lambda row: -row[1])


def named(path: str, line: int, function: str) -> str:
    """A function by its module, without the machine's folders."""
    if path == "~":
        return function.strip("<>").removeprefix("built-in method ").removeprefix("method ")
    place = Path(path)
    for folder in (ROOT, *map(Path, sorted(sys.path, key=len, reverse=True))):
        if place.is_relative_to(folder):
            return f"{place.relative_to(folder)}:{line} {function}"
    return f"{place.name}:{line} {function}"


if __name__ == "__main__":
    main()
