"""Where to: ``AE@HOST:PORT`` for C-STORE, or the address of a DICOMweb server for STOW-RS; why it cannot be reached."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from dicomsort.config.settings import MOST_PORT
from dicomsort.errors import UsageError
from dicomsort.pacs import ae_title
from dicomsort.pacs.send.records import Permanent, Temporary

_EXPECTED = "expected AE@HOST:PORT or https://HOST/PATH"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%a-z]+\]")
_PORT = re.compile(r"[0-9]{1,5}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class DicomPeer:
    """A C-STORE SCP."""

    ae_title: str
    host: str
    port: int

    @property
    def name(self) -> str:
        """The address, as rows and messages show it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae_title}@{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class WebPeer:
    """A STOW-RS server; ``url`` is the address to post to, ``.../studies`` (PS3.18 10.5)."""

    url: str
    host: str
    secure: bool

    @property
    def name(self) -> str:
        """The address, as rows and messages show it."""
        return self.url.removesuffix("/studies")

    @property
    def keeps_secrets(self) -> bool:
        """Whether a password may be sent there."""
        return self.secure or self.host in _LOOPBACK


def destination(text: str) -> DicomPeer | WebPeer:
    """Parse the value of ``--to``; ``UsageError`` where it names nothing that can be sent to."""
    wrong = UsageError(f"--to: {_EXPECTED}, received {text!r}")
    if not text.isprintable():  # an address has no line feeds, nor what could not be decoded
        raise wrong
    if "://" in text:
        return _web(text, wrong)
    title, at, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    if not at or not colon or not _is_host(host):
        raise wrong
    if not _PORT.fullmatch(port) or not 0 < int(port) <= MOST_PORT:
        raise UsageError(f"--to: expected a port of 1 to {MOST_PORT} in AE@HOST:PORT, received {port!r}")
    return DicomPeer(ae_title(title, "--to"), host.strip("[]").lower(), int(port))


def _web(text: str, wrong: UsageError) -> WebPeer:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{wrong} ({error})") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise wrong
    if "@" in parts.netloc:  # it would be shown, and written into the journal's name
        raise UsageError("--to: expected an address without user and password, received one with; use --auth FILE")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if not _is_host(host):
        raise wrong
    address = host if port is None else f"{host}:{port}"
    path = parts.path.rstrip("/").removesuffix("/studies")
    return WebPeer(f"{parts.scheme}://{address}{path}/studies", parts.hostname, parts.scheme == "https")


def _is_host(text: str) -> bool:
    """Whether it can be looked up at all; labels have 1 to 63 characters (RFC 1035 2.3.4)."""
    try:
        return _HOST.fullmatch(text.encode("idna").decode()) is not None
    except UnicodeError:
        return False


def file_name(peer: DicomPeer | WebPeer) -> str:
    """Return a file name of this destination's own, without an ending."""
    plain = re.sub(r"[^A-Za-z0-9.@-]+", "_", peer.name.partition("://")[2] or peer.name).strip("._")
    return f"{plain[:80]}-{hashlib.sha256(peer.name.encode()).hexdigest()[:8]}"


def unreachable(peer: DicomPeer | WebPeer, error: BaseException | None, timeout: float) -> Temporary | Permanent:
    """Return the error for a connection that could not be made; a host without an address is final."""
    if isinstance(error, socket.gaierror):
        message = f"{peer.host!r} cannot be resolved; check the host in --to"
        is_final = error.errno != socket.EAI_AGAIN  # else the name server itself was down
        return Permanent(message) if is_final else Temporary(message, is_down=True)
    reason = getattr(error, "strerror", None) or str(error or "no connection")
    if isinstance(error, TimeoutError):
        reason = f"no answer within {timeout:g} s"
    return Temporary(f"{peer.name} cannot be reached: {reason}", is_down=True)


def tls_failure(peer: DicomPeer | WebPeer, error: Exception, hint: str = "") -> Temporary | Permanent:
    """Return the error for a failed TLS handshake; a certificate that is not trusted is final."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Permanent(f"the certificate of {peer.name} is not trusted: {error.verify_message}; see --tls-ca")
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return Temporary(f"no TLS with {peer.name}: {reason}{hint}", is_down=True)
