"""The engine of a Dask cluster (extra ``cluster``): tasks run on the machines behind a scheduler.

The scheduler must answer in time, and its workers must be fit for the run. ``dask_worker`` is the other end, on each
Dask worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import re
import threading
import warnings
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dicomsort import __version__
from dicomsort.engines.dask_worker import WorkerSettings, check_host
from dicomsort.engines.engine import CLOSED, Engine, R, Slots, T, TaskLimits
from dicomsort.engines.processes import WAITING_PER_WORKER
from dicomsort.errors import DicomsortError, UsageError, WorkerLost, missing_extra
from dicomsort.files import check_input

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # for a worker's first answer: its imports may come over a cold network
NAMED = 5  # workers that an error names one by one
_ADDRESS = re.compile(r"(tcp|tls)://([^:/\[\]]+|\[[^/\[\]]+\]):\d{1,5}")
_NO_CERTIFICATES = (
    "--scheduler {}: expected certificates in Dask's configuration (distributed.comm.tls.ca-file, .client.cert and "
    ".client.key, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE …), received {}"
)


def check_address(address: str | None) -> str:
    """Return the address of a scheduler, which is not called.

    Raises ``UsageError`` for none, an invalid one, ``tls://`` without certificates, or where the package is missing.
    """
    if not address:
        raise UsageError("expected --scheduler ADDRESS (tcp://host:8786) with --engine dask, received none")
    try:
        from distributed import Security
    except ImportError:
        raise missing_extra("--engine dask", "cluster") from None
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"expected --scheduler tcp://HOST:PORT or tls://HOST:PORT, received {address}")
    if address.startswith("tls"):
        security = Security()
        try:
            _check_files(security)
            context = security.get_connection_args("client").get("ssl_context")
        except (OSError, ValueError) as error:  # ssl.SSLError among them
            raise UsageError(_NO_CERTIFICATES.format(address, f"files that cannot be used: {error}")) from None
        if context is None:
            raise UsageError(_NO_CERTIFICATES.format(address, "none"))
    return address


def _check_files(security: Any) -> None:
    """Raise OSError for a file of the configuration that is no regular file, as a FIFO, which Dask would wait for."""
    named = security.get_tls_config_for_role("client")
    for name in filter(None, (named["ca_file"], named["cert"], named["key"])):
        if "\n" not in name:  # else it is the certificate itself
            check_input(name)


def _connect(address: str) -> Any:
    """Return a Dask client of a scheduler; DicomsortError where none answers within 10 s."""
    from distributed import Client, Security
    from distributed.versions import VersionMismatchWarning

    for name in filter(re.compile(r"(distributed|tornado)\b").match, logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are reported once, by an error of ours
    security = Security()
    try:
        asyncio.run(_shake_hands(address, security))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # ``_count_threads`` compares the versions
            return Client(address, timeout=CONNECT_SECONDS, security=security, set_as_default=False, name="dicomsort")
    except Exception as error:  # noqa: BLE001 - what answers may be no scheduler at all
        raise DicomsortError(
            f"expected a Dask scheduler at {address} to answer within {CONNECT_SECONDS:g} s, "
            f"received: {_cause(error)}; check --scheduler"
        ) from None


async def _shake_hands(address: str, security: Any) -> None:
    # Client waits without end for a peer that accepts the connection and sends nothing.
    from distributed.comm import connect

    async with asyncio.timeout(CONNECT_SECONDS):
        comm = await connect(address, timeout=CONNECT_SECONDS, **security.get_connection_args("client"))
    comm.abort()


def _cause(error: BaseException) -> str:
    """Return the system's message of the first error in the chain that has one."""
    message = ""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError) and each.strerror:
            message = each.strerror
        each = each.__cause__ or each.__context__
    if message:
        return message
    return "no answer" if isinstance(error, TimeoutError) else f"what is no Dask protocol ({type(error).__name__})"


def _count_threads(client: Any, address: str) -> int:
    """Count the threads of all workers; each must have this version of the product, of Dask and of Python.

    Of Python the minor version matters: what Dask sends by value is bytecode.
    """
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError):
        message = f"expected a Dask worker behind {address} within {CONNECT_SECONDS:g} s, received none; start some"
        raise DicomsortError(message) from None
    ours, theirs = client.sync(_dask_versions, client)
    if others := [(name, version) for name, version in theirs if version != ours]:
        received = f"received from {listed(others)}; install the same"
        raise DicomsortError(f"expected {ours}, as here, at scheduler and workers, {received}")
    if others := [(name, found) for name, found in _ask_workers(client, _version_probe()) if found != __version__]:
        received = f"received {listed(others)}; install this version beside each of them, and start them again"
        raise DicomsortError(f"expected dicomsort {__version__} on every Dask worker, {received}")
    threads: int = sum(client.nthreads().values())
    return threads


