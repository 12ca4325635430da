"""``resume``, ``undo``, ``runs``, ``verify`` and ``rules``, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from building import read_tree
from command import by_source, placed, rows, run, sort


def test_undo_restores_and_says_how_much(inbox: Path, outbox: Path) -> None:
    before = read_tree(inbox)
    sort("--move", "--settle", 0, inbox, outbox)
    ran = run("undo", outbox)
    assert ran.code == 0
    assert read_tree(inbox) == before
    assert list(placed(outbox)) == []
    assert not (outbox / "CT").exists()
    undone = [row for row in rows(outbox) if row["action"] == "undone"]
    assert len(undone) == 5
    assert undone[0]["run_id"] != rows(outbox)[0]["run_id"]


def test_undo_of_a_copy_removes_the_copies_and_what_was_undone_may_be_sorted_again(inbox: Path, outbox: Path) -> None:
    before = read_tree(inbox)
    sort(inbox, outbox)
    tree = set(placed(outbox))
    assert run("undo", outbox).code == 0
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])
    assert sort(inbox, outbox).code == 0
    assert set(placed(outbox)) == tree


@pytest.mark.parametrize("command", ["undo", "resume", "report"])
def test_an_empty_name_of_a_run_is_no_run(inbox: Path, outbox: Path, command: str) -> None:
    sort("--move", "--settle", 0, inbox, outbox)
    before = read_tree(outbox) | {".dicomsort/lock": b""}  # it tells who holds the outbox, and since when
    ran = run(command, outbox, "")
    assert ran.code == 2
    assert "RUN: expected a name, received an empty one" in ran.err
    assert read_tree(outbox) | {".dicomsort/lock": b""} == before


def test_undo_leaves_what_changed_since_and_what_is_the_only_copy_goes_back(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    rewritten = outbox / by_source(outbox)["cr.dcm"]["destination"]
    rewritten.write_bytes(b"somebody's work")
    only = (inbox / "mr.dcm").read_bytes()
    (inbox / "mr.dcm").unlink()
    assert run("undo", outbox).code == 3
    assert rewritten.read_bytes() == b"somebody's work"
    assert (inbox / "mr.dcm").read_bytes() == only
    assert by_source(outbox)["cr.dcm"]["status"] == "changed"


def test_undo_touches_nothing_that_was_there_before(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    tree = read_tree(outbox)
    sort(inbox, outbox)
    assert run("undo", outbox, rows(outbox)[-1]["run_id"]).code == 0
    assert set(placed(outbox)) == {path for path in tree if path.endswith(".dcm")}


def test_undo_of_a_named_run_and_of_none(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    name = rows(outbox)[0]["run_id"]
    assert run("undo", outbox, name).code == 0
    ran = run("undo", outbox)
    assert (ran.code, "no run that changed anything is left to undo" in ran.out) == (0, True)
    undo = json.loads(run("runs", outbox, "--json").out)[-1]["run_id"]
    assert "which is an undo" in run("undo", outbox, undo).err


@pytest.mark.parametrize("command", ["resume", "undo", "runs", "verify"])
def test_a_folder_that_is_no_outbox(command: str, tmp_path: Path) -> None:
    ran = run(command, tmp_path)
    assert ran.code == 2
    assert (
        ran.err
        == f"dicomsort: expected an outbox of dicomsort (with a folder .dicomsort), received {str(tmp_path)!r}\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    for command in ("resume", "undo"):
        ran = run(command, outbox, "20200101")
        assert ran.code == 2
        assert "received '20200101'" in ran.err


def test_resume_of_a_finished_run_changes_nothing_and_says_so(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    tree, count = set(placed(outbox)), len(rows(outbox))
    ran = run("resume", outbox)
    assert ran.code == 0
    assert "there is nothing to resume" in ran.out
    assert "there was nothing to resume" in run("resume", outbox, rows(outbox)[0]["run_id"]).out
    assert (set(placed(outbox)), len(rows(outbox))) == (tree, count)


def test_runs_tells_of_each_run(inbox: Path, outbox: Path) -> None:
    sort("--move", "--settle", 0, inbox, outbox)
    run("undo", outbox)
    listed = json.loads(run("runs", outbox, "--json").out)
    assert [(r["verb"], r["state"], r["mode"], r["found"]) for r in listed] == [
        ("sort", "undone", "move", 6),
        ("undo", "finished", "", 5),
    ]
    assert listed[0]["run_id"] in run("runs", outbox).out


def test_verify_finds_what_is_gone_and_what_differs(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    assert run("verify", outbox).code == 0
    (outbox / by_source(outbox)["cr.dcm"]["destination"]).write_bytes(b"changed")
    (outbox / by_source(outbox)["mr.dcm"]["destination"]).unlink()
    ran = run("verify", "--json", outbox)
    assert ran.code == 3
    result = json.loads(ran.out)
    assert result == {
        "whole": 3,
        "missing": [by_source(outbox)["mr.dcm"]["destination"]],
        "different": [by_source(outbox)["cr.dcm"]["destination"]],
        "unreadable": [],
        "damaged": [],
        "runs": [],
        "unfinished": [],
    }


def test_rules_prints_the_tables_that_run() -> None:
    from dicomsort.classify import RULES
    from dicomsort.modalities import tables

    told = json.loads(run("rules", "--json").out)
    assert [rule["rule"] for rule in told["rules"]] == [rule.name for rule in RULES]
    assert (told["sop_classes"], told["modalities"]) == tables()
    shown = run("rules").out
    assert "header-and-pixels" in shown
    assert "Enhanced MR Image" in shown


def test_version_and_help() -> None:
    from dicomsort import __version__

    assert run("--version").out == f"dicomsort {__version__}\n"
    assert run("sort", "--help").code == 0
    assert run("nonsense").code == 2
