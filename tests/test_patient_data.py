"""No patient data in anything that is written or printed, whatever the command and however it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import Ran, run, sort
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from test_faults import Broken
from watching import Timer, Watch

from dicomsort.cli.logs import logging_to

MARKER = "ZQXMARKER"
TEXTS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
DECIDING = {"Modality", "PhotometricInterpretation", "SpecificCharacterSet", "ImageType"}


def tags() -> dict[str, object]:
    """Every text tag of the standard, with the marker in it."""
    known = Dataset()
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if vr in TEXTS and keyword and not retired and tag >> 16 > 2 and keyword not in DECIDING:
            setattr(known, keyword, MARKER)
    return {element.keyword: element.value for element in known}


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    inbox = tmp_path / "inbox"
    values = tags()
    for number, modality in enumerate(("CT", "OT", "US", "")):
        make_dicom(inbox / f"{number}.dcm", study=number, modality=modality, **values)
    make_dicom(
        inbox / "odd.dcm", study=8, **(values | {"Modality": f"{MARKER}^Jane", "PhotometricInterpretation": MARKER})
    )
    make_dicom(inbox / "twice.dcm", study=0, has_pixels=False, **(values | {"BodyPartExamined": f"{MARKER}2"}))
    whole = (inbox / "0.dcm").read_bytes()
    assert whole.count(MARKER.encode()) > 500
    (inbox / "cut.dcm").write_bytes(whole[:700])
    (inbox / "damaged.dcm").write_bytes(whole[:400] + os.urandom(64) + whole[464:])
    (inbox / "no pixels.dcm").write_bytes(whole[:-300])
    return inbox


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_that_is_written_or_printed_holds_a_tag(
    marked: Path, tmp_path: Path, outbox: Path, log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    log = ("--log-file", tmp_path / "log", "--log-format", log_format)
    ran = [sort("--evidence", "auto", *log, "--dry-run", marked, outbox)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("set_mtime", 3, 5))
        ran.append(sort("--evidence", "auto", *log, marked, outbox))
    assert ran[-1].code == 1
    ran += [run(command, outbox) for command in ("resume", "runs", "verify", "report")]
    ran += [run("report", "--html", tmp_path / "report.html", outbox), run("undo", outbox)]
    ran.append(sort("--evidence", "pixels", "--move", "--settle", 0, "--json", *log, marked, outbox))
    ran += [run("predict", *sorted(tmp_path.rglob("*.dcm"))), run("predict", "--json", *sorted(outbox.rglob("*.dcm")))]
    written = "".join(map(_told, ran)) + "".join(capfd.readouterr()) + (tmp_path / "log").read_text("utf-8")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg") > 2
    written += page
    for path, content in read_tree(outbox).items():
        assert MARKER not in path
        if not path.endswith(".dcm"):
            written += content.decode()
    assert "run_id,source" in written
    assert "needs a person" in written
    assert MARKER not in written


def test_nothing_that_a_service_writes_or_says_holds_a_tag(
    marked: Path, tmp_path: Path, outbox: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log, figures = tmp_path / "log", tmp_path / "m.prom"
    watch = Watch(marked, outbox, files=Broken("set_mtime", 3, 5), mode="copy")
    service, shown, complaints = watch.service(Timer(lambda: None, lambda: None), metrics=figures)
    with logging_to(log, "text"):
        service.run()
    assert (len(complaints), len(shown)) == (1, 1)
    written = "".join([*complaints, str(shown), *capfd.readouterr(), log.read_text(), figures.read_text()])
    assert "needs a person" in written
    assert MARKER not in written + (outbox / "manifest.csv").read_text()


def _told(ran: Ran) -> str:
    assert "Traceback" not in ran.err
    return ran.out + ran.err
