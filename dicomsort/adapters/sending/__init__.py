"""Sending to a PACS: C-STORE to ``AE@HOST:PORT`` or STOW-RS to a DICOMweb address, and what became of each file.

``send`` is the one door. Files are read and never changed; what the peer acknowledged is kept in a journal
(``acknowledged``), so that sending again sends the rest. Messages tell of no tag's value but UIDs, and repeat nothing
that the peer says in words.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice

from dicomsort.adapters.sending import dimse, negotiation, selecting, stow, tls
from dicomsort.adapters.sending.acknowledged import Acknowledged
from dicomsort.adapters.sending.crew import Crew
from dicomsort.adapters.sending.destination import DicomPeer, WebPeer, ae_title, destination, file_name
from dicomsort.adapters.sending.recoding import Recoder
from dicomsort.adapters.sending.records import Answer, Batch, Channel, Delivery, Fate, Instance, Progress, Request, Sent
from dicomsort.adapters.sending.selecting import Selection, select
from dicomsort.errors import UsageError
from dicomsort.files import Files
from dicomsort.journal import STATE
from dicomsort.report import printable

__all__ = ["Delivery", "Fate", "Progress", "Request", "Sent", "destination", "require", "send"]

WINDOW = 1000  # files whose headers are read before what they need of associations is settled
_log = logging.getLogger("dicomsort")


def send(
    request: Request,
    files: Files,
    progress: Progress,
    report: Callable[[Delivery], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Sent:
    """Send what the request names; ``report`` is told of each file as it ends, by one thread at a time.

    Once ``stop`` is set, what is being sent is finished and the rest is left, untold.

    Raises ``UsageError`` for what the request gets wrong, ``OutboxLocked`` where another sending to this destination
    holds its journal, ``DicomsortError`` where that cannot be written. A peer that is not there, or refuses all, is no
    exception: ``Sent.problem`` says so.
    """
    peer = destination(request.to)
    ae_title(request.ae_title, "--ae-title")
    selection = select(request.folder, request.run)
    journal = os.path.abspath(request.journal) if request.journal else _journal(selection, file_name(peer))
    with ExitStack() as stack:
        channels = _channels(peer, request, stack)
        known = Acknowledged(files, journal, peer.name, selection.base)
        stack.callback(known.close)
        return _Sending(peer, request, selection, known, report, progress).run(channels, stop)


def require(peer: DicomPeer | WebPeer) -> None:
    """UsageError where what speaks to such a peer is not installed."""
    (stow if isinstance(peer, WebPeer) else negotiation).require()


def _journal(selection: Selection, name: str) -> str:
    folder = f"{STATE}/sent" if selection.is_outbox else selecting.ASIDE
    return f"{selection.base}/{folder}/{name}.jsonl"


def _channels(peer: DicomPeer | WebPeer, request: Request, stack: ExitStack) -> list[Channel]:
    context = tls.context(peer, request)
    numbers = range(request.associations)
    require(peer)
    if isinstance(peer, WebPeer):
        return [stow.WebChannel(peer, request, context) for _ in numbers]
    if request.authorization:
        raise UsageError(f"--auth: expected an https:// address beside it, received {peer.name}")
    recoder = Recoder() if request.decompress else None
    if recoder is not None:
        stack.callback(recoder.close)
    return [dimse.DimseChannel(peer, request, context, recoder) for _ in numbers]


class _Sending:
    """One call of ``send``, once everything it needs is open."""

    def __init__(
        self,
        peer: DicomPeer | WebPeer,
        request: Request,
        selection: Selection,
        known: Acknowledged,
        report: Callable[[Delivery], None],
        progress: Progress,
    ) -> None:
        self._peer, self._request, self._selection = peer, request, selection
        self._known, self._report, self._progress = known, report, progress
        self._lock = threading.Lock()
        self._sent = Sent(peer.name)
        self._crew: Crew | None = None

    def run(self, channels: list[Channel], stop: threading.Event | None) -> Sent:
        started = time.monotonic()
        self._progress.stage(f"sending to {self._peer.name}", None)
        self._crew = Crew(channels, self._request, self._settle, stop)
        self._crew.run(self._batches(stop))
        self._sent.problem = self._crew.problem
        self._sent.seconds = time.monotonic() - started
        return self._sent

    def _batches(self, stop: threading.Event | None) -> Iterator[Batch]:
        fresh = self._fresh(stop)
        while window := list(islice(fresh, WINDOW)):
            if isinstance(self._peer, WebPeer):
                yield from stow.batches(window)
            else:
                yield from dimse.batches(window, decompress=self._request.decompress)

    def _fresh(self, stop: threading.Event | None) -> Iterator[Instance]:
        """Yield what must be sent; all else is told of here."""
        for found in selecting.candidates(self._selection):
            if stop is not None and stop.is_set():
                return
            if isinstance(found, Delivery):
                self._tell(found)
                continue
            again = self._request.again
            sop_uid = None if again else self._known.holds(found.path, found.size, found.mtime_ns)
            if sop_uid is not None:
                self._tell(Delivery(found.path, sop_uid, Fate.SKIPPED))
                continue
            problem = self._crew.problem if self._crew else ""
            if problem:
                self._tell(Delivery(found.path, "", Fate.FAILED, 0, f"not tried: {problem}"))
                continue
            examined = selecting.examine(self._selection.base, found)
            if isinstance(examined, Delivery):
                self._tell(examined)
            elif not again and self._known.holds_content(examined):
                self._tell(Delivery(found.path, examined.sop_uid, Fate.SKIPPED))
            else:
                yield examined

    def _settle(self, instance: Instance, answer: Answer, attempts: int) -> None:
        if answer.acknowledged:
            self._known.add(instance, answer.sha256)
        fate = Fate.ACKNOWLEDGED if answer.acknowledged else Fate.FAILED
        self._tell(Delivery(instance.path, instance.sop_uid, fate, attempts, answer.message), instance.size)

    def _tell(self, delivery: Delivery, size: int = 0) -> None:
        if delivery.status is Fate.FAILED:
            facts = {"path": printable(delivery.path), "sop_uid": delivery.sop_uid, "message": delivery.message}
            _log.warning("not sent", extra={"facts": {"destination": self._peer.name, **facts}})
        with self._lock:
            self._sent.count(delivery, size)
            self._report(delivery)
            self._progress.advance()
