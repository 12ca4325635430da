"""What a disk, a clock, another process or missing rights can do: each has its row, its message, its exit code."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from building import gradient, make_dicom, make_files, read_tree
from command import by_source, placed, rows, run, sort
from crashing import NoLinks, OtherDevice, Unwritten
from killing import run_unprivileged
from powercut import named
from unprivileged import NOBODY

from dicomsort.files import Files
from dicomsort.sorting.outbox import INODES

SORT = ("sort", "--evidence", "header", "--engine", "serial", "--settle", "0")


class Broken(Files):
    """Its n-th call of one kind fails with an error of the disk."""

    def __init__(self, call: str, at: int, code: int) -> None:
        super().__init__()
        self.calls = 0
        change = getattr(super(), call)

        def fail(*arguments: object) -> object:
            self.calls += 1
            if self.calls - 1 == at:
                raise OSError(code, os.strerror(code))
            return change(*arguments)

        setattr(self, call, fail)


@pytest.fixture
def ours() -> Iterator[Path]:
    """A folder that an unprivileged user reaches and owns; pytest's own are for one user only."""
    folder = Path(tempfile.mkdtemp(prefix="dicomsort-test-"))
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(folder)


def hand_over(folder: Path) -> None:
    """Make it somebody's who is not root, where we are."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def study(inbox: Path) -> None:
    make_dicom(inbox / "a" / "1.dcm", study=1)
    make_dicom(inbox / "b" / "2.dcm", study=2, modality="MR")
    make_dicom(inbox / "3.dcm", study=3, modality="CR")


def broken_run(inbox: Path, outbox: Path, files: Files, mode: str) -> tuple[int, str]:
    """``sort`` on a disk that breaks: its exit code and message."""
    with mock.patch("dicomsort.files.Files", return_value=files):
        ran = sort(mode, "--settle", 0, inbox, outbox)
    return ran.code, ran.err


@pytest.mark.parametrize("mode", ["--copy", "--move"])
@pytest.mark.parametrize(("call", "code"), [("write", errno.ENOSPC), ("flush", errno.EIO), ("create", errno.EDQUOT)])
def test_a_disk_that_fails_at_any_call_ends_the_run_with_1_and_it_can_be_resumed(
    tmp_path: Path, mode: str, call: str, code: int
) -> None:
    for at in range(200):
        inbox, outbox = tmp_path / str(at) / "inbox", tmp_path / str(at) / "outbox"
        study(inbox)
        before = read_tree(inbox)
        broken = Broken(call, at, code)
        ended, message = broken_run(inbox, outbox, broken, mode)
        if broken.calls <= at:
            assert (ended, message) == (0, "")
            assert at >= 4
            return
        if call == "create" and len([*(outbox / ".dicomsort").glob("reserve-*")]) == INODES - 1:
            assert (ended, message) == (0, "")  # what is kept for an undo is not needed
            continue
        assert ended == 1, message
        assert os.strerror(code) in message
        assert len(message.splitlines()) == 1
        inside = {*read_tree(inbox).values(), *(b for path, b in read_tree(outbox).items() if path.endswith(".dcm"))}
        assert set(before.values()) <= inside
        ran = run("resume", outbox)
        if ran.code:
            assert "sealed" in ran.err or "expected one of the runs" in ran.err
            assert sort(mode, "--settle", 0, inbox, outbox).code == 0
        assert len(list(placed(outbox))) == 3
        assert read_tree(inbox) == ({} if mode == "--move" else before)
    pytest.fail("200 calls were not enough")


@pytest.mark.parametrize("door", ["resume", "sort", "undo"])
@pytest.mark.parametrize(("mode", "base"), [("--copy", Files), ("--move", OtherDevice), ("--move", NoLinks)])
def test_copies_whose_flush_failed_are_made_again(
    tmp_path: Path, outbox: Path, mode: str, base: type[Files], door: str
) -> None:
    """The system says once that it could not write them, and then finds them whole in its memory."""
    study(inbox := tmp_path / "inbox")
    before = read_tree(inbox)
    if door == "undo" and mode == "--move":
        with mock.patch("dicomsort.files.Files", return_value=base()):
            assert sort(mode, "--settle", 0, inbox, outbox).code == 0
    files = Unwritten(base)
    with mock.patch("dicomsort.files.Files", return_value=files):
        ran = run("undo", outbox) if outbox.exists() else sort(mode, "--settle", 0, inbox, outbox)
        assert (ran.code, "flushing to disk" in ran.err) == (1, True)
        assert files.lost
        enter = {"sort": lambda: sort(mode, "--settle", 0, inbox, outbox), "resume": lambda: run("resume", outbox)}
        if door == "undo" and mode == "--copy":
            assert run("undo", outbox).code == 0
        else:
            assert enter.get(door, enter["resume"])().code == 0
    there = [*([] if door == "undo" else map(outbox.joinpath, placed(outbox))), *inbox.rglob("*.dcm")]
    assert {path.read_bytes() for path in there} == {*before.values()}
    assert not {path.stat().st_ino for path in there} & files.lost


def test_a_full_file_system_ends_the_run_and_room_lets_it_go_on(tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    study(inbox)
    make_dicom(inbox / "big.dcm", study=4, pixels=gradient(700, 500))
    outbox.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", outbox]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system may not be mounted here; every call fails in the test above")
    try:
        before = read_tree(inbox)
        roomy = shutil.disk_usage(outbox)._replace(free=1 << 30)  # as if others filled it only later
        with mock.patch("dicomsort.sorting.outbox.shutil.disk_usage", return_value=roomy):
            ran = sort("--move", "--settle", 0, inbox, outbox)
        assert ran.code == 1
        assert "No space left on device" in ran.err
        assert "inbox/big.dcm" in ran.err
        assert set(before.values()) <= {*read_tree(inbox).values(), *read_tree(outbox).values()}
        subprocess.run(["mount", "-o", "remount,size=4m", outbox], check=True)
        assert run("resume", outbox).code == 0
        assert (read_tree(inbox), len(list(placed(outbox)))) == ({}, 4)
        assert run("undo", outbox).code == 0
        assert read_tree(inbox) == before
    finally:
        subprocess.run(["umount", outbox], check=True)


def test_a_file_that_cannot_be_read_is_failed_and_the_rest_is_sorted(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(inbox := tmp_path / "inbox")
    bad = (inbox / "3.dcm").stat().st_ino
    for name in ("pread", "preadv"):
        read = getattr(os, name)

        def broken(descriptor: int, *arguments: object, read: Callable[..., object] = read) -> object:
            if os.fstat(descriptor).st_ino == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(descriptor, *arguments)

        monkeypatch.setattr(os, name, broken)
    assert sort("--move", "--settle", 0, inbox, outbox).code == 3
    row = by_source(outbox)["3.dcm"]
    assert (row["status"], row["action"], row["sha256"]) == ("failed", "left", "")
    assert "Input/output error" in row["message"]
    assert list(read_tree(inbox)) == ["3.dcm"]


def test_an_unprivileged_user_meets_files_and_folders_that_are_closed_to_him(ours: Path) -> None:
    inbox, outbox = ours / "inbox", ours / "outbox"
    study(inbox)
    make_dicom(inbox / "closed" / "4.dcm", study=4)
    make_dicom(inbox / "sticky" / "5.dcm", study=5)
    before = read_tree(inbox)
    hand_over(ours)
    (inbox / "3.dcm").chmod(0)
    (inbox / "closed").chmod(0)
    (inbox / "sticky").chmod(0o555)
    ran = run_unprivileged(*SORT, "--move", inbox, outbox)
    assert ran.code == 3, ran.err
    found = by_source(outbox)
    assert found["3.dcm"]["status"] == found["closed/"]["status"] == found["sticky/5.dcm"]["status"] == "failed"
    assert found["3.dcm"]["message"] == found["closed/"]["message"] == "Permission denied"
    assert found["sticky/5.dcm"]["message"] == "its folder may not be changed, so the file cannot leave it"
    assert (found["a/1.dcm"]["status"], found["b/2.dcm"]["status"]) == ("sorted", "sorted")
    assert run_unprivileged("undo", outbox).code == 0
    (inbox / "closed").chmod(0o700)
    assert read_tree(inbox) == before


def test_a_folder_of_the_inbox_that_is_closed_after_a_crash_does_not_block_the_run(ours: Path) -> None:
    inbox, outbox = ours / "inbox", ours / "outbox"
    study(inbox)
    before = read_tree(inbox)
    with mock.patch.object(Files, "unlink", side_effect=KeyboardInterrupt):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 130
    hand_over(ours)
    (inbox / "a").chmod(0)
    ran = run_unprivileged("resume", outbox)
    assert ran.code == 0, ran.err
    message = "the source cannot be looked at: Permission denied; it may still be there, as its new name is"
    row = by_source(outbox)["a/1.dcm"]
    assert (row["status"], row["message"]) == ("sorted", message)
    assert run_unprivileged("verify", outbox).code == 0
    (inbox / "a").chmod(0o700)
    assert run_unprivileged("undo", outbox).code == 0
    assert read_tree(inbox) == before


@pytest.mark.parametrize(("code", "ends", "message"), [(errno.EACCES, 0, ""), (errno.EIO, 1, "expected to look at it")])
def test_a_source_that_cannot_be_looked_at_after_a_crash(
    tmp_path: Path, outbox: Path, code: int, ends: int, message: str
) -> None:
    inbox = tmp_path / "inbox"
    study(inbox)
    before = read_tree(inbox)
    with mock.patch.object(Files, "unlink", side_effect=KeyboardInterrupt):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 130
    lstat = os.lstat

    def refused(path: str | Path, **more: int) -> os.stat_result:
        if named(str(path)) == f"{inbox}/a/1.dcm":
            raise OSError(code, os.strerror(code))
        return lstat(path, **more)

    with mock.patch.object(os, "lstat", refused):
        ran = run("resume", outbox)
    assert (ran.code, message in ran.err) == (ends, True)
    assert [run("resume", outbox).code, run("verify", outbox).code, run("undo", outbox).code] == [0, 0, 0]
    assert read_tree(inbox) == before


@pytest.mark.parametrize("closed", ["outbox", "outbox/.dicomsort"])
def test_an_outbox_that_may_not_be_written_is_named_and_nothing_moves(ours: Path, closed: str) -> None:
    inbox, outbox = ours / "inbox", ours / "outbox"
    study(inbox)
    before = read_tree(inbox)
    (ours / closed).mkdir(parents=True)
    hand_over(ours)
    (ours / closed).chmod(0o555)
    ran = run_unprivileged(*SORT, "--move", inbox, outbox)
    assert ran.code == 1
    assert "Permission denied" in ran.err
    assert "Traceback" not in ran.err
    assert read_tree(inbox) == before


def test_a_folder_of_the_outbox_that_may_not_be_written_costs_its_own_files(ours: Path) -> None:
    inbox, outbox = ours / "inbox", ours / "outbox"
    study(inbox)
    before = read_tree(inbox)
    (outbox / "CT").mkdir(parents=True)
    hand_over(ours)
    (outbox / "CT").chmod(0o555)
    ran = run_unprivileged(*SORT, "--move", inbox, outbox)
    assert ran.code == 3
    assert "Permission denied" in ran.err
    assert read_tree(inbox).keys() == {"a/1.dcm"}
    (outbox / "CT").chmod(0o755)
    assert run_unprivileged(*SORT, "--move", inbox, outbox).code == 0
    assert read_tree(inbox) == {}
    for _ in range(2):
        assert run_unprivileged("undo", outbox).code == 0
    assert read_tree(inbox) == before


class Meanwhile(Files):
    """Somebody does something after the plan was sealed and before the first file is placed."""

    def __init__(self, something: Callable[[], object]) -> None:
        super().__init__()
        self._something = something

    def open_append(self, path: str, mode: int = 0o666) -> int:
        if path.endswith("journal.jsonl"):
            self._something()
        return super().open_append(path, mode)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("mode", ["--copy", "--move", "--link"])
@pytest.mark.parametrize(
    ("what", "message"),
    [("goes", "the file is gone"), ("grows", "changed after it was judged"), ("is swapped", "changed after it was")],
)
def test_a_source_that_changes_after_it_was_judged(
    tmp_path: Path, outbox: Path, mode: str, what: str, message: str
) -> None:
    study(inbox := tmp_path / "inbox")
    victim = inbox / "3.dcm"
    something = {
        "goes": victim.unlink,
        "grows": lambda: append(victim),
        "is swapped": lambda: shutil.copy2(inbox / "a" / "1.dcm", victim.with_suffix(".new")).rename(victim),
    }
    ended, _ = broken_run(inbox, outbox, Meanwhile(something[what]), mode)
    assert ended == 3
    row = by_source(outbox)["3.dcm"]
    assert (row["status"], row["reason"], row["action"], row["destination"]) == ("changed", "changed", "left", "")
    assert message in row["message"]
    assert victim.exists() == (what != "goes")
    assert len(list(placed(outbox))) == 2
    assert sort(mode, "--settle", 0, inbox, outbox).code == 0


@pytest.mark.parametrize("mode", ["--copy", "--move", "--link"])
def test_a_target_that_appears_in_between_is_a_conflict(tmp_path: Path, outbox: Path, mode: str) -> None:
    study(inbox := tmp_path / "inbox")
    before = read_tree(inbox)
    sort("--layout", "keep", inbox, tmp_path / "elsewhere")
    something = lambda: make_files(outbox, {"XRAY/3.dcm": "somebody's"})
    with mock.patch("dicomsort.files.Files", return_value=Meanwhile(something)):
        ran = sort(mode, "--settle", 0, "--layout", "keep", inbox, outbox)
    assert ran.code == 3
    row = by_source(outbox)["3.dcm"]
    assert (row["status"], row["action"], row["destination"]) == ("conflict", "left", "")
    assert row["message"] == "another file stands at the destination; both were kept"
    assert (outbox / "XRAY" / "3.dcm").read_text() == "somebody's"
    assert (inbox / "3.dcm").read_bytes() == before["3.dcm"]


def test_a_file_that_grows_is_left_until_it_rests(tmp_path: Path, outbox: Path) -> None:
    study(inbox := tmp_path / "inbox")
    for path in inbox.rglob("*.dcm"):
        os.utime(path, (1, 1))
    append(inbox / "3.dcm")
    assert sort("--move", "--settle", 30, inbox, outbox).code == 0
    assert by_source(outbox)["3.dcm"]["status"] == "settling"
    assert list(read_tree(inbox)) == ["3.dcm"]
    os.utime(inbox / "3.dcm", (time.time() - 31,) * 2)
    assert sort("--move", "--settle", 30, inbox, outbox).code == 0
    assert by_source(outbox)["3.dcm"]["status"] == "sorted"


def test_a_clock_that_goes_backwards(tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs keep their order, undo takes the newest, and a file from the future waits until told otherwise."""
    study(inbox := tmp_path / "inbox")
    sort(inbox, outbox)
    make_dicom(inbox / "4.dcm", study=4)
    real = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda seconds=None: real((seconds or time.time()) - 86_400))
    sort(inbox, outbox)
    first, second = dict.fromkeys(row["run_id"] for row in rows(outbox))
    assert second > first
    assert run("undo", outbox).code == 0
    assert len(list(placed(outbox))) == 3
    monkeypatch.undo()
    os.utime(inbox / "4.dcm", (time.time() + 86_400,) * 2)
    assert "--settle 0" in sort("--move", inbox, outbox).out
    assert by_source(outbox)["4.dcm"]["status"] == "settling"
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    assert not (inbox / "4.dcm").exists()
