"""What the pipeline tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of each stage and of each step in it; never asked anything."""

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins; ``total`` steps will follow, if that is known."""

    def advance(self, steps: int = 1) -> None:
        """Steps of the present stage are done."""