async def _dask_versions(client: Any) -> tuple[str, list[tuple[str, str]]]:
    """Return the versions of Python and Dask here, and those of scheduler and workers by their names.

    Without an answer there are none of the others: what asks next names those that do not answer.
    """

    def text(versions: Any) -> str:
        packages = versions["packages"]
        minor = ".".join(str(packages["python"]).split(".")[:2])
        return f"Python {minor} with distributed {packages['distributed']}"

    try:
        versions = await asyncio.wait_for(client.get_versions(), CONNECT_SECONDS)
    except TimeoutError:
        return "", []
    others = {f"Dask worker {address}": theirs for address, theirs in versions["workers"].items()}
    others["the scheduler"] = versions["scheduler"]
    return text(versions["client"]), [(name, text(theirs)) for name, theirs in others.items()]


def _ask_workers(client: Any, function: Callable[..., Any], *arguments: object) -> list[tuple[str, str]]:
    """Call a function on every worker, whatever it is busy with; return each worker's name and answer.

    The function returns its host's name and a text, and may be a coroutine function. A worker that went away meanwhile
    is left out. Raises ``DicomsortError`` where one gives no answer within a minute, or the scheduler does not.
    """
    seconds = CONNECT_SECONDS + ANSWER_SECONDS
    try:
        answers = client.sync(_answers, client, function, arguments, callback_timeout=seconds)
    except (OSError, TimeoutError) as error:
        address, received = client.scheduler.address, _cause(error)
        message = f"expected the Dask scheduler at {address} to answer, received: {received}; look at the cluster"
        raise DicomsortError(message) from None
    if silent := [(f"Dask worker {worker}", reason) for worker, host, reason in answers if host is None]:
        advice = "look at their hosts, or take them out of the cluster"
        raise DicomsortError(f"expected an answer from every Dask worker, received from {listed(silent)}; {advice}")
    return [(f"Dask worker {worker} on {host}", answer) for worker, host, answer in answers]


