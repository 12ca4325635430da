"""STOW-RS (PS3.18 10.5): batches of files in one request, an answer for each from the response.

A request's body is ``multipart/related`` (PS3.18 10.5.2), one part a file, of a length known before. This module alone
uses urllib3. Proxies of the environment are not used: images must not leave by a way that nobody named.
"""

from __future__ import annotations

import base64
import email.utils
import json
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dicomsort.config import SendSettings
from dicomsort.errors import UsageError
from dicomsort.files import CHUNK, read_bounded
from dicomsort.pacs.send import statuses
from dicomsort.pacs.send.destination import WebPeer, tls_failure, unreachable
from dicomsort.pacs.send.records import Answer, Batch, Instance, Permanent, Temporary, Unsendable
from dicomsort.pacs.send.selection import outgoing

BATCH_FILES, BATCH_BYTES = 64, 32 << 20
MAX_ANSWER = 16 << 20  # bytes of a response that are read
_PIECE = 1 << 16
_JSON = "application/dicom+json"
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,80}/[\w.+-]{1,80}", re.ASCII)
_WITH_PAYLOAD = frozenset({200, 202, 409})  # all, some, none of it was stored: the payload says which
_RETRIED = frozenset({408, 429, 502, 503, 504})
_NOT_ALLOWED = frozenset({401, 403, 407})
_NO_SERVICE = frozenset({*range(300, 400), 404, 405, 406, 410, 501, 505})
_PROCESSING = 0x0110  # processing failure, where a server gives no reason
_REFERENCED, _FAILED, _SOP_UID, _FAILURE, _WARNING = "00081199", "00081198", "00081155", "00081197", "00081196"


class Part:
    """A file as a part; a small one is read when it is made, a large one while it is sent.

    Raises ``PartLost`` where the file is gone or changed.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.sha256 = ""
        self.size = len(instance.lacking) + instance.size
        self._content = b"".join(self._read()) if instance.size <= CHUNK else b""

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of a whole DICOM file; ``PartLost`` where it changes meanwhile."""
        if self.instance.lacking:
            yield self.instance.lacking
        if self._content:
            yield self._content
        else:
            yield from self._read()

    def _read(self) -> Iterator[bytes]:
        try:
            with outgoing(self.instance) as file:
                yield from file.pieces(0)
                self.sha256 = file.sha256
        except Unsendable as problem:
            raise PartLost(self, str(problem)) from None


class PartLost(Unsendable):
    """The file of this part cannot be sent, or sending it cannot go on."""

    def __init__(self, part: Part, message: str) -> None:
        super().__init__(message)
        self.part = part


class Body:
    """The parts between boundaries that no file contains."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        boundary = secrets.token_hex(16)
        self._head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"--{boundary}--\r\n".encode()
        self.content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        self.length = sum(len(self._head) + part.size + 2 for part in parts) + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces of about a megabyte, so that small files do not cost a packet each."""
        out = bytearray()
        for part in self._parts:
            out += self._head
            for piece in part.pieces():
                out += piece
                if len(out) >= CHUNK:
                    yield bytes(out)
                    out.clear()
            out += b"\r\n"
        yield bytes(out + self._tail)


class _Deadline:
    """Shuts a connection down while it is read from: timeouts of urllib3 start anew with each byte that arrives."""

    is_over = False
    _timer: threading.Timer | None = None

    def begin(self, connection: socket.socket, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._shut, (connection,))
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _shut(self, connection: socket.socket) -> None:
        self.is_over = True
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # that of TLS would let plain text pass


