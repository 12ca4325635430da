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
from typing import TYPE_CHECKING, Any

from dicomsort import __version__
from dicomsort.engines.dask_worker import Settings, meet
from dicomsort.engines.engine import CLOSED, Engine, Limits, R, Slots, T
from dicomsort.engines.processes import WAITING_PER_WORKER
from dicomsort.errors import DicomsortError, UsageError, WorkerLost, missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # for a worker's first look around: its imports may come over a cold network
NAMED = 5  # workers that an error names one by one
_ADDRESS = re.compile(r"(tcp|tls)://([^:/\[\]]+|\[[^/\[\]]+\]):\d{1,5}")
_NO_CERTIFICATES = (
    "--scheduler {}: expected certificates in Dask's configuration (distributed.comm.tls.ca-file, .client.cert and "
    ".client.key, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE …), received none"
)


def check_address(address: str | None) -> str:
    """The address of a scheduler, which is not called.

    Raises ``UsageError`` for none, one of another form, ``tls://`` without certificates, or where the package is
    missing.
    """
    if not address:
        raise UsageError("expected --scheduler ADDRESS (tcp://host:8786) with --engine dask, received none")
    try:
        from distributed import Security
    except ImportError:
        raise missing_extra("--engine dask", "cluster") from None
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"expected --scheduler tcp://HOST:PORT or tls://HOST:PORT, received {address}")
    if address.startswith("tls") and Security().get_connection_args("client").get("ssl_context") is None:
        raise UsageError(_NO_CERTIFICATES.format(address))
    return address


def connected(address: str) -> Any:
    """Return a Dask client of the scheduler at an address that was checked.

    Raises ``DicomsortError`` where no scheduler answers within 10 s.
    """
    from distributed import Client, Security
    from distributed.versions import VersionMismatchWarning

    for name in filter(re.compile(r"(distributed|tornado)\b").match, logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is told once, by an error of ours
    security = Security()
    try:
        asyncio.run(_shake_hands(address, security))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # ``count_threads`` looks at what matters of it
            return Client(address, timeout=CONNECT_SECONDS, security=security, set_as_default=False, name="dicomsort")
    except Exception as error:  # noqa: BLE001 - whatever is said by something that may be no scheduler at all
        raise DicomsortError(
            f"expected a Dask scheduler at {address} to answer within {CONNECT_SECONDS:g} s, "
            f"received: {_cause(error)}; check --scheduler"
        ) from None


async def _shake_hands(address: str, security: Any) -> None:
    # Client waits without end for a peer that accepts the connection and says nothing.
    from distributed.comm import connect

    async with asyncio.timeout(CONNECT_SECONDS):
        comm = await connect(address, timeout=CONNECT_SECONDS, **security.get_connection_args("client"))
    comm.abort()


def _cause(error: BaseException) -> str:
    """What the system said, where it said anything: it is the first of a chain of errors."""
    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    said = [each.strerror for each in chain if isinstance(each, OSError) and each.strerror]
    if said:
        return said[-1]
    return "no answer" if isinstance(error, TimeoutError) else f"what is no Dask protocol ({type(error).__name__})"


def count_threads(client: Any, address: str) -> int:
    """Count the threads of all workers, once each is known to have this version of the product, of Dask and of Python.

    Of Python the minor version matters: what Dask sends by value is bytecode.
    """
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError):
        message = f"expected a Dask worker behind {address} within {CONNECT_SECONDS:g} s, received none; start some"
        raise DicomsortError(message) from None
    ours, theirs = client.sync(_dask_versions, client)
    if odd := [(who, version) for who, version in theirs if version != ours]:
        message = f"expected {ours}, as here, at scheduler and workers, received from {listed(odd)}; install the same"
        raise DicomsortError(message)
    if odd := [(who, said) for who, said in ask_workers(client, _version_probe()) if said != __version__]:
        advice = "install this version beside each of them, and start them again"
        raise DicomsortError(f"expected dicomsort {__version__} on every Dask worker, received {listed(odd)}; {advice}")
    threads: int = sum(client.nthreads().values())
    return threads


