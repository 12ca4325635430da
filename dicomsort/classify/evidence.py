"""What header and pixels each say of a group, in one vocabulary: the labels of the model, and OTHER.

Descriptions name a modality in words, which decides nothing alone. Study Description (0008,1030) and Series Description
(0008,103E) are free text (PS3.3 C.7.2.1, C.7.3.1), and so is, in the field, a Modality (0008,0060) that is no defined
term. A study's words may speak of another of its series.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dicomsort.modalities import (
    ASK,
    CT,
    FOLLOWS,
    MRI,
    OTHER_PREFIX,
    XRAY,
    kind_of,
    modality_category,
    sop_class_category,
)
from dicomsort.records import (
    OTHER,
    DecidedBy,
    Examined,
    Group,
    Grouping,
    Header,
    Kind,
    SeriesPrediction,
    Status,
    Verdict,
)

_OTHERS: Final = "OTHER"
_WORDS: Final[dict[str, str]] = {
    word: category
    for category, words in {
        CT: "CT CTA CAT CBCT HRCT TDM TAC",
        MRI: "MR MRI MRA MRCP FMRI IRM RMN NMR MRT",
        XRAY: "XR XRAY CR DX DR RX RADIOGRAPH RADIOGRAPHY MAMMO MAMMOGRAM MAMMOGRAPHY",
        _OTHERS: "US ULTRASOUND SONO SONOGRAPHY ECHO DOPPLER PET PT NM SPECT ECG ENDOSCOPY",
    }.items()
    for word in words.split()
}
_X_RAY: Final = re.compile(r"\bX[ -]RAYS?\b")
_WORD: Final = re.compile(r"[A-Z]+")


def hinted(header: Header) -> str:
    """The one category, CT, MRI or XRAY, that the header's words name; empty where they name none or several."""
    texts = [header.study_description, header.series_description]
    if modality_category(header.modality) is None:
        texts.append(header.modality)
    plain = _X_RAY.sub("XRAY", " ".join(texts).upper())
    named = {_WORDS[word] for word in _WORD.findall(plain) if word in _WORDS}
    return named.pop() if len(named) == 1 and _OTHERS not in named else ""


_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_KIND = re.compile(r"[A-Z0-9]{1,16}")
_PLACED = frozenset({Status.SORTED, Status.OTHER})
_IMAGING = frozenset({CT, MRI, XRAY})
MAX_UID = 64
MAJORITY = 0.5  # the pixels' share for a class from which on they support what else names it


def is_uid(text: str) -> bool:
    """Whether a text is a UID by PS3.5 section 9.1 (leading zeros in a component, common in the field, may pass)."""
    return len(text) <= MAX_UID and _UID.fullmatch(text) is not None


def has_uids(header: Header) -> bool:
    """Whether study, series and instance each have a valid UID."""
    return is_uid(header.study_uid) and is_uid(header.series_uid) and is_uid(header.sop_uid)


def is_localizer(header: Header) -> bool:
    """A scout: ImageType value 3 is LOCALIZER (PS3.3 C.8.2.1.1.1); it looks like a radiograph and is none."""
    return "LOCALIZER" in header.image_type.upper().split("\\")[2:]


def grouping_of(e: Examined) -> Grouping:
    """What this file is judged together with."""
    header = e.header
    if e.failed or header.ignored or header.problem or header.kind is not Kind.DICOM or not has_uids(header):
        kept = header.study_uid if has_uids(header) else ""
        state = "failed" if e.failed else header.ignored or header.problem or _categories(header)
        return Grouping(kept, header.series_uid if kept else e.found.path, f"{header.kind}:{state}")
    return Grouping(header.study_uid, header.series_uid, f"{header.kind}:{_categories(header)}")


def _categories(header: Header) -> str:
    return f"{sop_class_category(header.sop_class_uid)}/{modality_category(header.modality)}/{header.has_pixels:d}"


def showable_frames(e: Examined) -> int:
    """How many frames of a file may be shown to the model; none of scouts, or of what is no image."""
    header = e.header
    if e.failed or header.ignored or not header.has_pixels:
        return 0
    if header.kind is Kind.UNKNOWN or (header.kind is Kind.DICOM and is_localizer(header)):
        return 0
    return max(1, header.frames)


@dataclass(frozen=True, slots=True)
class Criteria:
    """What a verdict needs to know of the model and of the user's choice.

    ``header_classes`` maps CT, MRI and XRAY to the model's labels (empty: the header does not count); ``decide`` and
    ``contradict`` are the bundle's thresholds; ``evidence`` is ``auto``, ``header`` or ``pixels``; a series changed
    after ``settled_before_ns`` is left alone; pixels beyond ``distance`` are like none that the model knows.
    """

    labels: tuple[str, ...]
    header_classes: Mapping[str, str]
    decide: float
    contradict: float
    evidence: str = "auto"
    settled_before_ns: int | None = None
    distance: float | None = None

    @property
    def reads_headers(self) -> bool:
        """Whether the header takes part."""
        return self.evidence != "pixels" and bool(self.header_classes)


