"""Progress of a command on stderr: bars on a terminal, plain lines now and then without one (cron, pipes)."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_EVERY = 30.0  # seconds between plain lines
SPEED_SECONDS = 600.0  # over which the speed is measured: a batch of a large network takes a minute


class Progress(Protocol):
    """Gets each stage of a command and each step in it."""

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage of ``total`` steps, if that is known."""

    def advance(self, steps: int = 1) -> None:
        """Count steps of the present stage as done."""


class Silent:
    """A ``Progress`` that prints nothing."""

    def stage(self, name: str, total: int | None) -> None:
        """Print nothing."""

    def advance(self, steps: int = 1) -> None:
        """Print nothing."""


class Timed:
    """Measures the seconds of each stage, and forwards all to another ``Progress``."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._spent: dict[str, float] = {}
        self._name, self._began = "", 0.0

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage and end the one before."""
        self._end()
        self._name = name
        self._progress.stage(name, total)

    def advance(self, steps: int = 1) -> None:
        """Forward the steps."""
        self._progress.advance(steps)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage up to now, in their order."""
        self._end()
        return dict(self._spent)

    def _end(self) -> None:
        now = time.monotonic()
        if self._name:
            self._spent[self._name] = self._spent.get(self._name, 0.0) + now - self._began
        self._began = now


class Reporter:
    """The display: one step after the other, each with a count; ``note`` prints a line in between.

    Bars need a terminal and the context of this object; without either there are lines, which begin with ``prefix``.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._bars: Bars | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()  # they stay on the screen

    def note(self, text: str) -> None:
        """Print one line."""
        if self._bars is None:
            print(f"{self._prefix}{text}", file=sys.stderr, flush=True)  # noqa: T201 - stdout is for results
        else:
            self._bars.console.print(text, markup=False, soft_wrap=True)

    def begin(self, name: str, total: int | None, done: int = 0) -> Step:
        """Return the counter of a step of ``total`` parts (None: not known); ``done`` of them were done earlier."""
        task = None if self._bars is None else self._bars.add_task(name, total=total, completed=done, text="")
        return Step(self, name, total, done, task)

    @contextmanager
    def step(self, name: str, total: int, done: int = 0) -> Iterator[Step]:
        """Yield such a counter; without a terminal its last count is printed, too."""
        step = self.begin(name, total, done)
        yield step
        if self._bars is None:
            self.note(f"{name}: {step.done:,} of {step.total:,} done {step.text}".rstrip())

    def show(self, step: Step) -> None:
        """Update a step's bar, or print its count when the last line is old enough."""
        if self._bars is not None and step.task is not None:
            self._bars.update(step.task, completed=step.done, total=step.total, text=step.text)
        elif (now := time.monotonic()) - self._printed >= PLAIN_EVERY:
            self._printed = now
            of = "" if step.total is None else f" of {step.total:,}{step.left()}"
            self.note(f"{step.name}: {step.done:,}{of} {step.text}".rstrip())


class Step:
    """A step's count, from ``done`` on, and a few words beside it; ``task`` is its bar."""

    def __init__(
        self, reporter: Reporter, name: str, total: int | None, done: int = 0, task: TaskID | None = None
    ) -> None:
        self._reporter = reporter
        self.name, self.total, self.done, self.task, self.text = name, total, done, task, ""
        self._first, self._began = done, time.monotonic()

    def advance(self, parts: int = 1, text: str | None = None) -> None:
        """Count ``parts`` as done; ``text``, where given, replaces the words beside the count."""
        self.done += parts
        if self.total is not None:
            self.done = min(self.done, self.total)
        if text is not None:
            self.text = text
        self._reporter.show(self)

    def end(self) -> None:
        """Set the total to what is done."""
        self.total = self.done
        self._reporter.show(self)

    def left(self) -> str:
        """Return how long the rest will take at the speed so far, "" while that is unknown."""
        if self.total is None or self.done == self._first:
            return ""
        seconds = (time.monotonic() - self._began) / (self.done - self._first) * (self.total - self.done)
        return f", {timedelta(seconds=round(seconds))} left"


class Stages:
    """A ``Progress`` on a display: each stage is a step."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._step: Step | None = None

    def stage(self, name: str, total: int | None) -> None:
        """End the last step and begin one."""
        if self._step is not None:
            self._step.end()
        self._step = self._reporter.begin(name, total)

    def advance(self, steps: int = 1) -> None:
        """Count steps of the stage."""
        if self._step is not None:
            self._step.advance(steps)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Yield the ``Progress`` that stderr can show."""
    if quiet:
        yield Silent()
    else:
        with Reporter("dicomsort: ") as reporter:
            yield Stages(reporter)


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    return Bars(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=Console(stderr=True, highlight=False),
        expand=True,
        speed_estimate_period=SPEED_SECONDS,
    )
