from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom.data
import pytest
from pydicom.multival import MultiValue
from test_headers import header_of

from dicomsort.dicom import headers, tags
from dicomsort.dicom.elements import NeedsFullParser
from dicomsort.records import Header, Kind

# What pydicom itself misreads, or reads on purpose otherwise than a sorter should.
LIES = {"ts_says_bigendian.dcm", "ts_deflated_is_not.dcm", "nest_5000.dcm", "trunc_400.dcm"}
SILLY_FRAMES = {"frames_2g.dcm", "frames_neg.dcm", "badVR.dcm"}
KEYWORDS = {
    "sop_class_uid": "SOPClassUID", "sop_uid": "SOPInstanceUID", "study_date": "StudyDate", "modality": "Modality",
    "accession_number": "AccessionNumber", "study_description": "StudyDescription", "image_type": "ImageType",
    "series_description": "SeriesDescription", "patient_id": "PatientID", "body_part": "BodyPartExamined",
    "study_uid": "StudyInstanceUID", "series_uid": "SeriesInstanceUID", "series_number": "SeriesNumber",
    "instance_number": "InstanceNumber",
}  # fmt: skip


def _pydicom_files() -> list[Path]:
    data = Path(
        pydicom.data.__file__
    ).parent  # what pydicom.data.get_testdata_files() lists, without its check of hashes
    store = data.parents[1] / "data_store" / "data"
    paths = {path for folder in (data, store) for path in folder.rglob("*")}
    return sorted(path for path in paths if path.is_file() and path.suffix not in {".py", ".pyc", ".json"})


@pytest.fixture(scope="module")
def corpus(root: Path) -> list[Path]:
    """Every real file there is: those of pydicom always, those of the shared corpus where it is."""
    shared = root.parent / "shared" / "dicom"
    return _pydicom_files() + sorted(p for p in shared.rglob("*") if p.is_file() and p.parent != shared)


@pytest.fixture(scope="module")
def dicom(corpus: list[Path]) -> list[tuple[Path, Header]]:
    pairs = ((path, header_of(path)) for path in corpus)
    return [(path, header) for path, header in pairs if header.kind is Kind.DICOM and not header.ignored]


def _text(value: Any) -> str:
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(getattr(part, "original_string", part) or "").strip(" \0\t\r\n") for part in parts)


