"""Sending what an outbox holds: a class folder, a run, the whole; and what of it is held for a person."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree
from command import run, sort
from crashing import Crash, CrashingFiles
from peers_send import Scp
from sending_tools import rows, send, statuses

from dicomsort.files import Files

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")


@pytest.fixture
def sorted_twice(inbox: Path, outbox: Path) -> tuple[str, str]:
    """An outbox with two runs: five files, then a further CT and a file that is held."""
    sort("--quiet", inbox, outbox)
    make_dicom(inbox / "later" / "3.dcm", study=1, instance=3)
    make_dicom(inbox / "later" / "odd.dcm", study=9, modality="OT")
    assert sort("--quiet", inbox, outbox).code == 3
    first, second = [each["run_id"] for each in json.loads(run("runs", outbox, "--json").out)]
    return first, second


def test_a_class_folder_and_its_journal(sorted_twice: tuple[str, str], outbox: Path) -> None:
    before = read_tree(outbox)
    with Scp().running() as scp:
        ran = send(outbox / "CT", "--to", scp.to)
        assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=3)), ran.err
        assert statuses(send(outbox / "CT", "--to", scp.to)) == Counter(skipped=3)
    assert {row["path"] for row in rows(ran)} == {path for path in before if path.startswith("CT/")}
    (journal,) = set(read_tree(outbox)) - set(before)
    assert journal.startswith(f".dicomsort/sent/SCP@127.0.0.1_{scp.port}-")
    assert journal.endswith(".jsonl")
    assert (outbox / journal).stat().st_mode & 0o777 == 0o600
    assert (outbox / journal).parent.stat().st_mode & 0o777 == 0o700
    assert {path: content for path, content in read_tree(outbox).items() if path != journal} == before


def test_the_whole_outbox_but_not_what_is_held(sorted_twice: tuple[str, str], outbox: Path) -> None:
    with Scp().running() as scp:
        ran = send(outbox, "--to", scp.to)
        assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=6)), ran.err
        assert statuses(send(outbox / "REVIEW", "--to", scp.to)) == Counter(acknowledged=1)
        assert statuses(send(outbox / "OTHER", "--to", scp.to)) == Counter(skipped=1)


def test_only_what_a_run_placed(sorted_twice: tuple[str, str], outbox: Path) -> None:
    first, second = sorted_twice
    with Scp().running() as scp:
        ran = send(outbox, "--to", scp.to, "--run", second)
        assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=1)), ran.err
        assert rows(ran)[0]["path"].startswith("CT/")
        ran = send(outbox / "CT", "--to", scp.to, "--run", first)
        assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=2)), ran.err
        assert statuses(send(outbox, "--to", scp.to, "--run", first)) == Counter(acknowledged=3, skipped=2)


def test_a_run_that_was_pruned_is_told_by_the_manifest(sorted_twice: tuple[str, str], outbox: Path) -> None:
    first, _ = sorted_twice
    shutil.rmtree(outbox / ".dicomsort" / "runs" / first)
    with Scp().running() as scp:
        assert statuses(send(outbox, "--to", scp.to, "--run", first)) == Counter(acknowledged=5)


@pytest.mark.parametrize("whose", ["its own", "the outbox's"])
@pytest.mark.parametrize("damage", ["damaged", "lost"])
def test_a_run_whose_rows_are_not_all_there_is_refused(
    sorted_twice: tuple[str, str], outbox: Path, damage: str, whose: str
) -> None:
    first, _ = sorted_twice
    own = outbox / ".dicomsort" / "runs" / first / "manifest.csv"
    manifest = own if whose == "its own" else outbox / "manifest.csv"
    if whose == "the outbox's":
        own.unlink()
    lines = manifest.read_bytes().splitlines(keepends=True)
    lines[2:3] = [b"damaged\n"] if damage == "damaged" else []
    manifest.write_bytes(b"".join(lines))
    ran = send(outbox, "--to", "SCP@127.0.0.1:1", "--run", first)
    assert (ran.code, ran.out.splitlines()[1:]) == (1, [])
    assert f"run {first}, manifest.csv: expected 6 rows that can be read, received 5" in ran.err
    assert not (outbox / ".dicomsort" / "sent").exists()


def test_a_pruned_run_is_refused_where_the_manifest_is_damaged(sorted_twice: tuple[str, str], outbox: Path) -> None:
    first, _ = sorted_twice
    shutil.rmtree(outbox / ".dicomsort" / "runs" / first)
    manifest = outbox / "manifest.csv"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join([*lines[:2], b"damaged\n", *lines[3:]]))
    ran = send(outbox, "--to", "SCP@127.0.0.1:1", "--run", first)
    assert (ran.code, f"run {first}, manifest.csv: expected rows that can be read" in ran.err) == (1, True)


@pytest.mark.parametrize("name", ["20200101T000000Z-abcdef", "../../elsewhere", ".."])
def test_a_run_that_never_was(sorted_twice: tuple[str, str], outbox: Path, name: str) -> None:
    ran = send(outbox, "--to", "SCP@127.0.0.1:1", "--run", name)
    assert (ran.code, ran.out.splitlines()[1:]) == (2, [])
    assert "--run: expected one of the runs" in ran.err
    assert not (outbox / ".dicomsort" / "sent").exists()


def test_a_run_of_no_outbox(tmp_path: Path) -> None:
    ran = send(tmp_path, "--to", "SCP@127.0.0.1:1", "--run", "20200101T000000Z-abcdef")
    assert ran.code == 2
    assert "expected a folder of an outbox" in ran.err


def test_a_run_that_was_cut_short(inbox: Path, outbox: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: CrashingFiles(40))
        with pytest.raises(Crash):
            sort("--quiet", inbox, outbox)
    (name,) = [each["run_id"] for each in json.loads(run("runs", outbox, "--json").out)]
    ran = send(outbox, "--to", "SCP@127.0.0.1:1", "--run", name)
    assert ran.code == 2
    assert "`dicomsort resume` finishes it" in ran.err


def test_a_run_that_was_undone(sorted_twice: tuple[str, str], outbox: Path) -> None:
    _, second = sorted_twice
    assert run("undo", "--quiet", outbox, second).code == 0
    with Scp().running() as scp:
        ran = send(outbox, "--to", scp.to, "--run", second)
    assert (ran.code, scp.came.total()) == (3, 0)
    assert {row["message"] for row in rows(ran)} == {"gone from the outbox since the run placed it"}


def test_names_that_are_no_utf_8_and_names_that_drive_terminals(tmp_path: Path) -> None:
    root = tmp_path / "in"
    make_dicom(root / "a.dcm", instance=1).rename(root / b"caf\xe9\x1b[31m.dcm".decode("utf-8", "surrogateescape"))
    make_files(root, {"=cmd().txt": "x"})
    with Scp().running() as scp:
        ran = send(root, "--to", scp.to)
        assert [row["path"] for row in rows(ran)] == ["'=cmd().txt", "caf\\xe9\\x1b[31m.dcm"]
        ran = send(root, "--to", scp.to, "--json")
    assert [json.loads(line)["status"] for line in ran.out.splitlines()] == ["ignored", "skipped"]


def test_a_crash_at_any_change_of_the_journal_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(3):
        make_dicom(folder / f"{number}.dcm", instance=number)
    with Scp().running() as scp:
        at, acknowledged = 0, Counter[str]()
        while True:
            shutil.rmtree(folder / ".dicomsort-sent", ignore_errors=True)
            scp.came.clear()
            if not _dies(at, folder, scp.to):
                break
            before = scp.came.total()
            assert send(folder, "--to", scp.to).code == 0
            assert len(scp.came) == 3
            assert scp.came.total() - 3 <= 1, f"dying at change {at} sent {scp.came.total()} for 3"
            acknowledged[str(before)] += 1
            at += 1
    assert at > 5
    assert set(acknowledged) == {"0", "1", "2", "3"}


def _dies(at: int, folder: Path, to: str) -> bool:
    """Send with files that die at the change of that number, the write there torn; whether they died."""
    files: list[CrashingFiles] = []

    def crashing() -> Files:
        files.append(CrashingFiles(at, torn=20))
        return files[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", crashing)
        try:
            send(folder, "--to", to)
        except Crash:
            return True
    return files[-1].dead
