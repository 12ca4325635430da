"""The options of each command: what the file, the environment, the command line and its help are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dicomsort.config.option import Option

OPTIONS: dict[str, Option] = {
    "mode": Option(("copy", "move", "link"), "copy", "What to do with the files: copy, move, or hard-link them."),
    "dry_run": Option(bool, False, "Print the plan; change nothing."),
    "model": Option(Path, None, "A model bundle [default: the one that ships]."),
    "evidence": Option(("auto", "header", "pixels"), "auto", "What may decide."),
    "layout": Option(str, "uid", "uid, keep, readable, or a template of the path in the outbox."),
    "settle": Option(float, None, "Leave series changed in the last SECONDS [default: 60 with --move, else 0].", 0),
    "duplicates": Option(("keep", "remove"), "keep", "What --move does with a file that the outbox has already."),
    "prune_empty": Option(bool, False, "Remove folders that a move emptied."),
    "held_ok": Option(bool, False, "Exit with 0, not 3, where files were held for a person."),
    "workers": Option(int, None, "How many tasks run at a time [default: the cores, or the cluster's threads].", 1),
    "engine": Option(("processes", "serial", "dask"), "processes", "What runs the tasks."),
    "scheduler": Option(str, None, "The address of the Dask scheduler (tcp://HOST:PORT)."),
    "json": Option(bool, False, "Print the summary as one JSON object."),
    "quiet": Option(bool, False, "Print errors only."),
    "metrics": Option(Path, None, "Write figures for Prometheus to this file (text format)."),
    "log_file": Option(Path, None, "Append the log to this file."),
    "log_format": Option(("text", "json"), "text", "The form of the log's lines."),
    "log_size": Option(float, 10.0, "Begin a new log where it would grow over so many MiB (0: never).", 0),
    "log_count": Option(int, 5, "Keep so many older logs (FILE.1, FILE.2, …).", 1),
}
WATCH: dict[str, Option] = {
    **{name: option for name, option in OPTIONS.items() if name != "dry_run"},
    "settle": Option(float, 60.0, "Leave studies that changed in the last SECONDS [default: 60].", 0),
    "held_ok": Option(bool, False, "Accepted as `sort` does; a service ends with 0 whatever it held."),
    "json": Option(bool, False, "Print the summary of each run as one JSON object a line."),
    "every": Option(float, 60.0, "Look into the inbox every SECONDS [default: 60].", 0),
}

# The tables that a file may have. The keys of [routes] are classes of the model; None: its command checks it.
TABLES: dict[str, Mapping[str, Option] | None] = {
    "sort": OPTIONS,
    "watch": WATCH,
    "receive": None,
    "send": None,
    "routes": None,
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


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How to sort each time; every how many seconds to look; where each class is sent on to (``[routes]``)."""

    sort: SortSettings
    every: float
    routes: Mapping[str, str]
