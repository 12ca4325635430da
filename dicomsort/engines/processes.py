"""The engine of worker processes: a task that dies, or runs past a limit, costs its own worker and nothing else.

Workers are forked, as tasks come, from a subprocess that has imported their modules and has no threads; each has a
private socket pair. One thread a worker feeds it; a watchdog thread kills a worker whose task runs past its time, which
the feeder sees as the end of the pipe. Memory is limited in the worker itself: ``fork_server.limit_memory``.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import sendfds
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dicomsort.engines.engine import CLOSED, Engine, R, Slots, T, TaskLimits
from dicomsort.errors import DicomsortError, WorkerLost
from dicomsort.memory import ADDRESSES, require_address_space, shortage, workers_for

if TYPE_CHECKING:
    from collections.abc import Callable

START_SECONDS = 60.0  # for the imports, which are no task's fault
TICK = 0.05  # seconds between looks whether the engine was closed meanwhile
START_TRIES = 3
WAITING_PER_WORKER = 4
ROOT = Path(__file__).parents[2]
_log = logging.getLogger("dicomsort")
# Signals that no crash sends: they come from the system when memory runs out, or from a person.
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}


class _Job(NamedTuple):
    function: Callable[[Any], Any]
    task: Any
    future: Future[Any]
    seconds: float


class _ForkServer:
    """The process that workers are forked from: modules are imported once for all of them. For any thread."""

    def __init__(self, setup: object) -> None:
        self._socket, theirs = socket.socketpair()
        self._control: Connection[Any, Any] = Connection(self._socket.dup().detach())
        command = [sys.executable, "-P", "-X", f"utf8={sys.flags.utf8_mode}"]
        command += [str(Path(__file__).with_name("fork_server.py")), str(theirs.fileno())]
        with theirs:
            # What libraries print goes nowhere: it may quote a header, and stdout belongs to the result.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | ONE_THREAD,
                start_new_session=True,  # signals of the terminal are the parent's to handle
            )
        self._setup = setup
        self._lock = threading.Lock()

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Wait until it can fork, or the engine ``is_over``; WorkerLost where it ends, or imports for too long."""
        left = START_SECONDS
        try:
            self._control.send(self._setup)
            while not self._control.poll(TICK):
                left -= TICK
                if left < 0 or is_over():
                    self._process.kill()
            self._control.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            ending = _ending(code) if left >= 0 else f"ran past {START_SECONDS:g} s"
            raise WorkerLost(f"the worker process {ending}") from None

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, pipe: int) -> int:
        """Return the process number of a new worker, which serves ``pipe``; OSError or EOFError where there is none."""
        answer = self._ask(None, pipe)
        if isinstance(answer, OSError):
            raise answer
        return int(answer)

    def exit_code(self, worker: int) -> int:
        """Return how a worker ended whose pipe is closed; with this process all of its workers are killed."""
        try:
            return int(self._ask(worker))
        except (EOFError, OSError):
            return -signal.SIGKILL

    def _ask(self, message: int | None, pipe: int | None = None) -> Any:
        """Return the answer; OSError or EOFError where none comes, and then the process is dead."""
        with self._lock:
            try:
                self._control.send(message)
                if pipe is not None:
                    sendfds(self._socket, [pipe])
                if not self._control.poll(START_SECONDS):  # something stopped it
                    self._process.kill()
                return self._control.recv()
            except (EOFError, OSError):
                self._end()
                raise

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._end()
        with self._lock:  # who asks still would read from the next socket that gets this number
            self._socket.close()
            self._control.close()


