"""Stage 5: execute a sealed plan, journalled and idempotent; ``sort``, ``resume`` and ``undo`` all end here."""

from __future__ import annotations

from dicomsort.execute.executor import BATCH, Executor
from dicomsort.execute.leaving import CANNOT_LEAVE, LINK_REFUSED, Leaving, is_stamped
from dicomsort.execute.part_files import PartFiles
from dicomsort.execute.placing import Placer
from dicomsort.execute.roots import Resolver, Roots

__all__ = [
    "BATCH",
    "CANNOT_LEAVE",
    "LINK_REFUSED",
    "Executor",
    "Leaving",
    "PartFiles",
    "Placer",
    "Resolver",
    "Roots",
    "is_stamped",
]
