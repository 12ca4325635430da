"""What a task takes: wall time, CPU time, and the memory of all its processes together."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
EVERY = 0.2  # seconds between two looks at the memory
# Compiled modules are kept, as they are where a user installed the package; the package measured is this checkout's.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DICOMSORT_"))}
OURS = CLEAN | {"PYTHONPATH": str(ROOT)}


class ToolFailed(Exception):
    """A program ended otherwise than it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of wall and of CPU time; peak bytes of memory, 0 where nobody watched; files that arrived whole."""

    seconds: float
    cpu: float
    memory: int = 0
    arrived: int | None = None


def timed(task: Callable[[], object], *, watched: bool = False) -> Taken:
    """Run ``task``; what earlier ones left to write is written first."""
    os.sync()
    own, children = _cpu(resource.RUSAGE_SELF), _cpu(resource.RUSAGE_CHILDREN)
    with Watch(on=watched) as watch:
        started = time.perf_counter()
        task()
        seconds = time.perf_counter() - started
    spent = _cpu(resource.RUSAGE_CHILDREN) - children
    return Taken(seconds, spent or _cpu(resource.RUSAGE_SELF) - own, watch.peak)


def run(command: Sequence[str | Path], environment: dict[str, str], codes: Sequence[int] = (0,)) -> None:
    """Run a program, what it prints thrown away; ToolFailed where it ends with another code."""
    ran = subprocess.run(
        [*command], env=environment, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    if ran.returncode not in codes:
        told = ran.stderr.decode(errors="replace").strip()
        print(told[-2000:], file=sys.stderr)
        expected = " or ".join(map(str, codes))
        raise ToolFailed(f"expected exit code {expected}, received {ran.returncode}")


def dicomsort(*arguments: str | Path) -> None:
    """Run the command of this checkout; held files (exit code 3) are no failure."""
    run([sys.executable, "-m", "dicomsort", *arguments], OURS, (0, 3))


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median, and in brackets the least and the most."""
    middle = f"{statistics.median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """One by the other, each repetition by itself."""
    return [one / other for one, other in zip(ones, others, strict=True)]


class Watch:
    """Looks at the memory of this process's children, theirs included, now and then; ``peak`` is the greatest sum.

    Pages that processes share are counted once (PSS of /proc/PID/smaps_rollup).
    """

    def __init__(self, *, on: bool) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True) if on else None

    def __enter__(self) -> Self:
        """Begin to look."""
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Look no longer."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(EVERY):
            self.peak = max(self.peak, sum(map(_pss, descendants(os.getpid()))))


def descendants(process: int) -> list[int]:
    """The processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := status_of(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    below, found = [process], []
    while below:
        mine = children.get(below.pop(), [])
        found += mine
        below += mine
    return found


def status_of(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, …; none where the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def _pss(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:  # it has ended
        return 0
    return 0


def _cpu(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime
