"""Back pressure: a counted gate that a submitter waits at, and that closing opens with an error."""

from __future__ import annotations

import threading

from dicomsort.errors import DicomsortError

CLOSED = "the engine is closed; expected an open one"


class Slots:
    """``number`` places; ``take`` waits for a free one."""

    def __init__(self, number: int) -> None:
        """Open the gate with ``number`` free places."""
        self._free = threading.Semaphore(number)
        self._why = CLOSED
        self.closed = False

    def take(self) -> None:
        """Wait for a place and take it; raises ``DicomsortError`` once closed, also in those who wait."""
        self._free.acquire()
        if self.closed:
            self._free.release()  # wakes the next one who waits
            raise DicomsortError(self._why)

    def give(self) -> None:
        """Give a place back."""
        self._free.release()

    def close(self, why: str = CLOSED) -> None:
        """Refuse from now on, saying why, and wake those who wait."""
        if not self.closed:
            self._why, self.closed = why, True
        self._free.release()
