"""How an operation ends after an error of the system."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from dicomsort.files import REFUSED_BY_DISK
from dicomsort.records import Operation, Outcome, Result

# Somebody closed a folder, or put a link in its place.
UNREACHABLE = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class Fatal:
    """The disk itself refused: the run ends here, and ``resume`` goes on."""

    message: str


def outcome_of_error(o: Operation, error: OSError, what: str) -> Result | Fatal:
    """Return how an operation ends after an error: FAILED, or Fatal where the disk refused."""
    reason = error.strerror or str(error)
    if error.errno in REFUSED_BY_DISK:
        return Fatal(f"{what}: expected success, received {reason}")
    return Result(o.number, Outcome.FAILED, reason)


def outcome_unseen(o: Operation, error: OSError, *, is_final: bool) -> Result | Fatal:
    """Return how it ends that a source cannot be looked at: Fatal, if a resume may see it; FAILED if it ``is_final``.

    It is FAILED, too, where somebody closed its folder.
    """
    if is_final or error.errno in UNREACHABLE:
        return Result(o.number, Outcome.FAILED, f"the source cannot be looked at: {error.strerror}")
    return Fatal(f"removing the source {o.source!r}: expected to look at it, received {error.strerror}")
