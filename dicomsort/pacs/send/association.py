"""An association with a DICOM peer, as its requestor: PS3.8 over one blocking socket, and C-STORE of PS3.7 9.1.1 on it.

pynetdicom encodes and decodes what is negotiated (PS3.8 9.3.2 to 9.3.4, 9.3.8). The command sets of C-STORE (PS3.7
9.3.1), in implicit VR little endian, and their PDUs are our own: the library's requestor polls, and while one of its
threads waits for the answer of a fast peer, the other may take it away. ``TCP_NODELAY`` and ``TCP_QUICKACK`` save 40 ms
an instance with peers that write header and value of a message apart, as DCMTK does.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from struct import Struct

from dicomsort.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomsort.pacs.send.destination import DicomPeer, tls_failure, unreachable
from dicomsort.pacs.send.records import Permanent, Temporary, Unsendable

Pair = tuple[str, str]  # SOP class, transfer syntax

MAX_PDU = 16_384  # bytes of a PDU that the peer may send; answers are short
MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers of one byte
MAX_RECEIVED = 1 << 20  # bytes of one PDU; answers are a few hundred
LARGEST_SENT = 1 << 17  # bytes of one PDU, where the peer sets no limit or a larger one
_ABORT_TIMEOUT, _RELEASE_TIMEOUT = 1.0, 5.0  # seconds that an abort and a release may take
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_APPLICATION = "1.2.840.10008.3.1.1.1"  # DICOM application context (PS3.7 annex A)
_warnings_lock = threading.Lock()  # the filters of warnings are the whole process's

# PDUs (PS3.8 9.3)
_ASSOCIATE_RQ, _ASSOCIATE_AC, _ASSOCIATE_RJ, _DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = range(1, 8)
_PDU = Struct(">BxL")
_PDV = Struct(">BxLLBB")  # PDU header, then length, context and control of its one value (PS3.8 9.3.5)
_PDV_EXTRA = 6  # bytes of a PDV's own header
_COMMAND, _LAST = 1, 2  # bits of the message control header (PS3.8 annex E.2)
_RELEASE_RQ_PDU = bytes.fromhex("05000000000400000000")
_RELEASE_RP_PDU = bytes.fromhex("06000000000400000000")
_ABORT_PDU = bytes.fromhex("07000000000400000000")

# Command sets (PS3.7 9.3.1, annex E)
_ELEMENT = Struct("<HHL")
_SHORT = Struct("<HHLH")
_LONG = Struct("<HHLL")
_CLASS, _FIELD, _ID, _ID_ANSWERED, _PRIORITY, _DATA_SET, _STATUS, _INSTANCE = (
    0x0002, 0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x1000,
)  # fmt: skip
_REQUEST, _RESPONSE = 0x0001, 0x8001
_MEDIUM, _PRESENT, _NONE = 0x0000, 0x0001, 0x0101

_TRANSIENT = 2
_REJECTED = {  # (source, reason), PS3.8 table 9-21
    (1, 1): "it gives no reason",
    (1, 2): "it does not support the application context",
    (1, 3): "it does not know our AE title; name it with --ae-title, or make it known there",
    (1, 7): "it does not know the AE title that it was called by; check --to",
    (2, 1): "it gives no reason",
    (2, 2): "it does not support the protocol version",
    (3, 1): "it is congested",
    (3, 2): "it has as many associations as it takes",
}
_CONTEXTS = {  # PS3.8 table 9-18
    1: "the peer refuses it",
    2: "the peer refuses it and gives no reason",
    3: "the peer does not take its SOP class",
    4: "the peer does not take its transfer syntax",
}
_ABORTS = {  # (source, reason), PS3.8 table 9-26; the service user gives none
    (2, 1): ": unrecognised PDU",
    (2, 2): ": unexpected PDU",
    (2, 4): ": unrecognised PDU parameter",
    (2, 5): ": unexpected PDU parameter",
    (2, 6): ": invalid PDU parameter value",
}


def request(called: str, calling: str, contexts: Sequence[Pair]) -> bytes:
    """Encode an A-ASSOCIATE-RQ that proposes each (SOP class, transfer syntax) as a context of its own: 1, 3, 5 …."""
    from pynetdicom import pdu_primitives as primitives
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.presentation import build_context

    length = primitives.MaximumLengthNotification()
    length.maximum_length_received = MAX_PDU
    class_ = primitives.ImplementationClassUIDNotification()
    class_.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = primitives.ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    primitive = primitives.A_ASSOCIATE()
    primitive.application_context_name = _APPLICATION
    primitive.called_ae_title, primitive.calling_ae_title = called, calling
    primitive.user_information = [length, class_, version]
    pdu = A_ASSOCIATE_RQ()
    with _quiet():
        proposed = [build_context(sop_class, syntax) for sop_class, syntax in contexts]
        for number, context in enumerate(proposed):
            context.context_id = 2 * number + 1
        primitive.presentation_context_definition_list = proposed
        pdu.from_primitive(primitive)
        return pdu.encode()


def accepted(peer: str, pdu: bytes, contexts: Sequence[Pair]) -> tuple[dict[Pair, int], dict[Pair, str], int]:
    """Decode an A-ASSOCIATE-AC: the numbers of accepted contexts, why others were not, the longest PDU or 0."""
    from pynetdicom.pdu import A_ASSOCIATE_AC

    answer = A_ASSOCIATE_AC()
    try:
        with _quiet():
            answer.decode(pdu)
        results = {context.context_id: context for context in answer.presentation_context}
        user = answer.user_information
        limit = (user.maximum_length if user is not None else None) or 0
    except Exception as error:  # noqa: BLE001 - it raises almost anything on damaged bytes
        raise Temporary(f"{peer} accepts in a form that cannot be read ({type(error).__name__})") from None
    if not results:
        raise Temporary(f"{peer} accepts without a word of what was proposed")
    taken, refused = {}, {}
    for number, pair in enumerate(contexts):
        context = results.get(2 * number + 1)
        if context is not None and context.result == 0 and context.transfer_syntax == pair[1]:
            taken[pair] = 2 * number + 1
        else:
            reason = context.result if context is not None else None
            refused[pair] = _CONTEXTS.get(reason or 0, "the peer does not answer for its kind")
    return taken, refused, limit


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom about UIDs that are in use and not quite valid: their components begin with zeros."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rejection(peer: str, calling: str, body: bytes) -> Permanent | Temporary:
    """Return the error that an A-ASSOCIATE-RJ stands for."""
    _, result, source, reason = body[:4].ljust(4, b"\0")
    words = _REJECTED.get((source, reason), f"reason {source}/{reason}")
    message = f"{peer} refuses an association with {calling}: {words}"
    return Temporary(message, is_down=True) if result == _TRANSIENT else Permanent(message)


def store_request(message: int, sop_class: str, sop_uid: str) -> bytes:
    """Encode the command set of a C-STORE-RQ (PS3.7 table 9.3-1)."""
    body = b"".join(
        (
            _uid(_CLASS, sop_class),
            _SHORT.pack(0, _FIELD, 2, _REQUEST),
            _SHORT.pack(0, _ID, 2, message),
            _SHORT.pack(0, _PRIORITY, 2, _MEDIUM),
            _SHORT.pack(0, _DATA_SET, 2, _PRESENT),
            _uid(_INSTANCE, sop_uid),
        )
    )
    return _LONG.pack(0, 0, 4, len(body)) + body


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    value += b"\0" * (len(value) % 2)
    return _ELEMENT.pack(0, element, len(value)) + value


def store_status(data: bytes, message: int, sop_class: str, sop_uid: str) -> int:
    """Return the status in the C-STORE-RSP to such a request; ValueError says what else ``data`` is.

    Affected SOP Class UID and Affected SOP Instance UID are optional in a response, and some peers leave them out; one
    that is there shall equal the request's (usage "U(=)", PS3.7 9.1.1.1 table 9.1-1).
    """
    found = _elements(data)
    if _number(found, _FIELD) != _RESPONSE:
        raise ValueError("a message that is no C-STORE response")
    if _number(found, _ID_ANSWERED) != message:
        raise ValueError("the answer to another message")
    for element, name, uid in ((_CLASS, "SOP Class UID", sop_class), (_INSTANCE, "SOP Instance UID", sop_uid)):
        sent = uid.encode("ascii")
        if found.get(element, sent).rstrip(b"\0 ") != sent:
            raise ValueError(f"one that does not name the {name} that was sent (0000,{element:04X})")
    if _number(found, _DATA_SET) != _NONE:
        raise ValueError("one that says a data set follows")
    if (status := _number(found, _STATUS)) is None:
        raise ValueError("one without a status")
    return status


def _elements(data: bytes) -> dict[int, bytes]:
    """Element number -> value of a command set; ValueError where it is damaged, or has an element twice."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        start = at + _ELEMENT.size
        group, element, length = _ELEMENT.unpack_from(data.ljust(start, b"\0"), at)
        at = start + length
        if group or element in found or at > len(data):
            raise ValueError("a damaged command set")
        found[element] = data[start:at]
    return found


