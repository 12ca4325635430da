"""``[routes]``: where each sorted class is sent on to, in a thread beside the rounds: no archive holds sorting up."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dicomsort.errors import UsageError
from dicomsort.journal import runs_folder
from dicomsort.records import OTHER
from dicomsort.report.metrics import Figures
from dicomsort.service.telling import said

FIRST_PAUSE, LAST_PAUSE = 30.0, 86400.0  # seconds before instances that were refused are tried again
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

    def __call__(self, folder: str, destination: str, run: str | None, /) -> Sent:
        """Send what ``run`` placed in a class folder of the outbox, or all that lies there (None).

        What the destination acknowledged before is passed over. It may raise what it will: that is a failure.
        """
        ...


def check_routes(routes: Mapping[str, str], labels: Iterable[str], check: Callable[[str], object]) -> None:
    """UsageError where a route is of no class of the model, or ``check`` raises one for its destination."""
    known = list(dict.fromkeys([*labels, OTHER]))
    for class_, destination in routes.items():
        if class_ not in known:
            raise UsageError(f"[routes]: expected a class of the model ({', '.join(known)}), received {class_!r}")
        try:
            check(destination)
        except UsageError as error:
            raise UsageError(f"[routes] {class_}: {error}") from None


class Courier:
    """Sends what the rounds placed: at first all that lies in a class's folder, then run by run.

    A destination that is not there is tried again after each round. Where it is, but refuses some instances, these are
    tried again less and less often, for some will never be taken, and the other runs go on.
    """

    def __init__(
        self,
        outbox: str,
        routes: Mapping[str, str],
        send: Sender,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` tells seconds."""
        self._outbox = outbox
        self._routes = routes
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Errand]] = {class_: [Errand(None)] for class_ in routes}
        self._sent: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._is_up: dict[str, bool] = {}
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
            for waiting in self._waiting.values():
                if not any(errand.run is None and not errand.failures for errand in waiting):
                    waiting.extend(map(Errand, runs))
                if len(waiting) > MANY:
                    waiting[:] = [Errand(None)]
        self._called.set()

    def tell(self, figures: Figures) -> None:
        """Put what was sent so far into the figures."""
        with self._lock:
            for class_, destination in self._routes.items():
                labels = {"class": class_, "to": destination}
                figures.set("dicomsort_sent_total", self._sent[class_], **labels)
                figures.set("dicomsort_send_failures_total", self._failed[class_], **labels)
                if class_ in self._is_up:
                    figures.set("dicomsort_route_up", self._is_up[class_], **labels)

    def deliver(self) -> None:
        """Go once through what is due, oldest first; a destination that is not there holds up no other."""
        for class_ in self._routes:
            while not self._is_stopped and self._deliver_next(class_):
                pass

    def _work(self) -> None:
        while self._called.wait() and not self._is_stopped:
            self._called.clear()
            self.deliver()

    def _deliver_next(self, class_: str) -> bool:
        """Do the first errand that is due; whether to go on with this route."""
        folder, destination = f"{self._outbox}/{class_}", self._routes[class_]
        errand = self._take(class_) if os.path.isdir(folder) else None
        if errand is None:
            return False
        run = errand.run
        if run is not None and not os.path.isdir(f"{runs_folder(self._outbox)}/{run}"):
            run = None  # it was pruned before it could be sent
        try:
            sent = self._send(folder, destination, run)
        except Exception as error:  # noqa: BLE001 - whatever an archive does, the service goes on
            sent = Sent(0, 1, said(error), is_down=True)
        self._log(class_, run, sent)
        self._note(class_, errand, sent)
        return not sent.is_down

    def _take(self, class_: str) -> Errand | None:
        with self._lock:
            waiting, now = self._waiting[class_], self._clock()
            place = next((place for place, errand in enumerate(waiting) if errand.due <= now), None)
            return None if place is None else waiting.pop(place)

    def _log(self, class_: str, run: str | None, sent: Sent) -> None:
        facts = {"class": class_, "to": self._routes[class_], "run": run or "all", "sent": sent.sent}
        if sent.failed or sent.is_down:
            facts |= {"failed": sent.failed, "message": sent.message}
            again = "after the next round" if sent.is_down else "later"
            _log.warning("sending failed; it is tried again %s", again, extra={"facts": facts})
        elif sent.sent:
            _log.info("sent", extra={"facts": facts})

    def _note(self, class_: str, errand: Errand, sent: Sent) -> None:
        """Count, and put back what must be tried again: before all others where nobody was there, else later."""
        with self._lock:
            waiting = self._waiting[class_]
            self._sent[class_] += sent.sent
            self._failed[class_] += sent.failed
            self._is_up[class_] = not sent.is_down
            if sent.is_down:
                waiting.insert(0, errand)
            elif sent.failed:
                pause = min(FIRST_PAUSE * 2.0 ** min(errand.failures, 30), LAST_PAUSE)
                waiting.append(Errand(errand.run, errand.failures + 1, self._clock() + pause))
