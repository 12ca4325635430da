"""A real Dask scheduler with real worker processes on loopback, for tests."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORKER = "distributed.cli.dask_worker"
OTHER_VIEWS = (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"])  # as root, and as anybody


class Cluster:
    """A scheduler at ``address``; ``client`` looks at it as the test does."""

    def __init__(self, folder: Path, settings: dict[str, str], *options: str) -> None:
        """Start the scheduler in ``folder``; ``settings`` are variables for it and all workers."""
        self._folder = folder
        self._file = folder / "scheduler.json"
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        self._settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "DASK_TEMPORARY_DIRECTORY": str(folder)}
        self._settings |= settings
        self._running: list[subprocess.Popen[bytes]] = []
        module = ["-m", "distributed.cli.dask_scheduler"]
        self.scheduler = self._start([sys.executable, *module, "--host", "127.0.0.1", "--port", "0", *options])
        self.wait(self._file.exists)

    @functools.cached_property
    def client(self) -> Any:
        import distributed

        return distributed.Client(scheduler_file=str(self._file), set_as_default=False)

    @property
    def address(self) -> str:
        return str(self.client.scheduler.address)

    def add(
        self,
        *options: str,
        run: tuple[str, ...] = ("-m", WORKER),
        view: tuple[str, ...] = (),
        settings: dict[str, str] | None = None,
        nanny: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start one worker more and wait until the scheduler knows it; ``view`` is from ``mounted``."""
        before = len(self.workers())
        options = ("--host", "127.0.0.1", "--nthreads", "1", *([] if nanny else ["--no-nanny"]), *options)
        process = self._start([*view, sys.executable, *run, *options], settings or {})
        self.wait(lambda: process.poll() is not None or len(self.workers()) > before)
        assert process.poll() is None, self.log()
        return process

    def workers(self) -> dict[str, Any]:
        """What the scheduler knows of its workers, by address."""
        workers: dict[str, Any] = self.client.scheduler_info()["workers"]
        return workers

    def processes(self) -> dict[str, int]:
        """The process of each worker, by address."""
        processes: dict[str, int] = self.client.run(os.getpid)
        return processes

    def address_of(self, process: subprocess.Popen[bytes]) -> str:
        """The address of a worker that has no nanny."""
        return next(address for address, pid in self.processes().items() if pid == process.pid)

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def wait(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.scheduler.poll() is None, self.log()
            time.sleep(0.02)

    def stop(self) -> None:
        if "client" in self.__dict__:
            self.client.close()
        for process in self._running:
            process.kill()  # a worker that is told to end while its scheduler does may wait for it without end
            process.wait()

    def _start(self, command: list[str], settings: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [*command, "--scheduler-file", str(self._file), "--no-dashboard"]
        variables = os.environ | self._settings | (settings or {})
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=self._folder)
        self._running.append(process)
        return process


@contextmanager
def running_cluster(folder: Path, workers: int = 2, *options: str, **settings: str) -> Iterator[Cluster]:
    """Yield a scheduler with real workers behind it; it tries no task again that was lost with a worker."""
    cluster = Cluster(folder, {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"} | settings, *options)
    try:
        for _ in range(workers):
            cluster.add()
        yield cluster
    finally:
        cluster.stop()


def mounted(script: str, *arguments: object) -> tuple[str, ...]:
    """What to begin a command with so that it alone sees a mount; nothing where that is not allowed."""
    for unshare in OTHER_VIEWS:
        command = [*unshare, "sh", "-c", f'{script} && shift {len(arguments)} && exec "$@"', "sh", *map(str, arguments)]
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return tuple(command)
        except OSError:
            break
    return ()
