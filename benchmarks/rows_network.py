"""Pictures without a header, each shown to the network: what sorting and predicting make of it."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from comparing import Setting
from inboxes import digest, files_below
from measuring import OURS, Taken, dicomsort, ratios, spread, timed
from pictures import draw
from report import Section, Table
from tools import sort

COUNT = 2_000
WORKERS = 2
WANTED = 0.85
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
PARTS = {
    "decode": "decoding alone (`pixels.render`)",
    "infer": "inference alone (`Predictor`)",
    "both": "decoding and inference in turn, nothing else",
}
WHOLE = {"sort": "`sort --move`, steady", "predict": "`predict --json`, steady"}
TEXT = f"""{COUNT:,} PNG and JPEG of 512 to 1,024 pixels without a header: each goes through decoding and the network.
Each part alone runs in {WORKERS} processes that had started before; `sort` and `predict` are measured without their
start, (N - 1) / (time for N - time for one), and so is their CPU time."""

Figures = dict[str, list[tuple[float, float]]]  # images/s, CPU milliseconds an image; a pair a repetition


def measure(setting: Setting) -> Section:
    """Every way once a repetition, on the same pictures."""
    pictures, one = setting.folder / "pictures", setting.folder / "picture"
    print(f"drawing {COUNT:,} pictures", file=sys.stderr, flush=True)
    draw(pictures, COUNT)
    draw(one, 1)
    paths = sorted(files_below(pictures))
    if len({digest(Path(path).read_bytes()) for path in paths}) != COUNT:
        raise ValueError(f"expected {COUNT} pictures that differ")
    figures: Figures = {}
    for repetition in range(setting.repeat):
        for what, name in PARTS.items():
            print(f"{repetition + 1}/{setting.repeat}: {name}", file=sys.stderr, flush=True)
            figures.setdefault(what, []).append(_alone(what, paths, setting.folder))
        for what, task in (("sort", _sorted), ("predict", _predicted)):
            print(f"{repetition + 1}/{setting.repeat}: {WHOLE[what]}", file=sys.stderr, flush=True)
            single, many = (task(each, setting.folder) for each in (one, pictures))
            rate, spent = (COUNT - 1) / (many.seconds - single.seconds), (many.cpu - single.cpu) / (COUNT - 1)
            figures.setdefault(what, []).append((rate, 1000 * spent))
    return Section("d", "Pictures through the network", TEXT, [_table(figures)])


def _table(figures: Figures) -> Table:
    rates = {what: [rate for rate, _ in pairs] for what, pairs in figures.items()}
    slower = [min(pair) for pair in zip(rates["decode"], rates["infer"], strict=True)]
    rows = []
    for what, name in (PARTS | WHOLE).items():
        of = [spread(ratios(rates[what], other), ".2f") for other in (slower, rates["both"])] if what in WHOLE else []
        spent = statistics.median(milliseconds for _, milliseconds in figures[what])
        rows.append([name, spread(rates[what]), f"{spent:.1f}", *(of or ["", ""])])
    columns = ("what", "images/s", "CPU ms an image", f"of the slower part alone ({WANTED} wanted)", "of both in turn")
    return Table(columns, rows)


def _alone(what: str, paths: list[str], folder: Path) -> tuple[float, float]:
    """What ``WORKERS`` processes do together that begin at once, each with its share."""
    script = Path(__file__).with_name("alone.py")
    workers = []
    for number in range(WORKERS):
        listed = folder / f"list{number}"
        listed.write_text("\n".join(paths[number::WORKERS]), "utf-8")
        command: list[str | Path] = [sys.executable, script, what, listed]
        environment = OURS | ONE_THREAD
        piped, nowhere = subprocess.PIPE, subprocess.DEVNULL
        workers.append(subprocess.Popen(command, env=environment, stdin=piped, stdout=piped, stderr=nowhere, text=True))
    for worker in workers:
        if worker.stdout is None or worker.stdout.readline() != "ready\n":
            raise RuntimeError(f"expected alone.py {what} to make ready, received its end")
    for worker in workers:
        if worker.stdin is not None:
            worker.stdin.write("\n")
            worker.stdin.flush()
    told = [[float(figure) for figure in worker.communicate()[0].split()] for worker in workers]
    seconds, cpu = zip(*told, strict=True)
    return len(paths) / max(seconds), 1000 * sum(cpu) / len(paths)


def _sorted(pictures: Path, folder: Path) -> Taken:
    """Move the pictures: other names of the same files, so that the next repetition has them too."""
    number = sum(1 for _ in folder.glob("inbox*"))
    inbox, outbox = folder / f"inbox{number}", folder / f"outbox{number}"
    shutil.copytree(pictures, inbox, copy_function=os.link)
    taken = timed(lambda: sort("move", (), inbox, outbox))
    placed = sum(1 for path in files_below(outbox) if path.endswith((".png", ".jpg")))
    if placed != sum(1 for _ in files_below(pictures)) or any(files_below(inbox)):
        raise RuntimeError(f"expected every picture in the outbox, received {placed}")
    return taken


def _predicted(pictures: Path, _: Path) -> Taken:
    """Judge the pictures."""
    paths = sorted(files_below(pictures))
    return timed(lambda: dicomsort("predict", "--json", *paths))