class WebChannel:
    """A connection to the server, kept alive from batch to batch."""

    def __init__(self, peer: WebPeer, settings: SendSettings, tls: ssl.SSLContext | None) -> None:
        import urllib3

        self._peer, self._seconds = peer, settings.timeout
        self.is_open = False
        self._headers = {"Accept": _JSON, **authorization(peer, settings.auth)}
        self._pools: Any = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, ssl_context=tls)
        self._timeout = urllib3.Timeout(connect=settings.timeout, read=settings.timeout)
        self._deadline = _Deadline()

    def deliver(self, batch: Batch) -> list[Answer]:
        """See ``Channel``."""
        answers: dict[Instance, Answer] = {}
        parts = []
        for instance in batch.instances:
            try:
                parts.append(Part(instance))
            except Unsendable as problem:
                answers[instance] = Answer(message=str(problem), reached=False)
        answers |= self._posted(parts)
        return [answers[instance] for instance in batch.instances]

    def _posted(self, parts: list[Part]) -> dict[Instance, Answer]:
        """Post the parts; a file that is lost meanwhile is left out, a batch refused as a whole is halved."""
        lost: dict[Instance, Answer] = {}
        while parts:
            try:
                code, by_uid = self._post(Body(parts))
                break
            except PartLost as problem:
                lost[problem.part.instance] = Answer(message=str(problem), reached=False)
                parts = [part for part in parts if part is not problem.part]
        else:
            return lost
        if by_uid is not None:
            return lost | {part.instance: _answer(by_uid, part) for part in parts}
        if len(parts) == 1:
            return lost | {parts[0].instance: Answer(message=f"the server refuses it (HTTP {code})")}
        half = len(parts) // 2
        return lost | self._half(parts[:half]) | self._half(parts[half:])

    def _half(self, parts: list[Part]) -> dict[Instance, Answer]:
        """Post the parts; a connection that breaks does not take the other half's answers with it."""
        try:
            return self._posted(parts)
        except Temporary as error:
            return {part.instance: Answer(again=True, message=str(error)) for part in parts}

    def _post(self, body: Body) -> tuple[int, dict[str, int] | None]:
        """Return the HTTP status, and the status of each SOP Instance UID; None where it refuses the request."""
        import urllib3

        self.is_open, self._deadline = False, _Deadline()
        headers = self._headers | {"Content-Type": body.content_type, "Content-Length": str(body.length)}
        try:
            pool = self._pools.connection_from_url(self._peer.url)
            pool.ConnectionCls = partial(self._connection, type(pool).ConnectionCls)
            response = self._pools.request(
                "POST", self._peer.url, body=iter(body), headers=headers, redirect=False, preload_content=False,
                timeout=self._timeout,
            )  # fmt: skip
            content = self._read(response)
        except urllib3.exceptions.HTTPError as error:
            raise self._late() if self._deadline.is_over else self._translated(error) from None
        finally:
            self._deadline.end()
        if self._deadline.is_over:  # what was read until then may look like an answer
            raise self._late()
        by_uid = _check_response(self._peer, response.status, response.headers, content)
        self.is_open = True
        return response.status, by_uid

    def _connection(self, class_: Any, **options: Any) -> Any:
        """Make a connection of urllib3 that has a deadline for each answer as a whole."""
        connection = class_(**options)
        respond = connection.getresponse

        def getresponse() -> Any:
            self._deadline.begin(connection.sock, self._seconds)
            return respond()

        connection.getresponse = getresponse
        return connection

    def _read(self, response: Any) -> bytes:
        content = bytearray()
        while piece := response.read1(_PIECE, decode_content=True):
            content += piece
            if len(content) > MAX_ANSWER:
                response.close()
                raise Temporary(f"{self._peer.name} answers without end")
        response.release_conn()
        return bytes(content)

    def _late(self) -> Temporary:
        return Temporary(f"{self._peer.name} did not answer within {self._seconds:g} s")

    def _translated(self, error: Exception) -> Temporary | Permanent:
        import urllib3.exceptions as failures

        if isinstance(error, failures.LocationValueError):
            return Permanent(f"{self._peer.host!r} is no name of a host; check --to")
        if isinstance(error, failures.NewConnectionError | failures.ConnectTimeoutError):
            return unreachable(self._peer, error.__cause__, self._seconds)
        if isinstance(error, failures.SSLError):
            return tls_failure(self._peer, error.args[0] if error.args else error)
        if isinstance(error, failures.ReadTimeoutError):
            return self._late()
        return Temporary(f"{self._peer.name} broke off the connection")

    def close(self) -> None:
        """See ``Channel``."""
        self.is_open = False
        self._pools.clear()

    def abort(self) -> None:
        """See ``Channel``; a request under way ends with its process."""


