"""What planning asks of the world: the catalog's ledger, and what lies in the outbox now."""

from __future__ import annotations

import os
import stat

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
        return next((p.destination for p in placed if self._status(p.destination)), None)

    def _status(self, destination: str) -> os.stat_result | None:
        return look_up(f"{self._outbox}/{destination}") if self._outbox else None

    def holds(self, destination: str, size: int, sha256: str) -> bool | None:
        """Whether the file at a destination has this content; an earlier run's word for it is taken."""
        try:
            status = self._status(destination)
        except OSError:  # too long a name for this file system
            return False
        if status is None:
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return False
        placed = self._ledger.placed_at(destination) if self._remembers else None
        return (placed.sha256 if placed else sha256_of(f"{self._outbox}/{destination}")) == sha256
