"""A receiver: the server, its settings, its start and its stop."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from typing import TYPE_CHECKING, Final

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity

from dicomsort.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.pacs.receive.network import Server
from dicomsort.pacs.receive.store_scp import VERIFICATION, Store
from dicomsort.pacs.tls import server_context

if TYPE_CHECKING:
    from dicomsort.config import ReceiveSettings
    from dicomsort.files import Files

_POLL: Final = 0.05  # seconds between two attempts to end associations
_ACCEPTING: Final = 0.25  # seconds until the accepting thread notices a stop
_ABORT_TIMEOUT: Final = 2.0  # seconds that aborted associations have to be gone
_SPARE: Final = 16  # connections beyond the limit of associations, so that it can be told to those who ask
_NEGOTIATION: Final = 30.0  # seconds that a peer has for its association request, at most


class Receiver:
    """Listens from ``start`` to ``stop``; what it received is in the inbox, durably, before it is acknowledged."""

    def __init__(self, inbox: str, settings: ReceiveSettings, files: Files, log: logging.Logger) -> None:
        """Check the inbox and the certificates; ``UsageError`` where either is wrong."""
        if not os.path.isdir(inbox):
            raise UsageError(f"expected INBOX to be a folder that is there, received {inbox!r}")
        self._settings, self._log = settings, log
        self._tls = server_context(settings)
        self._store = Store(files, os.path.realpath(inbox), settings, log)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._is_hurried = False  # no Event: a signal handler sets it

    def start(self) -> int:
        """Clean up after killed processes, listen, and return the port.

        ``DicomsortError`` where that fails, ``UsageError`` for an invalid address.
        """
        if removed := self._store.parts.clean_up():  # first, for they may fill the disk
            self._log.warning("leftovers removed", extra={"facts": {"parts": removed}})
        if shortage := self._store.parts.check():
            self._log.warning("the disk is full", extra={"facts": {"message": shortage}})
        _set_up_library()
        address = (self._settings.bind, self._settings.port)
        handlers = [
            (evt.EVT_REQUESTED, self._store.on_requested),
            (evt.EVT_ACCEPTED, self._store.on_accepted),
            (evt.EVT_REJECTED, self._store.on_rejected),
            (evt.EVT_C_STORE, self._store.on_store),
        ]
        try:
            self._server = Server(_entity(self._settings), address, self._tls, handlers, self._store)
        except UnicodeError:  # a name that cannot even be looked up
            raise UsageError(f"--bind: expected an address of this host, received {address[0]!r}") from None
        except OSError as error:
            message = f"expected to listen at {address[0]} port {address[1]}, received: {error.strerror or error}"
            raise DicomsortError(message) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_ACCEPTING,), name="accepting", daemon=True
        )
        self._thread.start()
        return int(self._server.server_address[1])

    @property
    def is_alive(self) -> bool:
        """Whether connections are accepted."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, grace: float) -> None:
        """Accept no more connections, leave ``grace`` seconds to instances on their way, abort every association."""
        server = self._server
        if server is None:
            return
        self._server = None
        server.shutdown()
        if not self._ended(server, grace):
            self._log.warning("instances were cut off", extra={"facts": {"associations": len(server.connections)}})
            for dimse in server.connections:
                dimse.cut()
            self._is_hurried = False
            self._ended(server, _ABORT_TIMEOUT)
        for dimse in server.connections:
            dimse.discard()

    def hurry(self) -> None:
        """Let ``stop`` wait for instances no longer."""
        self._is_hurried = True

    def _ended(self, server: Server, seconds: float) -> bool:
        """End each association after the instance that is on its way; False where some are not over in time."""
        deadline = time.monotonic() + seconds
        while server.connections and time.monotonic() < deadline and not self._is_hurried:
            for dimse in server.connections:
                dimse.end()
            time.sleep(_POLL)
        return not server.connections


def _entity(settings: ReceiveSettings) -> ApplicationEntity:
    entity = ApplicationEntity(settings.ae_title)
    entity.add_supported_context(VERIFICATION)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_associations = settings.max_associations + _SPARE
    entity.maximum_pdu_size = settings.max_pdu
    entity.require_calling_aet = [*settings.allow]
    entity.network_timeout = entity.dimse_timeout = settings.timeout
    entity.acse_timeout = min(settings.timeout, _NEGOTIATION)
    return entity


def _set_up_library() -> None:
    """Accept every storage class, pass every UID on to where it is checked and answered, log nothing of a peer's."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.LOG_HANDLER_LEVEL = "none"
    _config.VALIDATORS["UI"] = lambda _: (True, "")
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")
