"""What runs unattended: look into an inbox every so often, sort what is new, send it on, tell how it goes.

A round that fails is logged, counted and tried again; between rounds nothing is held: no lock, no engine, no file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dicomsort import __version__
from dicomsort.errors import DicomsortError, OutboxLocked
from dicomsort.files import Files
from dicomsort.records import Row
from dicomsort.report import Summary
from dicomsort.report.metrics import Figures, age, tell_inbox, tell_run, write_metrics
from dicomsort.service.rounds import Round, Rounds
from dicomsort.service.routes import Courier, Sender, Sent, check_routes
from dicomsort.service.seen import Scan
from dicomsort.service.stopping import Stop, StoppableFiles, StoppableProgress, Stopped
from dicomsort.service.telling import said

__all__ = [
    "Courier",
    "Rounds",
    "Sender",
    "Sent",
    "Service",
    "Stop",
    "StoppableFiles",
    "StoppableProgress",
    "Stopped",
    "check_routes",
    "steady_clock",
]

LONGEST_PAUSE = 900.0  # seconds between rounds that fail again and again, unless --every is longer
SHORTEST_PAUSE = 0.02
ENDINGS = ("sorted", "idle", "locked", "failed", "stopped")
_log = logging.getLogger("dicomsort")


def steady_clock() -> Callable[[], int]:
    """A clock of nanoseconds since 1970 that never goes back, and goes on where the system's is set."""
    began = time.time_ns() - time.monotonic_ns()
    return lambda: began + time.monotonic_ns()


@dataclass
class Service:
    """Rounds until somebody asks for an end.

    ``every`` and ``settle`` are seconds; ``show`` is given the summary of each run, ``complain`` what made a round
    fail; ``metrics`` is the file for figures.
    """

    rounds: Rounds
    stop: Stop
    every: float
    settle: float
    clock: Callable[[], int]
    show: Callable[[Summary], None]
    complain: Callable[[str], None]
    courier: Courier | None = None
    metrics: Path | None = None
    files: Files = field(default_factory=Files)  # for the figures, which no signal keeps from being written
    _figures: Figures = field(default_factory=Figures)
    _failures: int = 0
    _is_told: bool = True  # the last figures could be written

    def run(self) -> int:
        """Go on until ``stop`` is asked; the number of the signal that did."""
        self._begin()
        try:
            while not self.stop.is_asked:
                began = time.monotonic()
                pause = self._round(began)
                self.stop.wait(max(pause - (time.monotonic() - began), SHORTEST_PAUSE))
        finally:
            if self.courier is not None:
                self.courier.stop()
            self.stop.close()
        return self.stop.signal

    def _begin(self) -> None:
        _log.info("watch begins", extra={"facts": {"every": self.every, "settle": self.settle}})
        self._figures.set("dicomsort_info", 1, version=__version__)
        self._figures.set("dicomsort_start_timestamp_seconds", int(time.time()))
        for ending in ENDINGS:
            self._figures.add("dicomsort_rounds_total", 0, result=ending)
        if self.courier is not None:
            self.courier.start()

    def _round(self, began: float) -> float:
        """Do one round and tell of it; how many seconds after its beginning the next is due."""
        round_, counted = Round(), Summary()
        ending = self._go(round_, counted.count)
        for summary in round_.summaries:
            self._tell_run(summary)
        if run := round_.cut_short:
            message = "a run of another inbox was cut short; `dicomsort resume` finishes it"
            _log.warning(message, extra={"facts": {"run": run}})
        for message in round_.damaged:
            _log.error("a run cannot be read", extra={"facts": {"message": message}})
            with suppress(OSError):
                self.complain(message)
        if round_.summaries:
            tell_run(self._figures, counted, sum(summary.seconds for summary in round_.summaries))
        for (status, class_), count in counted.files.items():
            self._figures.add("dicomsort_files_total", count, **{"status": status, "class": class_})
        if self.courier is not None:
            self.courier.call(round_.runs)
        self._measure(ending, round_.scan, time.monotonic() - began)
        return self._pause(round_.scan)

    def _go(self, round_: Round, on_row: Callable[[Row], None]) -> str:
        """Do one round; how it ended."""
        try:
            self.rounds.go(round_, on_row)
        except Stopped:
            return "stopped"
        except OutboxLocked as error:
            _log.info("round put off", extra={"facts": {"message": said(error)}})
            return "locked"
        except Exception as error:  # noqa: BLE001 - whatever one round meets, the next is tried
            self._failures += 1
            message = said(error)
            _log.error("round failed", extra={"facts": {"message": message, "in_a_row": self._failures}})
            with suppress(OSError):
                self.complain(f"{message}; the next round tries again")
            return "failed"
        if self._failures:
            _log.info("recovered", extra={"facts": {"failures": self._failures}})
        self._failures = 0
        if not (round_.left or any(summary.has_failed for summary in round_.summaries)):
            self._figures.set("dicomsort_last_success_timestamp_seconds", int(time.time()))
        return "sorted" if round_.summaries else "idle"

    def _tell_run(self, summary: Summary) -> None:
        _log.info("run ended", extra={"facts": summary.as_json()})
        if summary.has_failed:
            _log.error("files failed", extra={"facts": {"run": summary.run_id, "cause": summary.trouble}})
            with suppress(OSError):
                self.complain(f"{summary.trouble}; the next round tries again")
        with suppress(OSError):  # nobody reads it any more; so above
            self.show(summary)

    def _pause(self, scan: Scan | None) -> float:
        if self._failures:
            return min(max(self.every, 1.0) * 2.0 ** min(self._failures, 30), max(self.every, LONGEST_PAUSE))
        if scan is not None and scan.waiting > 0 and self.settle > 0:
            return min(self.every, self.settle)
        return self.every

    def _measure(self, ending: str, scan: Scan | None, seconds: float) -> None:
        if self.metrics is None:
            return
        figures = self._figures
        figures.add("dicomsort_rounds_total", 1, result=ending)
        figures.set("dicomsort_failures_in_a_row", self._failures)
        figures.set("dicomsort_round_duration_seconds", round(seconds, 3))
        if scan is not None:
            tell_inbox(figures, scan.files, scan.oldest_ns)
            figures.set("dicomsort_inbox_waiting_files", scan.waiting)
            figures.set("dicomsort_inbox_oldest_waiting_age_seconds", age(scan.waiting_since_ns, self.clock()))
        if self.courier is not None:
            self.courier.tell(figures)
        self._write(self.metrics)

    def _write(self, path: Path) -> None:
        try:
            write_metrics(self.files, path, self._figures)
        except (DicomsortError, OSError) as error:
            if self._is_told:
                _log.warning("metrics could not be written", extra={"facts": {"message": said(error)}})
            self._is_told = False
        else:
            self._is_told = True
