"""The tasks of test_engines: workers import this module, so it imports little."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

EVIL = (3, 8)


def double(number: int) -> int:
    return 2 * number


def fail(message: str) -> None:
    raise LookupError(message)


def fail_all(messages: list[str]) -> list[str]:
    raise LookupError(*messages)


def fail_unpicklably(message: str) -> None:
    error = RuntimeError(message)
    error.cause = threading.Lock()  # type: ignore[attr-defined]
    raise error


def die(way: str) -> int:
    if way == "exit":
        os._exit(7)
    elif way == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "hang":
        time.sleep(60)
    return len(bytearray(1 << 31))


def whoami(_: object) -> tuple[int, int]:
    """The worker, and the process of the engine, which started the fork server."""
    return os.getpid(), parent_of(os.getppid())


def is_alive(process: int) -> bool:
    """Whether a process runs: one that has ended does not, reaped or not."""
    try:
        return " Z " not in Path("/proc", str(process), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it may end between open and read
        return False


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def threads_of_parent(_: object) -> int:
    return len([*Path(f"/proc/{os.getppid()}/task").iterdir()])


def surroundings(_: object) -> dict[str, object]:
    return {
        "modules": {"typer", "rich", "dicomsort.cli"} & set(sys.modules),
        "threads": os.environ["OMP_NUM_THREADS"],
        "stdin": Path("/proc/self/fd/0").readlink().name,
        "stdout": Path("/proc/self/fd/1").readlink().name,
        "interrupt": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    }


def can_import(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def sys_has(module: str) -> bool:
    return module in sys.modules


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)


def leave_a_child(path: str) -> None:
    """Start a process that holds all descriptors of the worker until the file exists, and hang."""
    if os.fork() == 0:
        wait_for(path)
        os._exit(0)
    time.sleep(60)


def compute_then_wait(seconds: float, flag: str) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass
    Path(flag).touch()
    time.sleep(60)


def kill_parent(_: object) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def kill_engine(_: object) -> None:
    os.kill(whoami(None)[1], signal.SIGKILL)
    time.sleep(60)


def double_all(numbers: list[int], way: str = "exit") -> list[int]:
    return [die(way) if number in EVIL else double(number) for number in numbers]


def nothing_amiss(_: object) -> str:
    return ""


def sleep_amiss(_: object) -> str:
    time.sleep(60)
    return ""


def rest_and_tell(_: object) -> int:
    time.sleep(0.2)
    return os.getpid()


class Unloadable:
    """A function whose loading runs out of memory."""

    def __call__(self, _: object) -> None:
        return None

    def __reduce__(self) -> object:
        return run_out, ()


def run_out() -> None:
    raise MemoryError


def transcode_unless_killed(jobs: list[tuple[str, int, str, str]]) -> list[tuple[bytes, str]]:
    """Killed at the first try."""
    mark = Path(jobs[0][0] + ".tried")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [(b"data set", "sha256")]


def killed_at_first(paths: list[str]) -> list[str]:
    """Killed as often as the name of a file says, counted in it; or by itself."""
    (path,) = map(Path, paths)
    if path.name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    with path.open("a") as stream:
        stream.write("x")
    if path.stat().st_size <= int(path.name):
        os.kill(os.getpid(), signal.SIGKILL)
    return ["done"]
