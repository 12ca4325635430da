"""A damaged manifest is read on, named, and made whole; a run that cannot be read is listed and left alone."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import quiet, rows, run, sort
from crashing import Crash, CrashingFiles
from hypothesis import given
from hypothesis import strategies as st

from dicomsort.records import Action, Row, Status
from dicomsort.report.manifest import line_of
from dicomsort.report.manifest_reader import HEAD, read_records, read_rows
from dicomsort.sorting import repair
from dicomsort.sorting.runs import all_runs

RUN = "20260101T000000Z-abcdef"
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12) | st.sampled_from(
    ['a"b', "line\nfeed", "=1+1", "back\\x41slash", ",", '"', "\r\n", f"x\n{RUN},fake"]
)
ROWS = st.builds(Row, TEXTS.filter(bool), TEXTS, size=st.integers(0, 1 << 62), message=TEXTS)


def written(path: Path, content: list[Row]) -> list[bytes]:
    lines = [line_of(RUN, row) for row in content]
    path.write_bytes(HEAD + b"\n" + b"".join(lines))
    return lines


@given(st.lists(ROWS, max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: list[Row]) -> None:
    path = tmp_path_factory.mktemp("m") / "manifest.csv"
    written(path, content)
    apostrophes = [
        row for row in content if any(str(cell)[:1] == "'" for cell in (row.source, row.destination, row.message))
    ]
    found = [each.row for each in read_rows(str(path))]
    assert len(found) == len(content)
    assert apostrophes or found == content


@given(st.lists(ROWS, min_size=3, max_size=6), st.data())
def test_a_row_that_is_cut_anywhere_costs_itself_alone(
    tmp_path_factory: pytest.TempPathFactory, content: list[Row], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("m") / "manifest.csv"
    lines = written(path, content)
    at = data.draw(st.integers(0, len(lines) - 1))
    cut = data.draw(st.integers(1, len(lines[at]) - 1))
    lines[at] = lines[at][:cut].rstrip(b"\n") + b"\n"
    path.write_bytes(HEAD + b"\n" + b"".join(lines))
    records = list(read_records(str(path)))
    whole = {record.content for record in records if record.row is not None}
    assert {line for place, line in enumerate(lines) if place != at} <= whole
    assert b"".join(record.content for record in records) == b"".join(lines)


@pytest.fixture
def sorted_twice(tmp_path: Path, outbox: Path) -> tuple[Path, Path]:
    for number in (1, 2):
        make_dicom(tmp_path / "inbox" / f"{number}.dcm", study=number)
        assert sort(tmp_path / "inbox", outbox).code == 0
    return tmp_path / "inbox", outbox


DAMAGES = {
    "cut within a row": lambda content: content[: content.rindex(b"CT")],
    "a field over 128 KiB": lambda content: content.replace(b"2.dcm", b"x" * 200_000, 1),
    "an open quote": lambda content: content.replace(b"1.dcm", b'"1.dcm', 1),
    "no number": lambda content: content.replace(b",dicom,", b",dicom,x", 1),
    "a NUL": lambda content: content.replace(b"1.dcm", b"1\0.dcm", 1),
    "no head": lambda content: content.replace(b"run_id", b"run", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_named_and_passed_over_and_mended(sorted_twice: tuple[Path, Path], damage: str) -> None:
    inbox, outbox = sorted_twice
    manifest = outbox / "manifest.csv"
    before = manifest.read_bytes()
    manifest.write_bytes(damaged := DAMAGES[damage](before))
    manifest.chmod(0o640)
    assert damaged != before
    ran = run("verify", outbox)
    assert ran.code == 3
    assert "manifest.csv is damaged: line " in ran.out
    assert "`dicomsort verify" in ran.out
    dry = sort("--dry-run", inbox, outbox)
    ran = sort(inbox, outbox)
    assert (ran.code, dry.code) == (0, 0), ran.err
    assert "manifest.csv is damaged: line " in ran.out
    assert "manifest.csv is damaged: line " in dry.out
    assert manifest.read_bytes().startswith(damaged)  # old bytes stay; new rows begin on a line of their own
    newest = max(all_runs(str(outbox)))
    assert [each.row.source for each in read_rows(str(manifest)) if each.run == newest] == ["1.dcm", "2.dcm"]
    told = json.loads(run("verify", "--repair", "--json", outbox).out)["repaired"]
    kept = outbox / told["damaged_as"]
    assert told["damaged_as"].startswith("manifest.csv.damaged-")
    assert kept.read_bytes().startswith(damaged)
    assert manifest.read_bytes().startswith(before)
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o640
    assert [row["run_id"] for row in rows(outbox)] == sorted(row["run_id"] for row in rows(outbox))
    ran = run("verify", outbox)
    assert (ran.code, "damaged" in ran.out) == (0, False)


def test_a_whole_manifest_is_left_as_it_is(sorted_twice: tuple[Path, Path]) -> None:
    _, outbox = sorted_twice
    before = (outbox / "manifest.csv").stat()
    ran = run("verify", "--repair", outbox)
    assert ran.code == 0
    assert "rows kept, 0 added" in ran.out
    after = (outbox / "manifest.csv").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert sorted(path.name for path in outbox.iterdir()) == [".dicomsort", "CT", "manifest.csv"]


def test_rows_of_pruned_runs_are_kept(sorted_twice: tuple[Path, Path]) -> None:
    inbox, outbox = sorted_twice
    assert "removed the state of 1 run" in run("runs", "--prune", 0, outbox).out
    manifest = outbox / "manifest.csv"
    before = manifest.read_bytes()
    manifest.write_bytes(before[:-30])
    assert run("verify", "--repair", outbox).code == 0
    assert manifest.read_bytes() == before
    assert sort(inbox, outbox).code == 0


def test_a_manifest_that_is_gone_comes_back_from_the_runs(sorted_twice: tuple[Path, Path]) -> None:
    _, outbox = sorted_twice
    before = (outbox / "manifest.csv").read_bytes()
    (outbox / "manifest.csv").unlink()
    told = json.loads(run("verify", "--repair", "--json", outbox).out)["repaired"]
    assert (told["kept"], told["added"], told["damaged_as"]) == (0, 3, "")
    assert (outbox / "manifest.csv").read_bytes() == before


@pytest.mark.parametrize("lost", ["a row", "the manifest", "all that was placed, too"])
def test_verify_names_the_rows_that_the_manifest_lost(sorted_twice: tuple[Path, Path], lost: str) -> None:
    _, outbox = sorted_twice
    first, second = all_runs(str(outbox))
    manifest = outbox / "manifest.csv"
    if lost == "a row":
        manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:-1]))
        sentences = [f"manifest.csv lacks 1 of the rows of run {second}; "]
    else:
        manifest.unlink()
        sentences = [
            f"manifest.csv lacks {count} of the rows of run {name}; " for count, name in ((1, first), (2, second))
        ]
    if lost == "all that was placed, too":
        shutil.rmtree(outbox / "CT")
    before = read_tree(outbox)
    ran = run("verify", "--json", outbox)
    advice = f"`dicomsort verify {outbox} --repair` adds them"
    assert (ran.code, json.loads(ran.out)["damaged"]) == (3, [sentence + advice for sentence in sentences])
    assert sentences[0] in run("verify", outbox).out
    assert read_tree(outbox) == before
    assert run("verify", "--repair", outbox).code == (3 if lost == "all that was placed, too" else 0)


@pytest.mark.parametrize("damage", ["damaged", "lost", "gone with those of the outbox"])
def test_verify_names_a_run_whose_own_manifest_is_not_whole(sorted_twice: tuple[Path, Path], damage: str) -> None:
    _, outbox = sorted_twice
    name = all_runs(str(outbox))[1]
    own = outbox / ".dicomsort" / "runs" / name / "manifest.csv"
    lines = own.read_bytes().splitlines(keepends=True)
    own.write_bytes(b"".join(lines[:-1]) + (b"damaged\n" if damage == "damaged" else b""))
    if damage == "gone with those of the outbox":
        own.unlink()
        (outbox / "manifest.csv").write_bytes(b"".join([*lines[:2], b"damaged\n"]))
    ran = run("verify", outbox)
    assert (ran.code, f"run {name}, manifest.csv: expected 2 rows that can be read, received 1" in ran.out) == (3, True)
    (own.parent / "summary.json").unlink()  # as the sentence advises
    assert run("resume", outbox, name).code == 0
    assert own.read_bytes() == b"".join(lines)
    assert run("verify", "--repair", outbox).code == 0


def test_a_spreadsheets_order_of_columns_is_put_right(sorted_twice: tuple[Path, Path]) -> None:
    _, outbox = sorted_twice
    manifest = outbox / "manifest.csv"
    before, table = manifest.read_bytes(), rows(outbox)
    with manifest.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0])[::-1])
        writer.writeheader()
        writer.writerows(table)
        stream.write("cut,short\n")
    assert run("verify", outbox).code == 3
    assert run("verify", "--repair", outbox).code == 0
    assert manifest.read_bytes() == before


def test_a_repair_that_dies_anywhere_leaves_the_old_manifest_or_the_new(sorted_twice: tuple[Path, Path]) -> None:
    _, outbox = sorted_twice
    manifest = outbox / "manifest.csv"
    whole = manifest.read_bytes()
    damaged = whole[:-30]
    for at in range(100):
        manifest.write_bytes(damaged)
        with suppress(Crash):
            repair(quiet(outbox, CrashingFiles(at)))
        if manifest.read_bytes() == whole:
            break
        assert manifest.read_bytes() == damaged
        repair(quiet(outbox))
        assert manifest.read_bytes() == whole
        assert not [*outbox.glob(".*.part")]
    assert at > 5
    assert {path.read_bytes() for path in outbox.glob("manifest.csv.damaged-*")} == {damaged}


def test_a_file_that_is_no_manifest_is_refused_and_stays(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    (outbox / "manifest.csv").write_bytes(content := b"name;size\nx;1\n")
    for command in (("verify",), ("verify", "--repair"), ("runs", "--prune", 0)):
        assert run(*command, outbox).code in {0, 1}
    assert sort(inbox, outbox).code == 1
    assert (outbox / "manifest.csv").read_bytes() == content


@pytest.mark.parametrize("name", [".dicomsort", ".dicomsort/runs", "manifest.csv", ".dicomsort/lock"])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_something_else_in_the_place_of_the_state_is_refused(
    inbox: Path, outbox: Path, tmp_path: Path, name: str, kind: str
) -> None:
    sort(inbox, outbox)
    (outbox / name).rename(tmp_path / "elsewhere")
    if kind == "link":
        (outbox / name).symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(outbox / name)
    make_dicom(inbox / "new.dcm", study=7)
    before = read_tree(tmp_path / "elsewhere") if (tmp_path / "elsewhere").is_dir() else {}
    for ran in (sort(inbox, outbox), run("undo", outbox), run("verify", outbox), run("runs", outbox)):
        assert ran.code in {1, 2}, ran
        assert "expected" in ran.err
    assert before == (read_tree(tmp_path / "elsewhere") if before else {})
    assert not list(outbox.glob("CT/*/*/*7.1.1.dcm"))


@pytest.mark.parametrize("file", ["plan.jsonl", "summary.json", "journal.jsonl"])
def test_a_damaged_run_is_listed_with_the_reason_and_the_others_work(
    sorted_twice: tuple[Path, Path], file: str
) -> None:
    inbox, outbox = sorted_twice
    first, second = all_runs(str(outbox))
    folder = outbox / ".dicomsort" / "runs" / second
    (folder / file).write_text('{"format": 1, "verb": 5, "run_id": []}\n{"sealed": 0, "sha256": ""}\n{}\n')
    if file == "summary.json":
        (folder / file).write_text('{"run_id": []}')
    before = read_tree(folder)
    listed = {run["run_id"]: run for run in json.loads(run("runs", "--json", outbox).out)}
    assert (listed[first]["state"], listed[second]["state"]) == ("finished", "damaged")
    assert listed[second]["damage"].startswith(f"run {second}")
    assert "the run is left alone" in run("runs", outbox).out
    verified = run("verify", outbox)
    assert (verified.code, f"run {second}" in verified.out) == (3, True)
    for command in (("undo", outbox, second), ("resume", outbox, second), ("report", outbox, second)):
        ran = run(*command)
        assert ran.code in {0, 1}, ran
    assert run("runs", "--prune", 0, outbox).code == 0
    make_dicom(inbox / "3.dcm", study=3)
    ran = sort(inbox, outbox)
    assert ran.code == 0
    assert (f"run {second}" in ran.out) == (file != "journal.jsonl")  # a finished run's journal is read to undo it
    assert run("undo", outbox).code == 0
    assert read_tree(folder) == before


def test_a_summary_of_another_version_is_read(sorted_twice: tuple[Path, Path]) -> None:
    _, outbox = sorted_twice
    path = next((outbox / ".dicomsort/runs").glob("*/summary.json"))
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"causes": {"x": 1}}))
    assert {each["state"] for each in json.loads(run("runs", "--json", outbox).out)} == {"finished"}


def test_rows_have_the_columns_of_the_contract() -> None:
    row = Row("a", "CT/a", Action.MOVED, Status.SORTED, "CT")
    assert HEAD.split(b",")[:6] == [b"run_id", b"source", b"destination", b"action", b"status", b"class"]
    assert line_of(RUN, row).startswith(f"{RUN},a,CT/a,moved,sorted,CT,".encode())
