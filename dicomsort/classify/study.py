"""The verdicts on one study: each of its groups, by the first rule that applies, and by what was placed before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from dicomsort.classify.evidence import PLACED, Case, Criteria, header_evidence
from dicomsort.classify.rules import RULES
from dicomsort.records import (
    OF_ONE_FILE,
    OTHER,
    REVIEW,
    REVIEWED,
    REVIEWED_FILE,
    DecidedBy,
    Group,
    Grouping,
    Placement,
    Prediction,
    Verdict,
)

# Reasons of placements that do not hold for the rest of the series
_OF_ONE_FILE = OF_ONE_FILE | {REVIEWED_FILE}
_NAME = r"(?![.~ -])[^/\0]+"  # no hidden folder, our own least of all, has the name of a class
# The folder of a class, or of a kind or reason below OTHER or REVIEW, and a name in it
_DESTINATION = re.compile(rf"((?:{OTHER}|{REVIEW})/{_NAME}|(?!(?:{OTHER}|{REVIEW})/){_NAME})/.+", re.DOTALL)


def classify_study(
    members: Sequence[tuple[Group, Prediction]], placements: Sequence[Placement], criteria: Criteria
) -> list[tuple[Group, Verdict]]:
    """Return the verdicts on the groups of one study, clear headers first, so that the others may follow them.

    ``placements`` are those of the study; of a file without one, those of its content about which a person decided.
    """
    cases = [(group, prediction, header_evidence(group.sample.header, criteria)) for group, prediction in members]
    cases.sort(key=lambda case: 2 if case[2].follows else 0 if case[2].classes else 1)
    so_far: dict[str, Verdict] = {}
    verdicts: list[tuple[Group, Verdict]] = []
    for group, prediction, evidence in cases:
        placed = _placed(placements, group.grouping.series, evidence.classes)
        case = Case(criteria, group, evidence, prediction, placed, so_far, _reviewed(placements, group.grouping))
        rule = next(rule for rule in RULES if rule.applies(case))
        verdict = rule.decide(case, rule.name)
        verdicts.append((group, verdict))
        if verdict.folder and not group.sample.header.problem:
            so_far.setdefault(group.grouping.series, verdict)
    images = {v.folder for _, v in verdicts if v.status in PLACED and v.decided_by is not DecidedBy.STUDY}
    remark = f"mixed study: {' '.join(sorted(images))}" if len(images) > 1 else ""
    if not remark:
        return verdicts
    return [
        (group, replace(v, note="; ".join(filter(None, (v.note, remark)))) if v.class_ else v) for group, v in verdicts
    ]


def is_clear(group: Group, criteria: Criteria) -> bool:
    """Return whether the header alone names one class, so that a single frame is enough of a check."""
    return len(header_evidence(group.sample.header, criteria).classes) == 1


def is_contradicted(group: Group, prediction: Prediction, criteria: Criteria) -> bool:
    """Return whether that single frame contradicts the header, so that more frames should be predicted."""
    return Case(criteria, group, header_evidence(group.sample.header, criteria), prediction).is_contradicted


def _placed(placements: Sequence[Placement], series: str, classes: Sequence[str]) -> str:
    """Return the folder that earlier runs gave the series, else the study where all of it went to one.

    A series new to the study whose own header names another class is the second half of a mixed study (PET/CT, CR and
    CT), whichever arrives first; the study's placement does not hold for it.
    """
    usable = [p for p in placements if p.reason not in _OF_ONE_FILE]
    own = [p for p in usable if p.series == series]
    folder = _only_folder(own or usable)
    return "" if not own and classes and folder.partition("/")[0] not in classes else folder


def _reviewed(placements: Sequence[Placement], grouping: Grouping) -> str:
    """Return the folder that a person gave the series, or, where there is none, a file of the same content."""
    if grouping.study:
        return _only_folder([p for p in placements if p.reason == REVIEWED and p.series == grouping.series])
    return _only_folder([p for p in placements if p.reason in {REVIEWED, REVIEWED_FILE}])


def _only_folder(placements: Sequence[Placement]) -> str:
    """Return the folder of all placements, "" where there are none or several; places elsewhere do not count."""
    folders = {found[1] for p in placements if (found := _DESTINATION.fullmatch(p.destination))}
    return folders.pop() if len(folders) == 1 else ""
