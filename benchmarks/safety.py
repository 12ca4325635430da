"""What safety costs: ``python benchmarks/safety.py``.

The inbox of ``throughput.py``, sorted by headers alone. Each repetition measures everything once, in turn: ``cp -r``
followed by ``sync``, ``--copy``, ``--move``, and ``--move`` with every flush left out, each for all files and for one
(the difference is free of the interpreter's start). Prints Markdown with medians of the ratios within a repetition.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from throughput import fill, timed

UNFLUSHED = """
import sys
from dicomsort.files import Files
Files.flush = lambda self, descriptor: None
Files.flush_system = lambda self, path: True
from dicomsort.cli import main
main()
"""
WAYS = {
    "sort --copy": (("-m", "dicomsort"), "--copy"),
    "sort --move": (("-m", "dicomsort"), "--move"),
    "sort --move, no flush": (("-c", UNFLUSHED), "--move"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--side", type=int, help="images of so many rows and columns (512: 512 KB each)")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder by default)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        # Nothing is removed in between: ext4 looks long for an inode where many were given back a moment ago.
        places = [Path(temporary, str(repetition)) for repetition in range(arguments.repeat)]
        rounds = [measured(place, arguments.files, arguments.side) for place in places]
    report(arguments.files, rounds)


class Cost(NamedTuple):
    """Seconds of the clock, and of the processors, which another load on the machine changes little."""

    wall: float
    cpu: float


def measured(place: Path, count: int, side: int | None) -> dict[str, Cost]:
    """One repetition: the cost of each way, that of one file taken off."""
    fill(place / "inbox", count, side)
    taken = {"cp -r; sync": cost(lambda: copied(place / "inbox", place / "copy"))}
    for number, (name, (start, way)) in enumerate(WAYS.items()):
        single, inbox = place / f"single{number}", place / f"inbox{number}"
        fill(single, 1, side)
        fill(inbox, count, side)
        one = cost(lambda: sort(start, way, single, place / f"outbox-1-{number}"))  # noqa: B023
        whole = cost(lambda: sort(start, way, inbox, place / f"outbox-{number}"))  # noqa: B023
        taken[name] = Cost(whole.wall - one.wall, whole.cpu - one.cpu)
    return taken


def cost(task: Callable[[], object]) -> Cost:
    """What a task costs, the processes that it starts and waits for included."""
    before = processors()
    wall = timed(task)
    return Cost(wall, processors() - before)


def processors() -> float:
    """Seconds that the processors worked for those of our processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def copied(inbox: Path, target: Path) -> None:
    """Copy as a person would, until it is on the disk."""
    subprocess.run(["/bin/cp", "-r", inbox, target], check=True)
    subprocess.run(["/bin/sync", "-f", target], check=True)


def sort(start: tuple[str, ...], way: str, inbox: Path, outbox: Path) -> None:
    """Sort by headers alone."""
    options = [way, "--settle", "0", "--evidence", "header", "--quiet"]
    subprocess.run([sys.executable, *start, "sort", str(inbox), str(outbox), *options], check=True)


def report(count: int, rounds: list[dict[str, Cost]]) -> None:
    """Print what a file costs, and the two ratios that matter."""

    def ratio(one: str, other: str) -> str:
        ratios = [each[one].wall / each[other].wall for each in rounds]
        spent = statistics.median(each[one].cpu / each[other].cpu for each in rounds)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}; in CPU time {spent:.2f}"
        return f"{statistics.median(ratios):.2f} ({spread})"

    print(f"{count} files, medians of {len(rounds)} (in brackets the least and the most)\n")
    print("| what | files/s | CPU µs a file |\n| --- | ---: | ---: |")
    for name in rounds[0]:
        wall, cpu = (statistics.median(values) for values in zip(*(each[name] for each in rounds), strict=True))
        print(f"| {name} | {count / wall:,.0f} | {cpu / count * 1e6:,.0f} |")
    print(
        f"\n--copy takes {ratio('sort --copy', 'cp -r; sync')} times as long as cp -r and sync; at most 1.3 is wanted."
    )
    print(
        f"--move takes {ratio('sort --move', 'sort --move, no flush')} times as long as without flushing; at most 1.18."
    )


if __name__ == "__main__":
    main()
