"""The options of each command: what the file, the environment, the command line and its help are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dicomsort.config.option import Option

MOST_SECONDS = 10 * 365 * 86_400  # ten years
DAY = 86_400  # seconds
MOST_WORKERS = 1024
MOST_PORT = 65_535
OPTIONS: dict[str, Option] = {
    "mode": Option(("copy", "move", "link"), "copy", "What to do with the files: copy, move, or hard-link them."),
    "dry_run": Option(bool, False, "Print the plan; change nothing."),
    "model": Option(Path, None, "A model bundle [default: the one that ships]."),
    "evidence": Option(("auto", "header", "pixels"), "auto", "What may decide."),
    "layout": Option(str, "uid", "uid, keep, readable, or a template of the path in the outbox."),
    "settle": Option(
        float, None, "Leave series changed in the last SECONDS [default: 60 with --move, else 0].", 0, MOST_SECONDS
    ),
    "duplicates": Option(("keep", "remove"), "keep", "What --move does with a file that the outbox has already."),
    "prune_empty": Option(bool, False, "Remove folders that a move emptied."),
    "held_ok": Option(bool, False, "Exit with 0, not 3, where files were held for a person."),
    "workers": Option(
        int, None, "How many tasks run at a time [default: the cores, or the cluster's threads].", 1, MOST_WORKERS
    ),
    "engine": Option(("processes", "serial", "dask"), "processes", "What runs the tasks."),
    "scheduler": Option(str, None, "The address of the Dask scheduler (tcp://HOST:PORT)."),
    "json": Option(bool, False, "Print the summary as one JSON object."),
    "quiet": Option(bool, False, "Print errors only."),
    "metrics": Option(Path, None, "Write figures for Prometheus to this file (text format)."),
    "log_file": Option(Path, None, "Append the log to this file."),
    "log_format": Option(("text", "json"), "text", "The form of the log's lines."),
    "log_size": Option(float, 10.0, "Begin a new log where it would grow over so many MiB (0: never).", 0, 1 << 20),
    "log_count": Option(int, 5, "Keep so many older logs (FILE.1, FILE.2, …).", 1, 1000),
}
WATCH: dict[str, Option] = {
    **{name: option for name, option in OPTIONS.items() if name != "dry_run"},
    "settle": Option(float, 60.0, "Leave studies that changed in the last SECONDS [default: 60].", 0, MOST_SECONDS),
    "held_ok": Option(bool, False, "Accepted as `sort` does; a service ends with 0 whatever it held."),
    "json": Option(bool, False, "Print the summary of each run as one JSON object a line."),
    "every": Option(float, 60.0, "Look into the inbox every SECONDS [default: 60].", 0, MOST_SECONDS),
}

# What `train` and the other commands of the model take; no file and no variable may have them.
TRAINING: dict[str, Option] = {
    "epochs": Option(int, 10, "How often every image is shown, at most.", 1, 100_000),
    "patience": Option(
        int,
        5,
        "End after N epochs without a better validation loss, and keep the best epoch's weights; 0: train every epoch "
        "and keep the last.",
        0,
        100_000,
    ),
    "batch_size": Option(int, 32, "Images a step.", 1, 65_536),
    "learning_rate": Option(float, 0.001, "Adam's.", 0.000_000_001, 1),
    "validation_split": Option(float, 0.2, "The share that is held out.", 0.0001, 0.9999),
    "seed": Option(int, 0, "Fixes split, first weights, order and variations.", 0, (1 << 32) - 1),
    "trials": Option(int, 20, "How many recipes to try, those of earlier runs counted.", 1, 100_000),
    "folds": Option(int, 10, "Parts that the sources are held out in; 0: one by one.", 0, 1000),
}


@dataclass(frozen=True, slots=True)
class SortSettings:
    """The value of each of ``OPTIONS``; None where one has no default and was not given.

    ``settle`` is in seconds, ``log_size`` in MiB.
    """

    mode: str
    dry_run: bool
    model: Path | None
    evidence: str
    layout: str
    settle: float | None
    duplicates: str
    prune_empty: bool
    held_ok: bool
    workers: int | None
    engine: str
    scheduler: str | None
    json: bool
    quiet: bool
    metrics: Path | None
    log_file: Path | None
    log_format: str
    log_size: float
    log_count: int
