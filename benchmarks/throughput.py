"""How many small files a second `dicomsort sort --move` sorts: ``python benchmarks/throughput.py``.

The inbox: CT and MR images of 39 and 10 KB in nested folders, 50 of a study, each with UIDs of its own. Each repetition
measures everything once, in turn: the sort of all files and of one file (the difference gives the marginal rate), and
beside them, as yardsticks of the machine, ``cp -r`` and a loop of pydicom over the headers. Prints Markdown with
medians; options that it does not know go to the sort.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydicom import dcmread
from pydicom.data import get_testdata_file

PER_STUDY = 50
PER_SERIES = 25
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


class Template(NamedTuple):
    """A real file, and its three UIDs as bytes."""

    content: bytes
    uids: tuple[bytes, ...]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder by default)")
    arguments, options = parser.parse_known_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        for repetition in range(arguments.repeat):
            place = Path(temporary, str(repetition))
            for name, taken in measured(place, arguments.files, options).items():
                seconds.setdefault(name, []).append(taken)
            shutil.rmtree(place)
    report(arguments.files, seconds, options)


def measured(place: Path, count: int, options: list[str]) -> dict[str, float]:
    """One repetition: seconds of each measurement."""
    inbox, single = place / "inbox", place / "single"
    fill(inbox, count)
    fill(single, 1)
    paths = [path for path in inbox.rglob("*") if path.is_file()]
    taken = {
        "pydicom header loop": timed(lambda: [dcmread(p, stop_before_pixels=True).StudyInstanceUID for p in paths]),
        "cp -r": timed(lambda: subprocess.run(["/bin/cp", "-r", inbox, place / "copy"], check=True)),
        "sort --move, 1 file": timed(lambda: sort(single, place / "outbox-1", options)),
        "sort --move": timed(lambda: sort(inbox, place / "outbox", options)),
    }
    left = [path for path in inbox.rglob("*") if path.is_file()]
    placed = sum(1 for path in (place / "outbox").rglob("*.dcm"))
    if left or placed != count:
        sys.exit(f"expected {count} files in the outbox and none left in the inbox, received {placed} and {len(left)}")
    return taken


def fill(inbox: Path, count: int, side: int | None = None) -> None:
    """Write ``count`` files, every second study CT or MR, each file unique; ``side``: of so many rows and columns."""
    templates = [template("CT_small.dcm", side), template("MR_small.dcm", side)]
    for number in range(count):
        study, series = number // PER_STUDY, number // PER_SERIES
        folder = inbox / f"PA{study:03d}" / f"SE{series:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        chosen = templates[study % len(templates)]
        content = chosen.content
        for uid, new in zip(chosen.uids, (study, series, number), strict=True):
            content = content.replace(uid, renumbered(uid, new))
        (folder / f"IM{number:06d}").write_bytes(content)


def template(name: str, side: int | None) -> Template:
    """The test file ``name`` of pydicom, or one of ``side`` rows and columns, a multiple of 128, with its header."""
    dataset = dcmread(str(get_testdata_file(name, download=False)))
    if side is not None:
        dataset.PixelData *= side * side // (dataset.Rows * dataset.Columns)
        dataset.Rows = dataset.Columns = side
    written = io.BytesIO()
    dataset.save_as(written)
    return Template(written.getvalue(), tuple(str(dataset[keyword].value).encode() for keyword in UIDS))


def renumbered(uid: bytes, number: int) -> bytes:
    """The UID with another last component, as long as before: the file's lengths stay right."""
    head, _, last = uid.rpartition(b".")
    return head + b".%d" % (10 ** (len(last) - 1) + number)


def timed(task: Callable[[], object]) -> float:
    """Wall time of ``task`` in seconds; what earlier tasks left to write is written first."""
    os.sync()
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def sort(inbox: Path, outbox: Path, options: list[str]) -> None:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "dicomsort", "sort", str(inbox), str(outbox), "--move", "--settle", "0", "--quiet"]
    ran = subprocess.run([*command, *options], check=False)
    if ran.returncode:
        sys.exit(f"expected exit code 0 of the sort, received {ran.returncode}")


def report(count: int, seconds: dict[str, list[float]], options: list[str]) -> None:
    """Print the medians, the rates, and their ratio to the yardsticks of the same run."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    whole, one = (median.pop(name) for name in ("sort --move", "sort --move, 1 file"))
    rates = {
        "sort --move, whole process": count / whole,
        "sort --move, marginal": (count - 1) / (whole - one),
        **{name: count / taken for name, taken in median.items()},
    }
    repeated = len(seconds["cp -r"])
    print(f"{count} files, {os.cpu_count()} cores, medians of {repeated}, options: {' '.join(options) or 'none'}")
    print(f"sort: {whole:.2f} s for {count} files, {one:.2f} s for one\n")
    print("| what | files/s | of cp -r | of the header loop |\n| --- | ---: | ---: | ---: |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates['cp -r']:.2f} | {rate / rates['pydicom header loop']:.2f} |")


if __name__ == "__main__":
    main()
