"""The pipeline, and the only place that knows the order of its stages; ``sort``, ``resume`` and ``undo`` are its doors.

walk and examine -> spool -> group -> look -> classify -> plan, sealed -> execute, journalled -> manifest, summary.
"""

from __future__ import annotations

from dicomsort.progress import Progress
from dicomsort.sorting.arrivals import Arrivals, Survey, survey, walk_inbox
from dicomsort.sorting.corrections import Corrections
from dicomsort.sorting.deciding import Desk
from dicomsort.sorting.history import list_runs, repair, verify
from dicomsort.sorting.news import look_at_runs, newest_run, sort_news, still_unfinished
from dicomsort.sorting.outbox import RunContext, held
from dicomsort.sorting.pruning import Pruned, prune
from dicomsort.sorting.running import rehearse_undo, resume, undo
from dicomsort.sorting.sort import Request, check, check_settings, sort_inbox

__all__ = [
    "Arrivals",
    "Corrections",
    "Desk",
    "Progress",
    "Pruned",
    "Request",
    "RunContext",
    "Survey",
    "check",
    "check_settings",
    "held",
    "list_runs",
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
