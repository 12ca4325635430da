"""What planning asks of the world: the catalog's ledger, and what lies in the outbox now."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from dicomsort.catalog import Ledger
from dicomsort.files import look_up, sha256_of


class Around:
    """Answers ``plan.Surroundings`` from a ledger and an outbox, which a dry run may do without."""

    def __init__(self, ledger: Ledger, outbox: str | None) -> None:
        """Without an outbox every name is free."""
        self._ledger = ledger
        self._outbox = outbox
        self._remembers = ledger.remembers()
        self.claim, self.is_repeated = ledger.claim, ledger.is_repeated
        self.give, self.given = ledger.give, ledger.given
        self.defer, self.deferred = ledger.defer, ledger.deferred

    def placed_instance(self, sop: str, sha256: str | None) -> str | None:
        """Where an earlier run put a file with this SOP Instance UID, of this content or of any; None if it went."""
        placed = self._ledger.placed_instances(sop, sha256) if self._remembers else ()
        return next((p.destination for p in placed if self._is_there(p.destination)), None)

    def _is_there(self, destination: str) -> bool:
        """Whether something is there, or may be: a folder that cannot be entered hides what it holds."""
        try:
            return self._outbox is not None and look_up(f"{self._outbox}/{destination}") is not None
        except OSError:
            return True

    def holds(self, destination: str, size: int, sha256: str) -> bool | None:
        """Whether the file at a destination has this content; an earlier run's word for it is taken."""
        if not self._outbox:
            return None
        return holds(f"{self._outbox}/{destination}", size, sha256, lambda: self._told(destination))

    def _told(self, destination: str) -> str:
        placed = self._ledger.placed_at(destination) if self._remembers else None
        return placed.sha256 if placed else ""


def holds(path: str, size: int, sha256: str, told: Callable[[], str]) -> bool | None:
    """Whether the file at an absolute path has this content; None where nothing is there, but a file can be.

    ``told`` gives its SHA-256 as it is known, or nothing: then the file is read.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # too long a name for this file system, or one that cannot be looked at
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return False
    return (told() or sha256_of(path)) == sha256
