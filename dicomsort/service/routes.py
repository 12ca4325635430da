"""``[routes]``: where each sorted class is sent on to, in a thread beside the rounds: no archive holds sorting up."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from dicomsort.errors import UsageError
from dicomsort.journal import runs_folder
from dicomsort.records import OTHER
from dicomsort.report.metrics import Figures
from dicomsort.service.telling import said

MANY = 64  # runs that wait to be sent; from here on the whole folder is gone through instead
GRACE = 10.0  # seconds that an instance on its way has when the service ends
_log = logging.getLogger("dicomsort")


class Sent(NamedTuple):
    """How many instances were acknowledged, how many could not be sent, and why the first could not."""

    sent: int
    failed: int
    message: str = ""


class Sender(Protocol):
    """What sends; it knows by its own journal what was acknowledged already."""

    def send(self, folder: str, destination: str, run: str | None, /) -> Sent:
        """Send what ``run`` placed in a class folder of the outbox, or all that lies there (None).

        What the destination acknowledged before is passed over. Raises where nothing could be sent.
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
    """Sends what the rounds placed: at first all that lies in a class's folder (None), then run by run."""

    def __init__(self, outbox: str, routes: Mapping[str, str], send: Callable[[str, str, str | None], Sent]) -> None:
        """``send`` is a ``Sender``'s."""
        self._outbox = outbox
        self._routes = routes
        self._send = send
        self._lock = threading.Lock()
        self._waiting: dict[str, list[str | None]] = {class_: [None] for class_ in routes}
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
        """End after the route at hand; what is not sent by then is sent after the next start."""
        self._is_stopped = True
        self._called.set()
        self._thread.join(GRACE)

    def call(self, runs: Sequence[str]) -> None:
        """A round has ended: send what these runs placed, and what could not be sent before."""
        with self._lock:
            for waiting in self._waiting.values():
                waiting.extend(run for run in runs if None not in waiting)
                if len(waiting) > MANY:
                    waiting[:] = [None]
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
        """Try each route once, oldest runs first; a route that fails waits for the next round."""
        for class_ in self._routes:
            while not self._is_stopped and self._deliver_next(class_):
                pass

    def _work(self) -> None:
        while self._called.wait() and not self._is_stopped:
            self._called.clear()
            self.deliver()

    def _deliver_next(self, class_: str) -> bool:
        """Send one run; whether to go on with this route."""
        folder, destination = f"{self._outbox}/{class_}", self._routes[class_]
        with self._lock:
            if not self._waiting[class_] or not os.path.isdir(folder):
                return False
            run = self._waiting[class_].pop(0)
        if run is not None and not os.path.isdir(f"{runs_folder(self._outbox)}/{run}"):
            run = None  # it was pruned before it could be sent
        try:
            sent = self._send(folder, destination, run)
        except Exception as error:  # noqa: BLE001 - whatever an archive does, the service goes on
            sent = Sent(0, 1, said(error))
        self._note(class_, run, sent)
        return sent.failed == 0

    def _note(self, class_: str, run: str | None, sent: Sent) -> None:
        facts = {"class": class_, "to": self._routes[class_], "run": run or "all", "sent": sent.sent}
        if sent.failed:
            facts |= {"failed": sent.failed, "message": sent.message}
            _log.warning("sending failed; the next round tries again", extra={"facts": facts})
        elif sent.sent:
            _log.info("sent", extra={"facts": facts})
        with self._lock:
            self._sent[class_] += sent.sent
            self._failed[class_] += sent.failed
            self._is_up[class_] = not sent.failed
            if sent.failed:
                waiting = self._waiting[class_]
                waiting[:] = [None] if None in {run, *waiting} else [run, *waiting]