@dataclass(frozen=True, slots=True)
class HeaderEvidence:
    """What a header says.

    ``classes`` are the labels it names (two where it contradicts itself), ``follows`` whether the object belongs to
    others' pixels; ``kind`` names the folder below OTHER; ``hint`` is the label that descriptions name where nothing
    else in the header does.
    """

    classes: tuple[str, ...] = ()
    follows: bool = False
    kind: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One group with all that the rules may look at."""

    judge: Criteria
    group: Group
    said: HeaderEvidence
    vote: SeriesPrediction
    placed: str = ""  # the folder that an earlier run gave the series, else the study: a class, OTHER/…, REVIEW/…
    study: Mapping[str, Verdict] = field(default_factory=dict)  # verdicts so far in this study, by series
    decided: str = ""  # the folder that a person gave the series, or a file of this content

    @property
    def header(self) -> Header:
        """The header of the group's first file."""
        return self.group.sample.header

    @property
    def pixel_class(self) -> str:
        """The model's first choice."""
        p = self.vote.probabilities
        return self.judge.labels[max(range(len(p)), key=p.__getitem__)] if p else ""

    @property
    def pixel_confidence(self) -> float | None:
        """The probability of the model's first choice."""
        return max(self.vote.probabilities, default=None)

    @property
    def is_strange(self) -> bool:
        """Whether the pixels are like none that the model knows, so that its choice means nothing."""
        return is_out_of_distribution(self.pixel_class, self.vote.distance, self.judge.distance)

    def says(self, threshold: float) -> bool:
        """Whether the model's confidence reaches a threshold, in pixels of which it knows the like."""
        return (self.pixel_confidence or 0.0) >= threshold and not self.is_strange

    def agrees(self, class_: str) -> bool:
        """Whether the pixels, of which the model knows the like, show this class rather than all others."""
        return bool(class_) and self.pixel_class == class_ and self.says(MAJORITY)

    def share_among(self, classes: Sequence[str]) -> float:
        """The share of the model's first choice in what it gives to these classes, one of which is the right one."""
        whole = sum(self.vote.probabilities[self.judge.labels.index(c)] for c in classes if c in self.judge.labels)
        return (self.pixel_confidence or 0.0) / whole if whole else 0.0

    @property
    def is_denied(self) -> bool:
        """Whether confident pixels deny the one class that the header names.

        The header leaves its own class and the one that they show: what they give to others is no argument for it.
        """
        classes, judge = self.said.classes, self.judge
        if len(classes) != 1 or classes[0] not in judge.labels or self.pixel_class in classes:
            return False
        return self.says(judge.decide) and self.share_among((*classes, self.pixel_class)) >= judge.contradict

    def study_folders(self) -> set[str]:
        """Where the rest of the study goes, as far as it is decided."""
        return {v.folder for v in self.study.values() if v.status in _PLACED}


def is_out_of_distribution(class_: str, distance: float | None, limit: float | None) -> bool:
    """Whether pixels seen as ``class_`` are further than ``limit`` from all images of a class that the model knows.

    OTHER is what lies far from them, so distance is no argument against it.
    """
    return class_ not in {"", OTHER} and distance is not None and limit is not None and distance > limit


def header_evidence(header: Header, judge: Criteria) -> HeaderEvidence:
    """The header's evidence in the model's labels."""
    categories = [c for c in (sop_class_category(header.sop_class_uid), modality_category(header.modality)) if c]
    kind = kind_below_other(header)
    if FOLLOWS in categories or (not header.has_pixels and not any(_decisive(c) for c in categories)):
        return HeaderEvidence(follows=True, kind=kind)
    if not judge.reads_headers:
        return HeaderEvidence(kind=kind)
    named = dict.fromkeys(_label(c, judge) for c in categories if c != ASK)
    classes = tuple(label for label in named if label)
    return HeaderEvidence(classes, kind=kind, hint="" if classes else judge.header_classes.get(hinted(header), ""))


def _decisive(category: str) -> bool:
    return category in _IMAGING or category.startswith(OTHER_PREFIX)


def _label(category: str, judge: Criteria) -> str:
    return OTHER if category.startswith(OTHER_PREFIX) else judge.header_classes.get(category, "")


def kind_below_other(header: Header) -> str:
    """The folder below OTHER for what a header tells of."""
    kind = kind_of(header.sop_class_uid, header.modality) or header.modality.strip().upper()
    if _KIND.fullmatch(kind):
        return kind
    return "image" if header.has_pixels else "object"


def tier(said: HeaderEvidence) -> int:
    """In which order the groups of a study are judged: clear headers, then pixels, then what follows the others."""
    return 2 if said.follows else 0 if said.classes else 1


def mixture(verdicts: Sequence[Verdict]) -> str:
    """A remark where a study has images of more than one class."""
    folders = sorted({v.folder for v in verdicts if v.status in _PLACED and v.decided_by is not DecidedBy.STUDY})
    return f"mixed study: {' '.join(folders)}" if len(folders) > 1 else ""
