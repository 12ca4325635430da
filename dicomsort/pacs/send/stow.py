"""STOW-RS (PS3.18 10.5): batches of files in one request, an answer for each from the response.

A request's body is ``multipart/related`` (PS3.18 10.5.2), one part a file, of a length known before. This is the border
to urllib3. Proxies of the environment are not used: images must not leave by a way that nobody named.
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
from dicomsort.errors import UsageError, missing_extra
from dicomsort.files import read_bounded
from dicomsort.pacs.send import statuses
from dicomsort.pacs.send.destination import WebPeer, unresolved
from dicomsort.pacs.send.records import Answer, Batch, Instance, Permanent, Temporary, Unsendable
from dicomsort.pacs.send.selection import CHUNK, outgoing

_HEAD = b"--%b\r\nContent-Type: application/dicom\r\n\r\n"
_TAIL = b"--%b--\r\n"


class Part:
    """A file as a part; small ones are read when it is made, large ones as they are sent."""

    def __init__(self, instance: Instance) -> None:
        """Read a small file; ``Unsendable`` where it is gone or changed."""
        self.instance = instance
        self.sha256 = ""
        self.size = len(instance.lacking) + instance.size
        self._content = b""
        if instance.size <= CHUNK:
            self._content = b"".join(self._read())

    def pieces(self) -> Iterator[bytes]:
        """The file's bytes, as a DICOM file begins; ``Unsendable`` where it changes meanwhile."""
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
    """The file of this part cannot be sent, or not be sent on."""

    def __init__(self, part: Part, message: str) -> None:
        """Keep which."""
        super().__init__(message)
        self.part = part


class Body:
    """The parts between their boundaries."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Choose a boundary that no file contains."""
        self._parts = parts
        boundary = secrets.token_hex(16)
        self._head, self._tail = _HEAD % boundary.encode(), _TAIL % boundary.encode()
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


BATCH_FILES, BATCH_BYTES = 64, 32 << 20
MAX_ANSWER = 16 << 20  # bytes of a response that are read
_PIECE = 1 << 16
_JSON = "application/dicom+json"
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,80}/[\w.+-]{1,80}", re.ASCII)
_STORED = frozenset({200, 202, 409})  # all, some, none of it was stored: the payload tells of each
_LATER = frozenset({408, 429, 502, 503, 504})
_RIGHTS = frozenset({401, 403, 407})
_ELSEWHERE = frozenset({404, 405, 406, 410, 501, 505})
_PROCESSING = 0x0110  # processing failure, where a server gives no reason
_REFERENCED, _FAILED, _SOP_UID, _FAILURE, _WARNING = "00081199", "00081198", "00081155", "00081197", "00081196"


def require() -> None:
    """``UsageError`` where urllib3 is not installed."""
    try:
        import urllib3  # noqa: F401
    except ImportError:
        raise missing_extra("send --to https://HOST", "pacs") from None


class _Deadline:
    """Shuts a connection down under who reads from it: timeouts of urllib3 begin anew with each byte that comes."""

    def __init__(self) -> None:
        """Nothing is waited for yet."""
        self.is_over = False
        self._timer: threading.Timer | None = None

    def begin(self, connection: socket.socket, seconds: float) -> None:
        """Allow so much time, until ``end``."""
        self._timer = threading.Timer(seconds, self._shut, (connection,))
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """All is there, or nothing more is waited for."""
        if self._timer is not None:
            self._timer.cancel()

    def _shut(self, connection: socket.socket) -> None:
        self.is_over = True
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # that of TLS would let plain text pass


