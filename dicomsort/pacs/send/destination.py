"""Where to: ``AE@HOST:PORT`` for C-STORE, or the address of a DICOMweb server for STOW-RS."""

from __future__ import annotations

import hashlib
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from dicomsort.errors import UsageError
from dicomsort.pacs.send.records import Permanent, Temporary

_EXPECTED = "expected AE@HOST:PORT or https://HOST/PATH"
_AE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 6.2: up to 16 characters, no backslash, no control characters
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%a-z]+\]")
_MAX_PORT = 65_535
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
    """A STOW-RS server; ``url`` is what is posted to, ``.../studies`` (PS3.18 10.5)."""

    url: str
    host: str
    secure: bool

    @property
    def name(self) -> str:
        """The address, as rows and messages show it."""
        return self.url.removesuffix("/studies")

    @property
    def keeps_secrets(self) -> bool:
        """Whether a password may travel there."""
        return self.secure or self.host in _LOOPBACK


def destination(text: str) -> DicomPeer | WebPeer:
    """Read the value of ``--to``; ``UsageError`` where it names nothing that can be sent to."""
    if not text.isprintable():  # an address has no line feeds, nor what could not be decoded
        raise UsageError(f"--to: {_EXPECTED}, received {text!r}")
    if "://" in text:
        return _web(text)
    title, at, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    if not at or not colon or not _is_host(host):
        raise UsageError(f"--to: {_EXPECTED}, received {text!r}")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= _MAX_PORT:
        raise UsageError(f"--to: expected a port of 1 to {_MAX_PORT} in AE@HOST:PORT, received {port!r}")
    return DicomPeer(ae_title(title, "--to"), host.strip("[]").lower(), int(port))


def _web(text: str) -> WebPeer:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--to: {_EXPECTED}, received {text!r} ({error})") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"--to: {_EXPECTED}, received {text!r}")
    if "@" in parts.netloc:  # it would be shown, and written into the journal's name
        raise UsageError("--to: expected an address without user and password, received one with; use --auth FILE")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if not _is_host(host):
        raise UsageError(f"--to: {_EXPECTED}, received {text!r}")
    where = host if port is None else f"{host}:{port}"
    path = parts.path.rstrip("/").removesuffix("/studies")
    return WebPeer(f"{parts.scheme}://{where}{path}/studies", parts.hostname, parts.scheme == "https")


def _is_host(text: str) -> bool:
    """Whether it can be looked up at all; labels have 1 to 63 characters (RFC 1035 2.3.4)."""
    try:
        return _HOST.fullmatch(text.encode("idna").decode()) is not None
    except UnicodeError:
        return False


def ae_title(text: str, option: str) -> str:
    """An application entity's title without padding; ``UsageError`` where it is none."""
    title = text.strip(" ")
    if not _AE.fullmatch(title):
        raise UsageError(f"{option}: expected an AE title of 1 to 16 characters, no backslash, received {text!r}")
    return title


def file_name(peer: DicomPeer | WebPeer) -> str:
    """A file name of this destination's own, without an ending."""
    plain = re.sub(r"[^A-Za-z0-9.@-]+", "_", peer.name.partition("://")[2] or peer.name).strip("._")
    return f"{plain[:80]}-{hashlib.sha256(peer.name.encode()).hexdigest()[:8]}"


def unresolved(host: str, error: BaseException | None) -> Temporary | Permanent:
    """The error that a name without an address is: one that lasts, unless the name server itself was not there."""
    message = f"{host!r} cannot be resolved; check the host in --to"
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return Permanent(message)
    return Temporary(message, is_down=True)
