"""TLS as the request asks for it, for both protocols."""

from __future__ import annotations

import ssl

from dicomsort.adapters.sending.destination import DicomPeer, WebPeer
from dicomsort.adapters.sending.records import Request
from dicomsort.errors import UsageError


def context(peer: DicomPeer | WebPeer, request: Request) -> ssl.SSLContext | None:
    """A context that checks the peer's certificate and name, None where no TLS is wanted.

    ``UsageError`` where a file is missing or none of its kind.
    """
    named = any((request.tls_ca, request.tls_cert, request.tls_key))
    wanted = peer.secure if isinstance(peer, WebPeer) else request.tls or named
    if not wanted:
        if named or request.tls:
            raise UsageError(f"--tls…: expected an https:// address beside it, received {peer.name}")
        return None
    try:
        made = ssl.create_default_context(cafile=request.tls_ca or None)
    except OSError as error:
        raise _wrong("--tls-ca", request.tls_ca, error) from None
    if request.tls_key and not request.tls_cert:
        raise UsageError("--tls-key: expected --tls-cert beside it, received none")
    if request.tls_cert:
        try:
            made.load_cert_chain(request.tls_cert, request.tls_key or None, password=_no_password)
        except OSError as error:
            raise _wrong("--tls-cert, --tls-key", request.tls_cert, error) from None
    return made


def _wrong(option: str, file: str, error: OSError) -> UsageError:
    return UsageError(f"{option}: expected a PEM file, received {file!r}: {error.strerror or error}")


def _no_password() -> str:
    """Nobody is there to type one."""
    return ""
