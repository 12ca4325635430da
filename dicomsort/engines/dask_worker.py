"""Runs tasks on a Dask worker in processes of its own, once it is known to see what the run's own host sees.

Dask's workers are daemonic and may not fork, and a task that dies would take such a worker with it. So each has a
``processes`` engine: the same limits hold there, and a hostile file costs neither the Dask worker nor its other tasks.
The processes end with the Dask worker, however that ends, or when no task came for a while.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dicomsort import __version__
from dicomsort.engines.engine import TaskLimits
from dicomsort.engines.processes import ProcessEngine
from dicomsort.errors import DicomsortError, WorkerLost

IDLE_SECONDS = 60.0  # a cluster outlives a run: idle processes are ended
MAX_CONFIRMED = 16  # requirements


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What comes with every task: its limits, the modules that a process imports first, and what must hold here.

    ``requirement`` is a pickled ``(difference, snapshot)`` (``Engine.check_workers``), empty where nothing is required.
    """

    limits: TaskLimits
    warm: tuple[str, ...]
    requirement: bytes = b""


@dataclass
class _Local:
    engine: ProcessEngine
    users: int = 0
    used: float = 0.0


_lock = threading.Lock()
_locals: dict[tuple[TaskLimits, tuple[str, ...]], _Local] = {}
_confirmed: set[bytes] = set()


def run_here(version: str, payload: bytes) -> object:
    """Run a pickled ``(function, task, seconds, settings)`` in a process that can be killed.

    ``version`` is compared before anything is unpickled that may have changed with it.
    """
    from distributed import get_worker

    worker = get_worker()
    if version != __version__:
        message = f"{_named(worker)}: expected dicomsort {version}, received {__version__}; install the same there"
        raise DicomsortError(message)
    function, task, seconds, settings = pickle.loads(payload)  # noqa: S301 - Dask's own wire is pickle too
    with _local_engine(worker, settings) as engine:
        if settings.requirement and (difference := _difference(engine, settings.requirement)):
            raise DicomsortError(f"{_named(worker)}: {difference}")
        return engine.submit(function, task, seconds).result()


async def check_host(settings: WorkerSettings, dask_worker: Any) -> tuple[str, str]:
    """Check the requirement anew; return this host's name and what differs here, ``""`` where nothing does."""

    def check() -> tuple[str, str]:
        _confirmed.discard(settings.requirement)
        with _local_engine(dask_worker, settings) as engine:
            return socket.gethostname(), _difference(engine, settings.requirement)

    return await asyncio.to_thread(check)  # a mount whose server is gone must not stop the worker's event loop


def _difference(engine: ProcessEngine, requirement: bytes) -> str:
    if requirement in _confirmed:
        return ""
    function, snapshot = pickle.loads(requirement)  # noqa: S301
    try:
        difference: str = engine.submit(function, snapshot).result()
    except WorkerLost as lost:
        return f"expected its file system to answer, received: {lost}; look at its mounts"
    if not difference:
        if len(_confirmed) >= MAX_CONFIRMED:
            _confirmed.clear()
        _confirmed.add(requirement)
    return difference


def _named(worker: Any) -> str:
    return f"Dask worker {worker.address} on {socket.gethostname()}"


@contextmanager
def _local_engine(worker: Any, settings: WorkerSettings) -> Iterator[ProcessEngine]:
    key = settings.limits, settings.warm
    with _lock:
        local = _locals.get(key)
        if local is None:
            count = processes_for(worker.state.nthreads, worker.memory_manager.memory_limit, settings.limits)
            local = _locals[key] = _Local(ProcessEngine(count, *key))
            threading.Thread(target=_end_when_idle, args=(key, local), name="dicomsort-idle", daemon=True).start()
        local.users += 1
    try:
        yield local.engine
    finally:
        with _lock:
            local.users -= 1
            local.used = time.monotonic()


def processes_for(threads: int, memory_limit: int | None, limits: TaskLimits) -> int:
    """Return how many processes a Dask worker gets: one a thread, fewer where its memory has no room for them.

    Dask counts the memory of its own process alone, so ``--memory-limit`` (bytes; None or 0: there is none) would not
    hold what its children take.
    """
    room = memory_limit // limits.memory_bytes if memory_limit else threads
    return max(1, min(threads, room))


def _end_when_idle(key: tuple[TaskLimits, tuple[str, ...]], local: _Local) -> None:
    while True:
        time.sleep(IDLE_SECONDS / 4)
        with _lock:
            if not local.users and time.monotonic() - local.used > IDLE_SECONDS:
                del _locals[key]
                break
    local.engine.close()
