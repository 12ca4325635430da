"""TLS of both sides, as the settings name its files: PEM, read once, and a key never waits for a password."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from dicomsort.config import Destination, ReceiveSettings
from dicomsort.errors import UsageError
from dicomsort.files import check_input

_CERTIFICATES = "a PEM file of certificates"
_Made = TypeVar("_Made")


def client_context(settings: Destination) -> ssl.SSLContext:
    """A context that checks the peer's certificate and name, and shows ours where there is one.

    ``UsageError`` for a file that cannot be read or is not what its option says.
    """
    if settings.tls_key and not settings.tls_cert:
        raise UsageError("--tls-key: expected --tls-cert beside it, received none")
    _check_files(settings)
    ca = settings.tls_ca
    context = _loaded("--tls-ca", ca, _CERTIFICATES, lambda: ssl.create_default_context(cafile=ca))
    if settings.tls_cert:
        _load_certificate(context, settings.tls_cert, settings.tls_key)
    return context


def server_context(settings: ReceiveSettings) -> ssl.SSLContext | None:
    """A context that shows our certificate (PS3.15 B.9, BCP 195: TLS 1.2 or newer); None where none is given.

    With a CA, only peers with a certificate of it are heard. ``UsageError`` as for ``client_context``.
    """
    if settings.tls_cert is None:
        if settings.tls_key or settings.tls_ca:
            raise UsageError("expected --tls-cert beside --tls-key and --tls-ca, received none")
        return None
    _check_files(settings)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, settings.tls_cert, settings.tls_key)
    if (ca := settings.tls_ca) is not None:
        _loaded("--tls-ca", ca, _CERTIFICATES, lambda: context.load_verify_locations(ca))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_files(settings: Destination | ReceiveSettings) -> None:
    """A FIFO or a device would be waited for, or never end."""
    files = {"--tls-ca": settings.tls_ca, "--tls-cert": settings.tls_cert, "--tls-key": settings.tls_key}
    for option, file in files.items():
        if file is not None:
            _loaded(option, file, "a PEM file", partial(check_input, file))


def _load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    what = "a certificate and its key without a password, as PEM"
    _loaded("--tls-cert, --tls-key", cert, what, lambda: context.load_cert_chain(cert, key, _no_password))


def _loaded(option: str, file: Path | None, expected: str, load: Callable[[], _Made]) -> _Made:
    try:
        return load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{option}: expected {expected}, received {str(file)!r}: {reason}") from None


def _no_password() -> NoReturn:
    """Nobody is there to type one."""
    raise ValueError("a key with a password")
