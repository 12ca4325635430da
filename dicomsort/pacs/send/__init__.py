"""Sending to a PACS: C-STORE to ``AE@HOST:PORT`` or STOW-RS to a DICOMweb address, and the result for each file.

``send`` is the entry point. Files are read and never changed; what the peer acknowledged is written to a journal
(``acknowledged``), so that sending again sends the rest. Messages contain no tag's value but UIDs, and repeat nothing
that the peer says in words.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from operator import itemgetter

from dicomsort.config import Destination, SendSettings
from dicomsort.engines.engine import batched
from dicomsort.errors import UsageError
from dicomsort.files import Files
from dicomsort.journal import STATE
from dicomsort.pacs import ae_title, require
from dicomsort.pacs.send import c_store, stow
from dicomsort.pacs.send.acknowledged import Acknowledged
from dicomsort.pacs.send.destination import DicomPeer, WebPeer, destination, file_name
from dicomsort.pacs.send.records import Answer, Batch, Channel, Instance, SendResult, SendStatus, Sent
from dicomsort.pacs.send.selection import ASIDE, Selection, candidates, examine, select
from dicomsort.pacs.send.transcoding import Transcoder
from dicomsort.pacs.send.workers import SendWorkers
from dicomsort.pacs.tls import client_context
from dicomsort.progress import Progress
from dicomsort.records import Found
from dicomsort.report import printable

__all__ = ["SendResult", "SendStatus", "Sent", "check", "destination", "send"]

WINDOW = 1000  # files whose headers are read before the contexts of their associations are chosen
_log = logging.getLogger("dicomsort")


def send(
    folder: str,
    settings: SendSettings,
    files: Files,
    progress: Progress,
    report: Callable[[SendResult], None] = lambda _: None,
) -> Sent:
    """Send what lies in a folder, or what a run placed there; ``report`` gets each result, from one thread at a time.

    Raises ``UsageError`` for wrong settings, ``OutboxLocked`` where another process sends to this destination and so
    holds its journal, ``DicomsortError`` where that cannot be written. A peer that is down, or refuses all, is no
    exception: ``Sent.problem`` says so.
    """
    peer, tls = check(settings)
    selection = select(folder, settings.run or "")
    state = f"{STATE}/sent" if selection.is_outbox else ASIDE
    journal = os.path.abspath(settings.journal or f"{selection.base}/{state}/{file_name(peer)}.jsonl")
    numbers = range(settings.associations)
    with ExitStack() as stack:
        if isinstance(peer, WebPeer):
            channels: list[Channel] = [stow.WebChannel(peer, settings, tls) for _ in numbers]
        else:
            transcoder = stack.enter_context(closing(Transcoder())) if settings.decompress else None
            channels = [c_store.DimseChannel(peer, settings, tls, transcoder) for _ in numbers]
        known = stack.enter_context(closing(Acknowledged(files, journal, peer.name, selection.base)))
        return _Sending(peer, settings, selection, known, report, progress).run(channels)


def check(settings: Destination) -> tuple[DicomPeer | WebPeer, ssl.SSLContext | None]:
    """Return the peer, and the TLS context where the settings want one.

    Raises ``UsageError`` where nothing can be sent there: an address, title or file of the settings is wrong, or a
    library is missing.
    """
    peer = destination(settings.to or "")
    ae_title(settings.ae_title, "--ae-title")
    wants_tls = settings.tls or any((settings.tls_ca, settings.tls_cert, settings.tls_key))
    if isinstance(peer, WebPeer):
        require("urllib3", "send --to https://HOST")
        if wants_tls and not peer.secure:
            raise UsageError(f"--tls…: expected an https:// address beside it, received {peer.name}")
        wants_tls = peer.secure
    else:
        require("pynetdicom", "send --to AE@HOST:PORT")
    tls = client_context(settings) if wants_tls else None
    if isinstance(peer, WebPeer):
        stow.authorization(peer, settings.auth)
    elif settings.auth:
        raise UsageError(f"--auth: expected an https:// address beside it, received {peer.name}")
    return peer, tls


@dataclass
class _Sending:
    """One call of ``send``, once everything it needs is open."""

    peer: DicomPeer | WebPeer
    settings: SendSettings
    selection: Selection
    known: Acknowledged
    report: Callable[[SendResult], None]
    progress: Progress
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, channels: list[Channel]) -> Sent:
        started = time.monotonic()
        self.sent = Sent(self.peer.name)
        self.progress.stage(f"sending to {self.peer.name}", None)
        self.workers = workers = SendWorkers(channels, self.settings, self._on_answer)
        workers.run(self._batches())
        self.sent.problem, self.sent.is_down = workers.problem, workers.is_down
        self.sent.takes_nothing = workers.takes_nothing
        self.sent.seconds = time.monotonic() - started
        return self.sent

    def _batches(self) -> Iterator[Batch]:
        """Yield what was not tried before, then what failed in earlier runs: each alone, the oldest failure first."""
        failed: list[tuple[int, Found]] = []
        for window in batched(self._examined(self._unsent(failed)), WINDOW):
            yield from self._batched(window)
        failed.sort(key=itemgetter(0))
        for window in batched(self._examined(found for _, found in failed), WINDOW):
            contexts = {each: batch.contexts for batch in self._batched(window) for each in batch.instances}
            for instance in window:
                yield Batch((instance,), contexts[instance], once=True)

    def _batched(self, window: list[Instance]) -> Iterator[Batch]:
        if isinstance(self.peer, WebPeer):
            return stow.batches(window)
        return c_store.batches(window, decompress=self.settings.decompress)

    def _unsent(self, failed: list[tuple[int, Found]]) -> Iterator[Found]:
        """Yield what was never tried, and append to ``failed`` what was; report all else."""
        for found in candidates(self.selection):
            if isinstance(found, SendResult):
                self._add(found)
                continue
            sop_uid = None if self.settings.again else self.known.holds(found)
            if sop_uid is not None:
                self._add(SendResult(found.path, sop_uid, SendStatus.SKIPPED))
            elif (place := self.known.failed_at(found)) is not None:
                failed.append((place, found))
            else:
                yield found

    def _examined(self, files: Iterable[Found]) -> Iterator[Instance]:
        """Yield what must be sent; report all else."""
        for found in files:
            problem = self.workers.problem
            if problem and (self.settings.again or not self.known.may_hold(found)):
                self._add(SendResult(found.path, "", SendStatus.FAILED, 0, f"not tried: {problem}"), is_logged=False)
                continue
            examined = examine(self.selection.base, found)
            if isinstance(examined, SendResult):
                self._add(examined)
            elif not self.settings.again and self.known.holds_instance(examined):
                self._add(SendResult(found.path, examined.sop_uid, SendStatus.SKIPPED))
            else:
                yield examined

    def _on_answer(self, instance: Instance, answer: Answer, attempts: int) -> None:
        self.sent.is_asked = True
        if answer.acknowledged:
            self.known.add(instance, answer.sha256)
        elif answer.reached:
            self.known.add_failed(instance)
        status = SendStatus.ACKNOWLEDGED if answer.acknowledged else SendStatus.FAILED
        result = SendResult(instance.path, instance.sop_uid, status, attempts, answer.message)
        self._add(result, instance.size, is_logged=answer.reached or not self.workers.problem)

    def _add(self, result: SendResult, size: int = 0, *, is_logged: bool = True) -> None:
        if result.status is SendStatus.FAILED and is_logged:  # ``Sent.problem`` says once that the peer is down
            facts = {"path": printable(result.path), "sop_uid": result.sop_uid, "message": result.message}
            _log.warning("not sent", extra={"facts": {"destination": self.peer.name, **facts}})
        with self.lock:
            self.sent.count(result, size)
            self.report(result)
            self.progress.advance()
