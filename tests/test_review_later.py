"""What comes after a decision: later sorts of the same files and of others, the service, and the same UID twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from building import make_dicom, read_tree, uid
from command import by_source, quiet, rows, run, sort
from reviewing import (
    CONTRADICTING,
    decide,
    desk_of,
    fill,
    held_outbox,
    item_of,
    picture,
    reviewed,
    undo_as_rehearsed,
)
from test_review import SERIES, files_of

from dicomsort.sorting import newest_run, read_new_runs


def test_a_sort_of_the_same_inbox_finds_nothing_to_do_after_decisions(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path, "--copy")
    desk = desk_of(outbox)
    for key in list(desk.queue.items):
        decide(desk, key, "MRI", "anna")
    before = files_of(outbox)
    assert sort("--copy", tmp_path / "inbox", outbox).code == 0
    assert files_of(outbox) == before
    assert {row["status"] for row in rows(outbox)[-6:]} == {"duplicate"}


def test_what_follows_a_held_study_is_decided_about_too(tmp_path: Path) -> None:
    fill(tmp_path / "inbox")
    make_dicom(tmp_path / "inbox/sr.dcm", study=1, series=5, modality="SR", has_pixels=False)
    sort("--move", "--settle", "0", tmp_path / "inbox", tmp_path / "outbox")
    outbox = tmp_path / "outbox"
    assert by_source(outbox)["sr.dcm"]["reason"] == "follows-held"
    desk = desk_of(outbox)
    key = item_of(desk, "sr.dcm")
    run_ = decide(desk, key, "CT", "anna").run
    assert key not in desk.queue.items
    assert key not in desk_of(outbox).queue.items
    assert (outbox / f"CT/{uid(1)}/{uid(1, 5)}/{uid(1, 5, 1)}.dcm").is_file()
    desk.undo(run_)
    assert key in desk.queue.items
    assert key in desk_of(outbox).queue.items


def test_decisions_are_sent_on_by_the_service(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    before = newest_run(str(outbox), "")
    desk = desk_of(outbox)
    decided = decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna").run
    new_runs = read_new_runs(quiet(outbox), str(tmp_path / "inbox"), before)
    assert (new_runs.sorted, new_runs.is_ours, new_runs.cut_short) == ((decided,), False, "")


def test_later_files_of_a_decided_series_follow_it_whatever_they_say(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "odd1.dcm"), "MRI", "anna")
    make_dicom(tmp_path / "inbox/later.dcm", study=1, series=1, instance=7)  # a clear CT
    sort("--move", "--settle", "0", tmp_path / "inbox", outbox)
    row = by_source(outbox)["later.dcm"]
    assert (row["class"], row["reason"]) == ("MRI", "decided-before")
    assert row["destination"] == f"MRI/{uid(1)}/{uid(1, 1)}/{uid(1, 1, 7)}.dcm"


def test_the_same_picture_from_elsewhere_follows_the_decision(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna")
    picture(tmp_path / "inbox/mail/again.png")
    sort("--move", "--settle", "0", tmp_path / "inbox", outbox)
    row = by_source(outbox)["mail/again.png"]
    assert (row["destination"], row["reason"]) == ("XRAY/mail/again.png", "decided-before")
    desk.undo(by_source(outbox)["pictures/a.png"]["run_id"])
    picture(tmp_path / "inbox/mail/third.png")
    sort("--move", "--settle", "0", tmp_path / "inbox", outbox)
    assert by_source(outbox)["mail/third.png"]["reason"] == "no-evidence"


def test_of_two_contents_of_one_uid_the_decided_one_lies_beside_the_other(tmp_path: Path) -> None:
    make_dicom(tmp_path / "inbox/1.dcm", study=1)
    make_dicom(tmp_path / "inbox/2.dcm", study=1, SeriesDescription="other")
    sort("--move", "--settle", "0", tmp_path / "inbox", tmp_path / "outbox")
    desk = desk_of(tmp_path / "outbox")
    decide(desk, item_of(desk, "2.dcm"), "CT", "anna")
    names = sorted(path.name for path in (tmp_path / "outbox" / SERIES).iterdir())
    assert [name.count(".") for name in names] == [uid(1, 1, 1).count(".") + 2, uid(1, 1, 1).count(".") + 1]
    assert run("verify", tmp_path / "outbox").code == 0


def test_what_equals_a_file_that_is_there_is_removed_and_comes_back(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    (outbox / "XRAY/pictures").mkdir(parents=True)
    shutil.copy(outbox / "REVIEW/no-evidence/pictures/a.png", outbox / "XRAY/pictures/a.png")
    before = files_of(outbox)
    desk = desk_of(outbox)
    decision = decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna")
    row = by_source(outbox)["pictures/a.png"]
    assert (decision.moved, row["action"], row["status"]) == (1, "removed", "duplicate")
    assert not (outbox / "REVIEW/no-evidence/pictures/a.png").exists()
    desk.undo(decision.run)
    assert files_of(outbox) == before
    assert item_of(desk, "pictures/a.png")


def test_a_decision_about_one_odd_file_binds_that_file_and_no_series(tmp_path: Path) -> None:
    make_dicom(tmp_path / "inbox/1.dcm", study=1)
    make_dicom(tmp_path / "inbox/2.dcm", study=1, SeriesDescription="other")
    outbox = tmp_path / "outbox"
    sort("--copy", tmp_path / "inbox", outbox)
    make_dicom(tmp_path / "inbox/3.dcm", study=1, instance=3, modality="MR")
    sort("--copy", tmp_path / "inbox", outbox)
    assert by_source(outbox)["3.dcm"]["reason"] == "against-placement"
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "2.dcm"), "OTHER", "anna")
    decide(desk, item_of(desk, "3.dcm"), "MRI", "anna")
    make_dicom(tmp_path / "inbox/4.dcm", study=1, instance=4)
    assert sort("--copy", tmp_path / "inbox", outbox).code == 0
    newest = by_source(outbox)
    assert (newest["4.dcm"]["class"], newest["4.dcm"]["reason"]) == ("CT", "placed-before")
    assert {newest[name]["status"] for name in ("1.dcm", "2.dcm", "3.dcm")} == {"duplicate"}


def test_a_name_that_comes_again_is_another_thing(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    first = item_of(desk, "pictures/a.png")
    run_ = decide(desk, first, "XRAY", "anna").run
    picture(tmp_path / "inbox/pictures/a.png", 200, 64)
    sort("--move", "--settle", "0", tmp_path / "inbox", outbox)
    desk.refresh()
    second = item_of(desk, "pictures/a.png")
    assert second != first
    held = desk.queue.items[second].files[0]
    assert desk.queue.decision(held) is None
    decide(desk, second, "CT", "bert")
    assert (outbox / "CT/pictures/a.png").read_bytes() != (outbox / "XRAY/pictures/a.png").read_bytes()
    desk.undo(run_)  # of the first, whose place is free again
    assert first in desk.queue.items
    assert decide(desk, first, "MRI", "anna").moved == 1
    assert run("verify", outbox).code == 0


def test_what_was_removed_as_a_duplicate_of_something_held_comes_back_with_decisions(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    first = rows(outbox)[0]["run_id"]
    for number in (1, 2):
        make_dicom(tmp_path / f"inbox/odd{number}.dcm", study=1, series=1, instance=number, **CONTRADICTING)
    before = read_tree(tmp_path / "inbox")
    sort("--move", "--settle", "0", "--duplicates", "remove", tmp_path / "inbox", outbox)
    second = rows(outbox)[-1]["run_id"]
    assert by_source(outbox)["odd1.dcm"]["action"] == "removed"
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "odd1.dcm"), "MRI", "anna")
    ran = run("undo", outbox, second)
    assert (ran.code, "--with-decisions" in ran.err) == (2, True)
    assert undo_as_rehearsed(outbox, second).code == 0
    assert read_tree(tmp_path / "inbox") == before
    assert run("undo", "--with-decisions", outbox).code == 2
    assert first != second


@pytest.mark.parametrize("mode", ["--copy", "--move", "--link"])
@pytest.mark.parametrize("is_gone", [False, True])
def test_an_undo_with_decisions_is_rehearsed_in_every_mode(tmp_path: Path, mode: str, *, is_gone: bool) -> None:
    outbox = held_outbox(tmp_path, mode, "--settle", "0")
    desk = desk_of(outbox)
    for key, class_ in zip(list(desk.queue.items), ("CT", "OTHER", "XRAY", "CT"), strict=True):
        decide(desk, key, class_, "anna")
    assert run("undo", outbox).code == 0  # the last decision
    if is_gone:
        next(path for path in outbox.glob("XRAY/**/*") if path.is_file()).unlink()
    assert undo_as_rehearsed(outbox, rows(outbox)[0]["run_id"]).code == (3 if is_gone else 0)


def test_a_decision_of_an_earlier_session_that_is_undone_is_not_taken_off_this_ones(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    earlier = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna").run
    with reviewed(outbox) as server:
        assert server.told("undo", {"run": earlier})["made"] == 0
        assert server.told("state")["made"] == 0