def _differences(path: Path, header: Header) -> Iterator[tuple[str, str, str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        expected = {name: _text(dataset.get(keyword))[:1024] for name, keyword in KEYWORDS.items()}
        expected["has_pixels"] = str(bool(dataset.get("Rows")) and bool(dataset.get("Columns")))
        if path.name not in SILLY_FRAMES:
            expected["frames"] = str(dataset.get("NumberOfFrames") or 1)
    for name, value in expected.items():
        if str(getattr(header, name)) != value:
            yield path.name, name, value, str(getattr(header, name))


def test_every_header_is_what_pydicom_reads(dicom: list[tuple[Path, Header]]) -> None:
    found = [d for path, header in dicom if path.name not in LIES for d in _differences(path, header)]
    assert len(dicom) > 100
    assert found == []


def test_the_slow_path_gives_the_same_headers(
    dicom: list[tuple[Path, Header]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = headers._scan

    def only_around_images(*arguments: Any) -> None:
        if arguments[-1] == tags.COLUMNS:
            raise NeedsFullParser
        scan(*arguments)

    monkeypatch.setattr(headers, "_scan", only_around_images)
    found = {path.name for path, header in dicom if _told(header_of(path)) != _told(header)}
    assert found - {"nest_5000.dcm"} == set()  # pydicom recurses into the nest


def _told(header: Header) -> Header:
    return replace(header, message="")


def test_nearly_every_file_takes_the_fast_path(corpus: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[str] = []
    for path in corpus:
        monkeypatch.setattr(headers.pydicom_parser, "read", lambda *_, name=path.name: slow.append(name))
        header_of(path)
    assert set(slow) <= {"winter.dcm"}  # has a tag twice


def test_what_is_not_read_as_dicom_is_none(corpus: list[Path]) -> None:
    found = {path.name for path in corpus if header_of(path).kind is Kind.UNKNOWN and _has_sop_class(path)}
    assert found == set()


def _has_sop_class(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return "SOPClassUID" in pydicom.dcmread(path, force=True, stop_before_pixels=True)


def test_every_dicomdir_is_known(shared: Path) -> None:
    with (shared / "dicom" / "index.csv").open(encoding="utf-8", newline="") as index:
        rows = list(csv.DictReader(index))
    ignored = {row["path"]: header_of(shared / "dicom" / row["source_id"] / row["path"]).ignored for row in rows}
    expected = {row["path"] for row in rows if row["header_state"] == "dicomdir"}
    assert {path for path, code in ignored.items() if code == "dicomdir"} == expected


# What becomes of each damaged or hostile file whose header is not simply read: kind, problem, Modality.
MALFORMED = {
    "acrnema_like_bigendian.img": ("dicom", "", "CT"),
    "acrnema_like_explicit.img": ("dicom", "", "CT"),
    "acrnema_like_implicit.img": ("dicom", "", "CT"),
    "deflate_bomb_128MB.dcm": ("dicom", "", "CT"),
    "dicom_named.jpg": ("dicom", "", "CR"),
    "dicom_named.png": ("dicom", "", "CT"),
    "empty.dcm": ("unknown", "empty-file", ""),
    "html_named.dcm": ("unknown", "not-dicom", ""),
    "huge_length.dcm": ("dicom", "", "CT"),
    "jpeg_named.dcm": ("jpeg", "", ""),
    "magic_only.dcm": ("dicom", "truncated-header", ""),
    "nest_5000.dcm": ("dicom", "", "CT"),
    "no_modality_no_sop.dcm": ("dicom", "", ""),
    "no_preamble.dcm": ("dicom", "", "CT"),
    "png_named.dcm": ("png", "", ""),
    "preamble_ELF.dcm": ("dicom", "executable-preamble", "MR"),
    "preamble_MZ.dcm": ("dicom", "executable-preamble", "CT"),
    "preamble_only.dcm": ("unknown", "truncated-header", ""),
    "preamble_script.dcm": ("dicom", "executable-preamble", "CT"),
    "random.dcm": ("unknown", "not-dicom", ""),
    "random_with_magic.dcm": ("dicom", "damaged-header", ""),
    "text_named.dcm": ("unknown", "not-dicom", ""),
    "trunc_100.dcm": ("unknown", "truncated-header", ""),
    "trunc_131.dcm": ("unknown", "truncated-header", ""),
    "trunc_133.dcm": ("dicom", "truncated-header", ""),
    "trunc_200.dcm": ("dicom", "truncated-header", ""),
    "trunc_400.dcm": ("dicom", "truncated-header", ""),
    "ts_deflated_is_not.dcm": ("dicom", "", "CT"),
    "ts_says_bigendian.dcm": ("dicom", "", "MR"),
    "ts_says_implicit_is_explicit.dcm": ("dicom", "", "CT"),
    "zip_named.dcm": ("unknown", "not-dicom", ""),
}


def test_every_malformed_file(shared: Path) -> None:
    folder = shared / "dicom" / "crafted+malformed"
    with (shared / "dicom" / "index.csv").open(encoding="utf-8", newline="") as index:
        rows = {row["path"]: row for row in csv.DictReader(index) if row["source_id"] == folder.name}
    states = {path: header_of(folder / path) for path in rows}
    found = {path: (header.kind.value, header.problem, header.modality) for path, header in states.items()}
    truth = {"CT": "CT", "MRI": "MR"}
    whole = {
        path: ("dicom", "", row["modality"] or truth[row["truth"]])
        for path, row in rows.items()
        if path not in MALFORMED
    }
    assert found == whole | MALFORMED