class _Worker:
    """One worker process and this end of its pipe."""

    def __init__(self, server: _ForkServer) -> None:
        self._socket, theirs = socket.socketpair()
        self.pipe: Connection[Any, Any] = Connection(self._socket.fileno())  # which closes it
        self._server = server
        with theirs:
            try:
                self.pid = server.fork(theirs.fileno())
            except BaseException:
                self._close()
                raise
        self.known: set[bytes] = set()  # pickled functions that it has loaded
        self._lock = threading.Lock()
        self._allowed = self._left = 0.0
        self._computed = 0.0  # seconds of the processor, when the running task began
        self._busy = self._has_waited = self._is_over = False
        self._kill_reason = ""
        self._exit_code = 0

    def ask(self, message: object, seconds: float) -> tuple[str, Any]:
        """Send and wait for the answer; raises ``WorkerLost`` with the reason where none comes."""
        payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._allowed = self._left = seconds
            self._computed = self._processor_seconds()
            self._busy = True
        try:
            self.pipe.send_bytes(payload)
            answer = self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.stop()
            from_outside = self._has_waited if self._kill_reason else -self._exit_code in _FROM_OUTSIDE
            reason = f"the worker process {self._kill_reason or _ending(self._exit_code)}"
            raise WorkerLost(reason, from_outside=from_outside) from None
        finally:
            with self._lock:
                self._busy = False
        if self._kill_reason:  # it answered and was killed at the same moment
            self.stop()
        # Pickle is safe here: the pipe is private, and both of its ends were made by this process.
        outcome, value = pickle.loads(answer)  # noqa: S301
        return outcome, value

    def spend(self, seconds: float) -> None:
        """Take time off what the running task may use; kill the worker when none is left.

        A task that computed for less than half of its time is not at fault: a disk stood still, or the machine is busy.
        """
        with self._lock:
            self._left -= seconds
            if self._busy and self._left < 0 and not self._kill_reason:
                self._has_waited = self._processor_seconds() - self._computed < self._allowed / 2
                waited = ", most of them waiting for a disk or the processor" if self._has_waited else ""
                self._kill_reason = f"ran past {self._allowed:g} s{waited}"
                self._kill()

    def _processor_seconds(self) -> float:
        """Return for how long the process has computed; infinity where the system does not say."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            return math.inf
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime of proc(5)

    def is_alive(self) -> bool:
        """Whether it lives, while it has no task: then it sends nothing but the end of its pipe."""
        return not self._is_over and not self.pipe.poll()

    def kill(self) -> None:
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        # Nobody else gets this number before the fork server has told how the worker ended.
        if not self._is_over and self._server.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with suppress(OSError):  # a process that the worker started may hold the other end open
            self._socket.shutdown(socket.SHUT_RD)

    def stop(self) -> None:
        """Kill it, and wait for its end."""
        if self._is_over:
            return
        self.kill()
        self._wait()
        with self._lock:
            self._is_over = True
        self._exit_code = self._server.exit_code(self.pid)
        with self._lock:  # a kill at this moment must not shut another file of that number
            self._close()

    def _wait(self) -> None:
        """Wait for its end where the system can: a disk that stands still may delay it, and others ask the server."""
        if sys.platform != "linux" or not self._server.is_alive():
            return
        with suppress(OSError):
            process = os.pidfd_open(self.pid)
            try:
                wait([process])
            finally:
                os.close(process)

    def _close(self) -> None:
        self._socket.detach()
        self.pipe.close()


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit status {code}"


class ProcessEngine(Engine):
    """At most ``workers`` processes, each forked when a task finds none free; ``warm`` names modules to import before.

    The default is one for each core that this process may use. Fewer are started where memory is too small for as many
    tasks that each use all they may, or where the system starts no more. Raises ``DicomsortError`` where the address
    space (`ulimit -v`) is too small for one.
    """

    def __init__(self, workers: int | None, limits: TaskLimits, warm: tuple[str, ...] = ()) -> None:
        require_address_space(ADDRESSES + limits.memory_bytes)
        self.workers = workers_for(workers or usable_cores(), limits.memory_bytes)
        self._refused = workers if workers and self.workers < workers else 0
        self._limits = limits
        self._setup = (_import_path(), warm, limits.memory_bytes)
        self._server: _ForkServer | None = None
        self._starting = threading.Lock()
        self._slots = Slots(WAITING_PER_WORKER * self.workers)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unfinished = 0  # jobs, waiting or running
        self._lock = threading.Lock()
        self._running: dict[int, _Worker] = {}
        self._feeders = 0  # that take jobs
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._start(self._watch, "dicomsort-watchdog")

    def submit(self, function: Callable[[T], R], task: T, /, seconds: float | None = None) -> Future[R]:
        """Queue a task; blocks while four a worker wait."""
        self._slots.take()
        future: Future[R] = Future()
        with self._lock:
            if self._slots.closed:
                raise DicomsortError(CLOSED)
            if self._refused:  # said now, for before the first task no log may be open
                _warn(self._refused, self.workers, "there is no memory for more")
                self._refused = 0
            if self._unfinished >= self._feeders < self.workers:
                try:
                    self._add_feeder()
                except DicomsortError:
                    self._slots.give()
                    raise
            self._unfinished += 1
            self._jobs.put(_Job(function, task, future, seconds or self._limits.seconds))
        return future

    def warm_up(self) -> None:
        """Start the first worker, which imports its modules while the caller does other things."""
        with self._lock:
            if not self._feeders and not self._slots.closed:
                self._add_feeder()

    def close(self) -> None:
        """Kill the workers, and end what has not finished with ``DicomsortError``."""
        with self._lock:
            self._slots.close()
            running = list(self._running.values())
        self._stopped.set()
        for worker in running:
            worker.kill()
        for _ in self._threads:
            self._jobs.put(None)
        try:
            for thread in self._threads:
                thread.join()
        finally:  # also where a signal ends the waiting
            if self._server is not None:
                self._server.close()

    def _start(self, run: Callable[..., None], name: str, *arguments: int) -> None:
        thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _add_feeder(self) -> None:
        try:
            self._start(self._feed, "dicomsort-feeder", len(self._threads))
        except (RuntimeError, MemoryError) as error:  # "can't start new thread"
            if not self._feeders:
                raise DicomsortError(f"expected a thread to start, received: {error}") from None
            self._use_fewer(self._feeders, str(error))
        else:
            self._feeders += 1

    def _use_fewer(self, workers: int, reason: str) -> None:
        _warn(self.workers, workers, reason)
        self.workers = workers

    def _watch(self) -> None:
        # Time is counted in ticks: while a run is suspended (Ctrl-Z), its tasks spend none.
        tick = min(0.25, self._limits.seconds / 10)
        while not self._stopped.wait(tick):
            for worker in list(self._running.values()):
                worker.spend(tick)

    def _feed(self, number: int) -> None:
        if self._is_needless(number):
            return
        while (job := self._jobs.get()) is not None:
            self._slots.give()
            if job.future.set_running_or_notify_cancel():
                self._complete(number, job)
            else:
                self._count_finished()
            del job  # while waiting for the next, keep no batch in memory
        if worker := self._running.pop(number, None):
            worker.stop()

    def _is_needless(self, number: int) -> bool:
        """Start a worker; return whether that failed, and others are there for its tasks."""
        try:
            self._ready(number)
        except Exception as error:  # noqa: BLE001 - a feeder that dies would leave its tasks waiting
            with self._lock:
                if self._feeders > 1 and not self._slots.closed:
                    self._feeders -= 1
                    self._use_fewer(self._feeders, str(error))
                    return True
        return False  # the first task tries again, and gets the error

    def _complete(self, number: int, job: _Job) -> None:
        try:
            result = self._run(number, job)
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            self._count_finished()
            job.future.set_exception(error)
        else:
            self._count_finished()  # before a thread that waits for the result submits the next task
            job.future.set_result(result)

    def _count_finished(self) -> None:
        with self._lock:
            self._unfinished -= 1

    def _run(self, number: int, job: _Job) -> object:
        name, message = pickle.dumps(job.function), pickle.dumps(job.task, pickle.HIGHEST_PROTOCOL)
        worker = self._ready(number)
        try:
            outcome: str = "done"
            value: Any = None
            if name not in worker.known:
                outcome, value = worker.ask((name, None), START_SECONDS)
                if outcome == "memory":  # no task had begun
                    worker.stop()
                    raise DicomsortError(f"expected memory for a worker process, received none; {shortage()}")
            if outcome == "done":
                worker.known.add(name)
                outcome, value = worker.ask((name, message), job.seconds)
        except WorkerLost:
            if self._slots.closed:  # close killed it: the task is not to blame
                raise DicomsortError(CLOSED) from None
            raise
        if outcome == "memory":
            worker.stop()
            raise WorkerLost(f"the worker process ran past {self._limits.memory_bytes >> 20} MiB of memory")
        if outcome == "raised":
            raise value
        return value

    def _ready(self, number: int) -> _Worker:
        """Return a worker that waits for a task: the present one, or where that died a new one."""
        worker = self._running.get(number)
        if worker is not None:
            if worker.is_alive():
                return worker
            worker.stop()
        reason: Exception | None = None
        for _ in range(START_TRIES):
            try:
                server = self._fork_server()
                with self._lock:
                    if self._slots.closed:
                        raise DicomsortError(CLOSED)
                    worker = self._running[number] = _Worker(server)
            except (WorkerLost, OSError, EOFError) as error:
                reason = error
            else:
                return worker
        raise DicomsortError(f"expected a worker process to start, received: {reason}")

    def _fork_server(self) -> _ForkServer:
        """Return the fork server, once it is ready; a new one where the last is dead."""
        with self._starting:
            if self._server is None or not self._server.is_alive():
                if self._slots.closed:
                    raise DicomsortError(CLOSED)
                if self._server is not None:
                    self._server.close()
                self._server = _ForkServer(self._setup)
                self._server.wait(lambda: self._slots.closed)
            return self._server


def _warn(asked: int, workers: int, reason: str) -> None:
    facts = {"asked": asked, "workers": workers, "message": reason}
    _log.warning("fewer workers than asked for", extra={"facts": facts})


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _import_path() -> list[str]:
    """Return this process's import path for workers, without the working folder, which may be an inbox."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        here = ROOT
    path = [entry for entry in sys.path if here == ROOT or (entry and Path(entry).resolve() != here)]
    return path if str(ROOT) in path else [*path, str(ROOT)]
