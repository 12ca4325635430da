"""Replacements for parts of pynetdicom, so that a peer's bytes cost bounded memory and time.

The library reads a PDU as long as its sender says, without a time limit. One TLS handshake holds up all other peers,
and a connection that ends before it is an association leaves a thread behind. Here a PDU has limits of length and time,
and each connection has a thread of its own that stays until nothing of it is left.

The library collects a data set in memory, or in a temporary file that an abort leaves behind, and a command set of any
length. Here data sets go where ``IncomingDataset`` puts them, and what no real peer sends ends its association.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, Final, cast

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.fsm import StateMachine
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicomsort.pacs.receive.incoming import UNNAMED, IncomingDataset, StoreRequest

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.association import Association
    from pynetdicom.pdu_primitives import P_DATA

    from dicomsort.pacs.receive.store_scp import Store

_MAX_COMMAND: Final = 64 << 10  # bytes of a command set; that of a C-STORE has a few hundred
_MAX_MESSAGES: Final = 4  # messages that a peer may send without waiting for answers
_MAX_PDU: Final = 1 << 20  # bytes of a PDU: association requests with every context, and what ``max_pdu`` may be
_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)
_POLL: Final = 0.001  # seconds until a thread runs
_BACKLOG: Final = 64  # connections that the system holds until they are accepted
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHORTAGE_PAUSE: Final = 0.2  # seconds until the next connection is accepted
_REFUSALS_PERIOD: Final = 60.0  # seconds between two lines about connections that were refused


class BoundedDimseProvider(DIMSEServiceProvider):
    """The messages of one association."""

    def __init__(self, assoc: Association, server: Server) -> None:
        super().__init__(assoc)
        self.server = server
        self.counts: Counter[str] = Counter()
        self._data_sets: list[IncomingDataset] = []
        self.is_admitted = False
        self._is_answering = False
        self._is_ending = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take a fragment of a message; what cannot be one ends the association, not the thread."""
        try:
            if self.message is None:
                self.message = self._new_message()
            super().receive_primitive(primitive)
            self._check_command()
        except Exception:  # noqa: BLE001 - the library raises almost anything on damaged messages
            self.dul.event_queue.put("Evt19")  # unrecognized or invalid PDU (PS3.8 9.2.1)

    def _check_command(self) -> None:
        if self.message is not None and self.message.encoded_command_set.tell() > _MAX_COMMAND:
            raise ValueError("a command set beyond any real one")

    def _new_message(self) -> DIMSEMessage:
        if self.msg_queue.qsize() >= _MAX_MESSAGES:
            raise ValueError("more messages than any real peer sends at once")
        message = DIMSEMessage()
        data_set = self.server.store.open_data_set(lambda: self._request(message))
        message.data_set = data_set
        self._data_sets = [*(each for each in self._data_sets if each.is_open), data_set]
        return message

    def _request(self, message: DIMSEMessage) -> StoreRequest | None:
        agreed = [c.transfer_syntax[0] for c in self.assoc.accepted_contexts if c.context_id == message.context_id]
        if not isinstance(message, C_STORE_RQ) or not agreed:
            return None
        names = ("AffectedSOPClassUID", "AffectedSOPInstanceUID")
        sop_class, sop_uid = (str(message.command_set.get(name) or "") for name in names)
        return StoreRequest(sop_class, sop_uid, agreed[0])

    def get_msg(self, block: bool = False) -> Any:  # noqa: FBT001, FBT002 - the library's signature
        """Return the next message; a C-STORE that names no instance is answered here, which the library leaves out."""
        context, message = super().get_msg(block)
        self._is_answering = message is not None
        if isinstance(message, C_STORE) and message.MessageID is not None and not message.is_valid_request:
            answer: Any = C_STORE()
            answer.MessageIDBeingRespondedTo = message.MessageID
            answer.Status, answer.ErrorComment = UNNAMED.status, UNNAMED.comment
            cast("IncomingDataset", message.DataSet).discard()
            self.server.store.on_unnamed(self.assoc)
            self.send_msg(answer, cast("int", context))
            return None, None
        return context, message

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Answer; where the receiver stops, abort the association after the answer."""
        self.dul._idle_timer.restart()  # noqa: SLF001 - the disk took that time, not the peer
        super().send_msg(primitive, context_id)
        self._is_answering = False
        if self._is_ending:
            self.assoc.abort(block=False)

    def end(self) -> None:
        """Abort the association, after the instance that is on its way if there is one; from any thread."""
        self._is_ending = True
        if not self._is_answering and not any(each.is_open for each in self._data_sets):
            self.assoc.abort(block=False)

    def cut(self) -> None:
        """Break the connection off, from any thread; a thread that waits for it sees its end."""
        client = getattr(self.dul.socket, "socket", None)
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def discard(self) -> None:
        """Remove what an association that is over left unfinished."""
        for each in self._data_sets:
            each.discard()


class Socket(AssociationSocket):
    """Reads what is requested whole, or fails, within the client socket's timeout and a limit of length.

    Many senders write a PDU in two pieces and hold the second back until the first is acknowledged (Nagle), which a
    receiver does 40 ms later unless it asks for quick acknowledgements; Linux forgets that again, so each read asks.
    """

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, fewer only where the connection ends; OSError beyond a limit."""
        if nr_bytes > _MAX_PDU:
            raise OSError(f"expected a PDU of at most {_MAX_PDU} bytes, received one of {nr_bytes}")
        client = cast("socket.socket", self.socket)
        data, got = bytearray(nr_bytes), 0
        deadline = time.monotonic() + (client.gettimeout() or 0)
        if nr_bytes and _QUICKACK is not None:
            client.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        with memoryview(data) as view:
            while got < nr_bytes and (count := client.recv_into(view[got:])):
                got += count
                if got < nr_bytes and time.monotonic() > deadline:
                    raise TimeoutError("expected the rest of a PDU in time")
        return data if got == nr_bytes else data[:got]


