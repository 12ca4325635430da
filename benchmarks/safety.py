"""What safety costs: ``python benchmarks/safety.py``.

The inbox of ``throughput.py``, sorted by headers alone. Each repetition measures everything once, in turn: ``cp -r``
followed by ``sync``, ``--copy``, ``--move``, and ``--move`` with every flush left out, each for all files and for one
(the difference is free of the interpreter's start). Prints Markdown with medians of the ratios within a repetition.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

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


def measured(place: Path, count: int, side: int | None) -> dict[str, float]:
    """One repetition: seconds of each way, the time for one file taken off."""
    fill(place / "inbox", count, side)
    taken = {"cp -r; sync": timed(lambda: copied(place / "inbox", place / "copy"))}
    for number, (name, (start, way)) in enumerate(WAYS.items()):
        single, inbox = place / f"single{number}", place / f"inbox{number}"
        fill(single, 1, side)
        fill(inbox, count, side)
        one = timed(lambda: sort(start, way, single, place / f"outbox-1-{number}"))  # noqa: B023
        taken[name] = timed(lambda: sort(start, way, inbox, place / f"outbox-{number}")) - one  # noqa: B023
    return taken


def copied(inbox: Path, target: Path) -> None:
    """Copy as a person would, until it is on the disk."""
    subprocess.run(["/bin/cp", "-r", inbox, target], check=True)
    subprocess.run(["/bin/sync", "-f", target], check=True)


def sort(start: tuple[str, ...], way: str, inbox: Path, outbox: Path) -> None:
    """Sort by headers alone."""
    options = [way, "--settle", "0", "--evidence", "header", "--quiet"]
    subprocess.run([sys.executable, *start, "sort", str(inbox), str(outbox), *options], check=True)


def report(count: int, rounds: list[dict[str, float]]) -> None:
    """Print rates and the two ratios that matter."""

    def ratio(one: str, other: str) -> str:
        ratios = [each[one] / each[other] for each in rounds]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    print(f"{count} files, medians of {len(rounds)} (in brackets the least and the most)\n")
    print("| what | files/s |\n| --- | ---: |")
    for name in rounds[0]:
        print(f"| {name} | {count / statistics.median(each[name] for each in rounds):,.0f} |")
    print(
        f"\n--copy takes {ratio('sort --copy', 'cp -r; sync')} times as long as cp -r and sync; at most 1.3 is wanted."
    )
    print(
        f"--move takes {ratio('sort --move', 'sort --move, no flush')} times as long as without flushing; at most 1.18."
    )


if __name__ == "__main__":
    main()