async def _answers(client: Any, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    """Return address, host and answer of each worker; no host, and the reason, where there is no answer."""

    async def ask(worker: str) -> tuple[str | None, str]:
        request = client.run(function, *arguments, workers=[worker], asynchronous=True)
        try:
            host, answer = (await asyncio.wait_for(request, ANSWER_SECONDS))[worker]
        except TimeoutError:
            return None, f"none within {ANSWER_SECONDS:g} s"
        except Exception as error:  # noqa: BLE001 - anything that a foreign installation may raise
            return None, f"{type(error).__name__}: {error}"
        return host, answer

    workers = (await client.scheduler.identity())["workers"]
    answers = await asyncio.gather(*map(ask, workers))
    left = (await client.scheduler.identity())["workers"]
    return [(worker, *answer) for worker, answer in zip(workers, answers, strict=True) if worker in left]


def listed(answers: Sequence[tuple[str, str]]) -> str:
    """Return the first few answers in one line, and how many more there are."""
    shown = "; ".join(f"{name}: {answer}" for name, answer in sorted(answers)[:NAMED])
    return shown if len(answers) <= NAMED else f"{shown}; and {len(answers) - NAMED} more"


def _version_probe() -> Callable[[], tuple[str, str]]:
    # Dask sends a nested function by value: so it runs where this package cannot be imported, too.
    def probe() -> tuple[str, str]:
        import socket

        try:
            from dicomsort import __version__ as version
        except ImportError as error:
            return socket.gethostname(), f"none ({error})"
        return socket.gethostname(), version

    return probe


WATCH_SECONDS = 2.0  # between requests for the list of workers
GIVE_UP_SECONDS = 60.0  # without a worker: a nanny starts one in a few seconds, a scheduler of jobs may need longer
_MISFIT = "dicomsort on a Dask worker"
_AGAIN = "look at the cluster, then run the command again"


class ClusterEngine(Engine):
    """Runs tasks behind the scheduler at ``address`` (``tcp://host:port``, ``tls://…``), at most ``workers`` at a time.

    A Dask worker that dies costs time: its tasks run on the others. One that joins gets tasks, and more may wait then.
    After 60 s without a worker, or without an answer of the scheduler, every task ends with ``DicomsortError``.

    Raises ``UsageError`` without an address or without the package, ``DicomsortError`` where no scheduler or no worker
    answers within 10 s, or where a worker has another version of the product than this one, or none.
    """

    def __init__(
        self, address: str | None, workers: int | None, limits: TaskLimits, warm: tuple[str, ...] = ()
    ) -> None:
        self._address = check_address(address)
        self._client = _connect(self._address)
        try:
            threads = _count_threads(self._client, self._address)
        except BaseException:
            self._client.close()
            raise
        self.workers = min(workers or threads, threads)
        self._is_bounded = workers is not None
        self._slots = Slots(workers or WAITING_PER_WORKER * threads)
        self._settings = WorkerSettings(limits, warm)
        self._run = _runner()
        self._lock = threading.Lock()
        self._pending: dict[Future[Any], Future[None]] = {}  # and what waits for each at Dask
        self._loop = self._client.loop.asyncio_loop
        self._loop.set_exception_handler(lambda _loop, _context: None)  # else it logs what is dropped at the end
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def submit(self, function: Callable[[T], R], task: T, /, seconds: float | None = None) -> Future[R]:
        """Send a task to the scheduler; blocks while four a worker (or ``workers``, where given) are pending."""
        self._slots.take()
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        try:  # as bytes, because Dask would look for tasks of its own inside lists and tuples
            payload = pickle.dumps((function, task, seconds, self._settings), pickle.HIGHEST_PROTOCOL)
            sent = self._client.submit(self._run, __version__, payload, pure=False)
        except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it
            self._slots.give()
            future.set_exception(error)
            return future
        with self._lock:
            if not self._slots.closed:
                self._pending[future] = asyncio.run_coroutine_threadsafe(self._deliver(sent, future), self._loop)
                return future
        self._slots.give()
        return self.submit(function, task, seconds)  # raises the reason why it was closed meanwhile

    def check_workers(self, snapshot: Callable[[], T], difference: Callable[[T], str], /) -> None:
        """Ask every worker at once, and each that joins later before its first task."""
        settings = replace(self._settings, requirement=pickle.dumps((difference, snapshot())))
        if different := [(name, text) for name, text in _ask_workers(self._client, check_host, settings) if text]:
            raise DicomsortError(listed(different))
        self._settings = settings

    def close(self) -> None:
        """Cancel what has not finished, and disconnect; the cluster is left as it is."""
        self._end(CLOSED)
        self._watching.cancel()
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.close(timeout=CONNECT_SECONDS)

    def _end(self, reason: str) -> None:
        with self._lock:
            self._slots.close(reason)
            left, self._pending = self._pending, {}
        for future, waiting in left.items():
            waiting.cancel()
            future.set_exception(DicomsortError(reason))

    async def _deliver(self, sent: Any, future: Future[Any]) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = await self._client.gather(sent, asynchronous=True)
        except asyncio.CancelledError:  # by ``_end``
            raise
        except BaseException as raised:  # noqa: BLE001 - whoever asks for the result gets it
            error = self._translated(raised, sent.status)
        with self._lock:
            if self._pending.pop(future, None) is None:  # ``_end`` completed it
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
        """Give up after a minute without a worker, because Dask waits without end; use workers that join."""
        silent, reason = 0.0, ""
        while silent < GIVE_UP_SECONDS:  # counted in ticks: a run that was suspended (Ctrl-Z) missed nothing
            await asyncio.sleep(WATCH_SECONDS)
            silent += WATCH_SECONDS
            try:
                identity = await asyncio.wait_for(self._client.scheduler.identity(), CONNECT_SECONDS)
                reason = f"expected a running worker behind the Dask scheduler at {self._address}, received none"
                if running := [w["nthreads"] for w in identity["workers"].values() if w["status"] == "running"]:
                    silent = 0.0
                    self._grow(sum(running))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
                silent += CONNECT_SECONDS if isinstance(error, TimeoutError) else 0
                reason = f"expected the Dask scheduler at {self._address} to answer, received nothing"
        self._end(f"{reason} for {GIVE_UP_SECONDS:g} s; {_AGAIN}")

    def _grow(self, threads: int) -> None:
        if self._is_bounded or threads <= self.workers:
            return
        for _ in range(WAITING_PER_WORKER * (threads - self.workers)):
            self._slots.give()
        self.workers = threads


def _runner() -> Callable[[str, bytes], object]:
    # By value, as ``_version_probe``: a Dask worker that cannot import what it is sent ends at once, and the next one
    # that its nanny starts too, until the scheduler takes the task for what killed them.
    def run(version: str, payload: bytes) -> object:
        try:
            from dicomsort.engines.dask_worker import run_here
        except ImportError as error:
            import socket

            from distributed import get_worker

            name = f"Dask worker {get_worker().address} on {socket.gethostname()}"
            message = f"{name}: expected dicomsort {version}, received none ({error}); install it there"
            raise ImportError(message, name=_MISFIT) from None
        return run_here(version, payload)

    return run
