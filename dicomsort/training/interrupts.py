"""Ctrl-C, SIGTERM and SIGHUP, held back to a moment at which everything can be saved."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dicomsort.signals import hear, restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


class Asked:
    """Whether the training was asked to end."""

    def __init__(self) -> None:
        """Not yet."""
        self.yes = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was."""
        if self.yes:
            raise KeyboardInterrupt


@contextmanager
def held_back(tell: Callable[[], None]) -> Iterator[Asked]:
    """Yield what knows of a first signal that ends, of which ``tell`` says so; a second one ends the block at once.

    Outside the main thread, where no signals arrive, nothing is held back.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        before = saved[number]
        if asked.yes and callable(before):
            before(number, frame)
        asked.yes = True
        tell()

    saved = hear(note)
    try:
        yield asked
    finally:
        restore(saved)
