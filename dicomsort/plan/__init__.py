"""Stage 4: from verdicts to operations, and from the operations of a run to those that undo it; it changes nothing."""

from __future__ import annotations

from dicomsort.plan.layout import TOKENS, Layout, parse_layout
from dicomsort.plan.planner import Decided, Options, decide, plan
from dicomsort.plan.reverse import reverse

__all__ = ["TOKENS", "Decided", "Layout", "Options", "decide", "parse_layout", "plan", "reverse"]
