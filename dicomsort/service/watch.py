"""The service: looks into an inbox every so often, sorts what is new, sends it on, logs and measures.

A round first finishes what was interrupted, then sorts what is new. A signal ends the service between two files, and
the next start finishes that round.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dicomsort import __version__
from dicomsort.bundle import has_changed
from dicomsort.engines.engine import Engine
from dicomsort.errors import DicomsortError, OutboxLocked, counted
from dicomsort.files import Files
from dicomsort.progress import Progress
from dicomsort.records import Row
from dicomsort.report import Summary, describe_error
from dicomsort.report.metrics import Figures, age, set_file_metrics, set_run_metrics, write_metrics
from dicomsort.service.forwarding import Forwarder
from dicomsort.service.known_files import KnownFiles, Scan
from dicomsort.signals import ServiceStop
from dicomsort.sorting import (
    RunContext,
    SortRequest,
    check_places,
    count_waiting,
    newest_run,
    read_new_runs,
    recheck_runs,
    resume,
    settled_before,
    sort_new_files,
    walk_inbox,
)

LONGEST_PAUSE = 900.0  # seconds between rounds that fail again and again, unless --every is longer
SHORTEST_PAUSE = 0.02
ENDINGS = ("sorted", "idle", "locked", "failed", "stopped")
_log = logging.getLogger("dicomsort")


@dataclass
class Round:
    """The result of a round, filled as it goes on: the runs that it finished, what lay in the inbox."""

    summaries: list[Summary] = field(default_factory=list)
    scan: Scan | None = None  # at its end
    runs: list[str] = field(default_factory=list)  # that placed something, somebody else's too
    cut_short: str = ""  # an unfinished run of another inbox, which is left to a person, when it is first found
    damaged: list[str] = field(default_factory=list)  # messages of runs that cannot be read and are new
    left: list[str] = field(default_factory=list)  # runs of both kinds, for as long as they are there


class Rounds:
    """Looks into one inbox again and again; every round is a run of ``sorting`` of its own, or none.

    ``clock`` returns nanoseconds since 1970 and never goes back; the engine is opened where there is work. A study
    settles ``settle_ns`` after the last of its files' times, and ``again_ns`` after the last was met. ``check`` checks
    the request anew, by the model that is there then.
    """

    def __init__(
        self,
        request: SortRequest,
        context: RunContext,
        settle_ns: int,
        again_ns: int,
        open_engine: Callable[[], AbstractContextManager[Engine]],
        clock: Callable[[], int],
        check: Callable[[], SortRequest],
    ) -> None:
        self._request = replace(request, clock=replace(request.clock, now_ns=clock))
        self._context, self._open_engine, self._clock, self._check = context, open_engine, clock, check
        self._settle_ns = settle_ns
        self._known_files = KnownFiles(settle_ns, again_ns, clock)
        self._settled: str | None = None  # no run up to this one is unfinished, or it is of another inbox
        self._left: list[str] = []  # runs that only a person can end
        self._inbox = os.stat(request.inbox)

    def go(self, round_: Round, on_row: Callable[[Row], None]) -> None:
        """Do one round; ``on_row`` gets each final row.

        ``OutboxLocked`` where another process holds the outbox; ``DicomsortError``, OSError and others where it failed.
        """
        context = replace(self._context, on_row=on_row)
        self._check_bundle()
        self._check_inbox()
        self._resume(round_, context)
        round_.scan = self._scan()
        if not round_.scan.ripe:
            return
        before = settled_before(self._clock(), self._settle_ns)
        request = replace(self._request, criteria=replace(self._request.criteria, settled_before_ns=before))
        with self._open_engine() as engine:
            summary = sort_new_files(request, context, engine, self._known_files, self._settled or "")
        self._known_files.end_round()
        if summary is not None:
            self._settled = summary.run_id
            round_.summaries.append(summary)
            round_.runs.append(summary.run_id)
        round_.scan = self._scan()

    def in_review(self) -> int:
        """Count the files that wait in REVIEW."""
        return count_waiting(self._context.outbox)

    def _scan(self) -> Scan:
        return self._known_files.scan(walk_inbox(self._request.inbox, self._context.outbox, self._clock))

    def _check_bundle(self) -> None:
        """Go on with the bundle that took the place of the last; DicomsortError where there is none that can be used.

        Workers refuse it, as long as the request has the last one.
        """
        if has_changed(self._request.bundle):
            self._request = replace(self._check(), clock=self._request.clock)
            bundle = self._request.bundle
            facts = {"model": str(bundle.folder), "name": bundle.name, "sha256": bundle.model_sha256}
            _log.info("the model was replaced; what is new is sorted by the other one", extra={"facts": facts})

    def _check_inbox(self) -> None:
        """Raise where the inbox is not mounted: it is missing, or an empty folder that is not the one of before."""
        inbox = self._request.inbox
        if not os.path.isdir(inbox):
            raise DicomsortError(f"INBOX: expected the folder {inbox!r}, received nothing there; is it mounted?")
        now = os.stat(inbox)
        if os.path.samestat(now, self._inbox):
            return
        check_places(os.path.realpath(inbox), self._context.outbox, self._request.bundle)
        with os.scandir(inbox) as entries:
            if next(entries, None) is None:
                raise DicomsortError(
                    f"INBOX: expected the folder {inbox!r} of before, received another, empty one; is it mounted?"
                )
        self._inbox = now

    def _resume(self, round_: Round, context: RunContext) -> None:
        """Finish runs that were cut short, where the outbox has new runs that this service did not make."""
        self._left, ended = recheck_runs(context.outbox, self._left)
        round_.left = self._left  # one list, which may grow below
        round_.runs += ended
        since = self._settled or ""
        if newest_run(context.outbox, since) == self._settled:
            return
        while (new_runs := read_new_runs(context, self._request.inbox, since)).cut_short:
            round_.summaries.append(resume(context, new_runs.cut_short, before_another=True))
        if self._settled is not None and new_runs.is_ours:
            self._known_files.forget()
        round_.runs += new_runs.sorted
        self._settled, round_.cut_short = new_runs.newest, max(new_runs.of_another, default="")
        round_.damaged = [*new_runs.damaged.values()]
        self._left += [*new_runs.damaged, *new_runs.of_another]


class Stopped(BaseException):
    """The service must end, and is between two files; nothing but the service itself may catch it."""


class Stop(ServiceStop):
    """The request to end the service; a second SIGINT interrupts at once."""

    def check(self) -> None:
        """Raise ``Stopped`` where somebody requested the end."""
        if self.is_made:
            raise Stopped

    def repeat(self, number: int) -> None:
        """Interrupt at once, where the second signal is SIGINT."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt


