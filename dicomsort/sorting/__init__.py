"""The pipeline, and the only place that knows the order of its stages, with ``sort``, ``resume`` and ``undo``.

walk and examine -> catalog -> group -> predict -> classify -> plan, sealed -> execute, journalled -> manifest, summary.
"""

from __future__ import annotations

from dicomsort.sorting.corrections import Corrections
from dicomsort.sorting.examine import survey, walk_inbox
from dicomsort.sorting.incremental import newest_run, read_new_runs, recheck_runs, sort_new_files
from dicomsort.sorting.inspection import list_runs, repair, verify
from dicomsort.sorting.outbox import RunContext, count_waiting, locked
from dicomsort.sorting.pipeline import SortRequest, check, check_places, check_settings, sort_inbox
from dicomsort.sorting.pruning import prune
from dicomsort.sorting.resume import resume
from dicomsort.sorting.review import ReviewService
from dicomsort.sorting.settling import settled_before
from dicomsort.sorting.undo import rehearse_undo, undo

__all__ = [
    "Corrections",
    "ReviewService",
    "RunContext",
    "SortRequest",
    "check",
    "check_places",
    "check_settings",
    "count_waiting",
    "list_runs",
    "locked",
    "newest_run",
    "prune",
    "read_new_runs",
    "recheck_runs",
    "rehearse_undo",
    "repair",
    "resume",
    "settled_before",
    "sort_inbox",
    "sort_new_files",
    "survey",
    "undo",
    "verify",
    "walk_inbox",
]
