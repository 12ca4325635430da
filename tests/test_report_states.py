"""What ``report`` says of runs that are not as they were: cut short, undone, pruned, decided about since."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from building import make_dicom
from command import by_source, placed, run, sort
from reports import add_row, holding, report
from test_faults import Broken
from watching import runs_of


def test_the_newest_run_that_sorted_is_the_default(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    make_dicom(inbox / "late.dcm", study=9)
    sort(inbox, outbox)
    first, second = runs_of(outbox)
    assert json.loads(run("report", "--json", outbox).out)["run_id"] == second
    assert json.loads(run("report", "--json", outbox, first).out)["run_id"] == first
    assert run("undo", outbox).code == 0
    assert json.loads(run("report", "--json", outbox).out)["run_id"] == second


def test_a_run_that_cannot_be_told_of_is_refused_with_the_reason(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    assert "expected an outbox of dicomsort" in run("report", inbox).err
    sort(inbox, outbox)
    ran = run("report", "--html", tmp_path / "r.html", outbox, "20200101T000000Z-abcdef")
    assert (ran.code, ran.out) == (2, "")
    assert "expected one of the runs that `dicomsort runs" in ran.err
    run("undo", outbox)
    first, undo = runs_of(outbox)
    ran = run("report", outbox, undo)
    assert (ran.code, ran.out) == (2, "")
    assert f"expected a run that sorted, received {undo}, which is an undo of {first}" in ran.err
    assert "expected one of --html, --json" in run("report", "--html", "-", "--json", outbox).err
    assert not (tmp_path / "r.html").exists()


def test_a_run_that_was_cut_short_is_refused_with_the_way_on(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("set_mtime", 1, errno.EIO))
        assert sort(inbox, outbox).code == 1
    (run_id,) = runs_of(outbox)
    ran = run("report", "--html", tmp_path / "r.html", outbox)
    assert (ran.code, ran.out) == (1, "")
    assert f"received {run_id}, which was cut short: `dicomsort resume" in ran.err
    folder = outbox / ".dicomsort" / "runs" / run_id
    plan = (folder / "plan.jsonl").read_text().splitlines(keepends=True)
    (folder / "plan.jsonl").write_text("".join(plan[:-1]))
    (folder / "journal.jsonl").unlink()
    ran = run("report", "--html", tmp_path / "r.html", outbox, run_id)
    assert (ran.code, ran.out) == (1, "")
    assert "died before its plan was sealed: it has moved nothing" in ran.err
    assert not (tmp_path / "r.html").exists()


def test_a_run_whose_name_is_no_time_is_told_of_without_one(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    (run_id,), renamed = runs_of(outbox), "20269999T999999Z-7f833c"
    folder = outbox / ".dicomsort" / "runs"
    (folder / run_id).rename(folder / renamed)
    assert "Begun not known: the id of the run is no time" in report(outbox).text
    shutil.rmtree(folder / renamed)
    manifest = outbox / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(run_id, renamed))
    assert "Begun not known: the id of the run is no time" in report(outbox, renamed).text


def test_a_run_whose_plan_does_not_name_its_model_is_damaged(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    (run_id,) = runs_of(outbox)
    plan = outbox / ".dicomsort" / "runs" / run_id / "plan.jsonl"
    plan.write_text(plan.read_text().replace('"model":', '"mndel":', 1))
    ran = run("report", "--html", outbox.parent / "r.html", outbox, run_id)
    reason = f"run {run_id}, plan.jsonl: expected a text as 'model', received none"
    assert (ran.code, reason in ran.err) == (1, True), ran.err
    (listed,) = json.loads(run("runs", "--json", outbox).out)
    assert (listed["state"], listed["damage"]) == ("damaged", reason)


def test_an_undone_run_says_so_and_shows_no_pictures(tmp_path: Path, outbox: Path) -> None:
    run_id = holding(tmp_path / "inbox", outbox)
    run("undo", outbox)
    page = report(outbox)
    undo = runs_of(outbox)[-1]
    assert f"This run was undone by {undo}" in page.text
    assert "7 files: 3 had been sorted, 3 needed you; all was undone." in page.text
    assert f"taken back by the undo {undo}" in page.text
    assert page.pictures() == []
    assert f"this run was undone by {undo}" in run("report", outbox, run_id).out


def test_a_run_that_was_undone_in_part_shows_what_was_left(tmp_path: Path, outbox: Path) -> None:
    run_id = holding(tmp_path / "inbox", outbox)
    with (outbox / by_source(outbox)["b/1.dcm"]["destination"]).open("ab") as changed:
        changed.write(b"\0\0")
    assert run("undo", outbox).code == 3
    page = report(outbox, run_id)
    assert "This run was undone in part by" in page.text
    assert "7 files: 2 sorted, 1 other, 3 need you." in page.text
    assert len(page.pictures()) == 1
    assert "this run was undone in part by" in run("report", outbox, run_id).out


def test_a_pruned_run_is_told_from_its_rows(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    run_id = holding(inbox, outbox)
    kept = report(outbox, run_id)
    shutil.rmtree(outbox / ".dicomsort" / "runs" / run_id)
    page = report(outbox, run_id)
    assert "This run was pruned" in page.text
    assert "Took not known any more" in page.text
    assert "7 files: 2 sorted, 1 other, 3 need you." in page.text
    assert page.pictures() == kept.pictures()
    assert json.loads(run("report", "--json", outbox, run_id).out)["found"] == 7
    assert "this run was pruned" in run("report", outbox, run_id).out


def test_what_was_decided_since_is_told_with_who_decided(tmp_path: Path, outbox: Path) -> None:
    run_id = holding(tmp_path / "inbox", outbox)
    was, sha256 = (by_source(outbox)["b/2.dcm"][cell] for cell in ("destination", "sha256"))
    (outbox / "CT" / "b.dcm").write_bytes((outbox / was).read_bytes())
    (outbox / was).unlink()
    add_row(
        outbox, run_id="99990101T000000Z-abcdef", source="b/2.dcm", destination="CT/b.dcm", action="moved",
        status="sorted", **{"class": "CT"}, reason="reviewed", size="1", sha256=sha256,
        message=f"by Anna <b>; was {was}",
    )  # fmt: skip
    page = report(outbox, run_id)
    assert "7 files: 2 sorted, 1 other, 2 need you, 1 decided since." in page.text
    assert "decided: CT, by Anna <b> (1)" in page.text
    assert "waits in REVIEW/uid-collision/ (1)" in page.text
    assert len(page.pictures()) == 2 + 3
    assert "Anna <b>" not in page.source


def test_files_that_wait_from_other_runs_are_told_of_in_one_line(tmp_path: Path, outbox: Path) -> None:
    first = holding(tmp_path / "inbox", outbox)
    assert "2 files wait in REVIEW: `dicomsort review" in run("report", outbox).out
    assert "from other runs" not in report(outbox).text
    make_dicom(tmp_path / "inbox" / "c.dcm", study=1, instance=1, pixels=np.full((24, 16), 7, np.uint16))
    assert (
        "3 files wait in REVIEW, 2 of them from other runs: `dicomsort review" in sort(tmp_path / "inbox", outbox).out
    )
    second = runs_of(outbox)[-1]
    for run_id, others in ((first, 1), (second, 2)):
        words = f"3 files wait in REVIEW, {others} of them from other runs"
        assert f"{words}: `dicomsort review" in run("report", outbox, run_id).out
        assert f"{words}." in report(outbox, run_id).text
        told = json.loads(run("report", "--json", outbox, run_id).out)
        assert (told["waiting"], told["waiting_from_other_runs"]) == (3, others)
    assert run("undo", outbox, second).code == 0
    assert "2 files wait in REVIEW, placed by other runs: `dicomsort review" in run("report", outbox, second).out


def test_a_file_that_somebody_took_is_gone(tmp_path: Path, outbox: Path) -> None:
    holding(tmp_path / "inbox", outbox)
    for path in list(placed(outbox)):
        if path.startswith("REVIEW/"):
            (outbox / path).unlink()
    page = report(outbox)
    assert "gone: somebody took it from the outbox" in page.text
    assert "no file is there to show" in page.text


def test_a_file_that_failed_is_shown_where_it_still_lies(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    holding(inbox, outbox)
    run_id = "99990101T000000Z-abcdef"
    for number in (1, 2):
        add_row(outbox, run_id=run_id, source="mr.dcm" if number == 1 else "gone.dcm", action="left", status="failed",
                reason="failed", kind="unknown", size="9", message="not carried out")  # fmt: skip
    page = report(outbox, run_id)
    assert "failed 2 files" in page.text
    assert len(page.named("article")) == 2


def test_what_lies_in_unreadable_is_told_by_every_later_run(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "1.dcm", study=1)
    (inbox / "cut.dcm").write_bytes((inbox / "1.dcm").read_bytes()[:100])
    words = "1 file lies in UNREADABLE, which no review shows"
    assert words in sort(inbox, outbox).out
    make_dicom(inbox / "2.dcm", study=2)
    ran = sort(inbox, outbox)
    assert (ran.code, words in ran.out) == (0, True)
    assert words in run("report", outbox).out
    assert words in report(outbox).text
