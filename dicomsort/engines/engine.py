"""What an engine is: it runs picklable functions on picklable tasks, maybe elsewhere.

The pipeline knows only this shape of the engines. ``Slots`` limits how many tasks are on their way. ``SerialEngine``
runs each task in the calling thread, at once and without limits: for tests and for debugging.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from dicomsort.errors import DicomsortError, WorkerLost
from dicomsort.memory import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

TRIES = 3  # of an item whose worker something else killed
AHEAD = 4  # tasks a worker that are submitted before the first result is waited for
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What one task may cost: wall-clock seconds, and bytes of virtual memory beyond those of the imports."""

    seconds: float
    memory_bytes: int


class Engine(Protocol):
    """Runs tasks; leaving its context closes it.

    ``workers`` is the number of tasks that run at the same time. A function must be importable by name
    (or a ``functools.partial`` of such a one), its task and its result must pickle.
    """

    workers: int

    def submit(self, function: Callable[[T], R], task: T, /, seconds: float | None = None) -> Future[R]:
        """Run ``function(task)``, for ``seconds`` at most (None: the engine's limit); blocks while too many tasks wait.

        The future holds the result, the exception that the function raised, or ``WorkerLost`` where the task killed
        its worker or ran past a limit. Raises ``DicomsortError`` where the engine is closed.
        """
        ...

    def warm_up(self) -> None:
        """Start a worker before there is a task for it; an engine that starts none itself does nothing."""
        return

    def check_workers(self, _snapshot: Callable[[], T], _difference: Callable[[T], str], /) -> None:
        """Check that workers on other machines see what this one sees; engines without such workers do nothing.

        ``snapshot()`` is called here, ``difference`` of its result by each worker: it returns what differs, or ``""``.
        Both must pickle, as a task's function and task must. Raises ``DicomsortError`` naming each worker with a
        difference; a worker that joins later is checked before its first task, which ends with the same error.
        """
        return

    def close(self) -> None:
        """Stop at once: what has not finished ends with ``DicomsortError``. Closing again does nothing."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def submit_batch(
    engine: Engine,
    function: Callable[[list[T]], list[R]],
    items: Sequence[T],
    on_lost: Callable[[T, WorkerLost], R],
) -> Future[list[R]]:
    """Run ``function(items)`` as one task; where it is lost, run its items one by one to find the one at fault.

    ``function`` returns one result an item, in their order, and so does the future. ``on_lost`` makes the result of an
    item that is lost on its own; it is called in another thread. Blocks as ``Engine.submit`` does.
    """
    batch = list(items)
    outcome: Future[list[R]] = Future()
    outcome.set_running_or_notify_cancel()  # from here on only this function completes it

    def one_by_one() -> None:
        try:
            outcome.set_result([_alone(engine, function, item, on_lost) for item in batch])
        except BaseException as error:  # noqa: BLE001 - whoever waits for the outcome gets it
            outcome.set_exception(error)

    def complete(done: Future[list[R]]) -> None:
        if done.cancelled():
            outcome.set_exception(DicomsortError("the engine cancelled a batch of tasks"))
        elif (error := done.exception()) is None:
            outcome.set_result(done.result())
        elif isinstance(error, WorkerLost):
            # a thread of its own: the callback's thread feeds a worker, and must not wait for room in the queue
            try:
                threading.Thread(target=one_by_one, name="dicomsort-retry", daemon=True).start()
            except (RuntimeError, MemoryError):  # "can't start new thread"
                outcome.set_exception(DicomsortError(refusal()))
        else:
            outcome.set_exception(error)

    engine.submit(function, batch).add_done_callback(complete)
    return outcome


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def map_in_order(
    engine: Engine,
    function: Callable[[list[T]], list[R]],
    batches: Iterable[Sequence[T]],
    on_lost: Callable[[T, WorkerLost], R],
) -> Iterator[list[R]]:
    """Yield ``function(batch)`` of each batch, in their order; see ``submit_batch``.

    Batches are taken as workers need them, so that few results wait in memory.
    """
    submitted = deque[Future[list[R]]]()
    for batch in batches:
        submitted.append(submit_batch(engine, function, batch, on_lost))
        if len(submitted) > AHEAD * engine.workers:
            yield submitted.popleft().result()
    while submitted:
        yield submitted.popleft().result()


def _alone(engine: Engine, function: Callable[[list[T]], list[R]], item: T, on_lost: Callable[[T, WorkerLost], R]) -> R:
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
    """A semaphore of ``number`` places that can be closed."""

    def __init__(self, number: int) -> None:
        self._free = threading.Semaphore(number)
        self._reason = CLOSED
        self.closed = False

    def take(self) -> None:
        """Wait for a place and take it; raises ``DicomsortError`` once closed, also in threads that wait."""
        self._free.acquire()
        if self.closed:
            self._free.release()  # wakes the next thread that waits
            raise DicomsortError(self._reason)

    def give(self) -> None:
        """Give a place back."""
        self._free.release()

    def close(self, reason: str = CLOSED) -> None:
        """Refuse from now on, for that reason, and wake the threads that wait."""
        if not self.closed:
            self._reason, self.closed = reason, True
        self._free.release()


class SerialEngine(Engine):
    """Runs each task inside ``submit``."""

    workers = 1
    _closed = False

    def submit(self, function: Callable[[T], R], task: T, /, seconds: float | None = None) -> Future[R]:  # noqa: ARG002
        """Run the task now; the future is done."""
        if self._closed:
            raise DicomsortError(CLOSED)
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(task))
        except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Refuse further tasks."""
        self._closed = True
