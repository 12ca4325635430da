"""What the pipeline tells whoever watches it."""

from __future__ import annotations

import time
from typing import Protocol


class Progress(Protocol):
    """Told of each stage and of each step in it; never asked anything."""

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins; ``total`` steps will follow, if that is known."""

    def advance(self, steps: int = 1) -> None:
        """Steps of the present stage are done."""


class Timed:
    """Passes on what it is told, and adds up the seconds of each stage."""

    def __init__(self, progress: Progress) -> None:
        """No stage has begun."""
        self._progress = progress
        self._spent: dict[str, float] = {}
        self._name, self._began = "", 0.0

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins, and the one before has ended."""
        self._end()
        self._name = name
        self._progress.stage(name, total)

    def advance(self, steps: int = 1) -> None:
        """Pass it on."""
        self._progress.advance(steps)

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage up to now, in their order."""
        self._end()
        return dict(self._spent)

    def _end(self) -> None:
        now = time.monotonic()
        if self._name:
            self._spent[self._name] = self._spent.get(self._name, 0.0) + now - self._began
        self._began = now
