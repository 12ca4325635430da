"""What an inbox and an outbox may hold that is odd, wrong or late."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree
from command import by_source, placed, rows, run, sort


@pytest.mark.parametrize("option", [("--workers", "0"), ("--engine", "magic"), ("--evidence", "hope"), ("--colour",)])
def test_wrong_options(inbox: Path, outbox: Path, option: tuple[str, ...]) -> None:
    ran = run("sort", *option, inbox, outbox)
    assert ran.code == 2
    assert option[-1] in ran.err
    assert not outbox.exists()


def test_inbox_and_outbox_must_make_sense(inbox: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        ((tmp_path / "nothing", tmp_path / "out"), "expected a folder, received"),
        ((inbox / "mr.dcm", tmp_path / "out"), "(a file)"),
        ((inbox, inbox), "expected an OUTBOX other than the INBOX"),
        ((inbox, inbox / "mr.dcm"), "expected a folder"),
        ((inbox,), "expected an OUTBOX, received none"),
        (("--model", inbox, inbox, tmp_path / "out"), "expected a"),
    ):
        ran = sort(*arguments)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
        assert expected in ran.err
    assert not (tmp_path / "out").exists()


def test_an_empty_inbox_is_no_error(tmp_path: Path, outbox: Path) -> None:
    (tmp_path / "inbox").mkdir()
    assert sort(tmp_path / "inbox", outbox).code == 0
    assert rows(outbox) == []


def test_an_outbox_inside_the_inbox_is_not_walked(inbox: Path) -> None:
    assert sort(inbox, inbox / "sorted").code == 0
    assert sort(inbox, inbox / "sorted").code == 0
    assert len({row["source"] for row in rows(inbox / "sorted")}) == 6


def test_the_state_of_another_outbox_is_not_walked(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    sort(inbox, outbox)
    make_dicom(outbox / ".dicomsort" / "corrections" / "CT" / "1.dcm", study=8)
    make_dicom(outbox / "a camera's" / ".dicomsort" / "1.dcm", study=9)  # no state: it holds no runs
    state = read_tree(outbox / ".dicomsort")
    assert sort("--move", "--settle", 0, "--prune-empty", outbox, tmp_path / "new").code == 0
    assert read_tree(outbox / ".dicomsort") == state
    assert {row["source"] for row in rows(tmp_path / "new") if "dicomsort" in row["source"]} == {
        "a camera's/.dicomsort/1.dcm"
    }


def test_a_held_outbox_ends_with_4_and_is_left_alone(inbox: Path, outbox: Path) -> None:
    import fcntl

    sort(inbox, outbox)
    before = read_tree(outbox)
    with (outbox / ".dicomsort" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = sort(inbox, outbox)
    assert ran.code == 4
    assert "is held by process" in ran.err
    assert read_tree(outbox) == before


def test_late_arrivals_follow_what_was_placed(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    make_dicom(inbox / "late 1.dcm", study=1, instance=3, modality="", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    make_dicom(inbox / "late 2.dcm", study=1, series=2, modality="OT")
    make_dicom(inbox / "late 3.dcm", study=1, instance=4, modality="MR")
    make_dicom(inbox / "late 4.dcm", study=1, series=3, modality="PT")
    assert sort(inbox, outbox).code == 3
    late = by_source(outbox)
    assert (late["late 1.dcm"]["class"], late["late 1.dcm"]["reason"]) == ("CT", "placed-before")
    assert (late["late 2.dcm"]["class"], late["late 2.dcm"]["reason"]) == ("CT", "placed-before")
    assert late["late 3.dcm"]["destination"] == "REVIEW/against-placement/late 3.dcm"
    assert late["late 4.dcm"]["destination"] == "OTHER/PT/late 4.dcm"


def test_one_uid_two_contents(inbox: Path, outbox: Path) -> None:
    make_dicom(inbox / "zz.dcm", study=2, modality="MR", StudyDescription="other content")
    shutil.copy(inbox / "zz.dcm", inbox / "zzz.dcm")
    assert sort(inbox, outbox).code == 3
    held = by_source(outbox)["zz.dcm"]
    assert (held["status"], held["destination"]) == ("conflict", "REVIEW/uid-collision/zz.dcm")
    same = by_source(outbox)["zzz.dcm"]
    assert (same["status"], same["destination"]) == ("duplicate", "REVIEW/uid-collision/zz.dcm")
    assert sort(inbox, outbox).code == 0


def test_names_that_some_file_systems_take_for_one_get_a_suffix(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_files(inbox, {"Scan.dcm": "one", "scan.dcm": "two", "e\u0301.dcm": "three", "\u00e9.dcm": "four"})
    sort(inbox, outbox)
    names = list(placed(outbox))
    assert len({path.casefold() for path in names}) == len(names) == 4
    contents = {(outbox / path).read_bytes() for path in names}
    assert contents == {b"one", b"two", b"three", b"four"}
    assert sort(inbox, outbox).code == 0
    assert list(placed(outbox)) == names


def test_odd_names_and_formulas(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_files(inbox, {"=cmd().dcm": "one", "new\nline.dcm": "two"})
    (inbox / os.fsdecode(b"latin-\xe9.dcm")).write_bytes(b"three")
    sort(inbox, outbox)
    sources = {row["source"] for row in rows(outbox)}
    assert sources == {"'=cmd().dcm", "new\nline.dcm", "latin-\\xe9.dcm"}
    assert (outbox / "UNREADABLE" / os.fsdecode(b"latin-\xe9.dcm")).read_bytes() == b"three"


def test_links_and_special_files_are_named_and_not_followed(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    make_dicom(tmp_path / "elsewhere.dcm", study=9)
    (inbox / "link.dcm").symlink_to(tmp_path / "elsewhere.dcm")
    (inbox / "loop").symlink_to(inbox)
    os.mkfifo(inbox / "pipe.dcm")
    assert sort(inbox, outbox).code == 0
    found = by_source(outbox)
    assert {found[path]["reason"] for path in ("link.dcm", "loop")} == {"symlink"}
    assert found["pipe.dcm"]["reason"] == "special-file"


def test_no_uids_and_bad_uids_keep_their_path(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "a" / "none.dcm", StudyInstanceUID=None)
    make_dicom(inbox / "b" / "bad.dcm", StudyInstanceUID="../../etc")
    sort(inbox, outbox)
    assert list(placed(outbox)) == ["CT/no-uid/a/none.dcm", "CT/no-uid/b/bad.dcm"]


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    make_files(tmp_path / "inbox", {"\x1b[2J.dcm": "one", "[red]\x07.zip": b"PK\x03\x04"})
    ran = sort("--dry-run", tmp_path / "inbox")
    assert "\\x1b[2J.dcm" in ran.out
    assert "[red]\\x07.zip" in ran.out
    assert not {"\x1b", "\x07"} & set(ran.out)
