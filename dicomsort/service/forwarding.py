"""``[routes]``: where each sorted class is sent to, in a thread a destination: none holds up sorting, nor another."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from dicomsort.config import Destination, Routes
from dicomsort.errors import UsageError
from dicomsort.journal import runs_folder
from dicomsort.records import OTHER
from dicomsort.report import describe_error
from dicomsort.report.metrics import Figures

FIRST_PAUSE, LAST_PAUSE = 30.0, 86400.0  # seconds before an job that failed is tried again
LONGEST_DOWN = 900.0  # seconds between two attempts at a destination that is not there
REMIND_EVERY = 3600.0  # seconds between two lines about it
MANY = 64  # runs that wait to be sent; from here on the whole folder is gone through instead
GRACE = 10.0  # seconds that an instance on its way has when the service ends
_log = logging.getLogger("dicomsort")


class Sent(NamedTuple):
    """How many instances were acknowledged, how many could not be sent, and why the first could not.

    ``is_down`` where no association could be had; ``takes_nothing`` where the destination, for all that can be told
    from these instances, takes none at all.
    """

    sent: int
    failed: int
    message: str = ""
    is_down: bool = False
    takes_nothing: bool = False


@dataclass
class ForwardJob:
    """What waits to be sent: what a run placed, or all that lies in the folder (None).

    How often it failed by itself, until when it waits, and why it failed when that was last logged.
    """

    run: str | None
    failures: int = 0
    due: float = 0.0
    told: str = ""


class Sender(Protocol):
    """What sends; it knows by its own journal what was acknowledged already."""

    def __call__(self, folder: str, destination: Destination, run: str | None, /) -> Sent:
        """Send what ``run`` placed in a class folder of the outbox, or all that lies there (None).

        What the destination acknowledged before is passed over. It may raise what it will: that is a failure.
        """
        ...


@dataclass
class _Route:
    """A class and one destination of it: what waits, what was sent, and since when the destination is not there."""

    class_: str
    to: Destination
    waiting: list[ForwardJob] = field(default_factory=lambda: [ForwardJob(None)])
    sent: int = 0
    failed: int = 0
    is_up: bool | None = None  # None: it was not tried yet
    down_since: float = 0.0
    attempts: int = 0  # in vain, since then
    told: int = 0  # of these, in the log
    told_at: float = 0.0
    due: float = 0.0

    @property
    def facts(self) -> dict[str, object]:
        """What the log says of it."""
        return {"class": self.class_, "to": self.to.to}


@dataclass
class _DestinationQueue:
    """The routes to one destination, and the thread that serves them, one after the other: they share a journal."""

    routes: list[_Route]
    called: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


def _by_destination(routes: Iterable[_Route]) -> Iterable[list[_Route]]:
    """The routes to each address, however it is spelled."""
    found: dict[str, list[_Route]] = {}
    for route in routes:
        address = (route.to.to or "").casefold().rstrip("/").removesuffix("/studies")
        found.setdefault(address, []).append(route)
    return found.values()


def check_classes(routes: Routes, labels: Iterable[str]) -> None:
    """UsageError where a route is of no class of the model."""
    known = list(dict.fromkeys([*labels, OTHER]))
    for class_ in routes:
        if class_ not in known:
            raise UsageError(f"[routes]: expected a class of the model ({', '.join(known)}), received {class_!r}")


def check_routes(routes: Routes, labels: Iterable[str], check: Callable[[Destination], object]) -> None:
    """UsageError where a route is of no class of the model, or ``check`` raises one for a destination."""
    check_classes(routes, labels)
    for class_, destinations in routes.items():
        for destination in destinations:
            try:
                check(destination)
            except UsageError as error:
                raise UsageError(f"[routes] {class_}: {error}") from None


class Forwarder:
    """Sends what the rounds placed: at first all that lies in a class's folder, then run by run.

    A destination that is not there is tried again after the next round, then after longer and longer pauses. Where it
    is, but an job fails, that one is tried again less and less often, for some instances will never be taken, and
    the other runs go on.
    """

    def __init__(self, outbox: str, routes: Routes, send: Sender, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells seconds."""
        self._outbox = outbox
        self._routes = [_Route(class_, each) for class_, destinations in routes.items() for each in destinations]
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._is_stopped = False
        self._lines = [_DestinationQueue(routes) for routes in _by_destination(self._routes)]

    def start(self) -> None:
        """Begin; nothing is sent before ``call``."""
        for line in self._lines:
            line.thread = threading.Thread(target=self._work, args=(line,), name="dicomsort-forwarder", daemon=True)
            line.thread.start()

    def stop(self) -> None:
        """End after the jobs at hand, or without them; what is not sent by then is sent after the next start."""
        self._is_stopped = True
        until = time.monotonic() + GRACE
        for line in self._lines:
            line.called.set()
        for line in self._lines:
            if line.thread is not None:
                line.thread.join(max(0.0, until - time.monotonic()))

    def call(self, runs: Sequence[str]) -> None:
        """A round has ended: send what these runs placed, and what could not be sent before."""
        with self._lock:
            for route in self._routes:
                if not any(job.run is None and not job.failures for job in route.waiting):
                    route.waiting.extend(map(ForwardJob, runs))
                if len(route.waiting) > MANY:
                    route.waiting[:] = [ForwardJob(None)]
        for line in self._lines:
            line.called.set()

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
        """Go once through what is due, oldest first; a destination that is not there holds up no other."""
        for line in self._lines:
            self._deliver(line)

    def _work(self, line: _DestinationQueue) -> None:
        while line.called.wait() and not self._is_stopped:
            line.called.clear()
            self._deliver(line)

    def _deliver(self, line: _DestinationQueue) -> None:
        for route in line.routes:
            while not self._is_stopped and self._deliver_next(route):
                pass

    def _deliver_next(self, route: _Route) -> bool:
        """Do the first job that is due; whether to go on with this route."""
        folder = f"{self._outbox}/{route.class_}"
        job = self._take(route) if os.path.isdir(folder) else None
        if job is None:
            return False
        run = job.run
        if run is not None and not os.path.isdir(f"{runs_folder(self._outbox)}/{run}"):
            run = None  # it was pruned before it could be sent
        try:
            sent = self._send(folder, route.to, run)
        except Exception as error:  # noqa: BLE001 - whatever happens here, it says nothing of the destination
            sent = Sent(0, 0, describe_error(error))
        with self._lock:
            route.sent += sent.sent
            route.failed += sent.failed or bool(sent.message)
            # Where others were taken since it failed, this one cannot tell whether the destination takes anything.
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

    def _on_unreachable(self, route: _Route, job: ForwardJob, sent: Sent) -> None:
        """Put the job back, behind others if they may fare better; one line at first, and one each period."""
        now = self._clock()
        if sent.is_down:
            route.waiting.insert(0, job)
        else:
            route.waiting.append(replace(job, failures=max(job.failures, 1)))
        if not route.attempts:
            route.down_since = now
        route.attempts += 1
        if route.attempts > 1:
            route.due = now + min(FIRST_PAUSE * 2.0 ** min(route.attempts - 2, 30), LONGEST_DOWN)
        route.is_up = False
        if route.attempts > 1 and now - route.told_at < REMIND_EVERY:
            return
        facts = route.facts | {"message": sent.message}
        if route.attempts == 1:
            _log.warning("route down; it is tried again after longer and longer pauses", extra={"facts": facts})
        else:
            facts |= {"attempts": route.attempts - route.told, "seconds": round(now - route.down_since)}
            _log.warning("route still down", extra={"facts": facts})
        route.told, route.told_at = route.attempts, now

    def _on_reachable(self, route: _Route, job: ForwardJob, run: str | None, sent: Sent) -> None:
        """Log what was sent, and put back an job that failed: it is tried again later."""
        now = self._clock()
        facts = route.facts | {"run": run or "all", "sent": sent.sent}
        if sent.sent or sent.failed:  # else nobody was asked: there was nothing to send, or a failure of our own
            if route.attempts:
                back = {"attempts": route.attempts, "seconds": round(now - route.down_since)}
                _log.info("route back", extra={"facts": route.facts | back})
            route.is_up, route.attempts, route.told, route.due = True, 0, 0, 0.0
        if sent.failed or sent.message:
            if sent.sent or sent.message != job.told:
                facts |= {"failed": sent.failed, "message": sent.message}
                _log.warning("sending failed; it is tried again later", extra={"facts": facts})
            pause = min(FIRST_PAUSE * 2.0 ** min(job.failures, 30), LAST_PAUSE)
            route.waiting.append(ForwardJob(job.run, job.failures + 1, now + pause, sent.message))
        elif sent.sent:
            _log.info("sent", extra={"facts": facts})