class WebChannel:
    """A connection to the server, kept alive from batch to batch."""

    def __init__(self, peer: WebPeer, settings: SendSettings, tls: ssl.SSLContext | None) -> None:
        """Nothing is sent before the first delivery."""
        import urllib3

        self._peer, self._settings = peer, settings
        self._is_open = False
        self._headers = {"Accept": _JSON, **authorization(peer, settings.auth)}
        extra: dict[str, Any] = {} if tls is None else {"ssl_context": tls}
        self._pools: Any = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, **extra)
        self._timeout = urllib3.Timeout(connect=settings.timeout, read=settings.timeout)
        self._deadline = _Deadline()

    @property
    def is_open(self) -> bool:
        """See ``Channel``."""
        return self._is_open

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
                code, told = self._post(Body(parts))
                break
            except PartLost as problem:
                lost[problem.part.instance] = Answer(message=str(problem), reached=False)
                parts = [part for part in parts if part is not problem.part]
        else:
            return lost
        if told is None and len(parts) > 1:
            half = len(parts) // 2
            return lost | self._half(parts[:half]) | self._half(parts[half:])
        if told is None:
            return lost | {parts[0].instance: Answer(message=f"the server refuses it (HTTP {code})")}
        return lost | {part.instance: _answer(told, part) for part in parts}

    def _half(self, parts: list[Part]) -> dict[Instance, Answer]:
        """As ``_posted``; what breaks off does not take the other half's answers with it."""
        try:
            return self._posted(parts)
        except Temporary as error:
            return {part.instance: Answer(again=True, message=str(error)) for part in parts}

    def _post(self, body: Body) -> tuple[int, dict[str, int] | None]:
        """The status, and what the response says of each SOP Instance UID; None where it refuses them all unread."""
        import urllib3

        self._is_open, self._deadline = False, _Deadline()
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
            late = _late(self._peer, self._settings.timeout) if self._deadline.is_over else None
            raise late or _translated(self._peer, error, self._settings.timeout) from None
        finally:
            self._deadline.end()
        if self._deadline.is_over:  # what was read until then may look like an answer
            raise _late(self._peer, self._settings.timeout)
        told = _check_response(self._peer, response.status, response.headers, content)
        self._is_open = True
        return response.status, told

    def _connection(self, made: Any, **facts: Any) -> Any:
        """A connection of urllib3 that has a deadline for each answer as a whole."""
        connection = made(**facts)
        respond = connection.getresponse

        def getresponse() -> Any:
            self._deadline.begin(connection.sock, self._settings.timeout)
            return respond()

        connection.getresponse = getresponse
        return connection

    def _read(self, response: Any) -> bytes:
        """The response's body."""
        content = bytearray()
        while piece := response.read1(_PIECE, decode_content=True):
            content += piece
            if len(content) > MAX_ANSWER:
                response.close()
                raise Temporary(f"{self._peer.name} answers without end")
        response.release_conn()
        return bytes(content)

    def close(self) -> None:
        """See ``Channel``."""
        self._is_open = False
        self._pools.clear()

    def abort(self) -> None:
        """See ``Channel``; a request under way ends with its process."""


def authorization(peer: WebPeer, file: Path | None) -> dict[str, str]:
    """The header that the file holds, ready or as ``user:password``."""
    if file is None:
        return {}
    if not peer.keeps_secrets:
        raise UsageError(f"--auth: expected an https:// address beside it, received {peer.name}")
    try:
        text = read_bounded(file).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"--auth: expected a file that can be read, received {str(file)!r}: {why}") from None
    if not text or not text.isprintable():
        raise UsageError(f"--auth: expected one line in {str(file)!r}, `user:password` or a scheme and its credentials")
    if " " not in text.partition(":")[0]:
        text = "Basic " + base64.b64encode(text.encode()).decode()
    return {"Authorization": text}


def _check_response(peer: WebPeer, code: int, headers: Any, content: bytes) -> dict[str, int] | None:
    told = _response_statuses(content) if code in _STORED else None
    if told is not None:
        return told
    if code in _LATER:
        raise Temporary(f"{peer.name} answers HTTP {code}", wait=_seconds(headers.get("Retry-After", "")), is_down=True)
    if code in _RIGHTS:
        raise Permanent(f"{peer.name} refuses with HTTP {code}; --auth FILE gives user and password, or a token")
    if 300 <= code < 400 or code in _ELSEWHERE:  # noqa: PLR2004
        raise Permanent(f"{peer.name} answers HTTP {code}: there is no STOW-RS service at {peer.url}; check --to")
    if code < 300:  # noqa: PLR2004
        kind = headers.get("Content-Type", "no type").partition(";")[0].strip()
        kind = kind if _MEDIA_TYPE.fullmatch(kind) else "another type"  # what a peer says is not repeated
        raise Permanent(
            f"expected {_JSON} from {peer.url}, received HTTP {code} with {kind}: no STOW-RS service; check --to"
        )
    return None


