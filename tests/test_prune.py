"""``runs --prune``: what goes, what stays for somebody who needs it, and what a pruned run says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree
from command import placed, quiet, rows, run, sort
from crashing import Crash, CrashingFiles
from reviewing import decide, desk_of, item_of, picture
from test_faults import Broken
from test_lock import locked
from watching import runs_of

from dicomsort.sorting import prune
from dicomsort.sorting.runs import Runs, all_runs

DAY = 86400


def sort_new(inbox: Path, outbox: Path, study: int, code: int = 0) -> str:
    """Sort one more study; the run's id."""
    make_dicom(inbox / f"{study}.dcm", study=study)
    assert sort("--move", "--settle", 0, inbox, outbox).code == code
    return runs_of(outbox)[-1]


def grow_old(outbox: Path, run_id: str, days: float) -> str:
    """Let a run have begun so many days ago; its new id."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - days * DAY))
    named = f"{stamp}-{run_id[17:].rstrip('+')}"
    for path in (outbox / ".dicomsort").rglob("*.json*"):
        status = path.stat()
        path.write_text(path.read_text().replace(run_id, named))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # runs are ordered by these too
    manifest = outbox / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(run_id, named))
    (outbox / ".dicomsort" / "runs" / run_id).rename(outbox / ".dicomsort" / "runs" / named)
    return named


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def visible(outbox: Path) -> dict[str, bytes]:
    """All but the state folder."""
    return {path: content for path, content in read_tree(outbox).items() if not path.startswith(".dicomsort/")}


def test_old_runs_go_and_nothing_else(inbox: Path, outbox: Path) -> None:
    old = [grow_old(outbox, sort_new(inbox, outbox, study), 40 - study) for study in range(3)]
    young = [sort_new(inbox, outbox, study) for study in (3, 4)]
    before = visible(outbox)
    ran = run("runs", outbox, "--prune", 38.5, "--json")
    assert (ran.code, json.loads(ran.out)["removed"]) == (0, old[:2])
    assert runs_of(outbox) == [old[2], *young]
    ran = run("runs", outbox, "--prune", 0)
    assert (ran.code, runs_of(outbox)) == (0, young[1:])
    assert ran.out.startswith("removed the state of 2 runs, ")
    assert run("runs", outbox, "--prune", 0).out == "removed the state of 0 runs, 0 bytes; 1 kept\n"
    assert visible(outbox) == before
    assert run("verify", outbox).code == 0
    assert [json.loads(run("runs", outbox, "--json").out)[0]["run_id"]] == young[1:]


def test_keep_counts_and_both_options_keep(inbox: Path, outbox: Path) -> None:
    runs = [grow_old(outbox, sort_new(inbox, outbox, study), 40 - 10 * study) for study in range(4)]
    assert run("runs", outbox, "--prune", 5, "--keep", 3).code == 0
    assert runs_of(outbox) == runs[1:]
    assert run("runs", outbox, "--prune", 35, "--keep", 1).code == 0
    assert runs_of(outbox) == runs[1:]
    assert run("runs", outbox, "--keep", 2).code == 0
    assert runs_of(outbox) == runs[2:]
    assert run("runs", outbox, "--keep", 0).code == 2
    assert run("runs", outbox, "--prune", -1).code == 2


@pytest.mark.parametrize("command", ["undo", "resume"])
def test_a_pruned_run_says_so(inbox: Path, outbox: Path, command: str) -> None:
    old, new = sort_new(inbox, outbox, 1), sort_new(inbox, outbox, 2)
    run("runs", outbox, "--keep", 1)
    before = read_tree(outbox)
    ran = run(command, outbox, old)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert f"received {old}, which was pruned: what it placed stays, and it can be neither" in ran.err
    after = read_tree(outbox)
    assert {path for path, content in after.items() if before[path] != content} <= {".dicomsort/lock"}
    assert "which was pruned" not in run(command, outbox, "20200101T000000Z-abcdef").err
    assert run(command, outbox, new).code == 0


def test_undo_goes_on_with_the_runs_that_are_left(inbox: Path, outbox: Path) -> None:
    for study in (1, 2, 3):
        sort_new(inbox, outbox, study)
    run("runs", outbox, "--keep", 2)
    assert [run("undo", outbox).code, run("undo", outbox).code] == [0, 0]
    assert sorted(read_tree(inbox)) == ["2.dcm", "3.dcm"]
    ran = run("undo", outbox)
    assert (ran.code, "no run that changed anything is left to undo" in ran.out) == (0, True)


def test_what_was_placed_before_is_still_known(inbox: Path, outbox: Path) -> None:
    sort_new(inbox, outbox, 1)
    sort_new(inbox, outbox, 2)
    run("runs", outbox, "--keep", 1)
    make_dicom(inbox / "late.dcm", study=1, instance=2)
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    assert rows(outbox)[-1]["reason"] == "placed-before"


def cut_short(inbox: Path, outbox: Path, study: int) -> str:
    """A run that died in the middle of placing."""
    make_dicom(inbox / f"{study}.dcm", study=study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("flush_system", 0, errno.EIO))
        assert sort("--move", "--settle", 0, inbox, outbox).code == 1
    return runs_of(outbox)[-1]


def test_unfinished_runs_stay_and_can_be_resumed(inbox: Path, outbox: Path) -> None:
    unfinished, other = cut_short(inbox, outbox, 1), inbox.with_name("other")  # what a sort finishes is of its inbox
    later = sort_new(other, outbox, 2, code=3)
    sort_new(other, outbox, 3, code=3)
    ran = run("runs", outbox, "--prune", 0)
    assert f"kept {unfinished}: it was cut short" in ran.out
    assert f"kept {later}: run {unfinished} stays, and its undo asks what later runs did" in ran.out
    assert (ran.code, len(runs_of(outbox))) == (0, 3)
    assert run("resume", outbox, unfinished).code == 0
    assert len(list(placed(outbox))) == 3
    ran = run("runs", outbox, "--prune", 0)
    assert f"kept {unfinished}: run " in ran.out  # it ended after the newest had begun
    sort_new(other, outbox, 4)
    assert run("runs", outbox, "--prune", 0).code == 0
    assert len(runs_of(outbox)) == 1


def test_an_undo_goes_with_what_it_undid_and_never_before_it(inbox: Path, outbox: Path) -> None:
    unfinished = cut_short(inbox, outbox, 1)
    assert run("undo", outbox, unfinished).code == 0
    undo = runs_of(outbox)[-1]
    last = sort_new(inbox, outbox, 2)
    before = visible(outbox)
    for at in range(40):
        copy = outbox.with_name("copy")
        shutil.copytree(outbox, copy)
        files = CrashingFiles(at)
        with suppress(Crash):
            prune(quiet(copy, files), days=0)
        states = {r["run_id"]: r["state"] for r in json.loads(run("runs", "--json", copy).out)}
        assert undo in states or unfinished not in states or states[unfinished] == "pruned"
        assert sort(inbox, copy).code == 0  # no run seems to be unfinished, and none is gone on with
        assert visible(copy)["manifest.csv"] == before["manifest.csv"]
        assert run("runs", copy, "--prune", 0).code == 0
        assert len(runs_of(copy)) == 1
        assert {*visible(copy)} == {*before}
        shutil.rmtree(copy)
        if not files.dead:
            break
    assert not files.dead
    assert runs_of(outbox) == sorted([unfinished, undo, last])


def test_a_run_that_was_cut_short_is_not_said_to_hold_what_is_gone(inbox: Path, outbox: Path) -> None:
    name = cut_short(inbox, outbox, 1)
    make_files(outbox / ".dicomsort/runs" / name / "staging", {"1": "unpacked"})
    sort_new(inbox.with_name("other"), outbox, 2, code=3)
    assert f"kept {name}: it was cut short" in run("runs", outbox, "--prune", 0).out


def test_a_run_stays_whose_undo_was_closed_with_something_begun(inbox: Path, outbox: Path) -> None:
    first = sort_new(inbox, outbox, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("flush_system", 0, errno.EIO))
        assert run("undo", outbox).code == 1
    undo = runs_of(outbox)[-1]
    inbox.rename(inbox.with_name("away"))
    later = sort_new(inbox.with_name("other"), outbox, 2, code=3)
    last = sort_new(inbox.with_name("other"), outbox, 3)
    ran = run("runs", outbox, "--prune", 0)
    assert f"kept {first}: an undo of it was closed, and may have left files" in ran.out
    assert f"kept {later}: run {first} stays, and its undo asks what later runs did" in ran.out
    assert runs_of(outbox) == sorted([first, undo, later, last])


@pytest.mark.parametrize("name", ["plan.jsonl", "journal.jsonl"])
def test_later_runs_stay_with_one_that_cannot_be_read_now(inbox: Path, outbox: Path, name: str) -> None:
    """Its user may read it, or a backup may bring it back; then its undo asks what they need."""
    first, later, last = (sort_new(inbox, outbox, study) for study in (1, 2, 3))
    path = outbox / ".dicomsort/runs" / first / name
    path.rename(path.with_name("away"))
    path.mkdir()
    ran = run("runs", outbox, "--prune", 0)
    assert f"kept {later}: run {first} stays" in ran.out
    assert (ran.code, runs_of(outbox)) == (0, [first, later, last])


def test_a_run_goes_whose_undo_was_resumed_and_left_an_edited_file(inbox: Path, outbox: Path) -> None:
    make_dicom(inbox / "edited.dcm", study=8)
    first = sort_new(inbox, outbox, 1)
    edited = next(path for path in outbox.rglob("*.dcm") if ".999.8/" in str(path))
    edited.write_bytes(edited.read_bytes() + b"edited")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("flush_system", 0, errno.EIO))
        assert run("undo", outbox, first).code == 1
    assert run("resume", outbox).code == 3
    last = sort_new(inbox.with_name("other"), outbox, 2)
    assert run("runs", outbox, "--prune", 0).code == 0
    assert runs_of(outbox) == [last]


def test_a_run_whose_undo_was_cut_short_stays_with_it(inbox: Path, outbox: Path) -> None:
    first = sort_new(inbox, outbox, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("flush_system", 0, errno.EIO))
        assert run("undo", outbox).code == 1
    undo = runs_of(outbox)[-1]
    with pytest.MonkeyPatch.context() as patch:  # else it is finished first
        patch.setattr(Runs, "cut_short", lambda self, _: ([], [*self.unfinished()]))
        last = sort_new(inbox.with_name("other"), outbox, 2, code=3)
    ran = run("runs", outbox, "--prune", 0)
    assert f"kept {first}: an undo of it was cut short" in ran.out
    assert f"kept {undo}: it is an undo that was cut short" in ran.out
    assert runs_of(outbox) == sorted([first, undo, last])
    assert run("resume", outbox, undo).code == 0
    assert [run("runs", outbox, "--prune", 0).code, runs_of(outbox)] == [0, [last]]


def test_a_crash_at_any_change_leaves_runs_that_are_whole_or_pruned(inbox: Path, outbox: Path) -> None:
    old = [sort_new(inbox, outbox, study) for study in (1, 2)]
    last = sort_new(inbox, outbox, 3)
    before = visible(outbox)
    for at in range(60):
        copy = outbox.with_name("copy")
        shutil.copytree(outbox, copy)
        files = CrashingFiles(at)
        with suppress(Crash):
            prune(quiet(copy, files), days=0)
        for name in old:
            state = next((r["state"] for r in json.loads(run("runs", "--json", copy).out) if r["run_id"] == name), "")
            assert state in {"finished", "pruned", "unsealed", ""}
            if state != "finished":
                for command in ("undo", "resume"):
                    ran = run(command, copy, name)
                    assert ran.code in {1, 2}
                    assert "was pruned" in ran.err or "died before its plan was sealed" in ran.err
        assert visible(copy) == before
        assert prune(quiet(copy), days=0).kept == 1
        assert runs_of(copy) == [last]
        shutil.rmtree(copy)
        if not files.dead:
            return
    pytest.fail("60 changes were not enough")


def test_what_is_not_ours_stays(inbox: Path, outbox: Path) -> None:
    first, last = sort_new(inbox, outbox, 1), sort_new(inbox, outbox, 2)
    folder = outbox / ".dicomsort" / "runs"
    make_files(folder, {f"{first}/notes.txt": "mine", "a folder of mine/x": "x"})
    ran = run("runs", outbox, "--prune", 0)
    assert f"kept {first}: it holds 'notes.txt', which dicomsort did not write" in ran.out
    assert sorted(path.name for path in folder.iterdir()) == sorted([first, last, "a folder of mine"])


def test_a_plan_that_cannot_be_read_beside_a_journal_stays(inbox: Path, outbox: Path) -> None:
    first = sort_new(inbox, outbox, 1)
    sort_new(inbox, outbox, 2)
    plan = outbox / ".dicomsort" / "runs" / first / "plan.jsonl"
    plan.write_bytes(plan.read_bytes()[:-30])
    assert (
        f"kept {first}: run {first}, plan.jsonl: expected its seal at the end" in run("runs", outbox, "--prune", 0).out
    )
    assert plan.exists()


def test_runs_that_died_before_they_had_a_plan_go(inbox: Path, outbox: Path) -> None:
    sort_new(inbox, outbox, 1)
    folder = outbox / ".dicomsort" / "runs" / "20200101T000000Z-abcdef"
    make_files(folder, {"plan.jsonl": '{"format": 1}\n'})
    (folder.parent / "20200102T000000Z-abcdef").mkdir()
    assert run("runs", outbox, "--prune", 10).code == 0
    assert len(runs_of(outbox)) == 1


def test_an_outbox_whose_sort_died_before_it_had_a_folder_of_runs_has_nothing_to_prune(outbox: Path) -> None:
    (outbox / ".dicomsort").mkdir(parents=True)
    ran = run("runs", outbox, "--prune", 0)
    assert (ran.code, ran.out, ran.err) == (0, "removed the state of 0 runs, 0 bytes; 0 kept\n", "")


def test_a_run_that_goes_on_is_waited_for(inbox: Path, outbox: Path) -> None:
    sort_new(inbox, outbox, 1)
    sort_new(inbox, outbox, 2)
    with locked(outbox, "{}"):
        assert run("runs", outbox, "--prune", 0).code == 4
    assert len(runs_of(outbox)) == 2
    assert run("runs", inbox, "--prune", 0).code == 2


def test_a_decision_stays_as_long_as_the_run_that_it_is_about(tmp_path: Path, outbox: Path) -> None:
    picture(tmp_path / "inbox/a.png")
    assert sort("--move", "--settle", 0, tmp_path / "inbox", outbox).code == 3
    before = read_tree(outbox / "REVIEW")
    (first,) = all_runs(str(outbox))
    desk = desk_of(outbox)
    decision = decide(desk, item_of(desk, "a.png"), "CT", "anna").run
    note = outbox / f".dicomsort/runs/{first}/note"
    note.write_text("somebody's: so the run stays")
    make_dicom(tmp_path / "inbox/1.dcm")
    assert sort("--move", "--settle", 0, tmp_path / "inbox", outbox).code in {0, 3}
    ran = run("runs", "--keep", 1, outbox)
    assert f"kept {decision}: it decided about files of run {first}" in ran.out
    assert run("undo", outbox, decision).code == 0
    assert read_tree(outbox / "REVIEW") == before
    note.unlink()
    assert run("runs", "--keep", 1, outbox).code == 0
    assert not {first, decision} & set(all_runs(str(outbox)))
