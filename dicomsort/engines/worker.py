"""The worker process of the ``processes`` engine, run by its path: it imports nothing of the product by itself.

Its only argument is the descriptor of its pipe. The first message sets it up; then a message ``(function, None)`` loads
a function, and ``(function, task)`` runs it. The answer is ``(outcome, value)``: "done", "raised" or "memory".
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
DOWNLOADS = ("requests", "tqdm")  # pydicom imports them to download test files: a third of the time that it takes


def main() -> None:
    """Serve tasks until the pipe closes, which is also how the parent's death shows."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patient data
    if sys.platform == "linux":  # a busy worker does not read its pipe
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(EOFError, OSError), Connection(int(sys.argv[1])) as pipe:
        # Pickle is safe here: the pipe is private, and both of its ends were made by the parent.
        sys.path[:], warm, memory_bytes = pickle.loads(pipe.recv_bytes())  # noqa: S301
        import_all(warm)
        pipe.send_bytes(pickle.dumps(("done", None)))
        serve(pipe, memory_bytes)


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
