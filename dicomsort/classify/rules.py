"""The ordered table of rules: the first whose condition holds decides, and its name is the reason in the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dicomsort.classify.evidence import Case
from dicomsort.records import OTHER, REVIEW, UNREADABLE, DecidedBy, Status, Verdict


@dataclass(frozen=True, slots=True)
class Rule:
    """``when`` and ``then`` are what ``dicomsort rules`` prints; ``applies`` and ``decide`` are what runs."""

    name: str
    when: str
    then: str
    applies: Callable[[Case], bool]
    decide: Callable[[Case, str], Verdict]


def _verdict(case: Case, reason: str, folder: str, status: Status, class_: str, by: DecidedBy) -> Verdict:
    header_class = case.said.classes[0] if len(case.said.classes) == 1 else ""
    confidence = None
    if by in {DecidedBy.PIXELS, DecidedBy.BOTH}:
        confidence = case.vote.probabilities[case.judge.labels.index(class_)]
    note = f"pixels: {case.vote.problem}" if case.vote.problem else ""
    seen = (case.pixel_class, case.pixel_confidence)
    return Verdict(status, folder, class_, reason, by, confidence, header_class, *seen, note)


def _put(by: DecidedBy, pick: Callable[[Case], str]) -> Callable[[Case, str], Verdict]:
    """Sort into the class that ``pick`` names."""

    def decide(case: Case, reason: str) -> Verdict:
        class_ = pick(case)
        if class_ == OTHER:
            return _verdict(case, reason, f"{OTHER}/{_other_kind(case, by)}", Status.OTHER, OTHER, by)
        return _verdict(case, reason, class_, Status.SORTED, class_, by)

    return decide


def _other_kind(case: Case, by: DecidedBy) -> str:
    return "image" if by is DecidedBy.PIXELS and not case.said.classes else case.said.kind


def _hold(class_: Callable[[Case], str]) -> Callable[[Case, str], Verdict]:
    """Hold for a person, below REVIEW/<reason>."""

    def decide(case: Case, reason: str) -> Verdict:
        return _verdict(case, reason, f"{REVIEW}/{reason}", Status.REVIEW, class_(case), DecidedBy.NONE)

    return decide


def _stay(status: Status, reason: Callable[[Case], str]) -> Callable[[Case, str], Verdict]:
    return lambda case, _: Verdict(status, reason=reason(case))


def _unreadable(case: Case, _: str) -> Verdict:
    return _verdict(case, case.header.problem, UNREADABLE, Status.UNREADABLE, _header_class(case), DecidedBy.NONE)


def _follow(case: Case, reason: str, folder: str) -> Verdict:
    """Go where others of the study go."""
    status, class_ = status_of(folder)
    return _verdict(case, reason, folder, status, class_, DecidedBy.STUDY)


def status_of(folder: str) -> tuple[Status, str]:
    """Status and class of what lies in a folder of the outbox."""
    top = folder.partition("/")[0]
    if top == REVIEW:
        return Status.REVIEW, ""
    return (Status.OTHER, OTHER) if top == OTHER else (Status.SORTED, top)


def _header_class(case: Case) -> str:
    return case.said.classes[0] if case.said.classes else ""


def _referred(case: Case) -> str:
    found = case.study.get(case.header.refers_to)
    return found.folder if found else ""


def _only_folder(case: Case) -> str:
    folders = case.study_folders()
    return folders.pop() if len(folders) == 1 else ""


def _held_folder(case: Case) -> str:
    held = {v.folder for v in case.study.values() if v.status is Status.REVIEW}
    return min(held) if held and not case.study_folders() else ""


def _against_placement(case: Case) -> bool:
    now = set(case.said.classes) or ({case.pixel_class} if case.says(case.judge.contradict) else set())
    before = case.placed.partition("/")[0]
    return bool(now) and before not in now and before != REVIEW and not case.said.follows


def _settled_by_pixels(case: Case) -> bool:
    """The header leaves only its own classes: what the pixels give to others is no argument between these."""
    classes = case.said.classes
    agreed = len(classes) > 1 and case.pixel_class in classes and case.agrees(case.pixel_class)
    return agreed and case.share_among(classes) >= case.judge.decide


def _against_hint(case: Case) -> bool:
    return bool(case.said.hint) and case.pixel_class != case.said.hint and case.says(case.judge.decide)


def _against_study(case: Case) -> bool:
    only = _only_folder(case).partition("/")[0]
    return bool(only) and case.pixel_class not in {only, OTHER} and case.says(case.judge.contradict)


RULES = (
    Rule(
        "failed", "the file cannot be read", "stays in the inbox, status failed",
        lambda c: bool(c.group.sample.failed), _stay(Status.FAILED, lambda _: "failed"),
    ),
    Rule(
        "ignored", "no image at all: text, archive, DICOMDIR, link, special file", "stays in the inbox, status ignored",
        lambda c: bool(c.header.ignored), _stay(Status.IGNORED, lambda c: c.header.ignored),
    ),
    Rule(
        "settling", "a file of the series changed less than --settle seconds ago", "stays, status settling",
        lambda c: c.judge.settled_before_ns is not None and c.group.newest_mtime_ns > c.judge.settled_before_ns,
        _stay(Status.SETTLING, lambda _: "settling"),
    ),
    Rule(
        "damaged", "the header cannot be trusted: truncated, hostile, beyond a limit (the reason names it)",
        "UNREADABLE", lambda c: bool(c.header.problem), _unreadable,
    ),
    Rule(
        "decided-before", "a person has decided about the series (dicomsort review), else about a file of this content",
        "where that person put it", lambda c: bool(c.decided), lambda c, name: _follow(c, name, c.decided),
    ),
    Rule(
        "against-placement", "an earlier run placed the series, else the study, and header or confident pixels differ",
        "REVIEW", lambda c: bool(c.placed) and _against_placement(c), _hold(_header_class),
    ),
    Rule(
        "placed-before", "an earlier run placed the series, else the study", "where the earlier run put it",
        lambda c: bool(c.placed), lambda c, name: _follow(c, name, c.placed),
    ),
    Rule(
        "pixels-settle-header",
        "SOP Class and Modality contradict each other, pixels agree with one, confidently among the two",
        "the class they agree on", _settled_by_pixels, _put(DecidedBy.BOTH, lambda c: c.pixel_class),
    ),
    Rule(
        "header-contradicts-itself", "SOP Class and Modality contradict each other", "REVIEW",
        lambda c: len(c.said.classes) > 1, _hold(lambda _: ""),
    ),
    Rule(
        "header-against-pixels", "the header names a class, confident pixels another", "REVIEW",
        lambda c: c.is_denied, _hold(_header_class),
    ),
    Rule(
        "header-and-pixels", "the header names a class, the pixels agree", "the class",
        lambda c: len(c.said.classes) == 1 and c.pixel_class == c.said.classes[0] and not c.is_strange,
        _put(DecidedBy.BOTH, _header_class),
    ),
    Rule(
        "header", "the header names a class; pixels unsure, unlike all known, not asked or not to be had",
        "the class",
        lambda c: len(c.said.classes) == 1, _put(DecidedBy.HEADER, _header_class),
    ),
    Rule(
        "follows-series", "SR, PR, KO, SEG, RT …: the series it refers to is decided", "where that series goes",
        lambda c: c.said.follows and bool(_referred(c)), lambda c, name: _follow(c, name, _referred(c)),
    ),
    Rule(
        "pixels-against-study", "the header says nothing, the study is of one class, confident pixels of another",
        "REVIEW", lambda c: not c.said.follows and _against_study(c), _hold(lambda _: ""),
    ),
    Rule(
        "follows-study", "the header says nothing and the rest of the study goes to one place", "there",
        lambda c: bool(_only_folder(c)), lambda c, name: _follow(c, name, _only_folder(c)),
    ),
    Rule(
        "follows-held", "SR, PR, KO, SEG, RT …: the rest of the study is held for review", "REVIEW, with the study",
        lambda c: c.said.follows and bool(_held_folder(c)), lambda c, name: _follow(c, name, _held_folder(c)),
    ),
    Rule(
        "no-study-to-follow", "SR, PR, KO, SEG, RT …: nothing to follow, or several classes", "OTHER, below its kind",
        lambda c: c.said.follows, _put(DecidedBy.HEADER, lambda _: OTHER),
    ),
    Rule(
        "out-of-distribution", "the header says nothing, the pixels are unlike all that the model knows", "REVIEW",
        lambda c: c.is_strange, _hold(lambda _: ""),
    ),
    Rule(
        "description-and-pixels", "only Study or Series Description names a class, the pixels agree by majority",
        "the class", lambda c: c.agrees(c.said.hint), _put(DecidedBy.BOTH, lambda c: c.said.hint),
    ),
    Rule(
        "description-against-pixels", "only Study or Series Description names a class, confident pixels another",
        "REVIEW", _against_hint, _hold(lambda _: ""),
    ),
    Rule(
        "pixels", "the header says nothing, the pixels are confident", "the class they show, or OTHER/image",
        lambda c: bool(c.pixel_class) and c.says(c.judge.decide), _put(DecidedBy.PIXELS, lambda c: c.pixel_class),
    ),
    Rule(
        "unsure", "the header says nothing, the pixels are not confident", "REVIEW",
        lambda c: bool(c.pixel_class), _hold(lambda _: ""),
    ),
    Rule(
        "no-evidence", "the header says nothing, the pixels cannot be had or were not asked", "REVIEW",
        lambda _: True, _hold(lambda _: ""),
    ),
)  # fmt: skip
