"""The engine of a Dask cluster (extra ``cluster``): tasks run on the machines behind a scheduler.

``remote`` is the other end, on each Dask worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from dicomsort import __version__
from dicomsort.adapters.connecting import CONNECT_SECONDS, ask_workers, check_address, connected, count_threads, listed
from dicomsort.adapters.processes import WAITING_PER_WORKER
from dicomsort.adapters.remote import Settings, meet
from dicomsort.adapters.slots import CLOSED, Slots
from dicomsort.engine import Engine, Limits, R, T
from dicomsort.errors import DicomsortError, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable

WATCH_SECONDS = 2.0  # between looks whether there are workers
GIVE_UP_SECONDS = 60.0  # without one: a nanny starts another in a few, a scheduler of jobs may need a while
_MISFIT = "dicomsort on a Dask worker"
_AGAIN = "look at the cluster, then run the command again"


class ClusterEngine(Engine):
    """Runs tasks behind the scheduler at ``address`` (``tcp://host:port``, ``tls://…``), at most ``workers`` at a time.

    A Dask worker that dies costs time: its tasks run on the others. One that joins gets tasks, and more may wait then.
    Where no worker is there for 60 s, or the scheduler does not answer for so long, every task ends with
    ``DicomsortError``.

    Raises ``UsageError`` without an address or without the package, ``DicomsortError`` where no scheduler or no worker
    answers within 10 s, or where a worker has another version of the product than this one, or none.
    """

    def __init__(self, address: str | None, workers: int | None, limits: Limits, warm: tuple[str, ...] = ()) -> None:
        self._address = check_address(address)
        self._client = connected(self._address)
        try:
            threads = count_threads(self._client, self._address)
        except BaseException:
            self._client.close()
            raise
        self.workers = min(workers or threads, threads)
        self._is_bounded = workers is not None
        self._slots = Slots(workers or WAITING_PER_WORKER * threads)
        self._settings = Settings(limits, warm)
        self._run = _runner()
        self._lock = threading.Lock()
        self._pending: dict[Future[Any], Future[None]] = {}  # and what waits for each at Dask
        self._loop = self._client.loop.asyncio_loop
        self._loop.set_exception_handler(lambda _loop, _context: None)  # of what is dropped at the end it tells nobody
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def submit(self, function: Callable[[T], R], task: T, /) -> Future[R]:
        """Send a task to the scheduler; blocks while four a worker (or ``workers``, where given) are there."""
        self._slots.take()
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        try:  # as bytes, for Dask would look for tasks of its own inside lists and tuples
            payload = pickle.dumps((function, task, self._settings), pickle.HIGHEST_PROTOCOL)
            sent = self._client.submit(self._run, __version__, payload, pure=False)
        except Exception as error:  # noqa: BLE001 - it belongs to who asks for the result
            self._slots.give()
            future.set_exception(error)
            return future
        with self._lock:
            if not self._slots.closed:
                self._pending[future] = asyncio.run_coroutine_threadsafe(self._deliver(sent, future), self._loop)
                return future
        self._slots.give()
        return self.submit(function, task)  # raises, saying why it was closed meanwhile

    def check_workers(self, look: Callable[[], T], amiss: Callable[[T], str], /) -> None:
        """Ask every worker at once, and each that joins later before its first task."""
        settings = Settings(self._settings.limits, self._settings.warm, pickle.dumps((amiss, look())))
        if odd := [(who, said) for who, said in ask_workers(self._client, meet, settings) if said]:
            raise DicomsortError(listed(odd))
        self._settings = settings

    def close(self) -> None:
        """Cancel what has not finished, and disconnect; the cluster is left as it is."""
        self._end(CLOSED)
        self._watching.cancel()
        with contextlib.suppress(Exception):  # a scheduler that is gone cannot be said goodbye to
            self._client.close(timeout=CONNECT_SECONDS)

    def _end(self, why: str) -> None:
        with self._lock:
            self._slots.close(why)
            left, self._pending = self._pending, {}
        for future, waiting in left.items():
            waiting.cancel()
            future.set_exception(DicomsortError(why))

    async def _deliver(self, sent: Any, future: Future[Any]) -> None:
        error: BaseException | None = None
        result = None
        try:
            result = await self._client.gather(sent, asynchronous=True)
        except asyncio.CancelledError:  # by ``_end``
            raise
        except BaseException as raised:  # noqa: BLE001 - it belongs to who asks for the result
            error = self._translated(raised, sent.status)
        with self._lock:
            if self._pending.pop(future, None) is None:  # ``_end`` finished it
                return
        self._slots.give()
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _translated(self, error: BaseException, status: str) -> BaseException:
        if status != "error":  # not the task's own
            return DicomsortError(f"the Dask scheduler at {self._address} was lost, or dropped a task; {_AGAIN}")
        if type(error).__name__ == "KilledWorker":
            return WorkerLost("the task was lost with each Dask worker that it was given to")
        if isinstance(error, ImportError) and error.name == _MISFIT:
            return DicomsortError(str(error))
        if type(error).__module__.startswith("distributed"):
            return DicomsortError(f"the Dask cluster at {self._address} failed: {error}; {_AGAIN}")
        return error

    async def _watch(self) -> None:
        """Give up where no worker runs for long, for Dask itself waits without end; take in those that join."""
        silent, why = 0.0, ""
        while silent < GIVE_UP_SECONDS:  # counted in ticks: a run that was suspended (Ctrl-Z) missed nothing
            await asyncio.sleep(WATCH_SECONDS)
            silent += WATCH_SECONDS
            try:
                identity = await asyncio.wait_for(self._client.scheduler.identity(), CONNECT_SECONDS)
                why = f"expected a running worker behind the Dask scheduler at {self._address}, received none"
                if running := [w["nthreads"] for w in identity["workers"].values() if w["status"] == "running"]:
                    silent = 0.0
                    self._grow(sum(running))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
                silent += CONNECT_SECONDS if isinstance(error, TimeoutError) else 0
                why = f"expected the Dask scheduler at {self._address} to answer, received nothing"
        self._end(f"{why} for {GIVE_UP_SECONDS:g} s; {_AGAIN}")

    def _grow(self, threads: int) -> None:
        if self._is_bounded or threads <= self.workers:
            return
        for _ in range(WAITING_PER_WORKER * (threads - self.workers)):
            self._slots.give()
        self.workers = threads


def _runner() -> Callable[[str, bytes], object]:
    # By value, as ``connecting._version_probe``: a Dask worker that cannot import what it is sent ends at once, and the
    # next one that its nanny starts too, until the scheduler takes the task for what killed them.
    def run(version: str, payload: bytes) -> object:
        try:
            from dicomsort.adapters.remote import run_here
        except ImportError as error:
            import socket

            from distributed import get_worker

            who = f"Dask worker {get_worker().address} on {socket.gethostname()}"
            message = f"{who}: expected dicomsort {version}, received none ({error}); install it there"
            raise ImportError(message, name=_MISFIT) from None
        return run_here(version, payload)

    return run
