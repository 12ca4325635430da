"""Measure dicomsort: ``python benchmarks/run.py --rows a,b,e --repeat 3 --folder DIR --out build/bench``.

Each group of rows compares what ran in turn in one run. ``--out`` gets ``results.md``, ``results.png`` and
``results.json``; groups that are not measured again stay as they are there. ``--paste`` puts tables and picture into
RESULTS.md. Correctness is measured by ``corpus.py``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import machine
import plot
import report
import rows_network
import rows_profile
import rows_safety
import rows_scale
import rows_slices
import rows_sorting
import rows_startup
from comparing import Setting
from inboxes import Shape
from measuring import ROOT
from peers import installed

GB = 10**9
FILE = 27e3  # bytes of a small file on disk, on average


class Group(NamedTuple):
    """A group of rows, and how many bytes and files it needs room for; nothing is removed before the end."""

    measure: Callable[[Setting], report.Section]
    room: Callable[[Setting], tuple[float, int]]


GROUPS = {
    "a": Group(rows_sorting.measure, lambda s: ((1 + 4 * s.repeat) * 25_000 * FILE, (1 + 11 * s.repeat) * 28_000)),
    "b": Group(rows_slices.measure, lambda s: ((1 + 2 * s.repeat) * 500 * 0.53e6, s.repeat * 5_000)),
    "c": Group(rows_scale.measure, lambda s: (6e3 * sum(s.sizes), s.repeat * int(1.2 * sum(s.sizes)))),
    "d": Group(rows_network.measure, lambda s: (1.5 * GB, s.repeat * 5_000)),
    "e": Group(rows_startup.measure, lambda s: (GB, s.repeat * 1_000)),
    "f": Group(rows_safety.measure, lambda s: ((1 + 2 * s.repeat) * 10_000 * FILE, s.repeat * 30_000)),
    "g": Group(rows_profile.measure, lambda s: (2 * 20_000 * FILE, (s.repeat + 1) * 25_000)),
}
SIZES = (10_000, 100_000)
MILLION = 1_000_000


def main() -> None:
    """Measure group after group; what is done is kept if a later one fails."""
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = arguments.out / "results.json"
    sections = report.load(stored)
    sizes = (*SIZES, MILLION) if arguments.million else SIZES
    shape = Shape(arguments.per_study, arguments.per_series)
    peers = ROOT / "build" / "peers"
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-") as folder:
        setting = Setting(Path(folder), arguments.repeat, peers, sizes, shape)
        for key in arguments.rows:
            place = setting.folder / key
            if not has_room(key, setting):
                continue
            place.mkdir()
            measured = machine.described(place, installed(peers) if key in "ae" else [])
            sections[key] = replace(GROUPS[key].measure(replace(setting, folder=place)), measured=measured)
            report.save(stored, sections)
        finish(arguments.out, sections, paste=arguments.paste)


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=rows, default=list(GROUPS), help=f"of {','.join(GROUPS)} (default: all)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--million", action="store_true", help="rows c: 1,000,000 files, too")
    parser.add_argument("--per-study", type=int, default=50)
    parser.add_argument("--per-series", type=int, default=25)
    parser.add_argument("--paste", action="store_true", help="put the results into benchmarks/RESULTS.md")
    return parser.parse_args()


def rows(told: str) -> list[str]:
    """The groups asked for, in the order of the report."""
    keys = [key for key in told.split(",") if key]
    if unknown := [key for key in keys if key not in GROUPS]:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(GROUPS)}, received {','.join(unknown)}")
    return sorted(keys)


def has_room(key: str, setting: Setting) -> bool:
    """Say how much room a group needs and has, without what earlier ones left where need be; False if too little."""
    needed, files = GROUPS[key].room(setting)
    for last in (False, True):
        there = os.statvfs(setting.folder)
        free, names = there.f_bavail * there.f_frsize, there.f_favail if there.f_files else files + 1
        wanted, found = f"{needed / GB:.1f} GB and {files:,} files", f"{free / GB:.1f} GB and {names:,} are free"
        print(f"rows {key}: {wanted} are needed, {found}", file=sys.stderr)
        if needed < free and files < names:
            return True
        if not last:
            print("removing what earlier rows left", file=sys.stderr)
            for place in setting.folder.iterdir():
                shutil.rmtree(place)
    print(f"rows {key} are left out: choose another --folder, or a smaller --repeat", file=sys.stderr)
    return False


def finish(out: Path, sections: dict[str, report.Section], *, paste: bool) -> None:
    """Write Markdown and picture, print the Markdown, paste it where asked."""
    text = report.markdown(sections)
    picture = plot.draw(out / "results.png", sections)
    (out / "results.md").write_text(text, "utf-8")
    print(text)
    if paste:
        here = Path(__file__).parent
        if picture:
            shutil.copy(out / "results.png", here / "results.png")
        report.paste(here / "RESULTS.md", text)


if __name__ == "__main__":
    main()
