"""What holds of every plan: each file once, no target twice, nothing outside the outbox."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomsort.classify import grouping_of
from dicomsort.errors import UsageError
from dicomsort.files import fold
from dicomsort.plan import Options, parse_layout, plan
from dicomsort.plan.layout import MAX_COMPONENT, harmless, with_suffix
from dicomsort.records import OPENED, Examined, Found, Grouping, Header, Kind, Operation, Status, Verb, Verdict

# Whatever the system may give: any bytes but these two, those that are no UTF-8 as lone surrogates (PEP 383).
LETTERS, SIZES = st.sampled_from("xé日"), st.sampled_from([200, 251, 255])  # bytes, the last of a name at most
LONG = st.builds(lambda letter, size: os.fsdecode(os.fsencode(letter * size)[:size]), LETTERS, SIZES)
NAMES = st.one_of(st.text(max_size=12), st.binary(max_size=12).map(os.fsdecode), LONG).filter(
    lambda name: name not in {"", ".", ".."} and not {"/", "\0"} & set(name)
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TEXTS = st.one_of(st.text(max_size=40), st.sampled_from(["../../etc/passwd", "..", "CON", "a/b", "\x1b[31m", ""]))
UIDS = st.one_of(st.integers(1, 3).map(lambda n: f"1.2.{n}"), TEXTS)
VERDICTS = st.sampled_from(
    [
        Verdict(Status.SORTED, "CT", "CT", "header"),
        Verdict(Status.SORTED, "MRI", "MRI", "pixels"),
        Verdict(Status.OTHER, "OTHER/US", "OTHER", "header"),
        Verdict(Status.REVIEW, "REVIEW/unsure", "", "unsure"),
        Verdict(Status.UNREADABLE, "UNREADABLE", "", "damaged"),
        Verdict(Status.IGNORED, reason="archive"),
        Verdict(Status.IGNORED, reason="text"),
    ]
)
LAYOUTS = ["uid", "keep", "readable", "{class}/{patient_id}/{series_description}-{modality}.dcm", "{class}/{sop_uid}"]


class Fake:
    """An outbox that holds ``there`` (destination -> SHA-256), as a dictionary."""

    def __init__(self, files: list[Examined], there: dict[str, str]) -> None:
        self.names: set[str] = set()
        self.there = there
        uids = [e.header.sop_uid for e in files]
        self.repeated = {uid for uid in uids if uids.count(uid) > 1}
        self.places: dict[tuple[str, str], str] = {}
        self.kept: dict[str, list[Operation]] = {}

    def claim(self, name: str) -> bool:
        fresh = name not in self.names
        self.names.add(name)
        return fresh

    def passable(self, path: str) -> str:
        return path

    def is_repeated(self, sop: str) -> bool:
        return sop in self.repeated

    def placed_instance(self, sop: str, content: Examined | None) -> str | None:
        return None

    def give(self, sop: str, sha256: str, destination: str) -> None:
        self.places[sop, sha256] = destination

    def given(self, sop: str, sha256: str | None) -> str | None:
        return next((place for (uid, sha), place in self.places.items() if uid == sop and sha256 in {None, sha}), None)

    def defer(self, operation: Operation, queue: str = "") -> None:
        self.kept.setdefault(queue, []).append(operation)

    def deferred(self, queue: str = "") -> Iterator[Operation]:
        return iter(self.kept.get(queue, []))

    def holds(self, destination: str, content: Examined) -> bool | None:
        return None if destination not in self.there else self.there[destination] == content.sha256


@st.composite
def inboxes(draw: st.DrawFn) -> list[tuple[Examined, Grouping, Verdict]]:
    files = []
    for path in draw(st.lists(PATHS, unique=True, max_size=12)):
        kind = draw(st.sampled_from([Kind.DICOM, Kind.DICOM, Kind.PNG, Kind.UNKNOWN]))
        texts = {name: draw(TEXTS) for name in ("patient_id", "series_description", "study_description", "modality")}
        uids = {name: draw(UIDS) for name in ("study_uid", "series_uid", "sop_uid")}
        header = Header(kind, **texts, **uids) if kind is Kind.DICOM else Header(kind)
        digest = hashlib.sha256(bytes([draw(st.integers(0, 2))])).hexdigest()
        examined = Examined(Found(path, 1, 1, 1, 1), header, digest)
        files.append((examined, grouping_of(examined), draw(VERDICTS)))
    return files


def planned(
    files: list[tuple[Examined, Grouping, Verdict]], there: dict[str, str], options: Options
) -> list[Operation]:
    return list(plan(files, list, options, Fake([e for e, _, _ in files], there)))


@given(files=inboxes(), layout=st.sampled_from(LAYOUTS), remove=st.booleans())
def test_each_file_once_no_target_twice_nothing_outside(
    *, files: list[tuple[Examined, Grouping, Verdict]], layout: str, remove: bool
) -> None:
    operations = planned(files, {}, Options(Verb.MOVE, parse_layout(layout), remove_duplicates=remove))
    assert sorted(o.source for o in operations) == sorted(f"inbox/{e.found.path}" for e, _, _ in files)
    assert [o.number for o in operations] == list(range(len(operations)))
    targets = [o.target for o in operations if o.target]
    assert len({fold(target) for target in targets}) == len(targets)
    for target in targets:
        root, *parts = target.split("/")
        assert root == "outbox"
        assert not {"", ".", ".."} & set(parts)
        assert all(len(part.encode(errors="surrogateescape")) <= 255 for part in parts)
    for operation in operations:
        if operation.verb is Verb.REMOVE:
            assert operation.kept in targets
        assert operation.row is not None
        assert operation.row.source == operation.source.removeprefix("inbox/")


@given(inboxes(), st.sampled_from(LAYOUTS))
def test_the_second_night_gives_the_same_names_and_places_nothing(
    files: list[tuple[Examined, Grouping, Verdict]], layout: str
) -> None:
    options = Options(Verb.COPY, parse_layout(layout))
    first = planned(files, {}, options)
    there = {o.target.removeprefix("outbox/"): o.sha256 for o in first if o.target}
    second = planned(files, there, options)
    assert [o.verb for o in second] == [Verb.LEAVE] * len(files)
    for before, after in zip(first, second, strict=True):
        if before.row and before.row.destination:
            assert after.row is not None
            assert there[after.row.destination] == before.sha256


@given(
    parts=st.lists(st.tuples(inboxes(), st.booleans()), max_size=3),
    layout=st.sampled_from(LAYOUTS),
    removes=st.booleans(),
)
def test_an_archive_moves_after_its_members_if_all_that_are_images_move(
    *, parts: list[tuple[list[tuple[Examined, Grouping, Verdict]], bool]], layout: str, removes: bool
) -> None:
    files = [
        each for number, (part, is_loose) in enumerate(parts) for each in (part if is_loose else boxed(number, part))
    ]
    options = Options(Verb.MOVE, parse_layout(layout), remove_duplicates=removes, outbox="/outbox")
    operations = planned(files, {}, options)
    assert sorted(o.row.source for o in operations if o.row) == sorted(e.found.path for e, _, _ in files)
    assert [o.number for o in operations] == list(range(len(operations)))
    targets = [fold(o.target) for o in operations if o.target]
    assert len({*targets}) == len(targets)
    for archive in (o for o in operations if o.row and OPENED in o.row.message):
        members = [o for o in operations if o.row and o.row.source.startswith(f"{archive.source[6:]}!/")]
        assert all(o.number < archive.number and o.verb in {Verb.MOVE, Verb.LEAVE} for o in members)
        for member in members:
            if member.verb is Verb.MOVE:
                assert member.source.startswith("outbox/.dicomsort/runs/1/staging/")
                assert (member.kept, member.archive_sha256) == (archive.source, archive.sha256)
        statuses = {o.row.status for o in members if o.row and o.verb is Verb.LEAVE and o.row.reason != "text"}
        assert (archive.verb is Verb.MOVE) == (statuses <= {Status.DUPLICATE})
        assert archive.target in {"", f"outbox/ARCHIVES/{archive.source[6:]}"}


def boxed(
    number: int, members: list[tuple[Examined, Grouping, Verdict]]
) -> Iterator[tuple[Examined, Grouping, Verdict]]:
    """An archive that was opened, and the same files as its members."""
    name = f"{number}.zip"
    header = Header(Kind.UNKNOWN, ignored="archive", message=f"{OPENED}{len(members)} files")
    archive = Examined(Found(name, 1, 1, 1, 1), header, hashlib.sha256(name.encode()).hexdigest())
    yield archive, grouping_of(archive), Verdict(Status.IGNORED, reason="archive")
    for place, (e, grouping, verdict) in enumerate(members):
        staged = f"/outbox/.dicomsort/runs/1/staging/{number}/{place}"
        yield (
            replace(e, found=replace(e.found, path=f"{name}!/{e.found.path}", archive=name, unpacked=staged)),
            grouping,
            verdict,
        )


@given(TEXTS)
def test_a_harmless_component_is_one_short_name(text: str) -> None:
    name = harmless(text)
    assert name
    assert not set(name) & set('/\\\0\n\r\t\x1b:*?"<>|')
    assert not name.startswith(".")
    assert len(name.encode()) <= MAX_COMPONENT + 1
    assert name.casefold() not in {"con", "nul", "prn", "aux"}


def test_a_suffix_goes_before_the_extension_and_keeps_names_short() -> None:
    assert with_suffix("a/b.dcm", "0123456789") == "a/b.01234567.dcm"
    assert with_suffix("a.b/c", "0123456789") == "a.b/c.01234567"
    long = with_suffix("x" * 251 + ".dcm", "0123456789")
    assert len(long) == 255
    assert long.endswith(".01234567.dcm")


REFUSED = ["", "{class}/", "{class}//{sop_uid}", "x/{class}", "{class}/{sop_uid!r}", "{class}/{}"]


@pytest.mark.parametrize("layout", REFUSED)
def test_templates_that_are_refused(layout: str) -> None:
    with pytest.raises(UsageError, match="--layout: expected"):
        parse_layout(layout)


def test_a_folder_that_leads_out_is_never_planned() -> None:
    examined = Examined(Found("1.dcm", 1, 1, 1, 1), Header(Kind.DICOM), "ab")
    verdict = Verdict(Status.REVIEW, "REVIEW/../..", "", "unsure")
    with pytest.raises(AssertionError, match="outside the outbox"):
        planned([(examined, grouping_of(examined), verdict)], {}, Options(Verb.COPY, parse_layout("uid")))


def test_long_texts_are_cut_and_keep_apart() -> None:
    one, other = harmless("x" * 99), harmless("x" * 98 + "y")
    assert one != other
    assert len(one) == len(other) == MAX_COMPONENT
