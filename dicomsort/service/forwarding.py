"""``[routes]``: where each class is sent to, with a thread a destination: none delays sorting, nor another."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dicomsort.config import Destination, Routes
from dicomsort.journal import run_folder
from dicomsort.report import describe_error
from dicomsort.report.metrics import Figures

FIRST_PAUSE, LAST_PAUSE = 30.0, 86400.0  # seconds before a job that failed is retried
LONGEST_DOWN = 900.0  # seconds between two attempts at a destination that is down
REMIND_EVERY = 3600.0  # seconds between two lines about it
MANY = 64  # runs that wait to be sent; from here on the whole folder is sent instead
GRACE = 10.0  # seconds that an instance on its way has when the service ends
_log = logging.getLogger("dicomsort")


class ForwardResult(NamedTuple):
    """How many instances were acknowledged, how many could not be sent, and why the first could not.

    ``is_down`` where no association could be opened; ``takes_nothing`` where the destination, as far as these instances
    show, accepts none at all; not ``is_asked`` where it was asked about none.
    """

    sent: int
    failed: int
    message: str = ""
    is_down: bool = False
    takes_nothing: bool = False
    is_asked: bool = True


@dataclass
class ForwardJob:
    """What waits to be sent: what a run placed, or all that lies in the folder (None).

    How often it failed by itself, until when it waits, and the reason that was last logged.
    """

    run: str | None
    failures: int = 0
    due: float = 0.0
    reported: str = ""


# Sends what a run placed in a class folder of the outbox, or all that lies there (None), but for what the destination
# acknowledged before. Any exception counts as a failure.
Sender = Callable[[str, Destination, str | None], ForwardResult]


@dataclass
class _Route:
    """A class and one destination of it: what waits, what was sent, and since when the destination is down."""

    class_: str
    to: Destination
    waiting: list[ForwardJob] = field(default_factory=lambda: [ForwardJob(None)])
    sent: int = 0
    failed: int = 0
    is_up: bool | None = None  # None: it was not tried yet
    down_since: float = 0.0
    attempts: int = 0  # in vain, since then
    reported: int = 0  # of these, in the log
    reported_at: float = 0.0
    due: float = 0.0

    @property
    def facts(self) -> dict[str, object]:
        """What the log says of it."""
        return {"class": self.class_, "to": self.to.to}

    @property
    def address(self) -> str:
        """The destination, the same however it is spelled."""
        return (self.to.to or "").casefold().rstrip("/").removesuffix("/studies")


@dataclass
class _DestinationQueue:
    """The routes to one destination; one thread serves them, one after the other, as they share a journal."""

    routes: list[_Route] = field(default_factory=list)
    called: threading.Event = field(default_factory=threading.Event)


class Forwarder:
    """Sends what the rounds placed: at first all that lies in a class's folder, then run by run.

    A destination that is down is retried after the next round, then after growing pauses. Where it is up, but a job
    fails, that job is retried less and less often, for some instances will never be accepted, and the other runs go on.
    """

    def __init__(self, outbox: str, routes: Routes, send: Sender) -> None:
        self._outbox, self._send, self._clock = outbox, send, time.monotonic
        self._routes = [_Route(class_, each) for class_, destinations in routes.items() for each in destinations]
        self._lock = threading.Lock()
        self._is_stopped = False
        self._threads: list[threading.Thread] = []
        queues: dict[str, _DestinationQueue] = {}
        for route in self._routes:
            queues.setdefault(route.address, _DestinationQueue()).routes.append(route)
        self._queues = [*queues.values()]

    def start(self) -> None:
        """Start the threads; nothing is sent before ``call``."""
        for queue in self._queues:
            thread = threading.Thread(target=self._work, args=(queue,), name="dicomsort-forwarder", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop after the jobs at hand, or without them; what is not sent by then is sent after the next start."""
        self._is_stopped = True
        until = time.monotonic() + GRACE
        for queue in self._queues:
            queue.called.set()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def call(self, runs: Sequence[str]) -> None:
        """Send, after a round, what these runs placed, and what could not be sent before."""
        with self._lock:
            for route in self._routes:
                if not any(job.run is None and not job.failures for job in route.waiting):
                    route.waiting.extend(map(ForwardJob, runs))
                if len(route.waiting) > MANY:
                    route.waiting[:] = [ForwardJob(None)]
        for queue in self._queues:
            queue.called.set()

    def set_metrics(self, figures: Figures) -> None:
        """Put what was sent so far into the figures."""
        with self._lock:
            for route in self._routes:
                labels = {"class": route.class_, "to": route.to.to or ""}
                figures.set("dicomsort_sent_total", route.sent, **labels)
                figures.set("dicomsort_send_failures_total", route.failed, **labels)
                if route.is_up is not None:
                    figures.set("dicomsort_route_up", route.is_up, **labels)

    def deliver(self) -> None:
        """Send once what is due, oldest first, without threads; a destination that is down delays no other."""
        for queue in self._queues:
            self._deliver(queue)

    def _work(self, queue: _DestinationQueue) -> None:
        while not self._is_stopped:  # asked before the event: `stop` sets both, this first
            queue.called.wait()
            queue.called.clear()
            self._deliver(queue)

    def _deliver(self, queue: _DestinationQueue) -> None:
        for route in queue.routes:
            while not self._is_stopped and self._deliver_next(route):
                pass

    def _deliver_next(self, route: _Route) -> bool:
        """Do the first job that is due; whether to go on with this route."""
        folder = f"{self._outbox}/{route.class_}"
        job = self._take(route) if os.path.isdir(folder) else None
        if job is None:
            return False
        run = job.run
        if run is not None and not os.path.isdir(run_folder(self._outbox, run)):
            run = None  # it was pruned before it could be sent
        try:
            sent = self._send(folder, route.to, run)
        except Exception as error:  # noqa: BLE001 - whatever happens here, it says nothing of the destination
            sent = ForwardResult(0, 0, describe_error(error))
        with self._lock:
            route.sent += sent.sent
            route.failed += sent.failed or bool(sent.message)
            # Where others were accepted since it failed, this one cannot show whether the destination takes anything.
            is_down = sent.is_down or (sent.takes_nothing and not (job.failures and route.is_up))
            if is_down:
                self._on_unreachable(route, job, sent)
            else:
                self._on_reachable(route, job, run, sent)
        return not is_down

    def _take(self, route: _Route) -> ForwardJob | None:
        with self._lock:
            now = self._clock()
            place = next((place for place, job in enumerate(route.waiting) if job.due <= now), None)
            return None if place is None or route.due > now else route.waiting.pop(place)

    def _on_unreachable(self, route: _Route, job: ForwardJob, sent: ForwardResult) -> None:
        """Put the job back, behind others if they may succeed; log one line at first, and one each period."""
        now = self._clock()
        if sent.is_down:
            route.waiting.insert(0, job)
        else:
            route.waiting.append(replace(job, failures=max(job.failures, 1)))
        is_first = not route.attempts
        route.attempts += 1
        route.is_up = False
        if is_first:
            route.down_since = now
        else:
            route.due = now + _pause(route.attempts - 2, LONGEST_DOWN)
            if now - route.reported_at < REMIND_EVERY:
                return
        facts = route.facts | {"message": sent.message}
        if is_first:
            _log.warning("route down; it is tried again after longer and longer pauses", extra={"facts": facts})
        else:
            facts |= {"attempts": route.attempts - route.reported, "seconds": round(now - route.down_since)}
            _log.warning("route still down", extra={"facts": facts})
        route.reported, route.reported_at = route.attempts, now

    def _on_reachable(self, route: _Route, job: ForwardJob, run: str | None, sent: ForwardResult) -> None:
        """Log what was sent, and put back a job that failed."""
        now = self._clock()
        facts = route.facts | {"run": run or "all", "sent": sent.sent}
        # Else nobody was asked: there was nothing to send, it is gone from the outbox, or a failure of our own.
        if sent.sent or (sent.failed and sent.is_asked):
            if route.attempts:
                back = {"attempts": route.attempts, "seconds": round(now - route.down_since)}
                _log.info("route back", extra={"facts": route.facts | back})
            route.is_up, route.attempts, route.reported, route.due = True, 0, 0, 0.0
        if sent.failed or sent.message:
            if sent.sent or sent.message != job.reported:
                facts |= {"failed": sent.failed, "message": sent.message}
                _log.warning("sending failed; it is tried again later", extra={"facts": facts})
            due = now + _pause(job.failures, LAST_PAUSE)
            route.waiting.append(ForwardJob(job.run, job.failures + 1, due, sent.message))
        elif sent.sent:
            _log.info("sent", extra={"facts": facts})


def _pause(doublings: int, longest: float) -> float:
    return min(FIRST_PAUSE * 2.0 ** min(doublings, 30), longest)