async def _dask_versions(client: Any) -> tuple[str, list[tuple[str, str]]]:
    """Versions of Python and Dask here, and at the others; none where one does not answer, whom others will name."""

    def told(versions: Any) -> str:
        packages = versions["packages"]
        minor = ".".join(str(packages["python"]).split(".")[:2])
        return f"Python {minor} with distributed {packages['distributed']}"

    try:
        versions = await asyncio.wait_for(client.get_versions(), CONNECT_SECONDS)
    except TimeoutError:
        return "", []
    others = {f"Dask worker {address}": said for address, said in versions["workers"].items()}
    others["the scheduler"] = versions["scheduler"]
    return told(versions["client"]), [(who, told(said)) for who, said in others.items()]


def ask_workers(client: Any, function: Callable[..., Any], *arguments: object) -> list[tuple[str, str]]:
    """Call a function on every worker, past what they are busy with; return who each is, and what it said.

    The function returns its host's name and a text, and may be a coroutine function. A worker that went away meanwhile
    is left out. Raises ``DicomsortError`` where one gives no answer within a minute, or the scheduler does not.
    """
    patience = CONNECT_SECONDS + ANSWER_SECONDS
    try:
        answers = client.sync(_ask_workers, client, function, arguments, callback_timeout=patience)
    except (OSError, TimeoutError) as error:
        address, received = client.scheduler.address, _cause(error)
        message = f"expected the Dask scheduler at {address} to answer, received: {received}; look at the cluster"
        raise DicomsortError(message) from None
    if silent := [(f"Dask worker {worker}", said) for worker, said in answers if isinstance(said, _Silent)]:
        advice = "look at their hosts, or take them out of the cluster"
        raise DicomsortError(f"expected an answer from every Dask worker, received from {listed(silent)}; {advice}")
    return [(f"Dask worker {worker} on {host}", said) for worker, (host, said) in answers]


class _Silent(str):
    """Why there is no answer."""

    __slots__ = ()


async def _ask_workers(client: Any, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    async def ask(worker: str) -> Any:
        request = client.run(function, *arguments, workers=[worker], asynchronous=True)
        try:
            return (await asyncio.wait_for(request, ANSWER_SECONDS))[worker]
        except TimeoutError:
            return _Silent(f"none within {ANSWER_SECONDS:g} s")
        except Exception as error:  # noqa: BLE001 - anything that a foreign installation may raise
            return _Silent(f"{type(error).__name__}: {error}")

    workers = (await client.scheduler.identity())["workers"]
    answers = await asyncio.gather(*map(ask, workers))
    left = (await client.scheduler.identity())["workers"]
    return [(worker, said) for worker, said in zip(workers, answers, strict=True) if worker in left]


def listed(answers: Sequence[tuple[str, str]]) -> str:
    """Return the first few answers in one line, and how many more there are."""
    shown = "; ".join(f"{who}: {said}" for who, said in sorted(answers)[:NAMED])
    return shown if len(answers) <= NAMED else f"{shown}; and {len(answers) - NAMED} more"


def _version_probe() -> Callable[[], tuple[str, str]]:
    # Dask sends a nested function by value: it runs where this package cannot be imported, too.
    def probe() -> tuple[str, str]:
        import socket

        try:
            from dicomsort import __version__ as version
        except ImportError as error:
            return socket.gethostname(), f"none ({error})"
        return socket.gethostname(), version

    return probe


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
            from dicomsort.engines.dask_worker import run_here
        except ImportError as error:
            import socket

            from distributed import get_worker

            who = f"Dask worker {get_worker().address} on {socket.gethostname()}"
            message = f"{who}: expected dicomsort {version}, received none ({error}); install it there"
            raise ImportError(message, name=_MISFIT) from None
        return run_here(version, payload)

    return run
