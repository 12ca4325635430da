"""What header and pixels each say of a group, in one vocabulary: the labels of the model, and OTHER.

Descriptions name a modality in words, which decides nothing alone. Study Description (0008,1030) and Series Description
(0008,103E) are free text (PS3.3 C.7.2.1, C.7.3.1), and so is, in the field, a Modality (0008,0060) that is no defined
term. A study's words may describe another of its series.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dicomsort import modalities
from dicomsort.dicom.tags import is_uid
from dicomsort.modalities import CT, MRI, OTHER_PREFIX, XRAY, modality_category, sop_class_category
from dicomsort.records import OTHER, Examined, Group, Grouping, Header, Kind, Prediction, Status, Verdict

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
    """Return the one category, CT, MRI or XRAY, that the header's words name, "" where they name none or several."""
    texts = [header.study_description, header.series_description]
    if modality_category(header.modality) is None:
        texts.append(header.modality)
    plain = _X_RAY.sub("XRAY", " ".join(texts).upper())
    named = {_WORDS[word] for word in _WORD.findall(plain) if word in _WORDS}
    return named.pop() if len(named) == 1 and _OTHERS not in named else ""


_KIND = re.compile(r"[A-Z0-9]{1,16}")
PLACED = frozenset({Status.SORTED, Status.OTHER})
_IMAGING = frozenset({CT, MRI, XRAY})
MAJORITY = 0.5  # confidence from which on pixels support a class that something else names
AGAINST = 0.9  # confidence from which on pixels speak against an earlier placement, or the rest of the study


def has_uids(header: Header) -> bool:
    """Return whether study, series and instance each have a valid UID."""
    return is_uid(header.study_uid) and is_uid(header.series_uid) and is_uid(header.sop_uid)


def _categories(header: Header) -> tuple[str | None, str | None]:
    return sop_class_category(header.sop_class_uid), modality_category(header.modality)


def grouping_of(e: Examined) -> Grouping:
    """Return the series of a file and its header evidence: files with the same grouping get one verdict."""
    header = e.header
    sop_class, modality = _categories(header)
    state = f"{sop_class}/{modality}/{header.has_pixels:d}"
    evidence = f"{header.kind}:{'failed' if e.failed else header.ignored or header.problem or state}"
    if has_uids(header):
        return Grouping(header.study_uid, header.series_uid, evidence)
    return Grouping("", e.found.path, evidence)


def showable_frames(e: Examined) -> int:
    """Return how many frames of a file may be shown to the model: none of localizers, or of what is no image.

    A localizer has LOCALIZER as value 3 of ImageType (PS3.3 C.8.2.1.1.1). It looks like a radiograph but is not one.
    """
    header = e.header
    is_localizer = header.kind is Kind.DICOM and "LOCALIZER" in header.image_type.upper().split("\\")[2:]
    if e.failed or header.ignored or not header.has_pixels or header.kind is Kind.UNKNOWN or is_localizer:
        return 0
    return max(1, header.frames)


@dataclass(frozen=True, slots=True)
class Criteria:
    """What a verdict depends on of the model and of the user's options.

    ``header_classes`` maps CT, MRI and XRAY to the model's labels (empty: the header does not count); ``decide``
    and ``contradict`` are the bundle's thresholds; ``evidence`` is ``auto``, ``header`` or ``pixels``;
    a series changed after ``settled_before_ns`` is left alone; pixels beyond ``distance`` are like none that the model
    knows.
    """

    labels: tuple[str, ...]
    header_classes: Mapping[str, str]
    decide: float
    contradict: float
    evidence: str = "auto"
    settled_before_ns: int | None = None
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class HeaderEvidence:
    """What a header says."""

    classes: tuple[str, ...] = ()  # the labels that it names, two where it contradicts itself
    follows: bool = False  # the object belongs to the pixels of another series
    kind: str = ""  # the folder below OTHER
    hint: str = ""  # the label that descriptions name where nothing else in the header does


