"""What planning asks of the world outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from dicomsort.records import Operation


class NameLookup(Protocol):
    """Which names in an outbox are free."""

    def claim(self, name: str) -> bool:
        """Give a name out once; False where it is taken."""

    def holds(self, destination: str, size: int, sha256: str) -> bool | None:
        """Whether the file at a destination has this content; None where it is free.

        False too where no file can be: a path that is too long.
        """


class PlanContext(NameLookup, Protocol):
    """What planning asks of the world outside."""

    def is_repeated(self, sop: str) -> bool:
        """Whether several files of this run have this SOP Instance UID."""

    def placed_instance(self, sop: str, sha256: str | None) -> str | None:
        """Where an earlier run put a file with this SOP Instance UID, of this content or (None) of any."""

    def give(self, sop: str, sha256: str, destination: str) -> None:
        """Keep where this run will put a file with this SOP Instance UID and content."""

    def given(self, sop: str, sha256: str | None) -> str | None:
        """Where this run will put the first file with this SOP Instance UID, of this content or (None) of any."""

    def defer(self, operation: Operation) -> None:
        """Keep an operation for later."""

    def deferred(self) -> Iterator[Operation]:
        """Yield what was kept, in its order."""
