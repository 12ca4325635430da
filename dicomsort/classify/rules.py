"""The ordered table of rules: the first whose condition holds decides, and its name is the reason in the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dicomsort.classify.evidence import AGAINST, Case
from dicomsort.records import OTHER, REVIEW, UNREADABLE, DecidedBy, Status, Verdict

Pick = Callable[[Case], str]
Decide = Callable[[Case, str], Verdict]


@dataclass(frozen=True, slots=True)
class Rule:
    """``when`` and ``then`` are what ``dicomsort rules`` prints; ``applies`` and ``decide`` are what runs."""

    name: str
    when: str
    then: str
    applies: Callable[[Case], bool]
    decide: Decide


def _verdict(case: Case, reason: str, folder: str, status: Status, class_: str, by: DecidedBy) -> Verdict:
    header_class = case.evidence.classes[0] if len(case.evidence.classes) == 1 else ""
    confidence = None
    if by in {DecidedBy.PIXELS, DecidedBy.BOTH}:
        confidence = case.prediction.probabilities[case.criteria.labels.index(class_)]
    note = f"pixels: {case.prediction.problem}" if case.prediction.problem else ""
    pixels = (case.pixel_class, case.pixel_confidence)
    return Verdict(status, folder, class_, reason, by, confidence, header_class, *pixels, note)


def _sort(by: DecidedBy, class_of: Pick) -> Decide:
    """Sort into the class that ``class_of`` returns."""

    def decide(case: Case, reason: str) -> Verdict:
        class_ = class_of(case)
        if class_ != OTHER:
            return _verdict(case, reason, class_, Status.SORTED, class_, by)
        kind = "image" if by is DecidedBy.PIXELS and not case.evidence.classes else case.evidence.kind
        return _verdict(case, reason, f"{OTHER}/{kind}", Status.OTHER, OTHER, by)

    return decide


def _review(class_of: Pick = lambda _: "") -> Decide:
    """Put below REVIEW/<reason>, for a person."""

    def decide(case: Case, reason: str) -> Verdict:
        return _verdict(case, reason, f"{REVIEW}/{reason}", Status.REVIEW, class_of(case), DecidedBy.NONE)

    return decide


def _leave(status: Status, reason_of: Pick) -> Decide:
    """Leave in the inbox."""
    return lambda case, _: Verdict(status, reason=reason_of(case))


def _unreadable(case: Case, _: str) -> Verdict:
    return _verdict(case, case.header.problem, UNREADABLE, Status.UNREADABLE, _header_class(case), DecidedBy.NONE)


def _follow(folder_of: Pick) -> Decide:
    """Sort into the folder of others of the study."""

    def decide(case: Case, reason: str) -> Verdict:
        folder = folder_of(case)
        top = folder.partition("/")[0]
        status = {REVIEW: Status.REVIEW, OTHER: Status.OTHER}.get(top, Status.SORTED)
        return _verdict(case, reason, folder, status, "" if top == REVIEW else top, DecidedBy.STUDY)

    return decide


def _header_class(case: Case) -> str:
    return case.evidence.classes[0] if case.evidence.classes else ""


def _referenced_folder(case: Case) -> str:
    referenced = case.study.get(case.header.refers_to)
    return referenced.folder if referenced else ""


def _study_folder(case: Case) -> str:
    folders = case.study_folders()
    return folders.pop() if len(folders) == 1 else ""


def _review_folder(case: Case) -> str:
    folders = {v.folder for v in case.study.values() if v.status is Status.REVIEW}
    return min(folders) if folders and not case.study_folders() else ""


def _against_placement(case: Case) -> bool:
    now = set(case.evidence.classes) or ({case.pixel_class} if case.is_confident(AGAINST) else set())
    before = case.placed.partition("/")[0]
    return bool(now) and before not in now | {REVIEW} and not case.evidence.follows


def _pixels_settle_header(case: Case) -> bool:
    """Only the classes of the header are compared: the probabilities of others are no argument between these."""
    classes = case.evidence.classes
    agreed = len(classes) > 1 and case.pixel_class in classes and case.agrees(case.pixel_class)
    return agreed and case.share_among(classes) >= case.decide


def _against_description(case: Case) -> bool:
    hint = case.evidence.hint
    return bool(hint) and case.pixel_class != hint and case.is_confident(case.decide)


def _against_study(case: Case) -> bool:
    only = _study_folder(case).partition("/")[0]
    return bool(only) and case.pixel_class not in {only, OTHER} and case.is_confident(AGAINST)


RULES = (
    Rule("failed", "the file cannot be read", "stays in the inbox, status failed",
         lambda c: bool(c.group.sample.failed), _leave(Status.FAILED, lambda _: "failed")),
    Rule("ignored", "no image at all: text, archive, DICOMDIR, link, special file",
         "stays in the inbox, status ignored",
         lambda c: bool(c.header.ignored), _leave(Status.IGNORED, lambda c: c.header.ignored)),
    Rule("archive", "an archive, or a file in one, cannot be unpacked: encrypted, damaged, too large, unsafe name",
         "stays, status unreadable (ignored where an earlier run said so)",
         lambda c: c.header.problem.startswith("archive-"), _leave(Status.UNREADABLE, lambda c: c.header.problem)),
    Rule("settling", "a file of the series changed less than --settle seconds ago", "stays, status settling",
         lambda c: c.criteria.settled_before_ns is not None and c.group.newest_mtime_ns > c.criteria.settled_before_ns,
         _leave(Status.SETTLING, lambda _: "settling")),
    Rule("damaged", "the header cannot be trusted: truncated, hostile, beyond a limit (the reason names it)",
         "UNREADABLE", lambda c: bool(c.header.problem), _unreadable),
    Rule("decided-before",
         "a person has decided about the series (dicomsort review), else about a file of this content",
         "where that person put it", lambda c: bool(c.reviewed), _follow(lambda c: c.reviewed)),
    Rule("against-placement", "an earlier run placed the series, else the study, and header or confident pixels differ",
         "REVIEW", lambda c: bool(c.placed) and _against_placement(c), _review(_header_class)),
    Rule("placed-before", "an earlier run placed the series, else the study", "where the earlier run put it",
         lambda c: bool(c.placed), _follow(lambda c: c.placed)),
    Rule("pixels-settle-header",
         "SOP Class and Modality contradict each other, pixels agree with one, confidently among the two",
         "the class they agree on", _pixels_settle_header, _sort(DecidedBy.BOTH, lambda c: c.pixel_class)),
    Rule("header-contradicts-itself", "SOP Class and Modality contradict each other", "REVIEW",
         lambda c: len(c.evidence.classes) > 1, _review()),
    Rule("header-against-pixels", "the header names a class, confident pixels another", "REVIEW",
         lambda c: c.is_contradicted, _review(_header_class)),
    Rule("header-and-pixels", "the header names a class, the pixels agree", "the class",
         lambda c: c.evidence.classes == (c.pixel_class,) and c.is_evidence,
         _sort(DecidedBy.BOTH, _header_class)),
    Rule("header",
         "the header names a class; the pixels are unsure, too few, of a derived map, unlike all known, or missing",
         "the class",
         lambda c: len(c.evidence.classes) == 1, _sort(DecidedBy.HEADER, _header_class)),
    Rule("follows-series", "SR, PR, KO, SEG, RT …: the series it refers to is decided", "where that series goes",
         lambda c: c.evidence.follows and bool(_referenced_folder(c)), _follow(_referenced_folder)),
    Rule("pixels-against-study", "the header says nothing, the study is of one class, confident pixels of another",
         "REVIEW", lambda c: not c.evidence.follows and _against_study(c), _review()),
    Rule("follows-study", "the header says nothing and the rest of the study goes to one place", "there",
         lambda c: bool(_study_folder(c)), _follow(_study_folder)),
    Rule("follows-held", "SR, PR, KO, SEG, RT …: the rest of the study is held for review", "REVIEW, with the study",
         lambda c: c.evidence.follows and bool(_review_folder(c)), _follow(_review_folder)),
    Rule("no-study-to-follow", "SR, PR, KO, SEG, RT …: nothing to follow, or several classes", "OTHER, below its kind",
         lambda c: c.evidence.follows, _sort(DecidedBy.HEADER, lambda _: OTHER)),
    Rule("too-small", "the header says nothing, the image has too few pixels to tell", "REVIEW",
         lambda c: c.prediction.too_small, _review()),
    Rule("out-of-distribution", "the header says nothing, the pixels are unlike all that the model knows", "REVIEW",
         lambda c: c.is_out_of_distribution, _review()),
    Rule("description-and-pixels", "only Study or Series Description names a class, the pixels agree by majority",
         "the class", lambda c: c.agrees(c.evidence.hint), _sort(DecidedBy.BOTH, lambda c: c.evidence.hint)),
    Rule("description-against-pixels", "only Study or Series Description names a class, confident pixels another",
         "REVIEW", _against_description, _review()),
    Rule("pixels", "the header says nothing, the pixels are confident", "the class they show, or OTHER/image",
         lambda c: bool(c.pixel_class) and c.is_confident(c.decide),
         _sort(DecidedBy.PIXELS, lambda c: c.pixel_class)),
    Rule("unsure", "the header says nothing, the pixels are not confident", "REVIEW",
         lambda c: bool(c.pixel_class), _review()),
    Rule("no-evidence", "the header says nothing, the pixels cannot be decoded or were not used", "REVIEW",
         lambda _: True, _review()),
)  # fmt: skip
