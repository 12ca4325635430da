"""The engine of a Dask cluster (extra ``dicomsort[cluster]``): tasks run on the machines behind a scheduler.

On a Dask worker a task runs in a ``processes`` engine of that worker's own: limits hold there by the same mechanism,
and a hostile file costs neither the Dask worker nor the other tasks on it.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from dicomsort import __version__
from dicomsort.adapters.processes import WAITING_PER_WORKER, ProcessEngine
from dicomsort.adapters.slots import CLOSED, Slots
from dicomsort.engine import Engine, Limits, R, T
from dicomsort.errors import DicomsortError, UsageError, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_SECONDS = 10
SCHEMES = ("tcp://", "tls://")

_local: dict[tuple[Limits, tuple[str, ...]], ProcessEngine] = {}  # on a Dask worker, as long as it lives
_local_lock = threading.Lock()


class ClusterEngine(Engine):
    """Runs tasks behind the scheduler at ``address`` (``tcp://host:port``, ``tls://…``), at most ``workers`` at a time.

    Raises ``UsageError`` without an address or without the package, ``DicomsortError`` where no scheduler or no worker
    answers within 10 s, or where a worker has another version of the product than this one, or none.
    """

    def __init__(self, address: str | None, workers: int | None, limits: Limits, warm: tuple[str, ...] = ()) -> None:
        if not address:
            raise UsageError("expected --scheduler ADDRESS (tcp://host:8786) with --engine dask, received none")
        self._address = address
        self._client = _connect(address)
        try:
            threads = _threads(self._client, address)
        except BaseException:
            self._client.close()
            raise
        self.workers = min(workers or threads, threads)
        self._slots = Slots(workers or WAITING_PER_WORKER * threads)
        self._executor = self._client.get_executor(pure=False)
        self._settings = (limits, warm)
        self._pending: set[Future[Any]] = set()

    def submit(self, function: Callable[[T], R], task: T, /) -> Future[R]:
        """Send a task to the scheduler; blocks while four a worker (or ``workers``, where given) are there."""
        self._slots.take()
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        self._pending.add(future)
        try:  # as bytes, for Dask would look for tasks of its own inside lists and tuples
            payload = pickle.dumps((function, task, *self._settings), pickle.HIGHEST_PROTOCOL)
            self._executor.submit(run_here, payload).add_done_callback(partial(self._settle, future))
        except Exception as error:  # noqa: BLE001 - it belongs to who asks for the result
            self._finish(future, error)
        return future

    def close(self) -> None:
        """Cancel what has not finished, and disconnect; the cluster is left as it is."""
        if self._slots.closed:
            return
        self._slots.close()
        while self._pending:
            self._pending.pop().set_exception(DicomsortError(CLOSED))
        self._client.close()

    def _settle(self, future: Future[Any], done: Future[Any]) -> None:
        if done.cancelled():
            self._finish(future, DicomsortError(f"the Dask scheduler at {self._address} was lost, or dropped a task"))
        else:
            error = done.exception()
            self._finish(future, error and self._translated(error), None if error else done.result())

    def _finish(self, future: Future[Any], error: BaseException | None, result: object = None) -> None:
        try:
            self._pending.remove(future)
        except KeyError:  # close finished it
            return
        self._slots.give()
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _translated(self, error: BaseException) -> BaseException:
        if type(error).__name__ == "KilledWorker":
            return WorkerLost("the task was lost with each Dask worker that it was given to")
        if type(error).__module__.startswith("distributed"):
            return DicomsortError(f"the Dask cluster at {self._address} failed: {error}")
        return error


def run_here(payload: bytes) -> object:
    """On a Dask worker: run a pickled ``(function, task, limits, warm)`` in a process that can be killed."""
    from distributed import get_worker

    function, task, limits, warm = pickle.loads(payload)  # noqa: S301 - Dask's own wire is pickle too
    with _local_lock:
        engine = _local.get((limits, warm))
        if engine is None:
            engine = _local[limits, warm] = ProcessEngine(get_worker().state.nthreads, limits, warm)
    return engine.submit(function, task).result()


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("expected the extra dicomsort[cluster] for --engine dask, received: not installed") from None
    if not address.startswith(SCHEMES):
        raise UsageError(f"expected --scheduler tcp://HOST:PORT or tls://HOST:PORT, received {address}")
    try:
        asyncio.run(_shake_hands(address))
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="dicomsort")
    except Exception as error:  # noqa: BLE001 - whatever is said by something that may be no scheduler at all
        raise DicomsortError(
            f"expected a Dask scheduler at {address} to answer within {CONNECT_SECONDS} s, "
            f"received: {type(error).__name__}; check --scheduler"
        ) from None


async def _shake_hands(address: str) -> None:
    # Client waits without end for a peer that accepts the connection and says nothing.
    from distributed import Security
    from distributed.comm import connect

    async with asyncio.timeout(CONNECT_SECONDS):
        comm = await connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
    comm.abort()


def _threads(client: Any, address: str) -> int:
    """Count the threads of all workers, each of which must have this version of the product."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        versions = client.run(_version_probe(), on_error="return")
        threads: int = sum(client.nthreads().values())
    except (OSError, TimeoutError) as error:
        raise DicomsortError(
            f"expected a Dask worker behind {address} within {CONNECT_SECONDS} s, received: {type(error).__name__}"
        ) from None
    odd = [f"{worker}: {version}" for worker, version in sorted(versions.items()) if version != __version__]
    if odd:
        raise DicomsortError(f"expected dicomsort {__version__} on every Dask worker, received {'; '.join(odd)}")
    return threads


def _version_probe() -> Callable[[], str]:
    # Dask sends a nested function by value: it runs where this package cannot be imported, too.
    def probe() -> str:
        try:
            from dicomsort import __version__ as version
        except ImportError as error:
            return f"none ({error})"
        return version

    return probe
