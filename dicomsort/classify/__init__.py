"""Stage 3: header evidence, pixel evidence, and an ordered table of rules that turns them into verdicts.

A verdict is by series, because Modality (0008,0060) is an attribute of the series (PS3.3 C.7.3.1); the study then
decides for those of its series whose headers say nothing. Pure: no file is touched here.
"""

from __future__ import annotations

from dicomsort.classify.evidence import (
    Criteria,
    folder_of,
    grouping_of,
    has_uids,
    header_evidence,
    is_out_of_distribution,
    showable_frames,
)
from dicomsort.classify.rules import RULES
from dicomsort.classify.study import classify_study, is_clear, is_contradicted

__all__ = [
    "RULES",
    "Criteria",
    "classify_study",
    "folder_of",
    "grouping_of",
    "has_uids",
    "header_evidence",
    "is_clear",
    "is_contradicted",
    "is_out_of_distribution",
    "showable_frames",
]
