"""The engine that runs each task in the calling thread, at once and without limits: for tests and for debugging."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from dicomsort.adapters.slots import CLOSED
from dicomsort.engine import Engine, R, T
from dicomsort.errors import DicomsortError

if TYPE_CHECKING:
    from collections.abc import Callable


class SerialEngine(Engine):
    """Runs each task inside ``submit``."""

    def __init__(self) -> None:
        """Open it; it holds nothing."""
        self.workers = 1
        self._closed = False

    def submit(self, function: Callable[[T], R], task: T, /) -> Future[R]:
        """Run the task now; the future is done."""
        if self._closed:
            raise DicomsortError(CLOSED)
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(task))
        except Exception as error:  # noqa: BLE001 - it belongs to who asks for the result
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Refuse further tasks."""
        self._closed = True
