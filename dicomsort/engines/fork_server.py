"""The fork server of the ``processes`` engine, and its workers; run by its path, it imports nothing of the product.

Its only argument is the descriptor of its control socket. The first message sets it up, and it answers None when it has
imported what it is told. Then each message asks for a new worker (None; the descriptor of the worker's pipe follows),
answered by its process number, or how a worker ended (that number), answered by its exit code.

To a worker a message ``(function, None)`` loads a function, and ``(function, task)`` runs it. The answer is
``(outcome, value)``: "done", "raised" or "memory".
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
DOWNLOADS = ("requests", "tqdm")  # pydicom imports them to download test files: a third of the time that it takes


def main() -> None:
    """Fork workers until the control socket closes, which is also how the parent's death shows."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the parent's to handle
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody learns how a child ended
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patient data
    with contextlib.suppress(EOFError, OSError), Connection(int(sys.argv[1])) as control:
        # Pickle is safe here and below: the sockets are private, and the parent made both of their ends.
        sys.path[:], warm, memory_bytes = control.recv()
        gc.disable()
        import_all(warm)
        gc.enable()
        gc.freeze()  # a search for garbage would write to each object, and memory that is written to is not shared
        answer: object = None
        while True:
            control.send(answer)
            worker = control.recv()
            answer = fork(control, memory_bytes) if worker is None else exit_code(worker)


def fork(control: Connection[Any, Any], memory_bytes: int) -> int | OSError:
    """Start a worker; return its process number, or why the system refused. No thread runs here that it would lack."""
    pipe, parent = recv_handle(control), os.getpid()
    try:
        number = os.fork()
    except OSError as error:
        os.close(pipe)
        return error
    if number:
        os.close(pipe)
        return number
    code = 1
    try:
        control.close()
        os.set_inheritable(pipe, False)  # no program that a library starts keeps it open
        if sys.platform == "linux":  # a busy worker does not read its pipe
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            with contextlib.suppress(EOFError, OSError), Connection(pipe) as connection:
                serve(connection, memory_bytes)
        code = 0
    finally:
        os._exit(code)


def exit_code(worker: int) -> int:
    """Wait for the end of a worker, and return its exit code, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


def import_all(modules: tuple[str, ...]) -> None:
    """Import the modules, without what pydicom needs for downloads alone."""
    hidden = [name for name in DOWNLOADS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it raises ImportError
    for module in modules:
        with contextlib.suppress(Exception):  # the task that needs it will raise the same
            importlib.import_module(module)
    for name in hidden:
        del sys.modules[name]


def serve(pipe: Connection[Any, Any], memory_bytes: int) -> None:
    """Answer messages until the pipe closes, or memory ran out: then the process gets no further task."""
    functions: dict[bytes, Callable[[object], object]] = {}
    outcome = "done"
    while outcome != "memory":
        name, task = pickle.loads(pipe.recv_bytes())  # noqa: S301
        try:
            if task is None:
                limit_memory(None)
                try:
                    functions[name] = pickle.loads(name)  # noqa: S301 - imports the function's module
                finally:
                    limit_memory(memory_bytes)
                outcome, value = "done", None
            else:
                outcome, value = "done", functions[name](pickle.loads(task))  # noqa: S301
            answer = pickle.dumps((outcome, value), pickle.HIGHEST_PROTOCOL)
        except MemoryError:
            limit_memory(None)
            outcome, answer = "memory", pickle.dumps(("memory", None))
        except Exception as error:  # noqa: BLE001 - it is raised again in the parent
            outcome, answer = "raised", raised(error)
        value = None
        pipe.send_bytes(answer)


def raised(error: Exception) -> bytes:
    """Pickle an exception, its place in the source as a note; one that does not survive that by its type's name."""
    error.add_note("In a worker process:\n" + "".join(traceback.format_tb(error.__traceback__)))
    try:
        answer = pickle.dumps(("raised", error))
        pickle.loads(answer)  # noqa: S301 - some exceptions pickle, but cannot be built again
    except Exception:  # noqa: BLE001 - anything may happen in a foreign __reduce__
        answer = pickle.dumps(("raised", RuntimeError(f"{type(error).__qualname__} in a worker process")))
    return answer


def limit_memory(allowance: int | None) -> None:
    """Allow that many bytes of virtual memory beyond the present size (Linux; elsewhere nothing counts them)."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = hard
    with contextlib.suppress(OSError):
        if allowance is not None:
            pages = int(Path("/proc/self/statm").read_bytes().split()[0])
            limit = pages * resource.getpagesize() + allowance
            soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
