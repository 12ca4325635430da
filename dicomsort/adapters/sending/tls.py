"""TLS as the settings ask for it, for both protocols."""

from __future__ import annotations

import ssl
from pathlib import Path

from dicomsort.adapters.sending.destination import DicomPeer, WebPeer
from dicomsort.config import Destination
from dicomsort.errors import UsageError


def context(peer: DicomPeer | WebPeer, settings: Destination) -> ssl.SSLContext | None:
    """A context that checks the peer's certificate and name, None where no TLS is wanted.

    ``UsageError`` where a file is missing or none of its kind.
    """
    named = any((settings.tls_ca, settings.tls_cert, settings.tls_key))
    wanted = peer.secure if isinstance(peer, WebPeer) else settings.tls or named
    if not wanted:
        if named or settings.tls:
            raise UsageError(f"--tls…: expected an https:// address beside it, received {peer.name}")
        return None
    try:
        made = ssl.create_default_context(cafile=settings.tls_ca)
    except OSError as error:
        raise _wrong("--tls-ca", settings.tls_ca, error) from None
    if settings.tls_key and not settings.tls_cert:
        raise UsageError("--tls-key: expected --tls-cert beside it, received none")
    if settings.tls_cert:
        try:
            made.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
        except OSError as error:
            raise _wrong("--tls-cert, --tls-key", settings.tls_cert, error) from None
    return made


def _wrong(option: str, file: Path | None, error: OSError) -> UsageError:
    return UsageError(f"{option}: expected a PEM file, received {str(file)!r}: {error.strerror or error}")


def _no_password() -> str:
    """Nobody is there to type one."""
    return ""
