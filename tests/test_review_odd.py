"""Decisions where something is not as it should be: runs cut short, edited tables, links, clocks, moved outboxes."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import by_source, load, quiet, rows, run, sort
from crashing import Crash, CrashingFiles
from reviewing import CONTRADICTING, decide, desk_of, held_outbox, item_of, picture, undo_as_rehearsed
from test_review import files_of

from dicomsort.errors import DicomsortError, Outdated, PlacingFailed
from dicomsort.files import Files, is_straight
from dicomsort.sorting import ReviewService, undo
from dicomsort.sorting import runs as runs_module
from dicomsort.sorting.corrections import images_by_run

TABLE = ".dicomsort/corrections/corrections.csv"


class FullTwice(Files):
    """A disk that is full for the first two flushes of the file system."""

    full = 2

    def flush_system(self, path: str) -> bool:
        if self.full:
            self.full -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super().flush_system(path)


def test_a_decision_that_the_disk_refused_is_finished_before_the_next(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox, FullTwice())
    key = item_of(desk, "pictures/a.png")
    for class_ in ("CT", "MRI"):  # the second time it is the first decision that is gone on with
        with pytest.raises(PlacingFailed):
            decide(desk, key, class_, "anna")
    with pytest.raises(Outdated, match="decided or taken away meanwhile"):
        decide(desk, key, "MRI", "anna")
    assert [path for path in files_of(outbox) if path.endswith("a.png")] == ["CT/pictures/a.png"]
    assert run("verify", outbox).code == 0


def test_what_died_with_one_desk_is_finished_by_another_that_was_open_already(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    other = desk_of(outbox)
    key = item_of(other, "pictures/a.png")
    with pytest.raises(Crash):
        decide(desk_of(outbox, CrashingFiles(45)), key, "CT", "anna")
    with pytest.raises(Outdated):
        decide(other, key, "MRI", "bert")
    assert [path for path in files_of(outbox) if path.endswith("a.png")] == ["CT/pictures/a.png"]
    assert len(images_by_run(f"{outbox}/.dicomsort/corrections")) <= 1


def test_an_undo_that_is_half_done_is_finished_first(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path, "--copy")
    sorted_ = rows(outbox)[0]["run_id"]
    for at in range(99):
        with pytest.raises(Crash):
            undo(quiet(outbox, CrashingFiles(at)), sorted_)
        if runs_module.load_runs(str(outbox)).unfinished():
            break
    desk = desk_of(outbox)
    with pytest.raises(DicomsortError, match="expected no undo that was cut short"):
        decide(desk, item_of(desk, "pictures/a.png"), "MRI", "bert")
    assert run("resume", outbox).code == 0
    assert files_of(outbox) == {}


def test_an_edited_table_of_corrections_removes_nothing_that_is_not_ours(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    run_ = decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna").run
    victims = [tmp_path / "precious.dcm", tmp_path / f"{run_}-0.png", outbox / ".dicomsort" / "x" / f"{run_}-0.png"]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.write_bytes(b"precious")
    (outbox / ".dicomsort/corrections/link").symlink_to(tmp_path)
    images = [
        "../../../precious.dcm",
        f"../../{run_}-0.png",
        f"../x/{run_}-0.png",
        str(victims[0]),
        f"link/{run_}-0.png",
        f"XRAY/../{run_}-0.png",
    ]
    with (outbox / TABLE).open("a", encoding="utf-8") as table:
        for image in images:
            table.write(f"t,{run_},decided,a,XRAY,{image}" + "," * 10 + "\n")
    assert run("undo", outbox, run_).code == 0
    assert all(victim.read_bytes() == b"precious" for victim in victims)
    assert list((outbox / ".dicomsort/corrections").rglob("*-0.png")) == []


def test_no_row_of_corrections_ends_an_undo_a_decision_or_the_start_of_a_review(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    run_ = decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna").run
    with (outbox / TABLE).open("a", encoding="utf-8") as table:
        for image in (f"XR\0AY/x/{run_}-0.png", f"XRAY/x\0/{run_}-1.png", f"XRAY/\ud7ff/{run_}-2.png"):
            table.write(f"t,{run_},decided,a,XRAY,{image}" + "," * 10 + "\n")
    before = (outbox / TABLE).read_bytes()
    assert run("undo", outbox, run_).code == 0
    assert images_by_run(f"{outbox}/.dicomsort/corrections") == {}
    (outbox / TABLE).write_bytes(before)
    other = desk_of(outbox)
    assert other.open() == []
    assert images_by_run(f"{outbox}/.dicomsort/corrections") == {}
    assert decide(other, item_of(other, "pictures/a.png"), "CT", "anna").notes == []


def test_what_hinders_taking_corrections_out_is_told_at_the_start_of_a_review(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    run_ = decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna").run
    before = (outbox / TABLE).read_bytes()
    assert run("undo", outbox, run_).code == 0
    (outbox / TABLE).write_bytes(before)

    class Torn(Files):
        def write(self, descriptor: int, data: bytes | memoryview) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    desk = desk_of(outbox, Torn())
    assert any("models learn from it still" in note for note in desk.open())


def test_corrections_are_not_written_through_a_link(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    (tmp_path / "elsewhere").mkdir()
    (outbox / ".dicomsort/corrections/CT").symlink_to(tmp_path / "elsewhere")
    decision = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna")
    assert "no model learns from it yet" in decision.notes[0]
    assert not list((tmp_path / "elsewhere").rglob("*.png"))


def test_a_plan_whose_class_leads_out_leaves_no_corrections_there(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna")
    (outbox / TABLE).unlink()
    plan = next(path for path in outbox.glob(".dicomsort/runs/*/plan.jsonl") if b'"review"' in path.read_bytes())
    plan.write_bytes(plan.read_bytes().replace(b'"class":"XRAY"', b'"class":"../../out"', 1))
    assert desk_of(outbox).open() == []
    assert not (tmp_path / "out").exists()
    assert not (outbox / "out").exists()


def edited(outbox: Path, old: str, new: str) -> None:
    manifest = outbox / "manifest.csv"
    manifest.write_text(manifest.read_text("utf-8").replace(old, new), "utf-8")


def test_a_manifest_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    secret = picture(tmp_path / "elsewhere/secret.png")
    for place in ("REVIEW/../../elsewhere/secret.png", str(secret), "REVIEW/x/../../../elsewhere/secret.png"):
        edited(outbox, by_source(outbox)["pictures/a.png"]["destination"], place)
        assert not [i for i in desk_of(outbox).queue.items.values() if "secret" in i.row.destination]
    assert secret.is_file()


def test_a_link_in_review_is_not_followed(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    (outbox / "REVIEW/no-evidence").rename(tmp_path / "elsewhere")
    (outbox / "REVIEW/no-evidence").symlink_to(tmp_path / "elsewhere")
    desk = desk_of(outbox)
    with pytest.raises(Outdated, match="1 file is gone"):
        decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna")
    assert (tmp_path / "elsewhere/pictures/a.png").is_file()


def test_a_row_that_a_spreadsheet_changed_costs_itself_alone(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    size = by_source(outbox)["pictures/a.png"]["size"]
    edited(outbox, f",{size},", ',"1,234",')
    waiting = [item.row.source for item in desk_of(outbox).queue.items.values()]
    assert waiting
    assert "pictures/a.png" not in waiting


def test_a_manifest_that_a_spreadsheet_changed_is_told_of(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    edited(outbox, ",", ";")
    ran = run("review", outbox)
    assert (ran.code, "manifest.csv: expected" in ran.err) == (1, True), ran.err


def test_a_manifest_whose_last_line_has_no_end_is_gone_on_with(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    manifest = outbox / "manifest.csv"
    manifest.write_bytes(manifest.read_bytes().rstrip(b"\n"))
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna")
    assert run("verify", outbox).code == 0
    assert by_source(outbox)["odd1.dcm"]["reason"] == "reviewed"


def test_a_decision_appends_nothing_to_what_another_run_left_torn(tmp_path: Path) -> None:
    at = -1
    for attempt in ("whole", "torn"):
        outbox = held_outbox(tmp_path / attempt)
        desk = desk_of(outbox)
        for number in range(3):
            make_dicom(tmp_path / attempt / f"inbox/n{number}.dcm", study=20 + number)
        files = CrashingFiles(at, torn=40)
        with contextlib.suppress(Crash):
            _sort(tmp_path / attempt / "inbox", outbox, files)
        at = max(place for place, (name, _) in enumerate(files.writes) if name == "manifest.csv")
    assert not (outbox / "manifest.csv").read_bytes().endswith(b"\n")
    decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna")
    assert all(row["message"] is not None for row in rows(outbox))
    assert {f"n{n}.dcm" for n in range(3)} < set(by_source(outbox))
    assert desk_of(outbox).queue.items.keys() == desk.queue.items.keys()


def _sort(inbox: Path, outbox: Path, files: Files) -> None:
    from dicomsort.config import SORT
    from dicomsort.engines.engine import SerialEngine
    from dicomsort.sorting import check, sort_inbox

    assert SORT
    settings = load({"mode": "move", "settle": 0.0, "evidence": "header", "engine": "serial"}, {}, None)
    context = quiet(outbox, files)
    sort_inbox(check(str(inbox), str(outbox), settings), context, SerialEngine(), lambda _: None)


def test_an_undo_that_finds_the_file_changed_says_so_and_keeps_the_label(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    run_ = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna").run
    content = (outbox / "CT/pictures/a.png").read_bytes()
    (outbox / "CT/pictures/a.png").write_bytes(b"edited")
    with pytest.raises(Outdated, match="1 file is gone or changed, and not undone"):
        desk.undo(run_)
    assert images_by_run(f"{outbox}/.dicomsort/corrections")[run_]
    sorted_ = rows(outbox)[0]["run_id"]
    assert run("undo", outbox, sorted_).code == 2
    for _ in range(2):
        dry = run("undo", "--with-decisions", "--dry-run", outbox, sorted_)
        assert f"decision {run_} cannot be taken back wholly: some of its files would stay, as listed" in dry.out
        assert "stays         CT/pictures/a.png -> REVIEW/no-evidence/pictures/a.png  [the file changed" in dry.out
        assert f"stays         pictures/a.png  [run {run_} moved it since: undo that run first]" in dry.out
        ran = undo_as_rehearsed(outbox, sorted_)
        assert (ran.code, f"decision {run_} cannot be taken back wholly" in ran.out) == (3, True), ran
        assert len(read_tree(tmp_path / "inbox")) == 5  # all others
        told = by_source(outbox)["pictures/a.png"]
        assert (told["status"], told["message"]) == ("changed", f"run {run_} moved it since: undo that run first")
    (outbox / "CT/pictures/a.png").write_bytes(content)
    assert run("undo", "--with-decisions", outbox, sorted_).code == 0
    assert (files_of(outbox), len(read_tree(tmp_path / "inbox"))) == ({}, 6)


@pytest.mark.parametrize("mode", ["--copy", "--move"])
@pytest.mark.parametrize("damage", ["seal", "operation", "gone", "rows"])
def test_what_a_decision_moved_that_cannot_be_read_is_told_and_stays(tmp_path: Path, damage: str, mode: str) -> None:
    outbox = held_outbox(tmp_path, mode, *(["--settle", "0"] if mode == "--move" else []))
    sorted_, desk = rows(outbox)[0]["run_id"], desk_of(outbox)
    run_ = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna").run
    folder = outbox / ".dicomsort/runs" / run_
    plan = folder / "plan.jsonl"
    if damage == "gone":
        folder.rename(tmp_path / "away")
    elif damage == "operation":
        lines = plan.read_bytes().splitlines(keepends=True)
        plan.write_bytes(b"".join([lines[0], b"X", *lines[1:]]))
    else:
        plan.write_bytes(plan.read_bytes() + b"x")
    if damage == "rows":
        (folder / "manifest.csv").unlink()
    options = ["--with-decisions"] if damage == "operation" else []
    for _ in range(2):
        ran = run("undo", *options, outbox, sorted_)
        assert (ran.code, [*files_of(outbox)]) == (3, ["CT/pictures/a.png"]), ran
        told = by_source(outbox)["pictures/a.png"]
        assert (told["status"], told["message"]) == ("changed", f"run {run_} moved it since: undo that run first")
    assert len(read_tree(tmp_path / "inbox")) == (5 if mode == "--move" else 6)


def test_a_clock_that_went_back_is_no_limit_to_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    key = item_of(desk, "pictures/a.png")
    now = time.time()
    monkeypatch.setattr(runs_module.time, "time", lambda: now - 86400)
    for _ in range(20):  # 40 runs, whose names count on by one and so carry a digit, and are as long as before
        desk.undo(decide(desk, key, "CT", "anna").run)
    names = sorted(path.name for path in (outbox / ".dicomsort/runs").iterdir())
    assert {len(name) for name in names} == {23}
    assert names == [*dict.fromkeys(row["run_id"] for row in rows(outbox))]


def test_an_outbox_that_was_moved_can_be_undone_and_its_labels_go_with_it(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    run_ = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna").run
    moved = outbox.rename(tmp_path / "moved")
    assert run("undo", moved, run_).code == 0
    assert (moved / "REVIEW/no-evidence/pictures/a.png").is_file()
    assert images_by_run(f"{moved}/.dicomsort/corrections") == {}
    assert isinstance(desk_of(moved), ReviewService)


def test_an_undo_that_was_cut_short_takes_the_labels_out_when_it_is_resumed(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    run_ = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna").run
    with pytest.raises(Crash):
        undo(quiet(outbox, CrashingFiles(25)), run_)
    assert run("resume", outbox).code == 0
    assert images_by_run(f"{outbox}/.dicomsort/corrections") == {}
    assert run("undo", outbox, run_).code == 1


def test_corrections_that_cannot_be_written_are_told_and_made_later(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    corrections = outbox / ".dicomsort/corrections"
    desk = desk_of(outbox)
    (corrections / "CT").write_text("a file", encoding="utf-8")
    decision = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna")
    assert decision.moved == 1
    assert "no model learns from it yet" in decision.notes[0]
    assert "no model learns from it yet" in desk.open()[0]
    (corrections / "CT").unlink()
    assert desk.open() == []
    assert len(list(corrections.rglob("*.png"))) == 1


def test_an_item_that_grew_since_it_was_shown_is_not_decided_about(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    key = item_of(desk, "odd1.dcm")
    version = desk.queue.items[key].version
    make_dicom(tmp_path / "inbox/odd9.dcm", study=1, series=1, instance=9, **CONTRADICTING)
    sort("--move", "--settle", "0", tmp_path / "inbox", outbox)
    with pytest.raises(Outdated, match="expected the files that were shown"):
        desk.decide(key, version, "CT", "anna")
    assert decide(desk, key, "CT", "anna").moved == 3


def test_a_path_is_straight_where_folders_alone_lead_there(tmp_path: Path) -> None:
    picture(tmp_path / "a/b/x.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert is_straight(str(tmp_path), "a/b/x.png")
    assert is_straight(str(tmp_path), "a/b/gone.png")
    for path in (
        "link/b/x.png",
        "a/../a/b/x.png",
        "a//b/x.png",
        "./a/b/x.png",
        "/a/b/x.png",
        "a/b/x.png/y",
        "",
        "gone/x",
        "a/b\0/x",
        "a/b/x\0",
    ):
        assert not is_straight(str(tmp_path), path), path


def test_a_duplicate_of_what_a_decision_moved_since_comes_back_after_that_is_undone(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path, "--move", "--settle", "0")
    content = next(c for p, c in files_of(outbox).items() if p.endswith("pictures/a.png"))
    again = tmp_path / "again"
    (again / "pictures").mkdir(parents=True)
    (again / "pictures/a.png").write_bytes(content)
    options = ("--settle", "0", "--duplicates", "remove", "--engine", "serial", "--evidence", "header")
    assert run("sort", "--move", *options, again, outbox).code == 0
    assert read_tree(again) == {}
    second = rows(outbox)[-1]["run_id"]
    decision = decide(desk_of(outbox), item_of(desk_of(outbox), "pictures/a.png"), "CT", "anna").run
    plan = outbox / ".dicomsort/runs" / decision / "plan.jsonl"
    whole = plan.read_bytes()
    plan.write_bytes(whole + b"x")
    assert run("undo", outbox, second).code == 3
    told = rows(outbox)[-1]
    assert told["status"] == "changed"
    assert told["message"] == f"run {decision} moved its kept copy since: undo that run first"
    plan.write_bytes(whole)
    assert run("undo", outbox, decision).code == 0
    assert run("undo", outbox, second).code == 0
    assert read_tree(again) == {"pictures/a.png": content}
