"""The records and errors of ``send``: what goes in, what comes out, what its modules hand to each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class SendStatus(StrEnum):
    """What became of a file; the column ``status`` of the result."""

    ACKNOWLEDGED = "acknowledged"  # the peer has it, by its own word
    SKIPPED = "skipped"  # the peer acknowledged it before, and it has not changed since
    FAILED = "failed"
    IGNORED = "ignored"  # no DICOM instance at all


@dataclass(frozen=True, slots=True)
class SendResult:
    """A row of the result. ``path`` is relative to the outbox, or to the folder where that lies in none."""

    path: str
    sop_uid: str
    status: SendStatus
    attempts: int = 0
    message: str = ""


@dataclass
class Sent:
    """What was sent. ``problem`` says why it ended early, where it did: the peer cannot be reached, or refuses all.

    ``is_down``: no association could be opened. ``takes_nothing``: several deliveries in a row failed, or the peer
    broke off each association before it was open. ``is_asked``: some file was tried.
    """

    destination: str
    found: int = 0
    acknowledged: int = 0
    skipped: int = 0
    failed: int = 0
    ignored: int = 0
    bytes: int = 0  # of the files acknowledged
    seconds: float = 0.0
    problem: str = ""
    is_down: bool = False
    takes_nothing: bool = False
    is_asked: bool = False
    reasons: Counter[str] = field(default_factory=Counter)  # of what failed

    def count(self, result: SendResult, size: int = 0) -> None:
        """Count one file of ``size`` bytes."""
        self.found += 1
        setattr(self, result.status, getattr(self, result.status) + 1)
        if result.status is SendStatus.ACKNOWLEDGED:
            self.bytes += size
        elif result.status is SendStatus.FAILED:
            self.reasons[result.message] += 1


@dataclass(frozen=True, slots=True)
class Instance:
    """A SOP instance on disk, as it was when it was found; its data set begins at ``offset`` of ``absolute``.

    ``lacking`` is what a DICOM file begins with, where this one does not.
    """

    path: str
    absolute: str
    size: int
    mtime_ns: int
    inode: int
    offset: int
    syntax: str
    sop_class: str
    sop_uid: str
    lacking: bytes = b""
    ctime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one attempt at one instance. ``again``: it was not acknowledged, but a later attempt may succeed.

    ``sha256`` is of the file whose data set was sent. ``reached`` is False where the peer did not decide about it.
    """

    acknowledged: bool = False
    again: bool = False
    message: str = ""
    sha256: str = ""
    reached: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """What a channel is given at once; ``contexts`` are the (SOP class, transfer syntax) of these and those near.

    ``once``: it failed in an earlier run, so it gets one attempt.
    """

    instances: tuple[Instance, ...]
    contexts: tuple[tuple[str, str], ...] = ()
    once: bool = False


class Channel(Protocol):
    """A connection to the peer, opened when it is needed; used by one thread at a time."""

    @property
    def is_open(self) -> bool:
        """Whether the peer accepted the last attempt to send."""

    def deliver(self, batch: Batch) -> list[Answer]:
        """Send each instance; an answer each, in their order. Raises ``Temporary`` or ``Permanent``."""

    def close(self) -> None:
        """Close the connection in order, where it is open."""

    def abort(self) -> None:
        """Close at once, from another thread."""


class Temporary(Exception):
    """The peer could not be reached, or broke off; a later attempt may succeed.

    ``wait`` is how many seconds the peer asked for. ``is_down``: nothing can be sent there now, so trying another
    instance is of no use. ``was_open`` is False where the peer broke off before it had accepted the association.
    """

    def __init__(self, message: str, *, wait: float = 0.0, is_down: bool = False) -> None:
        super().__init__(message)
        self.wait, self.is_down, self.was_open = wait, is_down, True


class Permanent(Exception):
    """Whatever is sent there will be refused: the address, a title, a certificate or a right is wrong."""


class Unsendable(Exception):
    """A file that cannot be sent: gone, changed, or unreadable."""
