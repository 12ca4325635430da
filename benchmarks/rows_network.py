"""Pictures without a header, each shown to the network: what sorting and predicting make of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from comparing import Setting
from inboxes import digest, files_below
from measuring import OURS, dicomsort, ratios, spread, timed
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
start, (N - 1) / (time for N - time for one)."""


def measure(setting: Setting) -> Section:
    """Every way once a repetition, on the same pictures."""
    pictures, one = setting.folder / "pictures", setting.folder / "picture"
    print(f"drawing {COUNT:,} pictures", file=sys.stderr, flush=True)
    draw(pictures, COUNT)
    draw(one, 1)
    paths = sorted(files_below(pictures))
    if len({digest(Path(path).read_bytes()) for path in paths}) != COUNT:
        raise ValueError(f"expected {COUNT} pictures that differ")
    rates: dict[str, list[float]] = {}
    for repetition in range(setting.repeat):
        for what, name in PARTS.items():
            print(f"{repetition + 1}/{setting.repeat}: {name}", file=sys.stderr, flush=True)
            rates.setdefault(what, []).append(_alone(what, paths, setting.folder))
        for what, run in (("sort", _sorted), ("predict", _predicted)):
            print(f"{repetition + 1}/{setting.repeat}: {WHOLE[what]}", file=sys.stderr, flush=True)
            single, many = (run(each, setting.folder) for each in (one, pictures))
            rates.setdefault(what, []).append((COUNT - 1) / (many - single))
    return Section("d", "Pictures through the network", TEXT, [_table(rates)], {"rates": rates})


def _table(rates: dict[str, list[float]]) -> Table:
    slower = [min(pair) for pair in zip(rates["decode"], rates["infer"], strict=True)]
    rows = []
    for what, name in (PARTS | WHOLE).items():
        row = [name, spread(rates[what])]
        if what in WHOLE:
            of_slower, of_both = (ratios(rates[what], other) for other in (slower, rates["both"]))
            row += [spread(of_slower, ".2f"), spread(of_both, ".2f")]
        rows.append([*row, *[""] * (4 - len(row))])
    columns = ("what", "images/s", f"of the slower part alone ({WANTED} wanted)", "of both in turn")
    return Table(columns, rows)


def _alone(what: str, paths: list[str], folder: Path) -> float:
    """Images a second of ``WORKERS`` processes that begin together, each with its share."""
    script = Path(__file__).with_name("alone.py")
    workers = []
    for number in range(WORKERS):
        listed = folder / f"list{number}"
        listed.write_text("\n".join(paths[number::WORKERS]), "utf-8")
        workers.append(
            subprocess.Popen(
                [sys.executable, script, what, listed],
                env=OURS | ONE_THREAD,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    for worker in workers:
        assert worker.stdout is not None  # noqa: S101 - asked for above
        if worker.stdout.readline() != "ready\n":
            raise RuntimeError(f"expected alone.py {what} to make ready, received its end")
    for worker in workers:
        assert worker.stdin is not None  # noqa: S101
        worker.stdin.write("\n")
        worker.stdin.flush()
    return len(paths) / max(float(worker.communicate()[0]) for worker in workers)


def _sorted(pictures: Path, folder: Path) -> float:
    """Seconds to move the pictures: other names of the same files, so that the next repetition has them too."""
    inbox, outbox = folder / "inbox", folder / "outbox"
    shutil.copytree(pictures, inbox, copy_function=os.link)
    seconds = timed(lambda: sort("move", (), inbox, outbox)).seconds
    placed = sum(1 for path in files_below(outbox) if path.endswith((".png", ".jpg")))
    if placed != sum(1 for _ in files_below(pictures)) or any(files_below(inbox)):
        raise RuntimeError(f"expected every picture in the outbox, received {placed}")
    shutil.rmtree(inbox)
    shutil.rmtree(outbox)
    return seconds


def _predicted(pictures: Path, _: Path) -> float:
    """Seconds to judge the pictures."""
    paths = sorted(files_below(pictures))
    return timed(lambda: dicomsort("predict", "--json", *paths)).seconds
