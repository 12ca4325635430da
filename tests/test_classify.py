"""The rules, one case each, and what studies do with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicomsort.classify import RULES, Criteria, classify_study, grouping_of, showable_frames
from dicomsort.classify.evidence import hinted
from dicomsort.records import Examined, Found, Group, Header, Kind, Placement, Prediction, Status, Verdict

LABELS = ("CT", "MRI", "OTHER", "XRAY")
MAP = {"CT": "CT", "MRI": "MRI", "XRAY": "XRAY"}
DECIDE = 0.9
JUDGE = Criteria(LABELS, MAP, decide=DECIDE, contradict=0.99)
STRICT = replace(JUDGE, distance=1.5)
CT, MR, CR, SC = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "1", "7"))
SR, US = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.6.1"


def vote(**shares: float) -> Prediction:
    rest = (1 - sum(shares.values())) / (len(LABELS) - len(shares))
    return Prediction(tuple(shares.get(label, rest) for label in LABELS))


def header(sop_class: str = "", modality: str = "", series: int = 1, **more: object) -> Header:
    uids = {"study_uid": "1.2", "series_uid": f"1.2.{series}", "sop_uid": f"1.2.{series}.1"}
    return Header(Kind.DICOM, sop_class_uid=sop_class, modality=modality, **(uids | more))  # type: ignore[arg-type]


def group(h: Header, number: int = 1, failed: str = "", mtime_ns: int = 0) -> Group:
    examined = Examined(Found(f"file{number}", 1, mtime_ns, 1, 1), h, "", failed)
    return Group(number, grouping_of(examined), 1, mtime_ns, examined)


def judged(
    h: Header, votes: Prediction | None = None, judge: Criteria = JUDGE, *placed: Placement, **more: object
) -> Verdict:
    ((_, verdict),) = classify_study([(group(h, **more), votes or Prediction())], placed, judge)  # type: ignore[arg-type]
    return verdict


def placement(destination: str, series: str = "1.2.1", reason: str = "header") -> Placement:
    return Placement("1.2", series, "9", "CT", "sorted", reason, destination, "")


SURE_CT, UNSURE, SURE_XRAY, SURE_OTHER = vote(CT=0.995), vote(CT=0.6), vote(XRAY=0.995), vote(OTHER=0.995)

CASES = {
    "failed": (judged(header(CT, "CT"), failed="I/O error"), Status.FAILED, "", "", "none"),
    "ignored": (judged(Header(Kind.UNKNOWN, ignored="archive")), Status.IGNORED, "", "", "none"),
    "settling": (
        judged(header(CT, "CT"), Prediction(), replace(JUDGE, settled_before_ns=5), mtime_ns=6),
        Status.SETTLING, "", "", "none",
    ),
    "damaged": (
        judged(header(CT, "CT", problem="truncated-header")), Status.UNREADABLE, "UNREADABLE", "CT", "none",
    ),
    "archive": (judged(replace(header("", ""), problem="archive-damaged")), Status.UNREADABLE, "", "", "none"),
    "decided-before": (
        judged(header(MR, "MR"), Prediction(), JUDGE, placement("CT/x", reason="reviewed")), Status.SORTED,
        "CT", "CT", "study",
    ),
    "against-placement": (
        judged(header(MR, "MR"), Prediction(), JUDGE, placement("CT/x")), Status.REVIEW,
        "REVIEW/against-placement", "MRI", "none",
    ),
    "placed-before": (
        judged(header(SC, ""), UNSURE, JUDGE, placement("CT/x")), Status.SORTED, "CT", "CT", "study",
    ),
    "pixels-settle-header": (judged(header(CR, "CT"), vote(CT=0.95)), Status.SORTED, "CT", "CT", "both"),
    "header-contradicts-itself": (
        judged(header(CR, "CT"), UNSURE), Status.REVIEW, "REVIEW/header-contradicts-itself", "", "none",
    ),
    "header-against-pixels": (
        judged(header(CT, "CT"), SURE_XRAY), Status.REVIEW, "REVIEW/header-against-pixels", "CT", "none",
    ),
    "header-and-pixels": (judged(header(CT, "CT"), SURE_CT), Status.SORTED, "CT", "CT", "both"),
    "header": (judged(header(CT, "CT"), vote(XRAY=0.8)), Status.SORTED, "CT", "CT", "header"),
    "no-study-to-follow": (judged(header(SR, "SR", has_pixels=False)), Status.OTHER, "OTHER/SR", "OTHER", "header"),
    "too-small": (
        judged(header(SC, "OT"), replace(SURE_CT, too_small=True)), Status.REVIEW, "REVIEW/too-small", "", "none",
    ),
    "out-of-distribution": (
        judged(header(SC, "OT"), replace(SURE_CT, distance=1.6), STRICT), Status.REVIEW,
        "REVIEW/out-of-distribution", "", "none",
    ),
    "description-and-pixels": (
        judged(header(SC, "OT", study_description="CT ABDOMEN"), UNSURE), Status.SORTED, "CT", "CT", "both",
    ),
    "description-against-pixels": (
        judged(header(SC, "OT", study_description="CT ABDOMEN"), SURE_XRAY), Status.REVIEW,
        "REVIEW/description-against-pixels", "", "none",
    ),
    "pixels": (judged(header(SC, "OT"), SURE_CT), Status.SORTED, "CT", "CT", "pixels"),
    "unsure": (judged(header(SC, "OT"), UNSURE), Status.REVIEW, "REVIEW/unsure", "", "none"),
    "no-evidence": (
        judged(header(SC, "OT"), Prediction(problem="no pixel data")), Status.REVIEW, "REVIEW/no-evidence", "",
        "none",
    ),
}  # fmt: skip
BY_STUDY = {"follows-series", "follows-study", "follows-held", "pixels-against-study"}


@pytest.mark.parametrize("rule", CASES)
def test_rule(rule: str) -> None:
    verdict, *expected = CASES[rule]
    assert [verdict.status, verdict.folder, verdict.class_, verdict.decided_by] == expected
    own_reasons = {"ignored": "archive", "archive": "archive-damaged", "damaged": "truncated-header"}
    assert verdict.reason == own_reasons.get(rule, rule)


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in RULES} == set(CASES) | BY_STUDY


@pytest.mark.parametrize(
    ("head", "folder"),
    [
        (header(CT, "CT"), "CT"),  # no argument against a clear header
        (header(CR, "CT"), "REVIEW/header-contradicts-itself"),  # nor between two
        (header(SC, "OT", study_description="XR CHEST"), "REVIEW/too-small"),  # nor for words
    ],
)
def test_pixels_of_a_tiny_image_decide_nothing_but_are_told(head: Header, folder: str) -> None:
    verdict = judged(head, replace(SURE_XRAY, too_small=True))
    assert (verdict.folder, verdict.pixel_class, verdict.pixel_confidence) == (folder, "XRAY", 0.995)


def test_a_derived_map_is_not_held_against_its_header() -> None:
    perfusion = judged(header(CT, "CT", image_type="DERIVED\\PRIMARY\\PERFUSION\\RCBF"), vote(MRI=0.995))
    assert (perfusion.folder, perfusion.reason, perfusion.pixel_class) == ("CT", "header", "MRI")
    original = judged(header(CT, "CT", image_type="ORIGINAL\\PRIMARY\\PERFUSION\\RCBF"), vote(MRI=0.995))
    assert original.folder == "REVIEW/header-against-pixels"


def study(*members: tuple[Header, Prediction]) -> dict[str, Verdict]:
    groups = [(group(h, number), votes) for number, (h, votes) in enumerate(members)]
    return {g.sample.header.series_uid: verdict for g, verdict in classify_study(groups, [], JUDGE)}


def test_a_series_that_says_nothing_follows_its_study() -> None:
    verdicts = study((header(SC, "OT", 2), UNSURE), (header(CT, "CT", 1), SURE_CT))
    assert (verdicts["1.2.2"].folder, verdicts["1.2.2"].reason) == ("CT", "follows-study")
    assert verdicts["1.2.2"].decided_by == "study"


def test_confident_pixels_against_the_study_are_held() -> None:
    verdicts = study((header(SC, "OT", 2), SURE_XRAY), (header(CT, "CT", 1), SURE_CT))
    assert verdicts["1.2.2"].folder == "REVIEW/pixels-against-study"


@pytest.mark.parametrize(("share", "is_held"), [(0.89, False), (0.91, True)])
def test_pixels_against_a_study_or_a_placement_are_held_from_one_confidence_on(share: float, *, is_held: bool) -> None:
    """``contradict`` is a share of two classes; no confidence is compared with it."""
    judge, votes = replace(JUDGE, decide=0.95), vote(MRI=share)
    earlier = placement("CT/1.2/1.2.1/9.dcm")
    assert judged(header(), votes, judge, earlier).reason == ("against-placement" if is_held else "placed-before")
    members = [(group(header(CT, "CT")), Prediction()), (group(header(series=2), 2), votes)]
    reasons = {each.sample.header.series_uid: verdict.reason for each, verdict in classify_study(members, (), judge)}
    assert reasons["1.2.2"] == ("pixels-against-study" if is_held else "follows-study")


def test_a_mixed_study_is_split_by_series_and_says_so() -> None:
    verdicts = study((header(CT, "CT", 1), SURE_CT), (header(CR, "CR", 2), SURE_XRAY))
    assert [verdicts[f"1.2.{n}"].folder for n in (1, 2)] == ["CT", "XRAY"]
    assert all("mixed study: CT XRAY" in verdict.note for verdict in verdicts.values())


def test_reports_follow_the_series_they_refer_to_else_the_study_else_go_to_other() -> None:
    mixed = [(header(CT, "CT", 1), SURE_CT), (header(CR, "CR", 2), SURE_XRAY)]
    refers = header(SR, "SR", 3, has_pixels=False, refers_to="1.2.2")
    silent = header(SR, "SR", 4, has_pixels=False)
    verdicts = study((refers, Prediction()), (silent, Prediction()), *mixed)
    assert (verdicts["1.2.3"].folder, verdicts["1.2.3"].reason) == ("XRAY", "follows-series")
    assert (verdicts["1.2.4"].folder, verdicts["1.2.4"].reason) == ("OTHER/SR", "no-study-to-follow")
    assert study((silent, Prediction()), mixed[0])["1.2.4"].reason == "follows-study"


def test_reports_of_a_held_study_are_held_with_it() -> None:
    verdicts = study((header(SR, "SR", 3, has_pixels=False), Prediction()), (header(CT, "CT", 1), SURE_XRAY))
    assert (verdicts["1.2.3"].folder, verdicts["1.2.3"].reason) == ("REVIEW/header-against-pixels", "follows-held")


def test_ultrasound_is_other_by_header_and_not_argued_with_by_a_model_without_other() -> None:
    assert judged(header(US, "US"), SURE_OTHER).folder == "OTHER/US"
    three = Criteria(("CT", "MRI", "XRAY"), MAP, DECIDE, 0.99)
    assert judged(header(US, "US"), Prediction((0.001, 0.001, 0.998)), three).folder == "OTHER/US"


def test_the_header_does_not_count_where_the_user_or_the_model_says_so() -> None:
    for judge in (Criteria(LABELS, MAP, DECIDE, 0.99, "pixels"), Criteria(LABELS, {}, DECIDE, 0.99)):
        verdict = judged(header(CT, "CT"), SURE_XRAY, judge)
        assert (verdict.folder, verdict.decided_by, verdict.header_class) == ("XRAY", "pixels", "")


def test_pixels_that_cannot_be_had_are_told_in_the_message() -> None:
    verdict = judged(header(CT, "CT"), Prediction(problem="truncated pixel data"))
    assert (verdict.status, verdict.decided_by, verdict.note) == ("sorted", "header", "pixels: truncated pixel data")


def test_the_second_half_of_a_mixed_study_may_come_later() -> None:
    late = judged(header("1.2.840.10008.5.1.4.1.1.128", "PT", 2), Prediction(), JUDGE, placement("CT/x"))
    assert late.folder == "OTHER/PT"


def test_what_was_held_for_one_file_places_no_series() -> None:
    held = placement("REVIEW/uid-collision/x", reason="uid-collision")
    assert judged(header(CT, "CT"), SURE_CT, JUDGE, held).reason == "header-and-pixels"


def test_scouts_are_not_shown_to_the_model() -> None:
    scout = Examined(Found("x", 1, 1, 1, 1), header(CT, "CT", image_type="ORIGINAL\\PRIMARY\\LOCALIZER"))
    assert showable_frames(scout) == 0
    assert showable_frames(Examined(Found("x", 1, 1, 1, 1), header(CT, "CT", frames=7))) == 7


@pytest.mark.parametrize("distance", [None, 1.5, 1.51, float("inf")])
def test_pixels_unlike_all_that_the_model_knows_neither_support_a_header_nor_argue_with_it(
    distance: float | None,
) -> None:
    strange = distance is not None and distance > 1.5
    agreeing, arguing = (replace(sure, distance=distance) for sure in (SURE_CT, SURE_XRAY))
    cases = {
        (header(CT, "CT"), agreeing): ("header", "header-and-pixels"),
        (header(CT, "CT"), arguing): ("header", "header-against-pixels"),
        (header(CR, "CT"), agreeing): ("header-contradicts-itself", "pixels-settle-header"),
        (header(SC, "OT", study_description="CT"), agreeing): ("out-of-distribution", "description-and-pixels"),
    }
    for (said, seen), reasons in cases.items():
        assert judged(said, seen, STRICT).reason == reasons[not strange]
    assert judged(header(CT, "CT"), agreeing).reason == "header-and-pixels"  # a bundle without a threshold


def test_distance_is_no_argument_against_other() -> None:
    assert judged(header(SC, "OT"), replace(SURE_OTHER, distance=9.0), STRICT).folder == "OTHER/image"


def test_a_header_with_two_classes_leaves_the_pixels_the_choice_between_them() -> None:
    assert judged(header(CR, "CT"), vote(CT=0.8, MRI=0.15)).reason == "pixels-settle-header"
    assert judged(header(CR, "CT"), vote(CT=0.8, XRAY=0.15)).reason == "header-contradicts-itself"
    assert judged(header(CR, "CT"), vote(MRI=0.6, CT=0.39)).reason == "header-contradicts-itself"


@pytest.mark.parametrize(
    ("study", "series", "modality", "named"),
    [
        ("CT ABDOMEN W CONTRAST", "", "", "CT"),
        ("Thorax", "HRCT 1.0", "", "CT"),
        ("mri brain t2", "", "OT", "MRI"),
        ("CHEST", "X-ray pa", "", "XRAY"),
        ("", "", "CAT", "CT"),
        ("PET/CT WHOLE BODY", "", "", ""),
        ("CT or MR", "", "", ""),
        ("ultrasound", "", "", ""),
        ("DOCTOR CTX MRSA", "T2", "", ""),
        ("", "", "SC", ""),
    ],
)
def test_words_that_name_one_class(study: str, series: str, modality: str, named: str) -> None:
    assert hinted(header(SC, modality, study_description=study, series_description=series)) == named


def test_words_never_decide_alone_and_not_where_headers_do_not_count() -> None:
    described = header(SC, "OT", study_description="CT ABDOMEN")
    assert judged(described, vote(CT=0.4)).reason == "unsure"
    assert judged(described, SURE_OTHER).reason == "description-against-pixels"
    assert judged(described).reason == "no-evidence"
    assert judged(described, UNSURE, replace(JUDGE, evidence="pixels")).reason == "unsure"


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (vote(XRAY=0.95, CT=0.005), "header-against-pixels"),  # what goes to third classes is no word for CT
        (vote(XRAY=0.95, CT=0.04), "header"),
        (vote(XRAY=0.85, CT=0.001), "header"),  # would not decide alone
    ],
)
def test_pixels_deny_a_header_by_what_they_leave_its_class(seen: Prediction, reason: str) -> None:
    assert judged(header(CT, "CT"), seen).reason == reason


@pytest.mark.parametrize(
    "place",
    [".dicomsort/a/b.dcm", "../x", "/x/y", "CT", "REVIEW/x", "REVIEW/../x", "OTHER//x", "OTHER/./x", "", "./x", "-x/y"],
)
def test_no_placement_gives_a_folder_that_is_none_of_a_class(place: str) -> None:
    for reason in ("header", "reviewed"):
        without = judged(header(SC, ""), UNSURE)
        assert judged(header(SC, ""), UNSURE, JUDGE, placement(place, reason=reason)) == without
        both = judged(header(SC, ""), UNSURE, JUDGE, placement(place, reason=reason), placement("CT/x", reason=reason))
        assert both.folder == "CT"
