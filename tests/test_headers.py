from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from building import STORAGE, make_dicom, uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomsort.dicom.headers import read_header
from dicomsort.records import Header, Kind

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(40)
ISO = bytes(32769) + b"CD001" + bytes(2000)
EXECUTABLES = (b"MZ\x90\0", b"\x7fELF\x02", b"#!/bin/sh\n", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")


def header_of(path: Path, *, first: int = 16 * 1024) -> Header:
    with path.open("rb") as file:
        number, size = file.fileno(), path.stat().st_size
        return read_header(file.read(first), size, path.name, lambda offset, length: os.pread(number, length, offset))


def header_in(content: bytes, name: str = "a.dcm", *, first: int = 16 * 1024) -> Header:
    return read_header(content[:first], len(content), name, lambda offset, length: content[offset : offset + length])


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "a")
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


@pytest.fixture
def ct(tmp_path: Path) -> bytes:
    return make_dicom(tmp_path / "ct.dcm", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]).read_bytes()


@pytest.mark.parametrize(
    ("content", "name", "kind", "problem", "ignored"),
    [
        (PNG, "a.png", Kind.PNG, "", ""),
        (PNG, "a.dcm", Kind.PNG, "", ""),
        (JPEG, "no-suffix", Kind.JPEG, "", ""),
        (b"", "a.dcm", Kind.UNKNOWN, "empty-file", ""),
        (b"", "a.PNG", Kind.UNKNOWN, "empty-file", ""),
        (b"", "a.txt", Kind.UNKNOWN, "", "not-an-image"),
        (b"<html></html>", "a.dcm", Kind.UNKNOWN, "not-dicom", ""),
        (b"<html></html>", "a.JPG", Kind.UNKNOWN, "not-an-image-despite-name", ""),
        (b"<html></html>", "IM0001", Kind.UNKNOWN, "", "not-an-image"),
        (bytes(100), "a.dcm", Kind.UNKNOWN, "truncated-header", ""),
        (bytes(128) + b"DI", "a.ima", Kind.UNKNOWN, "truncated-header", ""),
        (bytes(100), "a", Kind.UNKNOWN, "", "not-an-image"),
        (bytes(128) + b"DICM", "a", Kind.DICOM, "truncated-header", ""),
        (bytes(128) + b"DICM" + b"\xf3" * 900, "a", Kind.DICOM, "damaged-header", ""),
        (b"\x08\0 is not enough to be a data set", "a.txt", Kind.UNKNOWN, "", "not-an-image"),
        (b"\x08\0\x05\0CS\0\0" * 40, "a.dcm", Kind.UNKNOWN, "not-dicom", ""),
        (b"II*\0" + bytes(200), "a.tif", Kind.UNKNOWN, "", "not-an-image"),
        (_zip(), "a.zip", Kind.UNKNOWN, "", "archive"),
        (_zip(), "a.dcm", Kind.UNKNOWN, "not-dicom", ""),
        (_tar(), "a", Kind.UNKNOWN, "", "archive"),
        (ISO, "cd.iso", Kind.UNKNOWN, "", "archive"),
        (zlib.compress(b"a", wbits=31), "a.dcm.gz", Kind.UNKNOWN, "", "archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(30), "a.7z", Kind.UNKNOWN, "", "archive"),
    ],
)
def test_what_a_file_is(content: bytes, name: str, kind: Kind, problem: str, ignored: str) -> None:
    header = header_in(content, name)
    assert (header.kind, header.problem, header.ignored) == (kind, problem, ignored)


def test_every_field(tmp_path: Path) -> None:
    path = make_dicom(
        tmp_path / "a", study=3, series=4, instance=5, StudyDate="20240229", AccessionNumber="A1",
        StudyDescription="Thorax nativ", SeriesDescription="Lunge", BodyPartExamined="CHEST", NumberOfFrames=1,
        ImageType=["DERIVED", "SECONDARY"],
    )  # fmt: skip
    assert header_of(path) == Header(
        Kind.DICOM, transfer_syntax="1.2.840.10008.1.2.1", image_type="DERIVED\\SECONDARY", sop_class_uid=STORAGE["CT"],
        sop_uid=uid(3, 4, 5), study_date="20240229", accession_number="A1", modality="CT",
        study_description="Thorax nativ", series_description="Lunge", patient_id="P3", body_part="CHEST",
        study_uid=uid(3), series_uid=uid(3, 4), series_number="4", instance_number="5",
    )  # fmt: skip


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_gives_the_same_header(tmp_path: Path, ct: bytes, syntax: str) -> None:
    path = make_dicom(tmp_path / "a", syntax=syntax, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    plain, other = header_in(ct), header_of(path)
    assert other.transfer_syntax == syntax
    assert other == Header(**{name: getattr(plain, name) for name in plain.__slots__} | {"transfer_syntax": syntax})


def test_a_file_without_preamble_or_without_file_meta_is_read(ct: bytes) -> None:
    dataset_start = 132 + 12 + int.from_bytes(ct[140:144], "little")
    for content in (ct[132:], ct[128:], ct[dataset_start:]):
        assert header_in(content, "IM1") == header_in(ct)


@pytest.mark.parametrize("magic", [b"II*\0", b"MM\0*", b"II+\0"])
def test_a_picture_of_another_format_in_the_preamble_is_no_problem(ct: bytes, magic: bytes) -> None:
    assert header_in(magic.ljust(128, b"\0") + ct[128:]) == header_in(ct)  # PS3.10 7.1: dual TIFF and DICOM files


@pytest.mark.parametrize("program", EXECUTABLES)
def test_a_program_in_the_preamble_is_a_problem_but_all_is_read(ct: bytes, program: bytes) -> None:
    header = header_in(program.ljust(128, b"\0") + ct[128:])
    assert (header.problem, header.modality, header.study_uid) == ("executable-preamble", "CT", uid(1))


@pytest.mark.parametrize("magic", [PNG[:8], JPEG[:8], b"II*\0", b"MM\0*"])
def test_an_image_in_the_preamble_is_no_problem(ct: bytes, magic: bytes) -> None:
    assert header_in(magic.ljust(128, b"\0") + ct[128:]) == header_in(ct)


def test_a_deflated_stream_that_breaks_before_modality_is_a_problem(tmp_path: Path) -> None:
    content = make_dicom(tmp_path / "a", syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    assert header_in(content[:start] + b"\x07" * 40).problem == "deflate-broken"
    assert header_in(content[: start + 20]).problem == "deflate-broken"


@pytest.mark.parametrize(("value", "frames"), [("12", 12), ("0", 1), ("-3", 1), ("2147483647", 1), ("", 1)])
def test_a_silly_number_of_frames_is_one(ct: bytes, value: str, frames: int) -> None:
    rows = ct.index(b"\x28\0\x10\0US")
    padded = value.encode() + b" " * (len(value) % 2)
    element = b"\x28\0\x08\0IS" + len(padded).to_bytes(2, "little") + padded
    assert header_in(ct[:rows] + element + ct[rows:]).frames == frames


def test_text_is_decoded_by_its_character_set(tmp_path: Path) -> None:
    japanese = make_dicom(
        tmp_path / "a", SpecificCharacterSet=["", "ISO 2022 IR 87"], StudyDescription="胸部", SeriesDescription="plain"
    )
    assert header_of(japanese).study_description == "胸部"
    unknown = japanese.read_bytes().replace(b"\\ISO 2022 IR 87", b"\\NONSENSE 2022X")
    assert header_in(unknown).series_description == "plain"


def test_a_value_far_behind_the_first_bytes_is_fetched_and_what_lies_between_is_not(tmp_path: Path) -> None:
    dataset = make_dicom(tmp_path / "a")
    private = b"\x09\0\x10\0OB\0\0" + (3_000_000).to_bytes(4, "little") + bytes(3_000_000)
    content = dataset.read_bytes()
    at = content.index(b"\x10\0\x20\0LO")
    asked: list[int] = []

    def more(offset: int, length: int) -> bytes:
        asked.append(length)
        return large[offset : offset + length]

    large = content[:at] + private + content[at:]
    header = read_header(memoryview(large)[:16384], len(large), "a", more)
    assert header == header_in(content)
    assert sum(asked) < 20_000


def test_what_costs_too_much_is_a_problem(ct: bytes) -> None:
    at = ct.index(b"\x08\0\x18\0UI")
    many = b"".join(b"\x08\0" + n.to_bytes(2, "little") + b"LO\0\xff" + bytes(0xFF00) for n in range(0x19, 0x20)) * 200
    assert header_in(ct[:at] + many).problem == "header-beyond-limit"


@pytest.mark.parametrize(("depth", "problem"), [(5000, ""), (9000, "nesting-beyond-limit")])
def test_nesting_is_read_in_a_loop_up_to_a_depth(ct: bytes, depth: int, problem: str) -> None:
    at = ct.index(b"\x08\0\x60\0CS")
    opening = b"\x08\0\x51\0SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * depth
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth
    assert header_in(ct[:at] + opening + closing + ct[at:]).problem == problem


def _reference(kind: str) -> dict[str, object]:
    item = Dataset()
    item.SeriesInstanceUID = uid(8, 9)
    series = Sequence([item])
    if kind == "PR":
        return {"ReferencedSeriesSequence": series}
    outer, inner = Dataset(), Dataset()
    if kind == "KO":
        outer.ReferencedSeriesSequence = series
        return {"CurrentRequestedProcedureEvidenceSequence": Sequence([outer])}
    inner.RTReferencedSeriesSequence = series
    outer.RTReferencedStudySequence = Sequence([inner])
    return {"ReferencedFrameOfReferenceSequence": Sequence([outer])}


@pytest.mark.parametrize(
    ("kind", "sop_class"),
    [("PR", "11.1"), ("KO", "88.59"), ("RTSTRUCT", "481.3")],
)
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_the_series_that_an_object_refers_to(tmp_path: Path, kind: str, sop_class: str, syntax: str) -> None:
    tags = {"sop_class": f"1.2.840.10008.5.1.4.1.1.{sop_class}", "syntax": syntax, "has_pixels": False}
    header = header_of(make_dicom(tmp_path / "a", Modality=kind, **tags, **_reference(kind)))
    assert (header.refers_to, header.has_pixels, header.problem) == (uid(8, 9), False, "")
    assert header_of(make_dicom(tmp_path / "b", **_reference(kind))).refers_to == ""


def test_tags_out_of_order_are_read_by_pydicom(ct: bytes) -> None:
    series = ct.index(b"\x20\0\x0e\0UI")
    end = series + 8 + int.from_bytes(ct[series + 6 : series + 8], "little")
    rows = ct.index(b"\x28\0\x10\0US")
    assert header_in(ct[:series] + ct[end:rows] + ct[series:end] + ct[rows:]) == header_in(ct)


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x08\0\x16\0UI\0\0" * 300_000,
        b"\x08\0\x07\0XX\0\0\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 300_000,
        b"\x08\0\x07\0XX\0\0\x08\0\x09\0OB\0\0\xff\xff\xff\xff" + bytes(2_000_000),
    ],
)
def test_what_pydicom_reads_is_bounded_too(ct: bytes, hostile: bytes) -> None:
    at = ct.index(b"\x08\0\x16\0UI")
    assert header_in(ct[:at] + hostile).problem == "header-beyond-limit"


@pytest.mark.parametrize("start", [b"", b"\x08\0\x07\0XX\0\0"])
def test_an_unreadable_file_is_the_callers_affair(ct: bytes, start: bytes) -> None:
    at = ct.index(b"\x08\0\x16\0UI")
    content = ct[:at] + start + ct[at:]

    def more(_offset: int, _length: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        read_header(content[:300], len(content), "a", more)


def test_pydicom_is_not_loaded_for_plain_files(sample_inbox: Path) -> None:
    code = "import sys, dicomsort.dicom.headers; print(*{'pydicom', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=sample_inbox.parents[1], capture_output=True, check=True)
    assert ran.stdout.split() == []
