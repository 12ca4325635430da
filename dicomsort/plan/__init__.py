"""Stage 4: from verdicts to operations, and from what a run did to those that undo it. Pure: it asks, never acts."""

from __future__ import annotations

from dicomsort.plan.layout import TOKENS, Layout, NameLookup, PlanContext, parse_layout
from dicomsort.plan.planner import Decided, Options, decide, plan
from dicomsort.plan.reverse import reverse

__all__ = [
    "TOKENS",
    "Decided",
    "Layout",
    "NameLookup",
    "Options",
    "PlanContext",
    "decide",
    "parse_layout",
    "plan",
    "reverse",
]
