"""What a person sees while a model is trained: Rich on a terminal, plain lines now and then without one; on stderr."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

PLAIN_EVERY = 15.0
SPEED_SECONDS = 600.0  # over which the speed is measured: a batch of a large network takes a minute


class Reporter:
    """One step after the other, each with a count; ``note`` says a sentence in between."""

    def __init__(self) -> None:
        """Write to stderr."""
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=self._console,
            expand=True,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        """Start the display, where there is a terminal for one."""
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the display; it stays on the screen."""
        if self._live:
            self._progress.stop()  # without a terminal it would print an empty line

    def note(self, text: str) -> None:
        """Say one line."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str, total: int, done: int = 0) -> Iterator[Step]:
        """Yield the counter of a step of ``total`` parts, of which some were ``done`` earlier."""
        task = self._progress.add_task(name, total=total, completed=done, text="")
        step = Step(self, int(task), name, total, done)
        yield step
        if not self._live:
            self.note(f"{name}: {step.done} of {total} done {step.text}".rstrip())

    def show(self, step: Step) -> None:
        """Bring a step's count to the display, or say it when the last line is old enough."""
        if self._live:
            task = self._progress.task_ids[step.task]
            self._progress.update(task, completed=step.done, total=step.total, text=step.text)
        elif (now := time.monotonic()) - self._said > PLAIN_EVERY:
            self._said = now
            self.note(f"{step.name}: {step.done} of {step.total}{step.left()} {step.text}".rstrip())


class Step:
    """A step's count, and a few words beside it."""

    def __init__(self, reporter: Reporter, task: int, name: str, total: int, done: int = 0) -> None:
        """Count from ``done``."""
        self._reporter = reporter
        self.task, self.name, self.total, self.done, self.text = task, name, total, done, ""
        self._first, self._began = done, time.monotonic()

    def advance(self, parts: int = 1, text: str | None = None) -> None:
        """Count ``parts`` as done; ``text``, where given, replaces the words beside the count."""
        self.done = min(self.done + parts, self.total)
        self.text = self.text if text is None else text
        self._reporter.show(self)

    def end(self) -> None:
        """Count no further: what is done is all there is."""
        self.total = self.done
        self._reporter.show(self)

    def left(self) -> str:
        """Say how long the rest will take at the speed so far, "" before anything is known."""
        if self.done == self._first:
            return ""
        seconds = (time.monotonic() - self._began) / (self.done - self._first) * (self.total - self.done)
        return f", {timedelta(seconds=round(seconds))} left"


def load_tensorflow() -> None:
    """Import TensorFlow and Keras without their remarks on accelerators, drivers and retracing; errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with hushed():
        import keras  # noqa: F401 - takes long, and is what callers import next
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
        tf.config.list_logical_devices()  # the drivers are looked for here, once


@contextmanager
def hushed() -> Iterator[None]:
    """Hold back what native code writes to stderr; it is let through only if the block fails.

    TensorFlow's C++ logs about missing accelerators and the converter's remarks cannot be turned off otherwise.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
