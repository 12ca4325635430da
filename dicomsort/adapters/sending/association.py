"""An association with a DICOM peer, as its requestor: PS3.8 over one blocking socket, and C-STORE of PS3.7 9.1.1 on it.

pynetdicom writes and reads what is negotiated. The messages go by our own hand: its requestor polls, and while one of
its threads waits for the answer of a fast peer, the other may take it away. ``TCP_NODELAY`` and ``TCP_QUICKACK`` spare
40 ms for each instance with peers that write header and value of a message apart (DCMTK does).
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from struct import Struct

from dicomsort.adapters.sending.commands import fragments, store_request, store_status
from dicomsort.adapters.sending.destination import DicomPeer, unresolved
from dicomsort.adapters.sending.negotiation import abort_reason, accepted, rejection, request
from dicomsort.adapters.sending.records import Permanent, Temporary, Unsendable

MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers of one byte
MAX_RECEIVED = 1 << 20  # bytes of one PDU; answers are a few hundred
LARGEST_SENT = 1 << 17  # bytes of one PDU, where the peer sets no limit or a larger one
QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_ASSOCIATE_RQ, _ASSOCIATE_AC, _ASSOCIATE_RJ, _DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = range(1, 8)  # PS3.8 9.3.1
_PDU = Struct(">BxL")
_PDV = Struct(">BxLLBB")  # PDU header, then length, context and control of its one value (PS3.8 9.3.5)
_PDV_EXTRA = 6  # bytes of a PDV's own header
_COMMAND, _LAST = 1, 2  # bits of the message control header (PS3.8 annex E.2)
_RELEASE = bytes.fromhex("05000000000400000000")
_RELEASED = bytes.fromhex("06000000000400000000")
_ABORTED = bytes.fromhex("07000000000400000000")
_MOMENT, _PATIENCE = 1.0, 5.0  # seconds that farewells may take


class Aborted(Temporary):
    """The peer said that it aborts the association."""


class Association:
    """Open from its creation on. ``accepted`` maps (SOP class, transfer syntax) to the number of its context.

    Every method raises ``Temporary`` where the connection is lost or the peer does not answer in time; then it is of
    no more use. Creating one also raises ``Permanent`` where the peer is none, or refuses us.
    """

    def __init__(
        self,
        peer: DicomPeer,
        calling: str,
        contexts: Sequence[tuple[str, str]],
        timeout: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Connect and negotiate at most ``MAX_CONTEXTS`` contexts, each with one transfer syntax."""
        self._peer = peer
        self._timeout = timeout
        self._socket = _connect(peer, timeout, tls)
        self._buffer = b""
        self._until = 0.0  # when what is being waited for must be there, on the monotonic clock
        self._message = 0
        self.is_open = True
        try:
            self._send(request(peer.ae_title, calling, contexts))
            self.accepted, self.refused, limit = accepted(peer.name, self._answer(calling), contexts)
        except BaseException as error:
            self._socket.close()
            if isinstance(error, Temporary):
                error.was_open = False
            raise
        self._fragment = max(min(limit or LARGEST_SENT, LARGEST_SENT) - _PDV_EXTRA, 2) & ~1

    def _answer(self, calling: str) -> bytes:
        """The A-ASSOCIATE-AC that the peer answers with."""
        self._allow(self._timeout)
        kind, body = self._receive()
        if kind == _ASSOCIATE_RJ:
            raise rejection(self._peer.name, calling, body)
        if kind != _ASSOCIATE_AC:
            raise Temporary(f"{self._peer.name} answers a request for an association with a PDU of type {kind}")
        return _PDU.pack(kind, len(body)) + body

    def store(self, context: int, sop_class: str, sop_uid: str, data_set: Iterable[bytes]) -> int:
        """Send one instance, and return the status that the peer answers with.

        Any other message in the answer's place aborts the association: what it is about is not known (``Temporary``).
        ``Unsendable`` from ``data_set`` aborts the association, so that the peer does not keep a part; where nothing
        had been sent yet, the association is still of use (``is_open``).
        """
        self._message = self._message % 0xFFFF + 1
        out = bytearray()
        self._put(out, context, _COMMAND | _LAST, store_request(self._message, sop_class, sop_uid))
        is_begun, waiting = False, b""
        try:
            for piece in data_set:
                if waiting:
                    self._put(out, context, 0, waiting)
                    is_begun = True
                    self._send(out)
                    out.clear()
                waiting = piece
            self._put(out, context, _LAST, waiting + b"\0" * (len(waiting) % 2))
            self._send(out)
        except Unsendable:
            if is_begun:
                self.abort()
            raise
        try:
            return store_status(self._command(context), self._message, sop_class, sop_uid)
        except ValueError as received:
            self.abort()
            raise Temporary(f"expected the answer to a C-STORE, received {received}") from None

    def _put(self, out: bytearray, context: int, control: int, value: bytes) -> None:
        """Append a command or data set, or a part of one, as PDUs that the peer can take, each of an even length."""
        view, room = memoryview(value), self._fragment
        for at in range(0, max(len(view), 1), room):
            part = view[at : at + room]
            is_end = at + room >= len(view)
            bits = control if is_end else control & ~_LAST
            out += _PDV.pack(_DATA, len(part) + _PDV_EXTRA, len(part) + 2, context, bits)
            out += part

    def _command(self, context: int) -> bytes:
        """The command set of the next message; ValueError where it is in another context, or more than a command."""
        self._allow(self._timeout)
        command, is_whole = bytearray(), False
        while not is_whole:
            kind, body = self._receive()
            if kind == _RELEASE_RQ:
                with suppress(Temporary):
                    self._send(_RELEASED)
                raise Temporary("the peer ended the association before it answered")
            if kind != _DATA:
                raise ValueError(f"a PDU of type {kind}")
            for number, control, fragment in fragments(body):
                if number != context:
                    raise ValueError("one in another presentation context")
                if is_whole or not control & _COMMAND:
                    raise ValueError("one with a data set, or with more behind it")
                command += fragment
                is_whole = bool(control & _LAST)
            if len(command) > MAX_RECEIVED:
                raise ValueError("an answer without end")
        return bytes(command)

    def release(self) -> None:
        """End the association in an orderly way."""
        with suppress(Temporary, Permanent, OSError):
            self._send(_RELEASE)
            self._allow(min(self._timeout, _PATIENCE))
            while self._receive()[0] != _RELEASE_RP:
                pass
        self._socket.close()

    def abort(self) -> None:
        """End the association at once."""
        with suppress(OSError):
            self._socket.settimeout(_MOMENT)
            self._socket.sendall(_ABORTED)
        self.cut()

    def cut(self) -> None:
        """Close the connection, also under the hands of another thread."""
        self.is_open = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _allow(self, seconds: float) -> None:
        """Bound all waiting from now on, however often the peer sends a little."""
        self._until = time.monotonic() + seconds

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(data)
        except TimeoutError:
            raise Temporary(f"the peer took no data for {self._timeout:g} s") from None
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> Temporary:
        """Why the connection broke: perhaps the peer said so before."""
        try:
            self._allow(_MOMENT)
            while True:
                self._receive()
        except Aborted as told:
            return told
        except (Temporary, Permanent, OSError):
            return Temporary(f"the connection was lost: {error.strerror or error}")

    def _receive(self) -> tuple[int, bytes]:
        """The next PDU: its type, and what follows its header."""
        if QUICKACK is not None:
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        kind, length = _PDU.unpack(self._take(_PDU.size))
        if not _ASSOCIATE_RQ <= kind <= _ABORT or length > MAX_RECEIVED:
            message = f"expected a DICOM peer at {self._peer.name}, received what is no DICOM protocol"
            raise Temporary(message) if self._message else Permanent(message)
        body = self._take(length)
        if kind == _ABORT:
            raise Aborted(f"the peer aborted the association{abort_reason(body)}")
        return kind, body

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            try:
                self._socket.settimeout(max(self._until - time.monotonic(), 0.001))
                piece = self._socket.recv(65_536) if time.monotonic() < self._until else None
            except TimeoutError:
                piece = None
            except OSError as error:
                raise Temporary(f"the connection was lost: {error.strerror or error}") from None
            if piece is None:
                raise Temporary(f"the peer did not answer within {self._timeout:g} s")
            if not piece:
                raise Temporary("the peer closed the connection")
            self._buffer += piece
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


def _connect(peer: DicomPeer, timeout: float, tls: ssl.SSLContext | None) -> socket.socket:
    try:
        plain = socket.create_connection((peer.host, peer.port), timeout)
    except socket.gaierror as error:
        raise unresolved(peer.host, error) from None
    except OSError as error:
        why = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise Temporary(f"{peer.name} cannot be reached: {why}", is_down=True) from None
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls.wrap_socket(plain, server_hostname=peer.host) if tls else plain
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise Permanent(
            f"the certificate of {peer.name} is not trusted: {error.verify_message}; see --tls-ca"
        ) from None
    except (ssl.SSLError, OSError) as error:
        plain.close()
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise Temporary(f"no TLS with {peer.name}: {reason}; does the port speak TLS?", is_down=True) from None
