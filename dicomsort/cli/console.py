"""What a person sees: progress on stderr, the summary on stdout."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from dicomsort.report import Summary

PLAIN_EVERY = 30.0  # seconds between lines where there is no terminal
SHOWN = 10


class Watcher(Protocol):
    """What the pipeline tells of its progress."""

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins."""

    def advance(self, steps: int = 1) -> None:
        """Steps are done."""


class Silent:
    """For ``--quiet``."""

    def stage(self, name: str, total: int | None) -> None:
        """Say nothing."""

    def advance(self, steps: int = 1) -> None:
        """Say nothing."""


class Lines:
    """Plain lines now and then, for cron and pipes."""

    def __init__(self) -> None:
        """Nothing is said before the first stage has lasted a while."""
        self._name, self._done = "", 0
        self._total: int | None = None
        self._last = time.monotonic()

    def stage(self, name: str, total: int | None) -> None:
        """Remember the stage."""
        self._name, self._total, self._done = name, total, 0

    def advance(self, steps: int = 1) -> None:
        """Count, and say so every half minute."""
        self._done += steps
        if time.monotonic() - self._last >= PLAIN_EVERY:
            self._last = time.monotonic()
            of = f" of {self._total:,}" if self._total is not None else ""
            print(f"dicomsort: {self._name}: {self._done:,}{of}", file=sys.stderr, flush=True)


class Bar:
    """Rich bars on a terminal."""

    def __init__(self, bars: Bars) -> None:
        """One bar a stage, on the display given."""
        self._bars = bars
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None) -> None:
        """Finish the last bar and begin one."""
        self._finish()
        self._task = self._bars.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, steps)

    def _finish(self) -> None:
        if self._task is not None:
            done = next(task.completed for task in self._bars.tasks if task.id == self._task)
            self._bars.update(self._task, total=max(done, 1), completed=max(done, 1))


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watcher]:
    """The right kind of progress for where stderr goes."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        text = TextColumn("{task.description}")
        columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            yield Bar(bars)


@contextmanager
def resumable(outbox: str | None) -> Iterator[None]:
    """Add to an interruption how to go on: by `resume` where a run has begun, else by the same command."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if outbox is not None and _has_begun(outbox):
            stop.add_note(f"`dicomsort resume {shlex.quote(outbox)}` goes on from there")
        raise


def _has_begun(outbox: str) -> bool:
    try:
        from dicomsort.sorting.outbox import absolute, load_runs, unfinished

        return bool(unfinished(load_runs(absolute(outbox))))
    except Exception:  # noqa: BLE001 - modules may be imported by half, and what is there by half
        return False


def show_summary(summary: Summary, *, as_json: bool, quiet: bool, outbox: str | None) -> None:
    """Print what a run did, for a person or as one JSON object; what failed is one line on stderr in any case."""
    troubles = [each.trouble for each in (summary, *summary.finished) if each.has_failed and each.trouble]
    for line in (*summary.unfinished_told(outbox or ""), *troubles):
        print(f"dicomsort: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps(summary.as_json()))
        return
    if quiet:
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    verb = summary.verb + (f" of run {summary.undoes}" if summary.undoes else "")
    if summary.dry_run:
        verb += ", planned (dry run, nothing was changed)"
    title = f"{verb}: {summary.found:,} files in {summary.seconds:.1f} s"
    if not summary.statuses:
        console.print(title)
    else:
        table = Table(title=title, title_justify="left")
        for heading in ("status", "files", "which"):
            table.add_column(heading, justify="right" if heading == "files" else "left")
        for status, count in sorted(summary.statuses.items(), key=lambda item: -item[1]):
            table.add_row(status, f"{count:,}", _which(summary, status))
        console.print(table)
    for line in _remarks(summary, outbox):
        console.print(escape(line))


def _which(summary: Summary, status: str) -> str:
    if status == "sorted":
        return ", ".join(f"{name} {count:,}" for name, count in sorted(summary.classes.items()) if name != "OTHER")
    return ""


def _remarks(summary: Summary, outbox: str | None) -> Iterator[str]:
    from dicomsort.report import visible

    if not summary.found and summary.verb == "sort":
        yield "INBOX holds no files"
    if summary.causes and not summary.has_failed:  # else it stands on stderr
        yield summary.trouble
    if summary.held:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.held.most_common())
        yield f"for a person to look at: {reasons}"
    if settling := summary.statuses.get("settling"):
        yield f"{settling:,} files belong to series that changed just now and were left; take them now with --settle 0"
    if duplicates := summary.statuses.get("duplicate"):
        verb = "file is a duplicate" if duplicates == 1 else "files are duplicates"
        yield f"{duplicates:,} {verb} of what the outbox holds; nothing was placed twice"
    if summary.archives:
        names = ", ".join(visible(name) for name in summary.archives[:SHOWN])
        left = summary.archives_found - SHOWN
        more = f" and {left} more" if left > 0 else ""
        yield f"archives were left unopened: {names}{more}"
    yield from summary.notes
    if outbox and summary.run_id:
        yield f"run {summary.run_id}; every file has a row in {outbox}/manifest.csv"
