"""Sending again: what is skipped is what was acknowledged itself, not what lies where that lay."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from building import make_dicom, uid
from peers_send import Scp, free_port
from sending_tools import rows, send, statuses

from dicomsort.pacs import send as send_module
from dicomsort.pacs.send.acknowledged import MOST_FILES

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

FILES = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        put(tmp_path / "in" / f"{number}.dcm", number)
    return tmp_path / "in"


def put(path: Path, number: int) -> Path:
    """An instance in the place of another: name, size and mtime are the same for all."""
    make_dicom(path, instance=number, has_pixels=False)
    os.utime(path, (10**9, 10**9))
    return path


def forget_files(journal: Path) -> None:
    """Let a journal be as earlier versions wrote it."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if not line.startswith(b'["file"')))


def files_in(journal: Path) -> int:
    return journal.read_bytes().count(b'["file"')


@pytest.mark.parametrize("is_earlier", [False, True], ids=["", "journal of an earlier version"])
@pytest.mark.parametrize("is_renamed", [False, True], ids=["in place", "renamed"])
def test_another_instance_in_the_place_of_one_that_was_sent(
    folder: Path, tmp_path: Path, *, is_renamed: bool, is_earlier: bool
) -> None:
    journal = tmp_path / "journal"
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to, "--journal", journal).code == 0
        before = (folder / "0.dcm").stat()
        if is_renamed:
            put(tmp_path / "new", 7).rename(folder / "0.dcm")
        else:
            put(folder / "0.dcm", 7)
        after = (folder / "0.dcm").stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if is_earlier:
            forget_files(journal)
        ran = send(folder, "--to", scp.to, "--journal", journal)
        assert statuses(ran) == Counter(acknowledged=1, skipped=FILES - 1), ran.err
        assert uid(1, 1, 7) in scp.kept
        put(folder / "0.dcm", 0)  # it was sent, and other bytes lay here since
        assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(skipped=FILES)
    assert scp.came.total() == FILES + 1


def test_a_corrected_instance_in_the_place_of_the_wrong_one_is_sent(tmp_path: Path) -> None:
    journal, path = tmp_path / "journal", tmp_path / "in/0.dcm"
    with Scp().running() as scp:
        for name in ("WRONG", "RIGHT", "WRONG"):  # the last time, the correction was one by mistake
            path.unlink(missing_ok=True)
            make_dicom(path, PatientName=name)
            os.utime(path, (10**9, 10**9))
            ran = send(path.parent, "--to", scp.to, "--journal", journal)
            assert statuses(ran) == Counter(acknowledged=1), ran.err
        assert statuses(send(path.parent, "--to", scp.to, "--journal", journal)) == Counter(skipped=1)
        path.unlink()
        for name, is_new in (("RIGHT", True), ("WRONG", True), ("RIGHT", False)):
            place = make_dicom(path.with_name(f"{name}.dcm"), PatientName=name)
            ran = send(path.parent, "--to", scp.to, "--journal", journal)
            assert statuses(ran)["acknowledged"] == is_new, ran.err
        assert place.is_file()
    assert scp.came.total() == 5


def test_what_did_not_change_is_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal"
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to, "--journal", journal).code == 0
        forget_files(journal)
        assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(skipped=FILES)  # reads headers
        assert files_in(journal) == FILES
        read: list[object] = []
        monkeypatch.setattr(send_module, "examine", lambda *arguments: read.append(arguments))
        assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(skipped=FILES)
    assert read == []


def test_files_that_get_new_times_or_inodes_again_and_again_do_not_make_the_journal_grow_for_ever(
    folder: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to, "--journal", journal).code == 0
        for times in range(MOST_FILES + 3):
            for path in folder.iterdir():
                path.chmod(0o600 + times % 2)
            assert statuses(send(folder, "--to", scp.to, "--journal", journal)) == Counter(skipped=FILES)
    assert files_in(journal) <= MOST_FILES * FILES
    assert scp.came.total() == FILES


def test_what_was_acknowledged_is_skipped_also_where_nobody_is_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, to = tmp_path / "journal", f"SCP@127.0.0.1:{free_port()}"
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to, "--journal", journal).code == 0
    journal.write_bytes(journal.read_bytes().replace(scp.to.encode(), to.encode()))
    forget_files(journal)
    monkeypatch.setattr(send_module, "WINDOW", 1)
    put(folder / "!.dcm", 8)
    ran = send(folder, "--to", to, "--journal", journal, "--retries", 0)
    assert {row["path"]: row["status"] for row in rows(ran)} == {
        "!.dcm": "failed", **{f"{number}.dcm": "skipped" for number in range(FILES)},
    }  # fmt: skip