class Steps(StateMachine):
    """The state machine of a connection (PS3.8 9.2); an unknown step ends that, not the thread with a traceback."""

    def do_action(self, event: str) -> None:
        """Take a step."""
        try:
            super().do_action(event)
        except Exception:  # noqa: BLE001 - whatever a peer has brought about
            self.dul.kill_dul()


class Handler(RequestHandler):
    """One connection, from its first byte until nothing of it is left."""

    server: Server

    def handle(self) -> None:
        """Let the library serve the peer, and clean up after it."""
        assoc = self._create_association()
        assoc.dul.event_queue.get_nowait()  # that it is connected, which the next line says again
        assoc.dul.socket = Socket(assoc, client_socket=self.request)
        assoc.dul.state_machine = Steps(assoc.dul)
        assoc.dimse = dimse = BoundedDimseProvider(assoc, self.server)
        with self.server.counted(dimse):
            try:
                assoc.start()
                while assoc.is_alive() and assoc.dul.ident is None:
                    time.sleep(_POLL)
                assoc.dul.join()
                waiting: Any = assoc.dul.to_user_queue
                waiting.put(None)  # for an association request that a connection which is over cannot bring
                assoc.join()
            finally:
                dimse.discard()
                self.server.store.on_end(assoc)


class Server(ThreadedAssociationServer):
    """Listens at an address, and knows who is connected; OSError where it cannot listen."""

    daemon_threads = True
    request_queue_size = _BACKLOG

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        tls: ssl.SSLContext | None,
        handlers: list[Any],
        store: Store,
    ) -> None:
        super().__init__(ae, address, ae.ae_title, ae.supported_contexts, None, handlers, Handler)
        self._tls, self.store = tls, store
        self._lock = threading.Lock()
        self._connections: set[BoundedDimseProvider] = set()
        self._open = 0  # connections, also those that are not heard yet: in a TLS handshake
        self._logged_at = -_REFUSALS_PERIOD  # of the last refusal in the log, by the monotonic clock

    @contextlib.contextmanager
    def counted(self, dimse: BoundedDimseProvider) -> Iterator[None]:
        """Count a connection for the time of the context."""
        with self._lock:
            self._connections.add(dimse)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(dimse)

    def admit(self, dimse: BoundedDimseProvider, limit: int) -> bool:
        """Count a connection among the open associations; False where ``limit`` of them are open."""
        with self._lock:
            dimse.is_admitted = sum(each.is_admitted for each in self._connections) < limit
        return dimse.is_admitted

    @property
    def connections(self) -> list[BoundedDimseProvider]:
        """Those that are open now."""
        with self._lock:
            return [*self._connections]

    def shutdown(self) -> None:
        """Accept no more connections; those that are open stay."""
        BaseServer.shutdown(self)  # the library's also takes this server off a list that it is not on
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Small answers are sent at once; no read or write waits longer than the timeout."""
        try:
            client, address = cast("socket.socket", self.socket).accept()
        except OSError as error:
            if error.errno in _SHORTAGES:  # the connection stays in the queue, and would be tried again at once
                self._log_refused("", error.strerror or str(error))
                time.sleep(_SHORTAGE_PAUSE)
            raise
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.settimeout(self.ae.network_timeout)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the library's signature
        """Whether there is room to hear what the peer wants."""
        if self._open < self.ae.maximum_associations:
            return True
        self._log_refused(str(client_address[0]), f"{self._open} connections are open")
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        with self._lock:
            self._open += 1
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started, which would count it out
            with self._lock:
                self._open -= 1
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open -= 1

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in its own thread."""
        if self._tls is not None:
            request = self._tls.wrap_socket(request, server_side=True)
        with contextlib.closing(request):
            super().finish_request(request, client_address)

    def _log_refused(self, address: str, reason: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _REFUSALS_PERIOD:
            self._logged_at = now
            self.store.on_refused(address, reason)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as above
        """Log a connection that failed; the others go on."""
        self.store.on_failure(str(client_address[0]), sys.exc_info()[1])
