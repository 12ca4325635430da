"""TLS for a receiver (PS3.15 B.9, BCP 195): 1.2 or newer; with a CA, only peers with a certificate of it are heard."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from dicomsort.errors import UsageError
from dicomsort.files import check_input

if TYPE_CHECKING:
    from dicomsort.config import ReceiveSettings


def context_of(settings: ReceiveSettings) -> ssl.SSLContext | None:
    """The context that connections are wrapped in, None where no certificate is given.

    Raises ``UsageError`` for a file that cannot be read or is not what its option says.
    """
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_ca
    if cert is None:
        if key or ca:
            raise UsageError("expected --tls-cert beside --tls-key and --tls-ca, received none")
        return None
    for option, file in (("--tls-cert", cert), ("--tls-key", key), ("--tls-ca", ca)):
        if file is not None:
            _load(f"{option} {file}", "a file that can be read", partial(check_input, file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    what = "a certificate and its key without a password, as PEM"
    _load(f"--tls-cert {cert}, --tls-key {key}", what, lambda: context.load_cert_chain(cert, key, _no_password))
    if ca is not None:
        _load(f"--tls-ca {ca}", "certificates as PEM", lambda: context.load_verify_locations(ca))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(origin: str, what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{origin}: expected {what}, received: {reason}") from error


def _no_password() -> NoReturn:
    raise ValueError("a key with a password")
