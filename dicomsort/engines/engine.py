"""What an engine is: it runs picklable functions on picklable tasks, maybe elsewhere.

The pipeline knows only this shape of the engines. ``Slots`` limits how many tasks are on their way. ``SerialEngine``
runs each task in the calling thread, at once and without limits: for tests and for debugging.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from dicomsort.errors import DicomsortError, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRIES = 3  # of an item whose worker something else killed
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may cost: wall-clock seconds, and bytes of virtual memory beyond what the imports took."""

    seconds: float
    memory_bytes: int


class Engine(Protocol):
    """Runs tasks; leaving its context closes it.

    ``workers`` is the number of tasks that run at the same time. A function must be importable by name
    (or a ``functools.partial`` of such a one), its task and its result must pickle.
    """

    workers: int

    def submit(self, function: Callable[[T], R], task: T, /) -> Future[R]:
        """Run ``function(task)``; blocks while too many tasks wait already.

        The future holds the result, the exception that the function raised, or ``WorkerLost`` where the task killed
        its worker or ran past a limit. Raises ``DicomsortError`` where the engine is closed.
        """
        ...

    def check_workers(self, _look: Callable[[], T], _amiss: Callable[[T], str], /) -> None:
        """Hold workers on other machines to what this one sees; here for engines that have none elsewhere.

        ``amiss(look())`` runs there (``look()`` here; both as a task's function and task must be) and says what is
        wrong, ``""`` for nothing. Raises ``DicomsortError`` naming each worker that has something to say; one that
        joins later is asked before its first task, which ends with the same error.
        """
        return

    def close(self) -> None:
        """Stop at once: what has not finished ends with ``DicomsortError``. Closing again does nothing."""
        ...

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the engine."""
        self.close()


def submit_batch(
    engine: Engine,
    function: Callable[[list[T]], list[R]],
    items: Sequence[T],
    on_lost: Callable[[T, WorkerLost], R],
) -> Future[list[R]]:
    """Run ``function(items)`` as one task; where it is lost, run its items one by one to single out the culprit.

    ``function`` returns one result an item, in their order, and so does the future. ``on_lost`` makes the result of an
    item that is lost on its own; it is called in another thread. Blocks as ``Engine.submit`` does.
    """
    batch = list(items)
    outcome: Future[list[R]] = Future()
    outcome.set_running_or_notify_cancel()  # from here on only this function settles it

    def one_by_one() -> None:
        try:
            outcome.set_result([_alone(engine, function, item, on_lost) for item in batch])
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to who waits for the outcome
            outcome.set_exception(error)

    def settle(done: Future[list[R]]) -> None:
        if done.cancelled():
            outcome.set_exception(DicomsortError("the engine cancelled a batch of tasks"))
        elif (error := done.exception()) is None:
            outcome.set_result(done.result())
        elif isinstance(error, WorkerLost):
            # a thread of its own: the callback's thread feeds a worker, and must not wait for room in the queue
            threading.Thread(target=one_by_one, name="dicomsort-retry", daemon=True).start()
        else:
            outcome.set_exception(error)

    engine.submit(function, batch).add_done_callback(settle)
    return outcome


def _alone(
    engine: Engine,
    function: Callable[[list[T]], list[R]],
    item: T,
    on_lost: Callable[[T, WorkerLost], R],
) -> R:
    for left in reversed(range(TRIES)):
        try:
            (result,) = engine.submit(function, [item]).result()
        except WorkerLost as error:
            if not (error.from_outside and left):
                return on_lost(item, error)
        else:
            return result
    raise AssertionError("the last try returns")


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
