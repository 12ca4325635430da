"""Decisions: where files go, what the manifest says, what later arrivals do, and that an undo brings all back."""

from __future__ import annotations

import csv
import os
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from building import make_dicom, read_tree, uid
from command import by_source, quiet, rows, run, sort
from reviewing import CONTRADICTING, decide, desk_of, held_outbox, item_of, picture, undo_as_rehearsed

from dicomsort.errors import OutboxLocked, Outdated, UsageError
from dicomsort.files import Files
from dicomsort.journal import Plan
from dicomsort.records import Row
from dicomsort.sorting import locked, review
from dicomsort.sorting.corrections import COLUMNS, Corrections, images_by_run
from dicomsort.training.data.dataset import scan

SERIES = f"CT/{uid(1)}/{uid(1, 1)}"


def files_of(outbox: Path) -> dict[str, bytes]:
    """What users see in an outbox, but its manifest, which only grows."""
    return {k: v for k, v in read_tree(outbox).items() if not k.startswith(".dicomsort/") and k != "manifest.csv"}


def test_a_decision_moves_a_series_to_where_a_sort_would_have_put_it(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    before = files_of(outbox)
    desk = desk_of(outbox)
    decision = decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna")
    assert (decision.moved, decision.notes) == (2, [])
    after = files_of(outbox)
    assert sorted(set(after) - set(before)) == [f"{SERIES}/{uid(1, 1, n)}.dcm" for n in (1, 2)]
    assert sorted(after.values()) == sorted(before.values())
    row = by_source(outbox)["odd1.dcm"]
    assert (row["action"], row["status"], row["class"]) == ("moved", "sorted", "CT")
    assert (row["reason"], row["decided_by"]) == ("reviewed", "reviewer")
    assert row["message"] == "by anna; was REVIEW/header-contradicts-itself/odd1.dcm"
    assert run("verify", outbox).code == 0


def test_a_picture_goes_to_its_path_below_the_class_and_emptied_folders_go(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna")
    assert (outbox / "REVIEW/no-evidence/pictures").is_dir()
    decide(desk, item_of(desk, "pictures/b.png"), "OTHER", "anna")
    assert (outbox / "XRAY/pictures/a.png").is_file()
    assert (outbox / "OTHER/image/pictures/b.png").is_file()
    assert by_source(outbox)["pictures/b.png"]["status"] == "other"
    assert not (outbox / "REVIEW/no-evidence").exists()


def test_undo_brings_back_what_was_there_byte_for_byte(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    before, folders = files_of(outbox), sorted(outbox.glob("REVIEW/**/"))
    stats = {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in outbox.rglob("REVIEW/**/*")}
    desk = desk_of(outbox)
    items = dict(desk.queue.items)
    runs = [decide(desk, key, "MRI", "anna").run for key in items]
    assert not desk.queue.items
    assert not (outbox / "REVIEW").exists()
    for each in runs:  # in the order they were made in, too
        desk.undo(each)
    assert files_of(outbox) == before
    assert sorted(outbox.glob("REVIEW/**/")) == folders
    assert {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in stats if p.is_file()} == {
        p: s for p, s in stats.items() if p.is_file()
    }
    assert desk.queue.items.keys() == items.keys()
    assert desk_of(outbox).queue.items.keys() == items.keys()
    assert run("verify", outbox).code == 0


def test_the_command_undo_takes_back_a_decision_and_what_was_to_be_learned(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    before = files_of(outbox)
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "odd3.dcm"), "CT", "anna")
    corrections = outbox / ".dicomsort/corrections"
    assert len(list(corrections.rglob("*.png"))) == 1
    assert run("undo", outbox).code == 0
    assert files_of(outbox) == before
    assert list(corrections.rglob("*.png")) == []
    assert images_by_run(str(corrections)) == {}
    assert not (corrections / "CT").exists()
    desk.refresh()
    assert item_of(desk, "odd3.dcm")


def test_corrections_are_a_data_set_with_a_folder_a_study(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna")
    decide(desk, item_of(desk, "odd3.dcm"), "CT", "anna")
    decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna")
    dataset = scan(outbox / ".dicomsort/corrections")
    assert dataset.counts() == {"CT": 3, "XRAY": 1}
    assert len({item.source for item in dataset.items if item.label == 0}) == 1
    with (outbox / ".dicomsort/corrections/corrections.csv").open(encoding="utf-8") as table:
        lines = list(csv.DictReader(table))
    assert {(line["reviewer"], line["class"], line["reason"]) for line in lines} == {
        ("anna", "CT", "header-contradicts-itself"), ("anna", "XRAY", "no-evidence"),
    }  # fmt: skip
    assert all((outbox / ".dicomsort/corrections" / line["image"]).is_file() for line in lines)
    assert {line["model_sha256"] for line in lines} == {"f00d"}
    modes = {path.stat().st_mode & 0o077 for path in (outbox / ".dicomsort/corrections").rglob("*")}
    assert modes == {0}


def test_what_no_model_can_learn_from_is_recorded_all_the_same(tmp_path: Path) -> None:
    make_dicom(tmp_path / "inbox/x.dcm", **(CONTRADICTING | {"PixelData": b""}))
    sort("--move", "--settle", "0", tmp_path / "inbox", tmp_path / "outbox")
    desk = desk_of(tmp_path / "outbox")
    decision = decide(desk, item_of(desk, "x.dcm"), "CT", "anna")
    assert (decision.moved, decision.notes) == (1, ["its pixels cannot be had, so no model learns from it"])
    assert images_by_run(f"{tmp_path}/outbox/.dicomsort/corrections") == {decision.run: []}


@pytest.mark.parametrize("layout", ["keep", "readable", "{class}/{study_key}/{instance_number}"])
def test_the_layout_of_the_run_that_held_it_counts(tmp_path: Path, layout: str) -> None:
    outbox = held_outbox(tmp_path, "--move", "--settle", "0", "--layout", layout)
    desk = desk_of(outbox)
    decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna")
    clear, decided = (by_source(outbox)[name]["destination"] for name in ("clear.dcm", "odd1.dcm"))
    assert decided.count("/") == clear.count("/")
    assert (decided == "CT/odd1.dcm") == (layout == "keep")


def test_a_pruned_run_leaves_what_it_held_to_be_decided(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    make_dicom(tmp_path / "inbox/new.dcm", study=11)
    sort("--move", "--settle", "0", tmp_path / "inbox", outbox)
    assert run("runs", "--prune", "0", outbox).code == 0
    desk = desk_of(outbox)
    assert decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna").moved == 2
    assert (outbox / SERIES / f"{uid(1, 1, 1)}.dcm").is_file()


def test_a_run_whose_held_files_were_decided_about_is_undone_with_the_decisions_or_not(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    for key in list(desk.queue.items):
        decide(desk, key, "CT", "anna")
    sorted_ = rows(outbox)[0]["run_id"]
    before = read_tree(outbox)
    ran = run("undo", outbox, sorted_)
    assert (ran.code, "4 times: `dicomsort undo --with-decisions" in ran.err) == (2, True)
    assert {k: v for k, v in read_tree(outbox).items() if k != ".dicomsort/lock"} == {
        k: v for k, v in before.items() if k != ".dicomsort/lock"
    }
    before = read_tree(outbox)
    dry = run("undo", "--with-decisions", "--dry-run", outbox, sorted_)
    assert (dry.code, dry.err, read_tree(outbox)) == (0, "", before)
    assert "move          CT/pictures/a.png -> REVIEW/no-evidence/pictures/a.png\n" in dry.out
    assert "move          REVIEW/no-evidence/pictures/a.png -> pictures/a.png\n" in dry.out
    assert f"undo of run {sorted_}, planned (dry run, nothing was changed)" in dry.out
    assert undo_as_rehearsed(outbox, sorted_).code == 0
    assert files_of(outbox) == {}
    assert len(read_tree(tmp_path / "inbox")) == 6


def test_an_undo_with_decisions_reads_each_run_thrice_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        picture(tmp_path / "inbox" / f"{number}.png", number, side=8)
    sort("--move", "--settle", "0", tmp_path / "inbox", tmp_path / "outbox")
    desk, peek, read = desk_of(tmp_path / "outbox", learn=False), Plan.peek, Counter[str]()
    for key in list(desk.queue.items):
        decide(desk, key, "CT", "anna")

    def counted(folder: str) -> Plan | None:
        read[folder] += 1
        return peek(folder)

    monkeypatch.setattr(Plan, "peek", counted)
    sorted_ = rows(tmp_path / "outbox")[0]["run_id"]
    assert run("undo", "--with-decisions", tmp_path / "outbox", sorted_).code == 0
    assert len(read_tree(tmp_path / "inbox")) == 20
    assert (len(read), max(read.values())) == (42, 3)


def test_what_vanished_or_changed_is_told_and_what_is_left_is_moved(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    folder = outbox / "REVIEW/header-contradicts-itself"
    (folder / "odd1.dcm").rename(tmp_path / "taken.dcm")
    decision = decide(desk, item_of(desk, "odd2.dcm"), "CT", "anna")
    assert (decision.moved, decision.notes) == (1, ["1 file is gone from REVIEW"])
    (outbox / "REVIEW/no-evidence/pictures/a.png").write_bytes(b"something else")
    with pytest.raises(Outdated, match="1 file is not what was held any more"):
        decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna")
    assert (outbox / "REVIEW/no-evidence/pictures/a.png").read_bytes() == b"something else"


def test_what_finds_every_name_taken_stays_held(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    row = by_source(outbox)["pictures/a.png"]
    for name in ("a.png", f"a.{row['sha256'][:8]}.png"):
        (outbox / "XRAY/pictures").mkdir(parents=True, exist_ok=True)
        (outbox / "XRAY/pictures" / name).write_bytes(b"somebody's")
    before = files_of(outbox)
    decision = decide(desk, item_of(desk, "pictures/a.png"), "XRAY", "anna")
    assert (decision.moved, decision.notes) == (0, ["1 file is left in REVIEW; manifest.csv says why"])
    assert files_of(outbox) == before
    assert "every name it could get is taken" in by_source(outbox)["pictures/a.png"]["message"]
    assert item_of(desk, "pictures/a.png")


def test_of_two_reviewers_one_decides_and_the_other_is_told(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    one, other = desk_of(outbox), desk_of(outbox)
    key = item_of(one, "odd1.dcm")
    decision = decide(one, key, "CT", "anna")
    with pytest.raises(Outdated, match="decided or taken away meanwhile"):
        decide(other, key, "MRI", "bert")
    other.undo(decision.run)
    with pytest.raises(Outdated, match="expected a decision that stands"):
        one.undo(decision.run)
    assert decide(one, key, "MRI", "bert").moved == 2
    assert rows(outbox)[-1]["message"].startswith("by bert; was ")


def test_a_run_that_holds_the_outbox_is_waited_for_and_then_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    monkeypatch.setattr(review, "PATIENCE", 0.1)
    with locked(quiet(outbox), create=False), pytest.raises(OutboxLocked, match="is held by process"):
        decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna")
    assert decide(desk, item_of(desk, "odd1.dcm"), "CT", "anna").moved == 2


def test_corrections_that_cannot_be_kept_are_told_before_anything_is_decided(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for folder, words in (
        (tmp_path / "file", "expected a folder that can be written"),
        (outbox / "CT", "expected a folder outside the OUTBOX"),
        (outbox, "expected a folder outside the OUTBOX"),
        (outbox / ".dicomsort/runs", "expected a folder outside the OUTBOX"),
        (tmp_path / "inbox", "expected a folder outside the inboxes"),
        (tmp_path / "inbox/deep", "expected a folder outside the inboxes"),
    ):
        ran = run("review", "--corrections", folder, outbox)
        assert (ran.code, words in ran.err) == (2, True), ran.err


@pytest.mark.parametrize(
    "content",
    [
        *("a list of mine", "a list of mine\n", "time,run_id,image\n1,2,3\n", "\n", ",".join(COLUMNS[:-1]) + "\n"),
        *(",".join(COLUMNS)[:40] + "\n", ",".join(COLUMNS) + "x\n", ",".join(COLUMNS) + "\0", "x" * 99_999, "\0"),
    ],
    ids=lambda content: repr(content[-40:]),
)
def test_a_table_that_is_not_of_corrections_is_left_alone(tmp_path: Path, content: str) -> None:
    table = tmp_path / "corrections.csv"
    table.write_text(content, encoding="utf-8")
    os.utime(table, ns=(1, 1))
    with pytest.raises(UsageError, match=r"expected a corrections\.csv that begins with time,run_id,action,"):
        Corrections(str(tmp_path), "f00d", Files())
    assert read_tree(tmp_path) == {"corrections.csv": content.encode()}
    assert table.stat().st_mtime_ns == 1


def test_a_table_that_is_replaced_during_a_review_is_left_alone_and_told_of(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    table = outbox / ".dicomsort/corrections/corrections.csv"
    desk = desk_of(outbox)
    table.write_text("a list of mine", encoding="utf-8")
    decision = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna")
    assert (decision.moved, table.read_text(encoding="utf-8")) == (1, "a list of mine")
    assert "no model learns from it yet: corrections" in decision.notes[0]
    table.unlink()
    assert desk.open() == []
    assert list(images_by_run(str(table.parent))) == [decision.run]


@pytest.mark.parametrize("kind", ["torn", "head", "spreadsheet", "more columns", "too long"])
def test_a_table_of_corrections_is_gone_on_with(tmp_path: Path, kind: str) -> None:
    head = ",".join(COLUMNS)
    content = {
        "torn": head[:30], "head": head, "spreadsheet": f"\ufeff{head}\r\n", "more columns": f"{head},note\n",
        "too long": f"{head}\nt,r,decided,{'x' * 200_000}\n",
    }  # fmt: skip
    outbox = held_outbox(tmp_path)
    table = outbox / ".dicomsort/corrections/corrections.csv"
    table.parent.mkdir()
    table.write_text(content[kind], encoding="utf-8", newline="")
    desk = desk_of(outbox)
    decision = decide(desk, item_of(desk, "pictures/a.png"), "CT", "anna")
    assert decision.notes == []
    assert list(images_by_run(str(table.parent))) == [decision.run]
    if kind not in {"torn", "head"}:
        assert table.read_bytes().startswith(content[kind].encode())
    assert run("undo", outbox, decision.run).code == 0
    assert images_by_run(str(table.parent)) == {}


def test_the_name_of_who_decides_can_break_nothing(tmp_path: Path) -> None:
    from dicomsort.report.manifest_reader import decided_from, message_of, reviewer

    name = reviewer("; was CT/x\n\x1b[31m=cmd" + "x" * 100)
    assert (len(name) <= 64, ";" in name, "\n" in name) == (True, False, False)
    decided = Row("x.dcm", action="moved", reason="reviewed", message=message_of(name, "REVIEW/a/b; was c.png"))
    assert decided_from(decided) == "REVIEW/a/b; was c.png"
    assert reviewer("\n;;") == "unknown"
    assert decided_from(replace(decided, message=message_of("x", "CT/../../etc"))) == ""
    outbox = held_outbox(tmp_path)
    with pytest.raises(UsageError):
        desk_of(outbox).undo("../../x")


def test_the_report_of_the_run_tells_who_decided_and_what(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    desk = desk_of(outbox)
    decided = decide(desk, item_of(desk, "odd1.dcm"), "MRI", "anna")
    page = tmp_path / "report.html"
    for words, is_decided in (("anna", True), ("anna", False)):
        assert run("report", "--html", page, "--workers", "1", outbox).code == 0
        assert (words in page.read_text(encoding="utf-8")) == is_decided
        if is_decided:
            desk.undo(decided.run)


def test_a_line_without_an_end_in_a_table_costs_little_memory(tmp_path: Path) -> None:
    """A crash of a disk may leave a file of zeros in the place of a table."""
    table = tmp_path / "corrections.csv"
    table.write_text(",".join(COLUMNS) + "\nt,run,decided,anna,CT,CT/a/1.png\n", encoding="utf-8")
    os.truncate(table, 32 << 20)
    with table.open("a", encoding="utf-8") as more:
        more.write("\nt,later,decided,anna,CT,CT/a/2.png\n")
    tracemalloc.start()
    try:
        assert images_by_run(str(tmp_path)) == {"run": ["CT/a/1.png"], "later": ["CT/a/2.png"]}
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