def authorization(peer: WebPeer, file: Path | None) -> dict[str, str]:
    """Return the header that the file holds, ready or as ``user:password``; ``UsageError`` where it holds none."""
    if file is None:
        return {}
    if not peer.keeps_secrets:
        raise UsageError(f"--auth: expected an https:// address beside it, received {peer.name}")
    try:
        text = read_bounded(file).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"--auth: expected a file that can be read, received {str(file)!r}: {reason}") from None
    if not text or not text.isprintable():
        raise UsageError(f"--auth: expected one line in {str(file)!r}, `user:password` or a scheme and its credentials")
    if " " not in text.partition(":")[0]:
        text = "Basic " + base64.b64encode(text.encode()).decode()
    return {"Authorization": text}


def _check_response(peer: WebPeer, code: int, headers: Any, content: bytes) -> dict[str, int] | None:
    found = _response_statuses(content) if code in _WITH_PAYLOAD else None
    if found is not None:
        return found
    if code in _RETRIED:
        raise Temporary(f"{peer.name} answers HTTP {code}", wait=_seconds(headers.get("Retry-After", "")), is_down=True)
    if code in _NOT_ALLOWED:
        raise Permanent(f"{peer.name} refuses with HTTP {code}; --auth FILE gives user and password, or a token")
    if code in _NO_SERVICE:
        raise Permanent(f"{peer.name} answers HTTP {code}: there is no STOW-RS service at {peer.url}; check --to")
    if code < 300:  # noqa: PLR2004
        kind = headers.get("Content-Type", "no type").partition(";")[0].strip()
        kind = kind if _MEDIA_TYPE.fullmatch(kind) else "another type"  # what a peer says is not repeated
        raise Permanent(
            f"expected {_JSON} from {peer.url}, received HTTP {code} with {kind}: no STOW-RS service; check --to"
        )
    return None


def _response_statuses(content: bytes) -> dict[str, int] | None:
    """SOP Instance UID -> status, of a response's data set in DICOM JSON (PS3.18 F); None for another body.

    Success and warnings mean: stored. Where a response contradicts itself, the failure counts.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    dataset = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    if not isinstance(dataset, dict) or not ({_REFERENCED, _FAILED} & dataset.keys()):
        return None
    items = [(item, _status(item, _WARNING, statuses.SUCCESS)) for item in _values(dataset, _REFERENCED)]
    for item in _values(dataset, _FAILED):
        reason = _status(item, _FAILURE, _PROCESSING)
        items.append((item, _PROCESSING if _was_stored(reason) else reason))
    found: dict[str, int] = {}
    for item, status in items:
        for uid in _values(item, _SOP_UID)[:1]:
            if isinstance(uid, str) and _was_stored(found.get(uid, statuses.SUCCESS)):
                found[uid] = status
    return found


def _was_stored(status: int) -> bool:
    """Whether what is referenced with this status was stored (PS3.18 10.5.3): so it is, but for a failure's status."""
    return statuses.is_stored(status) or statuses.is_warning(status)


def _values(item: Any, tag: str) -> list[Any]:
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _status(item: Any, tag: str, default: int) -> int:
    value = next(iter(_values(item, tag)), default)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _answer(by_uid: dict[str, int], part: Part) -> Answer:
    status = by_uid.get(part.instance.sop_uid)
    if status is None:
        return Answer(message="the server's answer does not name it")
    return Answer(_was_stored(status), statuses.is_temporary(status), statuses.describe(status), part.sha256)


def _seconds(text: str) -> float:
    """Return the value of Retry-After (RFC 9110 10.2.3): seconds, or a date."""
    with suppress(ValueError, TypeError, OverflowError):
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def batches(instances: Iterable[Instance]) -> Iterator[Batch]:
    """Yield instances together, bounded in number and bytes, no SOP Instance UID twice: answers name nothing else."""
    together: dict[str, Instance] = {}
    size = 0
    for instance in instances:
        is_full = len(together) == BATCH_FILES or size + instance.size > BATCH_BYTES
        if together and (is_full or instance.sop_uid in together):
            yield Batch(tuple(together.values()))
            together, size = {}, 0
        together[instance.sop_uid] = instance
        size += instance.size
    if together:
        yield Batch(tuple(together.values()))
