"""A service in this process, whose clock is the test's, and the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from command import quiet

from dicomsort.config import load_watch
from dicomsort.engines.engine import SerialEngine
from dicomsort.files import Files
from dicomsort.records import Row
from dicomsort.report import Summary
from dicomsort.service.forwarding import Forwarder
from dicomsort.service.watch import Round, Rounds, Service, Stop
from dicomsort.sorting import check, locked

SECOND = 10**9
HEADERS = ("--evidence", "header", "--engine", "serial")


class Timer(Stop):
    """Does a step where the service would sleep, and asks for its end when there is none left."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        super().__init__()
        self.steps = [*steps]
        self.slept: list[float] = []

    def wait(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.steps:
            self.steps.pop(0)()
        else:
            self.make(signal.SIGTERM)


class Watch:
    """``dicomsort watch`` without a process; ``now`` is its clock, in nanoseconds since 1970."""

    def __init__(
        self,
        inbox: Path,
        outbox: Path,
        *,
        mode: str = "move",
        settle: float = 0.0,
        files: Files | None = None,
        **flags: object,
    ) -> None:
        flags = {"mode": mode, "evidence": "header", "engine": "serial", "settle": settle, **flags}
        self.now = time.time_ns()
        self.settle = settle
        self.opened = 0  # engines
        self.rows: list[Row] = []
        self.sent: list[str] = []  # runs that the last round found, to be sent on
        self.left: list[str] = []  # runs that it left to a person
        settings = load_watch(flags, {}, None).sort
        checked = partial(check, str(inbox), str(outbox), settings)
        with locked(quiet(outbox), create=True):
            pass
        times = (int(settle * SECOND), 30 * SECOND)
        engine, clock = self._engine, lambda: self.now
        self.rounds = Rounds(checked(), quiet(outbox, files), *times, engine, clock, checked)

    def _engine(self) -> SerialEngine:
        self.opened += 1
        return SerialEngine()

    def round(self, *, after: float = 60.0) -> list[Summary]:
        """One round, so many seconds after the last; the summaries of its runs."""
        round_ = Round()
        self.rows = []
        self.rounds.go(round_, self.rows.append)
        self.sent, self.left = round_.runs, round_.left
        self.now += int(after * SECOND)
        return round_.summaries

    def service(
        self, stop: Stop, *, metrics: Path | None = None, forwarder: Forwarder | None = None, every: float = 60.0
    ) -> tuple[Service, list[Summary], list[str]]:
        """The loop around the rounds, what it shows, and what it complains of."""
        shown: list[Summary] = []
        complaints: list[str] = []
        service = Service(
            self.rounds, stop, every, self.settle, lambda: self.now, shown.append, complaints.append, forwarder, metrics
        )
        return service, shown, complaints


def told(summaries: list[Summary]) -> list[dict[str, int]]:
    """The counts by status of each run."""
    return [dict(summary.statuses) for summary in summaries]


def runs_of(outbox: Path) -> list[str]:
    """The folders of the runs."""
    return sorted(path.name for path in (outbox / ".dicomsort" / "runs").iterdir())


def age(path: Path, seconds: float) -> Path:
    """Let a file have changed so long ago."""
    then = time.time_ns() - int(seconds * SECOND)
    os.utime(path, ns=(then, then))
    return path


@contextmanager
def watching(*arguments: object, every: float = 0.1) -> Iterator[subprocess.Popen[str]]:
    """``dicomsort watch ARGUMENTS`` as a process of its own, killed at the end if it is still there."""
    command = [sys.executable, "-m", "dicomsort", "watch", *HEADERS, "--every", every, *arguments]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(process: subprocess.Popen[str], holds: Callable[[], bool]) -> None:
    """Until something holds; the test's own time limit ends it where it never does."""
    while not holds():
        assert process.poll() is None, f"the service ended with {process.returncode}: {process.communicate()}"
        time.sleep(0.005)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    """Send a signal; the exit code, and what it said on stderr."""
    process.send_signal(number)
    _, said = process.communicate()
    return process.returncode, said
