"""TLS as the settings ask for it, for both protocols."""

from __future__ import annotations

import ssl
from pathlib import Path

from dicomsort.adapters.sending.destination import DicomPeer, WebPeer
from dicomsort.config import Destination
from dicomsort.errors import UsageError
from dicomsort.files import check_input


def context(peer: DicomPeer | WebPeer, settings: Destination) -> ssl.SSLContext | None:
    """A context that checks the peer's certificate and name, None where no TLS is wanted.

    ``UsageError`` where a file is missing or none of its kind.
    """
    files = {"--tls-ca": settings.tls_ca, "--tls-cert": settings.tls_cert, "--tls-key": settings.tls_key}
    is_asked = settings.tls or any(files.values())
    if not (peer.secure if isinstance(peer, WebPeer) else is_asked):
        if is_asked:
            raise UsageError(f"--tls…: expected an https:// address beside it, received {peer.name}")
        return None
    if settings.tls_key and not settings.tls_cert:
        raise UsageError("--tls-key: expected --tls-cert beside it, received none")
    for option, file in files.items():
        try:
            if file is not None:
                check_input(file)
        except OSError as error:
            raise _wrong(option, file, error) from None
    try:
        made = ssl.create_default_context(cafile=settings.tls_ca)
    except OSError as error:
        raise _wrong("--tls-ca", settings.tls_ca, error) from None
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
