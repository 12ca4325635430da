"""Stage 3: header evidence, pixel evidence, and an ordered table of rules that turns them into verdicts.

Judged by series, because Modality (0008,0060) is an attribute of the series (PS3.3 C.7.3.1); the study then decides
for those of its series whose headers say nothing. Pure: no file is touched here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from dicomsort.classify.evidence import (
    Case,
    Criteria,
    grouping_of,
    has_uids,
    header_evidence,
    is_out_of_distribution,
    is_uid,
    kind_below_other,
    mixture,
    showable_frames,
    tier,
)
from dicomsort.classify.rules import RULES, Rule
from dicomsort.records import (
    OF_ONE_FILE,
    OTHER,
    REVIEW,
    REVIEWED,
    REVIEWED_FILE,
    Group,
    Grouping,
    Header,
    Placement,
    SeriesPrediction,
    Verdict,
)

__all__ = [
    "RULES",
    "Criteria",
    "Rule",
    "classify_study",
    "folder_of",
    "grouping_of",
    "has_uids",
    "header_evidence",
    "is_clear",
    "is_contradicted",
    "is_out_of_distribution",
    "is_uid",
    "showable_frames",
]

# No placement for the rest of the series.
_OF_ONE_FILE = OF_ONE_FILE | {REVIEWED_FILE}
_NAME = r"(?![.~ -])[^/\0]+"  # no hidden folder, our own least of all, has the name of a class
_PLACE = re.compile(rf"((?:{OTHER}|{REVIEW})/{_NAME}|(?!(?:{OTHER}|{REVIEW})/){_NAME})/.+", re.DOTALL)


def classify_study(
    members: Sequence[tuple[Group, SeriesPrediction]], placements: Sequence[Placement], judge: Criteria
) -> list[tuple[Group, Verdict]]:
    """Judge the groups of one study, clear headers first, so that the others may follow them.

    ``placements`` are those of the study; of a file without one, those of its content about which a person decided.
    """
    cases = [(group, vote, header_evidence(group.sample.header, judge)) for group, vote in members]
    cases.sort(key=lambda case: tier(case[2]))
    so_far: dict[str, Verdict] = {}
    verdicts: list[tuple[Group, Verdict]] = []
    for group, vote, said in cases:
        placed = _placed(placements, group.grouping.series, said.classes)
        verdict = decide(Case(judge, group, said, vote, placed, so_far, _decided(placements, group.grouping)))
        verdicts.append((group, verdict))
        if verdict.folder and not group.sample.header.problem:
            so_far.setdefault(group.grouping.series, verdict)
    remark = mixture([verdict for _, verdict in verdicts])
    return [(group, _remarked(verdict, remark)) for group, verdict in verdicts]


def decide(case: Case) -> Verdict:
    """The verdict of the first rule that applies."""
    rule = next(rule for rule in RULES if rule.applies(case))
    return rule.decide(case, rule.name)


def is_clear(group: Group, judge: Criteria) -> bool:
    """Whether the header alone names one class, so that a single frame is enough of a check."""
    return len(header_evidence(group.sample.header, judge).classes) == 1


def is_contradicted(group: Group, vote: SeriesPrediction, judge: Criteria) -> bool:
    """Whether that single frame disagrees so strongly that more frames should be asked before a person is."""
    return Case(judge, group, header_evidence(group.sample.header, judge), vote).is_denied


def _placed(placements: Sequence[Placement], series: str, classes: Sequence[str]) -> str:
    """The folder that earlier runs gave the series, else the study where all of it went to one.

    A series new to the study whose own header names another class is the second half of a mixed study (PET/CT, CR and
    CT), whichever arrives first; the study's placement does not speak for it.
    """
    usable = [p for p in placements if p.reason not in _OF_ONE_FILE]
    own = [p for p in usable if p.series == series]
    folders = {_folder(p) for p in own or usable} - {""}
    folder = folders.pop() if len(folders) == 1 else ""
    if not own and classes and folder.partition("/")[0] not in classes:
        return ""
    return folder


def _decided(placements: Sequence[Placement], grouping: Grouping) -> str:
    """The folder that a person gave the series, or, where there is none, a file of the same content."""
    if grouping.study:
        reviewed = [p for p in placements if p.reason == REVIEWED and p.series == grouping.series]
    else:
        reviewed = [p for p in placements if p.reason in {REVIEWED, REVIEWED_FILE}]
    folders = {_folder(p) for p in reviewed} - {""}
    return folders.pop() if len(folders) == 1 else ""


def folder_of(class_: str, header: Header) -> str:
    """Where below an outbox a file belongs that a person says is of this class."""
    return f"{OTHER}/{kind_below_other(header)}" if class_ == OTHER else class_


def _folder(placement: Placement) -> str:
    """The folder of a class, or of a kind or reason below OTHER or REVIEW; empty where a place is in none of these."""
    found = _PLACE.fullmatch(placement.destination)
    return found[1] if found else ""


def _remarked(verdict: Verdict, remark: str) -> Verdict:
    if not remark or not verdict.class_:
        return verdict
    return replace(verdict, note="; ".join(note for note in (verdict.note, remark) if note))