def _response_statuses(content: bytes) -> dict[str, int] | None:
    """SOP Instance UID -> status, of a response's data set in DICOM JSON (PS3.18 F); None where it is none.

    Success and warnings mean: stored. Where a response contradicts itself, the failure counts.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    dataset = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    if not isinstance(dataset, dict) or not ({_REFERENCED, _FAILED} & dataset.keys()):
        return None
    said = [(item, _status(item, _WARNING, statuses.SUCCESS)) for item in _items(dataset, _REFERENCED)]
    for item in _items(dataset, _FAILED):
        reason = _status(item, _FAILURE, _PROCESSING)
        said.append((item, _PROCESSING if _is_stored(reason) else reason))
    told: dict[str, int] = {}
    for item, status in said:
        uid = _first(item, _SOP_UID)
        if isinstance(uid, str) and _is_stored(told.get(uid, statuses.SUCCESS)):
            told[uid] = status
    return told


def _is_stored(status: int) -> bool:
    """Whether what is referenced with this status was stored (PS3.18 10.5.3): so it is, but for a failure's status."""
    return statuses.is_stored(status) or statuses.is_warning(status)


def _items(dataset: dict[str, Any], tag: str) -> Iterator[dict[str, Any]]:
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return (item for item in (values if isinstance(values, list) else []) if isinstance(item, dict))


def _first(item: dict[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _status(item: dict[str, Any], tag: str, default: int) -> int:
    value = _first(item, tag)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _answer(told: dict[str, int], part: Part) -> Answer:
    status = told.get(part.instance.sop_uid)
    if status is None:
        return Answer(message="the server's answer does not name it")
    message = "" if status == statuses.SUCCESS else statuses.describe(status)
    return Answer(_is_stored(status), statuses.is_temporary(status), message, part.sha256)


def _seconds(text: str) -> float:
    """The value of Retry-After (RFC 9110 10.2.3): seconds, or a date."""
    with suppress(ValueError, TypeError, OverflowError):
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _late(peer: WebPeer, timeout: float) -> Temporary:
    return Temporary(f"{peer.name} did not answer within {timeout:g} s")


def _translated(peer: WebPeer, error: Exception, timeout: float) -> Temporary | Permanent:
    import urllib3.exceptions as failures

    if isinstance(error, failures.LocationValueError):
        return Permanent(f"{peer.host!r} is no name of a host; check --to")
    if isinstance(error, failures.NameResolutionError):
        return unresolved(peer.host, error.__cause__)
    if isinstance(error, failures.NewConnectionError):
        cause = error.__cause__
        why = getattr(cause, "strerror", None) or "no connection"
        return Temporary(f"{peer.name} cannot be reached: {why}", is_down=True)
    if isinstance(error, failures.ConnectTimeoutError):
        return Temporary(f"{peer.name} cannot be reached: no answer within {timeout:g} s", is_down=True)
    if isinstance(error, failures.SSLError):
        reason = error.args[0] if error.args else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Permanent(f"the certificate of {peer.name} is not trusted: {reason.verify_message}; see --tls-ca")
        return Temporary(f"no TLS with {peer.name}: {getattr(reason, 'reason', reason)}", is_down=True)
    if isinstance(error, failures.ReadTimeoutError):
        return _late(peer, timeout)
    return Temporary(f"{peer.name} broke off the connection")


def batches(instances: Iterable[Instance]) -> Iterator[Batch]:
    """Yield instances together, bounded in number and bytes, no SOP Instance UID twice: answers name nothing else."""
    held: list[Instance] = []
    size = 0
    for instance in instances:
        is_full = len(held) == BATCH_FILES or size + instance.size > BATCH_BYTES
        if held and (is_full or any(instance.sop_uid == other.sop_uid for other in held)):
            yield Batch(tuple(held))
            held, size = [], 0
        held.append(instance)
        size += instance.size
    if held:
        yield Batch(tuple(held))
