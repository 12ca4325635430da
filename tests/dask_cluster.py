"""A real Dask scheduler with two workers on loopback, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def running_cluster(folder: Path) -> Iterator[str]:
    """Yield the address of a real scheduler with two worker processes behind it."""
    address_file = folder / "scheduler.json"
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "DASK_TEMPORARY_DIRECTORY": str(folder)}
    settings |= {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}

    def start(program: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--scheduler-file", str(address_file)]
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--no-dashboard", *options], env=os.environ | settings, stdout=log, stderr=log, cwd=folder
            )

    running = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")]
    running += [start("dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny") for _ in range(2)]
    try:
        while not address_file.exists():
            assert running[0].poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        import distributed

        with distributed.Client(scheduler_file=str(address_file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            yield client.scheduler.address
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
