"""Sending to a PACS: C-STORE to ``AE@HOST:PORT`` or STOW-RS to a DICOMweb address, and what became of each file.

``send`` is the one door. Files are read and never changed; what the peer acknowledged is kept in a journal
(``acknowledged``), so that sending again sends the rest. Messages tell of no tag's value but UIDs, and repeat nothing
that the peer says in words.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from operator import itemgetter

from dicomsort.config import Destination, SendSettings
from dicomsort.errors import UsageError
from dicomsort.files import Files
from dicomsort.journal import STATE
from dicomsort.pacs.send import association, c_store, stow
from dicomsort.pacs.send import selection as selection_module
from dicomsort.pacs.send.acknowledged import Acknowledged
from dicomsort.pacs.send.destination import DicomPeer, WebPeer, ae_title, destination, file_name
from dicomsort.pacs.send.records import Answer, Batch, Channel, Instance, SendResult, SendStatus, Sent
from dicomsort.pacs.send.selection import Selection, select
from dicomsort.pacs.send.transcoding import Transcoder
from dicomsort.pacs.send.workers import SendWorkers
from dicomsort.pacs.tls import client_context
from dicomsort.progress import Progress
from dicomsort.records import Found
from dicomsort.report import printable

__all__ = ["Progress", "SendResult", "SendStatus", "Sent", "check", "destination", "require", "send"]

WINDOW = 1000  # files whose headers are read before what they need of associations is settled
_log = logging.getLogger("dicomsort")


def send(
    folder: str,
    settings: SendSettings,
    files: Files,
    progress: Progress,
    report: Callable[[SendResult], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Sent:
    """Send what lies in a folder, or what a run placed there; ``report`` is told of each file, by one thread at a time.

    Once ``stop`` is set, what is being sent is finished and the rest is left, untold.

    Raises ``UsageError`` for what the settings get wrong, ``OutboxLocked`` where another sending to this destination
    holds its journal, ``DicomsortError`` where that cannot be written. A peer that is not there, or refuses all, is no
    exception: ``Sent.problem`` says so.
    """
    peer, tls = _checked(settings)
    selection = select(folder, settings.run or "")
    journal = os.path.abspath(settings.journal) if settings.journal else _journal(selection, file_name(peer))
    with ExitStack() as stack:
        channels = _channels(peer, settings, tls, stack)
        known = Acknowledged(files, journal, peer.name, selection.base)
        stack.callback(known.close)
        return _Sending(peer, settings, selection, known, report, progress).run(channels, stop)


def check(settings: Destination) -> DicomPeer | WebPeer:
    """The peer; ``UsageError`` where nothing can be sent there: an address, title or file of the settings is wrong."""
    return _checked(settings)[0]


def _checked(settings: Destination) -> tuple[DicomPeer | WebPeer, ssl.SSLContext | None]:
    """The peer, and the context of TLS where the settings want it."""
    peer = destination(settings.to or "")
    ae_title(settings.ae_title, "--ae-title")
    require(peer)
    wants_tls = settings.tls or any((settings.tls_ca, settings.tls_cert, settings.tls_key))
    if isinstance(peer, WebPeer):
        if wants_tls and not peer.secure:
            raise UsageError(f"--tls…: expected an https:// address beside it, received {peer.name}")
        wants_tls = peer.secure
    tls = client_context(settings) if wants_tls else None
    if isinstance(peer, WebPeer):
        stow.authorization(peer, settings.auth)
    elif settings.auth:
        raise UsageError(f"--auth: expected an https:// address beside it, received {peer.name}")
    return peer, tls


def require(peer: DicomPeer | WebPeer) -> None:
    """UsageError where what speaks to such a peer is not installed."""
    (stow if isinstance(peer, WebPeer) else association).require()


def _journal(selection: Selection, name: str) -> str:
    folder = f"{STATE}/sent" if selection.is_outbox else selection_module.ASIDE
    return f"{selection.base}/{folder}/{name}.jsonl"


def _channels(
    peer: DicomPeer | WebPeer, settings: SendSettings, tls: ssl.SSLContext | None, stack: ExitStack
) -> list[Channel]:
    numbers = range(settings.associations)
    if isinstance(peer, WebPeer):
        return [stow.WebChannel(peer, settings, tls) for _ in numbers]
    transcoder = Transcoder() if settings.decompress else None
    if transcoder is not None:
        stack.callback(transcoder.close)
    return [c_store.DimseChannel(peer, settings, tls, transcoder) for _ in numbers]


class _Sending:
    """One call of ``send``, once everything it needs is open."""

    def __init__(
        self,
        peer: DicomPeer | WebPeer,
        settings: SendSettings,
        selection: Selection,
        known: Acknowledged,
        report: Callable[[SendResult], None],
        progress: Progress,
    ) -> None:
        self._peer, self._settings, self._selection = peer, settings, selection
        self._known, self._report, self._progress = known, report, progress
        self._lock = threading.Lock()
        self._sent = Sent(peer.name)
        self._crew: SendWorkers | None = None

    def run(self, channels: list[Channel], stop: threading.Event | None) -> Sent:
        started = time.monotonic()
        self._progress.stage(f"sending to {self._peer.name}", None)
        self._crew = SendWorkers(channels, self._settings, self._settle, stop)
        self._crew.run(self._batches(stop))
        self._sent.problem = self._crew.problem
        self._sent.is_down, self._sent.takes_nothing = self._crew.is_down, self._crew.takes_nothing
        self._sent.seconds = time.monotonic() - started
        return self._sent

    def _batches(self, stop: threading.Event | None) -> Iterator[Batch]:
        """Yield what was not tried before, then what failed in earlier runs: each alone, the oldest failure first."""
        failed: list[tuple[int, Found]] = []
        for window in _windows(self._examined(self._unsent(stop, failed))):
            yield from self._batched(window)
        failed.sort(key=itemgetter(0))
        for window in _windows(self._examined(found for _, found in failed if not _is_set(stop))):
            contexts = {each: batch.contexts for batch in self._batched(window) for each in batch.instances}
            for instance in window:
                yield Batch((instance,), contexts[instance], once=True)

    def _batched(self, window: list[Instance]) -> Iterator[Batch]:
        if isinstance(self._peer, WebPeer):
            return stow.batches(window)
        return c_store.batches(window, decompress=self._settings.decompress)

    def _unsent(self, stop: threading.Event | None, failed: list[tuple[int, Found]]) -> Iterator[Found]:
        """Yield what was never tried, and put into ``failed`` what was; all else is told of here."""
        for found in selection_module.candidates(self._selection):
            if _is_set(stop):
                return
            if isinstance(found, SendResult):
                self._tell(found)
                continue
            sop_uid = None if self._settings.again else self._known.holds(found)
            if sop_uid is not None:
                self._tell(SendResult(found.path, sop_uid, SendStatus.SKIPPED))
            elif (place := self._known.failed_at(found)) is not None:
                failed.append((place, found))
            else:
                yield found

    def _examined(self, files: Iterable[Found]) -> Iterator[Instance]:
        """Yield what must be sent; all else is told of here."""
        for found in files:
            problem = self._crew.problem if self._crew else ""
            if problem and (self._settings.again or not self._known.may_hold(found)):
                self._tell(SendResult(found.path, "", SendStatus.FAILED, 0, f"not tried: {problem}"), is_logged=False)
                continue
            examined = selection_module.examine(self._selection.base, found)
            if isinstance(examined, SendResult):
                self._tell(examined)
            elif not self._settings.again and self._known.holds_instance(examined):
                self._tell(SendResult(found.path, examined.sop_uid, SendStatus.SKIPPED))
            else:
                yield examined

    def _settle(self, instance: Instance, answer: Answer, attempts: int) -> None:
        if answer.acknowledged:
            self._known.add(instance, answer.sha256)
        elif answer.reached:
            self._known.add_failed(instance)
        fate = SendStatus.ACKNOWLEDGED if answer.acknowledged else SendStatus.FAILED
        delivery = SendResult(instance.path, instance.sop_uid, fate, attempts, answer.message)
        is_given_up = self._crew is not None and self._crew.problem != ""
        self._tell(delivery, instance.size, is_logged=answer.reached or not is_given_up)

    def _tell(self, delivery: SendResult, size: int = 0, *, is_logged: bool = True) -> None:
        if delivery.status is SendStatus.FAILED and is_logged:  # that nobody is there is told once, by ``Sent.problem``
            facts = {"path": printable(delivery.path), "sop_uid": delivery.sop_uid, "message": delivery.message}
            _log.warning("not sent", extra={"facts": {"destination": self._peer.name, **facts}})
        with self._lock:
            self._sent.count(delivery, size)
            self._report(delivery)
            self._progress.advance()


def _windows(instances: Iterator[Instance]) -> Iterator[list[Instance]]:
    while window := list(islice(instances, WINDOW)):
        yield window


def _is_set(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()
