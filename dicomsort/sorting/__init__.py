"""The pipeline, and the only place that knows the order of its stages; ``sort``, ``resume`` and ``undo`` are its doors.

walk and examine -> spool -> group -> look -> classify -> plan, sealed -> execute, journalled -> manifest, summary.
"""

from __future__ import annotations

from dicomsort.sorting.history import list_runs, verify
from dicomsort.sorting.progress import Progress
from dicomsort.sorting.running import resume, undo
from dicomsort.sorting.sort import Request, check, sort_inbox

__all__ = ["Progress", "Request", "check", "list_runs", "resume", "sort_inbox", "undo", "verify"]
