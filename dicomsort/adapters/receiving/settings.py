"""What a receiver is told; free of the network library, so that it can be read before that is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GRACE = 30.0  # seconds that an end leaves to instances on their way


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """``max_object_size`` is in MiB, ``max_pdu`` in bytes, ``timeout`` in seconds; an empty ``allow`` allows all."""

    port: int
    bind: str
    ae_title: str
    allow: tuple[str, ...]
    max_associations: int
    max_pdu: int
    max_object_size: int
    timeout: float
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
