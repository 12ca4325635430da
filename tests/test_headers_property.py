from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from test_headers import header_in

from dicomsort.dicom.elements import HEADER_LIMIT
from dicomsort.dicom.headers import read_header
from dicomsort.records import Header, Kind

SEEDS = (
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "image_dfl.dcm",
    "rtplan.dcm",
    "reportsi.dcm",
)
NAMES = st.sampled_from(["a.dcm", "a.png", "a.jpg", "a.txt", "IM1", "a.zip", ""])
CODES = {
    "", "empty-file", "not-dicom", "not-an-image-despite-name", "truncated-header", "damaged-header", "deflate-broken",
    "nesting-beyond-limit", "header-beyond-limit", "executable-preamble",
}  # fmt: skip


@pytest.fixture(scope="module")
def seeds() -> list[bytes]:
    return [Path(str(get_testdata_file(name))).read_bytes() for name in SEEDS]


def _check(content: bytes, name: str, first: int = 16 * 1024) -> Header:
    """The header, having held what must hold for any content: no exception, known codes, bounded reading."""
    asked: list[int] = []

    def more(offset: int, length: int) -> bytes:
        assert 0 <= offset < len(content)
        asked.append(length)
        return content[offset : offset + length]

    header = read_header(content[:first], len(content), name, more)
    assert header.problem in CODES
    assert header.ignored in {"", "not-an-image", "archive", "dicomdir"}
    assert sum(asked) <= HEADER_LIMIT + 5
    assert header.kind is not Kind.UNKNOWN or bool(header.problem) != bool(header.ignored)
    assert max(map(len, (header.study_description, header.patient_id))) <= 1024
    return header


@given(
    content=st.binary(max_size=3000), name=NAMES, magic=st.sampled_from([b"", bytes(128) + b"DICM", b"\x08\0\x05\0"])
)
def test_random_bytes(content: bytes, name: str, magic: bytes) -> None:
    _check(magic + content, name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), name=NAMES, first=st.integers(200, 4096))
def test_damaged_files(seeds: list[bytes], data: st.DataObject, name: str, first: int) -> None:
    content = bytearray(data.draw(st.sampled_from(seeds)))
    places = st.tuples(st.integers(0, min(len(content), 3000) - 1), st.binary(min_size=1, max_size=8))
    for at, replacement in data.draw(st.lists(places, max_size=6)):
        content[at : at + data.draw(st.integers(0, 8))] = replacement
    _check(bytes(content), name, first)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_cut_file_never_tells_otherwise_than_the_whole_one(seeds: list[bytes], data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(seeds))
    cut = _check(whole[: data.draw(st.integers(0, min(len(whole), 6000)))], "a.dcm")
    full = header_in(whole)
    told = {"modality", "sop_class_uid", "study_uid", "series_uid", "patient_id", "study_description"}
    assert {name for name in told if getattr(cut, name) not in {"", getattr(full, name)}} == set()
    assert cut.problem or cut.ignored or cut.modality == full.modality


@given(first=st.integers(132, 20_000))
def test_how_much_is_given_first_does_not_matter(first: int) -> None:
    content = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    assert _check(content, "a", first) == header_in(content)