def _number(found: dict[int, bytes], element: int) -> int | None:
    value = found.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == _SHORT.size - _ELEMENT.size else None


def fragments(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the presentation data values of a P-DATA-TF PDU (PS3.8 9.3.5), one or more: context, control, fragment.

    ValueError where their lengths do not add up.
    """
    at = 0
    while True:
        start, at = at + 6, at + 4 + int.from_bytes(body[at : at + 4], "big")
        if not start <= at <= len(body):
            raise ValueError("a damaged P-DATA-TF PDU")
        yield body[start - 2], body[start - 1], body[start:at]
        if at == len(body):
            return


class _Aborted(Temporary):
    """The peer sent an A-ABORT."""


class Association:
    """Open from its creation on. ``accepted`` maps (SOP class, transfer syntax) to the number of its context.

    Every method raises ``Temporary`` where the connection is lost or the peer does not answer in time; then it cannot
    be used any more. Creating one also raises ``Permanent`` where no DICOM peer answers, or it refuses us.
    """

    def __init__(
        self, peer: DicomPeer, calling: str, contexts: Sequence[Pair], timeout: float, tls: ssl.SSLContext | None
    ) -> None:
        """Connect and negotiate at most ``MAX_CONTEXTS`` contexts, each with one transfer syntax."""
        self._peer, self._timeout = peer, timeout
        self._socket = _connect(peer, timeout, tls)
        self._buffer = b""
        self._deadline = 0.0  # of what is being waited for, on the monotonic clock
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
        """Return the A-ASSOCIATE-AC that the peer answers with."""
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
        had been sent yet, the association stays usable (``is_open``).
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
            bits = control if at + room >= len(view) else control & ~_LAST
            out += _PDV.pack(_DATA, len(part) + _PDV_EXTRA, len(part) + 2, context, bits)
            out += part

    def _command(self, context: int) -> bytes:
        """Receive the command set of the next message; ValueError in another context, or for more than a command."""
        self._allow(self._timeout)
        command, is_whole = bytearray(), False
        while not is_whole:
            kind, body = self._receive()
            if kind == _RELEASE_RQ:
                with suppress(Temporary):
                    self._send(_RELEASE_RP_PDU)
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
        """Release the association (PS3.8 7.2) and close the connection."""
        with suppress(Temporary, Permanent, OSError):
            self._send(_RELEASE_RQ_PDU)
            self._allow(min(self._timeout, _RELEASE_TIMEOUT))
            while self._receive()[0] != _RELEASE_RP:
                pass
        self._socket.close()

    def abort(self) -> None:
        """Abort the association (PS3.8 7.3) and close the connection."""
        with suppress(OSError):
            self._socket.settimeout(_ABORT_TIMEOUT)
            self._socket.sendall(_ABORT_PDU)
        self.cut()

    def cut(self) -> None:
        """Close the connection, also while another thread uses it."""
        self.is_open = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _allow(self, seconds: float) -> None:
        """Bound all waiting from now on, however often the peer sends a little."""
        self._deadline = time.monotonic() + seconds

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(data)
        except TimeoutError:
            raise Temporary(f"the peer took no data for {self._timeout:g} s") from None
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> Temporary:
        """Return why the connection broke: perhaps an abort has arrived before."""
        try:
            self._allow(_ABORT_TIMEOUT)
            while True:
                self._receive()
        except _Aborted as abort:
            return abort
        except (Temporary, Permanent, OSError):
            return Temporary(f"the connection was lost: {error.strerror or error}")

    def _receive(self) -> tuple[int, bytes]:
        """Receive a PDU: its type, and what follows its header."""
        if _QUICKACK is not None:
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        kind, length = _PDU.unpack(self._take(_PDU.size))
        if not _ASSOCIATE_RQ <= kind <= _ABORT or length > MAX_RECEIVED:
            message = f"expected a DICOM peer at {self._peer.name}, received what is no DICOM protocol"
            raise Temporary(message) if self._message else Permanent(message)
        body = self._take(length)
        if kind == _ABORT:
            source, reason = body[2:4].ljust(2, b"\0")
            raise _Aborted(f"the peer aborted the association{_ABORTS.get((source, reason), '')}")
        return kind, body

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            try:
                self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
                piece = self._socket.recv(65_536) if time.monotonic() < self._deadline else None
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
    except OSError as error:
        raise unreachable(peer, error, timeout) from None
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls.wrap_socket(plain, server_hostname=peer.host) if tls else plain
    except OSError as error:  # ssl.SSLError is one
        plain.close()
        raise tls_failure(peer, error, "; does the port speak TLS?") from None
