"""The pipeline, and the only place that knows the order of its stages; ``sort``, ``resume`` and ``undo`` are its doors.

walk and examine -> spool -> group -> look -> classify -> plan, sealed -> execute, journalled -> manifest, summary.
"""

from __future__ import annotations

from dicomsort.progress import Progress
from dicomsort.sorting.corrections import Corrections
from dicomsort.sorting.examine import Arrivals, Survey, survey, walk_inbox
from dicomsort.sorting.incremental import look_at_runs, newest_run, sort_news, still_unfinished
from dicomsort.sorting.outbox import RunContext, locked
from dicomsort.sorting.pipeline import Request, check, check_settings, sort_inbox
from dicomsort.sorting.pruning import Pruned, prune
from dicomsort.sorting.review import ReviewService
from dicomsort.sorting.running import rehearse_undo, resume, undo
from dicomsort.sorting.runs import list_runs, repair, verify

__all__ = [
    "Arrivals",
    "Corrections",
    "Progress",
    "Pruned",
    "Request",
    "ReviewService",
    "RunContext",
    "Survey",
    "check",
    "check_settings",
    "list_runs",
    "locked",
    "look_at_runs",
    "newest_run",
    "prune",
    "rehearse_undo",
    "repair",
    "resume",
    "sort_inbox",
    "sort_news",
    "still_unfinished",
    "survey",
    "undo",
    "verify",
    "walk_inbox",
]
