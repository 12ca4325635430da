"""Ctrl-C and SIGTERM, held back to a moment at which everything can be saved."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    """Yield what knows of a first Ctrl-C or SIGTERM, of which ``tell`` says so; a second one ends the block at once.

    Outside the main thread, where no signals arrive, nothing is held back.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        before = saved[signal.Signals(number)]
        if asked.yes and callable(before):
            before(number, frame)
        asked.yes = True
        tell()

    saved = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