class StoppableFiles(Files):
    """Calls ``check``, which raises where the service must end, before each file; a file that was begun is finished."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, unless the service must end; a temporary copy that is complete gets its name."""
        if not source.endswith(".part"):
            self._check()
        super().link(source, target)

    def create(self, path: str, mode: int = 0o600) -> int:
        """Create a file, but no temporary copy where the service must end."""
        if path.endswith(".part"):
            self._check()
        return super().create(path, mode)


@dataclass
class StoppableProgress:
    """A ``Progress`` that calls ``check``, which raises where the service must end, at each step; then passes it on."""

    progress: Progress
    check: Callable[[], None]

    def stage(self, name: str, total: int | None) -> None:
        """See ``Progress``."""
        self.check()
        self.progress.stage(name, total)

    def advance(self, steps: int = 1) -> None:
        """See ``Progress``."""
        self.check()
        self.progress.advance(steps)


def steady_clock() -> Callable[[], int]:
    """Return a clock of nanoseconds since 1970 that never goes back, and ignores that the system's is set."""
    began = time.time_ns() - time.monotonic_ns()
    return lambda: began + time.monotonic_ns()


@dataclass
class Service:
    """Rounds until somebody asks for an end.

    ``every`` and ``settle`` are seconds; ``show`` gets the summary of each run, ``complain`` the reason why a round
    failed; ``metrics`` is the file for figures.
    """

    rounds: Rounds
    stop: Stop
    every: float
    settle: float
    clock: Callable[[], int]
    show: Callable[[Summary], None]
    complain: Callable[[str], None]
    forwarder: Forwarder | None = None
    metrics: Path | None = None
    files: Files = field(default_factory=Files)  # for the figures, which are written even after a signal
    _figures: Figures = field(default_factory=Figures)
    _failures: int = 0
    _cause: str = ""  # of the last of them
    _has_metrics: bool = True  # the last figures could be written

    def run(self) -> int:
        """Do rounds until ``stop`` is asked; return the number of the signal that did."""
        _log.info("watch begins", extra={"facts": {"every": self.every, "settle": self.settle}})
        self._figures.set("dicomsort_info", 1, version=__version__)
        self._figures.set("dicomsort_start_timestamp_seconds", int(time.time()))
        for ending in ENDINGS:
            self._figures.add("dicomsort_rounds_total", 0, result=ending)
        if self.forwarder is not None:
            self.forwarder.start()
        try:
            while not self.stop.is_made:
                began = time.monotonic()
                pause = self._round(began)
                self.stop.wait(max(pause - (time.monotonic() - began), SHORTEST_PAUSE))
        finally:
            if self.forwarder is not None:
                self.forwarder.stop()
            self.stop.close()
        return self.stop.signal

    @property
    def trouble(self) -> str:
        """Why the last rounds failed, or what keeps them from being a success; empty for nothing."""
        return f"{counted(self._failures, 'round')} failed in a row: {self._cause}" if self._failures else ""

    def _round(self, began: float) -> float:
        """Do one round and report it; return how many seconds after its beginning the next is due."""
        round_, total = Round(), Summary()
        ending = self._go(round_, total.count)
        for summary in round_.summaries:
            self._report_run(summary)
        if run := round_.cut_short:
            message = "a run of another inbox was cut short; `dicomsort resume` finishes it"
            _log.warning(message, extra={"facts": {"run": run}})
        for message in round_.damaged:
            _log.error("a run cannot be read", extra={"facts": {"message": message}})
            self._complain(message)
        if round_.summaries:
            set_run_metrics(self._figures, total, sum(summary.seconds for summary in round_.summaries))
        for (status, class_), count in total.files.items():
            self._figures.add("dicomsort_files_total", count, **{"status": status, "class": class_})
        if self.forwarder is not None:
            self.forwarder.call(round_.runs)
        self._measure(ending, round_.scan, time.monotonic() - began)
        return self._pause(round_.scan)

    def _go(self, round_: Round, on_row: Callable[[Row], None]) -> str:
        """Do one round; return how it ended, one of ``ENDINGS``."""
        try:
            self.rounds.go(round_, on_row)
        except Stopped:
            return "stopped"
        except OutboxLocked as error:
            _log.info("round put off", extra={"facts": {"message": describe_error(error)}})
            return "locked"
        except Exception as error:  # noqa: BLE001 - whatever one round meets, the next is tried
            self._failures += 1
            self._cause = describe_error(error)
            _log.error("round failed", extra={"facts": {"message": self._cause, "in_a_row": self._failures}})
            self._complain(f"{self._cause}; the next round tries again")
            return "failed"
        if self._failures:
            _log.info("recovered", extra={"facts": {"failures": self._failures}})
        self._failures = 0
        if not (round_.left or any(summary.has_failed for summary in round_.summaries)):
            self._figures.set("dicomsort_last_success_timestamp_seconds", int(time.time()))
        return "sorted" if round_.summaries else "idle"

    def _report_run(self, summary: Summary) -> None:
        _log.info("run ended", extra={"facts": summary.as_json()})
        if summary.has_failed:
            _log.error("files failed", extra={"facts": {"run": summary.run_id, "cause": summary.trouble}})
            self._complain(f"{summary.trouble}; the next round tries again")
        with suppress(OSError):  # nobody reads it any more
            self.show(summary)

    def _complain(self, message: str) -> None:
        with suppress(OSError):  # nobody reads it any more
            self.complain(message)

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
            set_file_metrics(figures, self.rounds.in_review(), scan.files, scan.oldest_ns)
            figures.set("dicomsort_inbox_waiting_files", scan.waiting)
            figures.set("dicomsort_inbox_oldest_waiting_age_seconds", age(scan.waiting_since_ns, self.clock()))
        if self.forwarder is not None:
            self.forwarder.set_metrics(figures)
        try:
            write_metrics(self.files, self.metrics, figures)
            self._has_metrics = True
        except (DicomsortError, OSError) as error:
            if self._has_metrics:
                _log.warning("metrics could not be written", extra={"facts": {"message": describe_error(error)}})
            self._has_metrics = False