@dataclass(frozen=True, slots=True)
class Case:
    """One group with all that the rules depend on."""

    criteria: Criteria
    group: Group
    evidence: HeaderEvidence
    prediction: Prediction
    placed: str = ""  # the folder that an earlier run gave the series, else the study: a class, OTHER/…, REVIEW/…
    study: Mapping[str, Verdict] = field(default_factory=dict)  # verdicts so far in this study, by series
    reviewed: str = ""  # the folder that a person gave the series, or a file of this content

    @property
    def header(self) -> Header:
        """The header of the group's first file."""
        return self.group.sample.header

    @property
    def pixel_class(self) -> str:
        """The model's first choice."""
        p = self.prediction.probabilities
        return self.criteria.labels[max(range(len(p)), key=p.__getitem__)] if p else ""

    @property
    def pixel_confidence(self) -> float | None:
        """The probability of the model's first choice."""
        return max(self.prediction.probabilities, default=None)

    @property
    def is_out_of_distribution(self) -> bool:
        """Whether the model's choice means nothing, because it knows no such pixels."""
        return is_out_of_distribution(self.pixel_class, self.prediction.distance, self.criteria.distance)

    @property
    def is_evidence(self) -> bool:
        """Whether the pixels say anything: there are enough (``LEAST_SIDE``), and the model knows their like."""
        return bool(self.pixel_class) and not (self.prediction.too_small or self.is_out_of_distribution)

    def is_confident(self, threshold: float) -> bool:
        """Return whether the model's confidence reaches a threshold, in pixels that say anything."""
        return self.is_evidence and (self.pixel_confidence or 0.0) >= threshold

    @property
    def decide(self) -> float:
        """The confidence from which on pixels alone decide."""
        return self.criteria.decide

    def agrees(self, class_: str) -> bool:
        """Return whether the pixels, where they say anything, show this class rather than all others."""
        return bool(class_) and self.pixel_class == class_ and self.is_confident(MAJORITY)

    def share_among(self, classes: Sequence[str]) -> float:
        """Return the share of the model's first choice in the probabilities of these classes."""
        labels, probabilities = self.criteria.labels, self.prediction.probabilities
        total = sum(probabilities[labels.index(c)] for c in classes if c in labels)
        return (self.pixel_confidence or 0.0) / total if total else 0.0

    @property
    def is_contradicted(self) -> bool:
        """Whether confident pixels contradict the one class that the header names; those of a derived map never do.

        Only that class and the one of the pixels are compared: the probabilities of others are no argument for it.
        """
        classes, criteria = self.evidence.classes, self.criteria
        if len(classes) != 1 or classes[0] not in criteria.labels or self.pixel_class in classes:
            return False
        if not self.is_confident(self.decide) or modalities.is_derived_map(self.header.image_type):
            return False
        return self.share_among((*classes, self.pixel_class)) >= criteria.contradict

    def study_folders(self) -> set[str]:
        """Return the folders of the rest of the study, as far as it is decided."""
        return {v.folder for v in self.study.values() if v.status in PLACED}


def is_out_of_distribution(class_: str, distance: float | None, limit: float | None) -> bool:
    """Return whether pixels of the predicted ``class_`` lie beyond ``limit`` from the images that the model knows.

    OTHER is what lies far from them, so distance is no argument against it.
    """
    return class_ not in {"", OTHER} and distance is not None and limit is not None and distance > limit


def header_evidence(header: Header, criteria: Criteria) -> HeaderEvidence:
    """Return the header's evidence in the model's labels."""
    categories = [c for c in _categories(header) if c]
    kind = kind_below_other(header)
    is_named = any(c in _IMAGING or c.startswith(OTHER_PREFIX) for c in categories)
    if modalities.FOLLOWS in categories or not (header.has_pixels or is_named):
        return HeaderEvidence(follows=True, kind=kind)
    if criteria.evidence == "pixels" or not criteria.header_classes:
        return HeaderEvidence(kind=kind)
    categories = [c for c in categories if c != modalities.ASK]
    labels = (OTHER if c.startswith(OTHER_PREFIX) else criteria.header_classes.get(c) for c in categories)
    classes = tuple(dict.fromkeys(filter(None, labels)))
    return HeaderEvidence(classes, kind=kind, hint="" if classes else criteria.header_classes.get(hinted(header), ""))


def kind_below_other(header: Header) -> str:
    """Return the folder below OTHER of a file with this header."""
    kind = modalities.kind_of(header.sop_class_uid, header.modality) or header.modality.strip().upper()
    if _KIND.fullmatch(kind):
        return kind
    return "image" if header.has_pixels else "object"


def folder_of(class_: str, header: Header) -> str:
    """Return the folder below an outbox of a file that a person says is of this class."""
    return f"{OTHER}/{kind_below_other(header)}" if class_ == OTHER else class_
