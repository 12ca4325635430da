"""TLS contexts of both sides from the PEM files of the settings. A key with a password is refused."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from dicomsort.config import Destination, ReceiveSettings
from dicomsort.errors import UsageError
from dicomsort.files import check_input


def client_context(settings: Destination) -> ssl.SSLContext:
    """Return a context that checks the peer's certificate and name, and shows ours where there is one.

    Raises ``UsageError`` for a file that cannot be read or is not what its option says.
    """
    if settings.tls_key and not settings.tls_cert:
        raise UsageError("--tls-key: expected --tls-cert beside it, received none")
    _check_files(settings)
    with _reading("--tls-ca", settings.tls_ca, "a PEM file of certificates"):
        context = ssl.create_default_context(cafile=settings.tls_ca)
    if settings.tls_cert:
        _load_certificate(context, settings.tls_cert, settings.tls_key)
    return context


def server_context(settings: ReceiveSettings) -> ssl.SSLContext | None:
    """Return a context that shows our certificate (PS3.15 B.9, BCP 195: TLS 1.2 or newer); None where none is given.

    With a CA, a peer needs a certificate of it. Raises ``UsageError`` as ``client_context`` does.
    """
    if settings.tls_cert is None:
        if settings.tls_key or settings.tls_ca:
            raise UsageError("expected --tls-cert beside --tls-key and --tls-ca, received none")
        return None
    _check_files(settings)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, settings.tls_cert, settings.tls_key)
    if settings.tls_ca is not None:
        with _reading("--tls-ca", settings.tls_ca, "a PEM file of certificates"):
            context.load_verify_locations(settings.tls_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_files(settings: Destination | ReceiveSettings) -> None:
    """Refuse FIFOs and devices, on which the library would block or read without end."""
    files = {"--tls-ca": settings.tls_ca, "--tls-cert": settings.tls_cert, "--tls-key": settings.tls_key}
    for option, file in files.items():
        if file is not None:
            with _reading(option, file, "a PEM file"):
                check_input(file)


def _load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    with _reading("--tls-cert, --tls-key", cert, "a certificate and its key without a password, as PEM"):
        context.load_cert_chain(cert, key, _no_password)


@contextmanager
def _reading(option: str, file: Path | None, expected: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{option}: expected {expected}, received {str(file)!r}: {reason}") from None


def _no_password() -> NoReturn:
    raise ValueError("a key with a password")
