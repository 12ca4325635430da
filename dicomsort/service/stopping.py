"""How a service ends: at a signal, between two files; what a round had begun is gone on with by the next start."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from dicomsort.files import Files
from dicomsort.progress import Progress
from dicomsort.signals import hear, restore

if TYPE_CHECKING:
    from types import FrameType


class Stopped(BaseException):
    """The service was asked to end, and is between two files; nothing but the service itself may catch it."""


class Stop:
    """Whether, and by which signal, the service was asked to end."""

    def __init__(self) -> None:
        """Nobody asked yet."""
        self.signal = 0
        self._ear, self._mouth = socket.socketpair()  # an Event could deadlock with a handler that sets it

    def ask(self, number: int) -> None:
        """Ask the service to end, and wake it."""
        self.signal = number
        with suppress(OSError):  # it may be ending already
            self._mouth.send(b"\0")

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self.signal != 0

    def check(self) -> None:
        """Raise ``Stopped`` where somebody asked."""
        if self.is_asked:
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than until somebody asks."""
        if not self.is_asked:
            select.select([self._ear], [], [], seconds)

    def close(self) -> None:
        """Give back what waiting takes."""
        self._ear.close()
        self._mouth.close()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM, SIGHUP and SIGINT ask; a second SIGINT interrupts at once."""
        before = hear(self._hear)
        try:
            yield
        finally:
            restore(before)
            self.close()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.is_asked:
            raise KeyboardInterrupt
        self.ask(number)


class StoppableFiles(Files):
    """Asks before each file is placed whether to go on; a file that was begun is finished."""

    def __init__(self, check: Callable[[], None]) -> None:
        """``check`` raises where the service is to end."""
        super().__init__()
        self._check = check

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, unless the service is to end; a temporary copy that is complete gets its name."""
        if not source.endswith(".part"):
            self._check()
        super().link(source, target)

    def create(self, path: str, mode: int = 0o600) -> int:
        """Create a file, but no temporary copy where the service is to end."""
        if path.endswith(".part"):
            self._check()
        return super().create(path, mode)


class StoppableProgress:
    """Asks at each step of reading and looking whether to go on, and tells whoever watches."""

    def __init__(self, watcher: Progress, check: Callable[[], None]) -> None:
        """``check`` raises where the service is to end."""
        self._watcher = watcher
        self._check = check

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins."""
        self._check()
        self._watcher.stage(name, total)

    def advance(self, steps: int = 1) -> None:
        """Steps are done."""
        self._check()
        self._watcher.advance(steps)
