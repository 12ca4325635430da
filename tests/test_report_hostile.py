"""A report of names, headers and messages that mean harm; and that nothing a person typed into a header gets out."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from building import make_dicom
from command import by_source, rows, run, sort
from PIL import Image, PngImagePlugin
from reports import add_row, report

from dicomsort.pages.templating import LONGEST, of_header, shown
from dicomsort.records import Header, Kind
from dicomsort.tasks import PictureRequest, make_pictures

BREAKS_OUT = '"><img src=x onerror=alert(1)>{{ 7*7 }}{% raw run %}&amp;</title></style><script>alert(1)</script>'
NAMES = [
    BREAKS_OUT.replace("/", "∕"), "<script>alert(1)", "]]>--><!--", "a\nb\r\x1b[31m\x07", "javascript:alert(1)",
    "\u202egnp.exe", os.fsdecode(b"\xff\xfe\x80"), "'=cmd|' C:calc'!A0", "x" * 240,
]  # fmt: skip
MARKER = "ZQXMARKER"


def test_names_that_are_markup_are_text(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    for number, name in enumerate(NAMES):
        make_dicom(inbox / name / "1.dcm", study=1, instance=1, pixels=np.full((16, 16), number, np.uint16))
        (inbox / name / "cut.dcm").write_bytes((inbox / name / "1.dcm").read_bytes()[:200])
        (inbox / name / "study.zip").write_bytes(b"PK\x03\x04" + bytes(60))
    assert sort(inbox, outbox).code == 3
    for arguments in ((), ("--pictures", 0)):
        page = report(outbox, *arguments)
        assert len(page.text) > 1000
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "form", "base", "a:x"})
        assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in page.named("img"))
        assert all(link["href"].startswith(("#", "data:,")) for link in (*page.named("a"), *page.named("link")))
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert {code for code in page.source if ord(code) < 32} == {"\n"}
        assert "\u202e" not in page.source
        assert "\\xff\\xfe\\x80" in page.text
        assert "\\u202egnp.exe" in page.text
        assert "{{ 7*7 }}" in page.text


def test_cells_of_a_manifest_that_is_markup_are_text(tmp_path: Path, outbox: Path) -> None:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    sort(tmp_path / "inbox", outbox)
    row = rows(outbox)[0]
    evil = dict.fromkeys(row, BREAKS_OUT + "x" * 4096)
    run_id = "99990101T000000Z-abcdef"
    for status in ("review", "failed", "sorted", "ignored", "other", BREAKS_OUT):
        add_row(outbox, **(evil | {"run_id": run_id, "status": status, "size": "1", "kind": "unknown"}))
    page = report(outbox, run_id)
    assert len(page.source) < 100_000
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert "onerror" in page.text


@pytest.mark.parametrize("cells", [{"kind": "<b>", "size": "1"}, {"source": "", "size": ""}])
def test_a_row_that_somebody_wrote_shows_nothing_of_other_places(
    tmp_path: Path, outbox: Path, cells: dict[str, str]
) -> None:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    sort(tmp_path / "inbox", outbox)
    run_id = "99990101T000000Z-abcdef"
    for place in ("CT/../../inbox/1.dcm", f"{tmp_path}/inbox/1.dcm"):
        add_row(outbox, run_id=run_id, status="review", action="copied", destination=place, reason="r", **cells)
    page = report(outbox, run_id)
    assert "2 files: 0 sorted, 2 need you." in page.text
    assert page.pictures() == []


def test_a_row_without_a_number_is_passed_over_and_named(tmp_path: Path, outbox: Path) -> None:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    sort(tmp_path / "inbox", outbox)
    add_row(outbox, run_id="99990101T000000Z-abcdef", status="review", size="many")
    ran = run("report", outbox, "99990101T000000Z-abcdef")
    assert (ran.code, ran.out) == (2, "")
    assert "expected one of the runs" in ran.err
    assert run("report", outbox).code == 0
    assert "line 3: expected a number in the column size" in run("verify", outbox).out


def test_long_and_odd_texts_are_cut_and_shown_as_what_they_are() -> None:
    assert shown("a\x00b") == "a\\x00b"
    assert shown(os.fsdecode(b"\xff")) == "\\xff"
    assert len(shown("ä" * 100_000)) <= LONGEST + 3
    assert shown("x" * 500).startswith("xxx")


def test_only_codes_of_a_header_are_shown() -> None:
    def told(**values: str) -> dict[str, str]:
        return {fact.term: fact.value for fact in of_header(Header(Kind.DICOM, **values))}

    assert told(image_type="ORIGINAL\\PRIMARY\\\\M_FFE", body_part="chest") == {
        "Image type": "ORIGINAL \\ PRIMARY \\  \\ M_FFE", "Body part": "CHEST",
    }  # fmt: skip
    assert told(image_type="Original\\Jane Doe", body_part="JANE DOE") == {}
    assert told(body_part="DOE") == {}
    typed = dict.fromkeys(("patient_id", "study_description", "series_description", "accession_number"), MARKER)
    assert told(**typed) == {}


def test_nothing_that_a_person_typed_gets_into_the_page(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    typed = dict.fromkeys(
        ("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "SeriesDescription", "ProtocolName",
         "ReferringPhysicianName", "InstitutionName", "PatientComments", "ImageComments", "BodyPartExamined"), MARKER,
    )  # fmt: skip
    for number in range(3):
        picture = np.full((16, 16), number, np.uint16)
        make_dicom(
            inbox / f"{number}.dcm", study=1, instance=1, pixels=picture, ImageType=["DERIVED", "PRIMARY"], **typed
        )
    _save_pictures(inbox)
    assert sort("--evidence", "auto", inbox, outbox).code == 3
    page = report(outbox)
    pictures = page.pictures()
    assert len(pictures) > 3
    assert MARKER not in page.source
    for picture in pictures:
        assert MARKER.encode() not in picture
        image = Image.open(io.BytesIO(picture))
        assert image.getexif() == {}
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_density", "jfif_unit"}
    assert "DERIVED \\ PRIMARY" in page.text


def _save_pictures(inbox: Path) -> None:
    """A JPEG and a PNG that say a name wherever their formats let them."""
    image = Image.effect_noise((64, 64), 90)
    exif = Image.Exif()
    exif[0x010E] = MARKER  # ImageDescription
    image.save(inbox / "a.jpg", exif=exif, comment=MARKER)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", MARKER)
    text.add_itxt("Patient", MARKER)
    image.save(inbox / "b.png", pnginfo=text, exif=exif)
    assert MARKER.encode() in (inbox / "a.jpg").read_bytes()


def test_a_preview_has_no_comment_of_the_file_it_shows(tmp_path: Path) -> None:
    _save_pictures(tmp_path)
    made = make_pictures(str(tmp_path), [PictureRequest("a.jpg", None, 64), PictureRequest("b.png", None, 64)])
    assert [MARKER.encode() in preview.picture for preview in made] == [False, False]
    assert all(preview.picture for preview in made)


def test_the_hostile_corpus_has_a_page(shared: Path, outbox: Path) -> None:
    sort("--evidence", "auto", shared / "dicom" / "crafted+malformed", outbox)
    page = report(outbox)
    held = [row for row in by_source(outbox).values() if row["status"] in {"review", "unreadable", "conflict"}]
    assert f"{len(held)} need you" in page.text
    assert str(shared) not in page.source
