"""``[routes]``: where each sorted class is sent on to, in a thread beside the rounds: no archive holds sorting up."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dicomsort.config import Destination
from dicomsort.errors import UsageError
from dicomsort.journal import runs_folder
from dicomsort.records import OTHER
from dicomsort.report.metrics import Figures
from dicomsort.service.telling import said

FIRST_PAUSE, LAST_PAUSE = 30.0, 86400.0  # seconds before instances that were refused are tried again
LONGEST_DOWN = 900.0  # seconds between two attempts at a destination that is not there
REMIND_EVERY = 3600.0  # seconds between two lines about it
MANY = 64  # runs that wait to be sent; from here on the whole folder is gone through instead
GRACE = 10.0  # seconds that an instance on its way has when the service ends
_log = logging.getLogger("dicomsort")


class Sent(NamedTuple):
    """How many instances were acknowledged, how many could not be sent, and why the first could not.

    ``is_down`` where the destination is not there, or refuses everything.
    """

    sent: int
    failed: int
    message: str = ""
    is_down: bool = False


@dataclass
class Errand:
    """What waits to be sent: what a run placed, or all that lies in the folder (None); how often, and until when."""

    run: str | None
    failures: int = 0
    due: float = 0.0


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
    waiting: list[Errand] = field(default_factory=lambda: [Errand(None)])
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


Routes = Mapping[str, Sequence[Destination]]


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


class Courier:
    """Sends what the rounds placed: at first all that lies in a class's folder, then run by run.

    A destination that is not there is tried again after the next round, then after longer and longer pauses. Where it
    is, but refuses some instances, these are tried again less and less often, for some will never be taken, and the
    other runs go on.
    """

    def __init__(self, outbox: str, routes: Routes, send: Sender, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells seconds."""
        self._outbox = outbox
        self._routes = [_Route(class_, each) for class_, destinations in routes.items() for each in destinations]
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._called = threading.Event()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="dicomsort-courier", daemon=True)

    def start(self) -> None:
        """Begin; nothing is sent before ``call``."""
        self._thread.start()

    def stop(self) -> None:
        """End after the errand at hand, or without it; what is not sent by then is sent after the next start."""
        self._is_stopped = True
        self._called.set()
        self._thread.join(GRACE)

    def call(self, runs: Sequence[str]) -> None:
        """A round has ended: send what these runs placed, and what could not be sent before."""
        with self._lock:
            for route in self._routes:
                if not any(errand.run is None and not errand.failures for errand in route.waiting):
                    route.waiting.extend(map(Errand, runs))
                if len(route.waiting) > MANY:
                    route.waiting[:] = [Errand(None)]
        self._called.set()

    def tell(self, figures: Figures) -> None:
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
        for route in self._routes:
            while not self._is_stopped and self._deliver_next(route):
                pass

    def _work(self) -> None:
        while self._called.wait() and not self._is_stopped:
            self._called.clear()
            self.deliver()

    def _deliver_next(self, route: _Route) -> bool:
        """Do the first errand that is due; whether to go on with this route."""
        folder = f"{self._outbox}/{route.class_}"
        errand = self._take(route) if os.path.isdir(folder) else None
        if errand is None:
            return False
        run = errand.run
        if run is not None and not os.path.isdir(f"{runs_folder(self._outbox)}/{run}"):
            run = None  # it was pruned before it could be sent
        try:
            sent = self._send(folder, route.to, run)
        except Exception as error:  # noqa: BLE001 - whatever an archive does, the service goes on
            sent = Sent(0, 1, said(error), is_down=True)
        with self._lock:
            route.sent += sent.sent
            route.failed += sent.failed
            if sent.is_down:
                self._is_down(route, errand, sent)
            else:
                self._is_there(route, errand, run, sent)
        return not sent.is_down

    def _take(self, route: _Route) -> Errand | None:
        with self._lock:
            now = self._clock()
            place = next((place for place, errand in enumerate(route.waiting) if errand.due <= now), None)
            return None if place is None or route.due > now else route.waiting.pop(place)

    def _is_down(self, route: _Route, errand: Errand, sent: Sent) -> None:
        """Put the errand back before all others; one line at first, and one each period."""
        now = self._clock()
        route.waiting.insert(0, errand)
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

    def _is_there(self, route: _Route, errand: Errand, run: str | None, sent: Sent) -> None:
        """Log what was sent, and put back what was refused: it is tried again later."""
        now = self._clock()
        facts = route.facts | {"run": run or "all", "sent": sent.sent}
        if sent.sent or sent.failed:  # else nobody was asked: there was nothing to send
            if route.attempts:
                back = {"attempts": route.attempts, "seconds": round(now - route.down_since)}
                _log.info("route back", extra={"facts": route.facts | back})
            route.is_up, route.attempts, route.told, route.due = True, 0, 0, 0.0
        if sent.failed:
            facts |= {"failed": sent.failed, "message": sent.message}
            _log.warning("sending failed; it is tried again later", extra={"facts": facts})
            pause = min(FIRST_PAUSE * 2.0 ** min(errand.failures, 30), LAST_PAUSE)
            route.waiting.append(Errand(errand.run, errand.failures + 1, now + pause))
        elif sent.sent:
            _log.info("sent", extra={"facts": facts})
