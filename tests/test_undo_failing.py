"""An undo of which one operation fails, whatever the error: all others are carried out, and row or error says so."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, rows, run, sort
from crashing import NoSyncfs, OtherDevice
from killing import run_unprivileged
from powercut import name_of, named
from test_faults import SORT, hand_over
from test_meanwhile import crash

from dicomsort.execute import folders
from dicomsort.files import Files

DISK = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]
FILE = [errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.EPERM]
VICTIM = "b/2.dcm"


def refusing(call: str, code: int, where: str, base: type[Files] = Files) -> Files:
    """A disk that refuses one kind of call wherever ``where`` is in what it is given (a descriptor: in its name)."""
    files = base()
    change = getattr(files, call)

    def refuse(*arguments: object) -> object:
        first, *others = arguments
        names = [name_of(first) if isinstance(first, int) else first, *others]
        if any(where in named(str(name)) for name in names):
            raise OSError(code, os.strerror(code))
        return change(*arguments)

    setattr(files, call, refuse)
    return files


def study(inbox: Path) -> None:
    for number, path in enumerate(("a/1.dcm", VICTIM, "b/c/3.dcm", "4.dcm")):
        make_dicom(inbox / path, study=number)


def undone_on(files: Files, outbox: Path, door: str = "undo") -> tuple[int, str]:
    with mock.patch("dicomsort.files.Files", return_value=files):
        ran = run(door, outbox)
    return ran.code, ran.err


def check_all_but(victims: set[str], inbox: Path, before: dict[str, bytes]) -> None:
    assert read_tree(inbox) == {path: content for path, content in before.items() if path not in victims}


@pytest.mark.parametrize("code", DISK + FILE)
@pytest.mark.parametrize("base", [Files, OtherDevice])
def test_a_name_that_cannot_be_made_costs_its_own_file(
    inbox_of_four: Path, outbox: Path, code: int, base: type[Files]
) -> None:
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, inbox_of_four, outbox).code == 0
    ended, message = undone_on(refusing("link", code, f"inbox/{VICTIM}", base), outbox)
    check_all_but({VICTIM} if code != errno.EPERM else set(), inbox_of_four, before)
    if code in DISK:
        assert ended == 1
        assert os.strerror(code) in message
        assert "resume" in message
        assert run("resume", outbox).code == 0
        assert read_tree(inbox_of_four) == before
        assert list(placed(outbox)) == []
    elif code == errno.EPERM:  # it is copied then
        assert ended == 0
    else:
        assert ended == 3
        row = by_source(outbox)[VICTIM]
        assert (row["status"], row["action"]) == ("failed", "left")
        assert os.strerror(code) in row["message"]
        assert run("undo", outbox).code == 0
        assert read_tree(inbox_of_four) == before


@pytest.fixture
def inbox_of_four(tmp_path: Path) -> Path:
    study(tmp_path / "inbox")
    return tmp_path / "inbox"


@pytest.mark.parametrize("code", [*DISK, errno.EACCES])
def test_a_folder_that_cannot_be_made_costs_its_own_files(inbox_of_four: Path, outbox: Path, code: int) -> None:
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, "--prune-empty", inbox_of_four, outbox).code == 0
    ended, message = undone_on(refusing("make_folder", code, "inbox/b"), outbox)
    assert ended == 1
    assert f"making folder 'inbox/b': expected success, received {os.strerror(code)}" in message
    check_all_but({VICTIM, "b/c/3.dcm"}, inbox_of_four, before)
    assert run("resume", outbox).code == 0
    assert read_tree(inbox_of_four) == before
    assert [path.name for path in outbox.iterdir() if path.name not in {".dicomsort", "manifest.csv"}] == []


def test_a_folder_of_too_long_a_name_is_no_fault_of_the_disk(inbox_of_four: Path, outbox: Path) -> None:
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, "--prune-empty", inbox_of_four, outbox).code == 0
    assert undone_on(refusing("make_folder", errno.ENAMETOOLONG, "inbox/b"), outbox)[0] == 3
    check_all_but({VICTIM, "b/c/3.dcm"}, inbox_of_four, before)
    assert "File name too long" in by_source(outbox)[VICTIM]["message"]


@pytest.mark.parametrize("mode", ["--copy", "--move"])
@pytest.mark.parametrize("code", [*FILE, errno.EEXIST])
def test_sort_fails_files_whose_folder_cannot_be_made_and_places_the_rest(
    inbox_of_four: Path, outbox: Path, mode: str, code: int
) -> None:
    before = read_tree(inbox_of_four)
    with mock.patch("dicomsort.files.Files", return_value=refusing("make_folder", code, "outbox/CT/b")):
        assert sort(mode, "--settle", 0, "--layout", "keep", inbox_of_four, outbox).code == 3
    found = by_source(outbox)
    assert {path: found[path]["status"] for path in before} == {
        "4.dcm": "sorted", "a/1.dcm": "sorted", "b/2.dcm": "failed", "b/c/3.dcm": "failed",
    }  # fmt: skip
    assert run("undo", outbox).code == 0
    assert read_tree(inbox_of_four) == before


@pytest.mark.parametrize("base", [Files, NoSyncfs])
def test_what_cannot_be_flushed_stays_on_both_sides_until_it_can(
    inbox_of_four: Path, outbox: Path, base: type[Files]
) -> None:
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, inbox_of_four, outbox).code == 0
    call, where = ("flush_system", "inbox") if base is Files else ("flush", VICTIM)
    ended, message = undone_on(refusing(call, errno.EIO, where, base), outbox)
    assert ended == 1
    assert "flushing to disk: expected success, received Input/output error" in message
    assert read_tree(inbox_of_four) == before
    assert len(list(placed(outbox))) == (4 if base is Files else 1)
    assert run("resume", outbox).code == 0
    assert (read_tree(inbox_of_four), list(placed(outbox))) == (before, [])


@pytest.mark.parametrize("code", DISK + FILE)
def test_a_file_that_cannot_leave_the_outbox_stays_there_alone(inbox_of_four: Path, outbox: Path, code: int) -> None:
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, "--layout", "keep", inbox_of_four, outbox).code == 0
    assert undone_on(refusing("unlink", code, f"outbox/CT/{VICTIM}"), outbox)[0] == 3
    check_all_but({VICTIM}, inbox_of_four, before)
    assert "the source cannot be removed" in by_source(outbox)[VICTIM]["message"]
    assert list(placed(outbox)) == [f"CT/{VICTIM}"]
    assert run("undo", outbox).code == 0
    assert read_tree(inbox_of_four) == before


def test_a_temporary_copy_that_cannot_be_removed_is_told_of_and_the_rest_is_undone(
    inbox_of_four: Path, outbox: Path
) -> None:
    before = read_tree(inbox_of_four)
    stuck = refusing("unlink", errno.EIO, "-1.part", OtherDevice)
    with mock.patch("dicomsort.files.Files", return_value=stuck):
        ran = sort("--move", "--settle", 0, inbox_of_four, outbox)
    assert ran.code == 1
    assert "removing the temporary copy of 'inbox/" in ran.err
    with mock.patch("dicomsort.files.Files", return_value=stuck):
        ran = run("undo", outbox)
    assert "removing the temporary copy of" in ran.out + ran.err
    assert read_tree(inbox_of_four) | before == {**read_tree(inbox_of_four), **before}
    assert {path: content for path, content in read_tree(inbox_of_four).items() if ".part" not in path} == before
    run("resume", outbox)
    assert read_tree(inbox_of_four) == before


@pytest.mark.parametrize("code", DISK)
def test_the_kept_copy_waits_for_the_duplicate_that_cannot_be_restored_yet(
    inbox_of_four: Path, outbox: Path, code: int
) -> None:
    shutil.copy2(inbox_of_four / "4.dcm", inbox_of_four / "zz.dcm")
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, "--duplicates", "remove", inbox_of_four, outbox).code == 0
    assert read_tree(inbox_of_four) == {}
    ended, _ = undone_on(refusing("link", code, "inbox/zz.dcm"), outbox)
    assert ended == 1
    check_all_but({"zz.dcm"}, inbox_of_four, before)
    assert undone_on(refusing("link", code, "inbox/zz.dcm"), outbox, "resume")[0] == 1
    assert run("resume", outbox).code == 0
    assert (read_tree(inbox_of_four), list(placed(outbox))) == (before, [])


@pytest.mark.parametrize("code", FILE)
def test_a_duplicate_is_restored_later_from_where_its_kept_copy_went(
    inbox_of_four: Path, outbox: Path, code: int
) -> None:
    for name in ("again", "zz"):
        shutil.copy2(inbox_of_four / "4.dcm", inbox_of_four / f"{name}.dcm")
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, "--duplicates", "remove", inbox_of_four, outbox).code == 0
    assert undone_on(refusing("create", code, ".part"), outbox)[0] == 3
    check_all_but({"again.dcm", "zz.dcm"}, inbox_of_four, before)
    (inbox_of_four / "4.dcm").rename(outbox / "4.dcm")
    assert run("undo", outbox).code == 3
    assert by_source(outbox)["zz.dcm"]["message"] == "the file is gone"
    (outbox / "4.dcm").rename(inbox_of_four / "4.dcm")
    assert run("undo", outbox).code == 0
    assert (read_tree(inbox_of_four), list(placed(outbox))) == (before, [])


LOOPS: list[Callable[[Path], object]] = [
    lambda folder: folder.symlink_to(folder.name),
    lambda folder: folder.write_text("a file where the folder was"),
]


@pytest.mark.parametrize("something", LOOPS, ids=["loop", "file"])
@pytest.mark.parametrize("mode", ["--copy", "--move", "--link"])
def test_a_folder_of_the_inbox_that_became_something_else(
    inbox_of_four: Path, outbox: Path, mode: str, something: Callable[[Path], object]
) -> None:
    before = read_tree(inbox_of_four)
    assert sort(mode, "--settle", 0, inbox_of_four, outbox).code == 0
    shutil.rmtree(inbox_of_four / "b")
    something(inbox_of_four / "b")
    assert run("undo", outbox).code == 3
    assert all((inbox_of_four / path).read_bytes() == before[path] for path in ("4.dcm", "a/1.dcm"))
    assert {by_source(outbox)[path]["status"] for path in (VICTIM, "b/c/3.dcm")} == {"failed"}
    assert len(list(placed(outbox))) == 2
    (inbox_of_four / "b").unlink()
    assert run("undo", outbox).code == 0
    assert (read_tree(inbox_of_four), list(placed(outbox))) == (before, [])


@pytest.fixture
def ours() -> Iterator[Path]:
    """A folder that an unprivileged user reaches; pytest's own are for one user only."""
    folder = Path(tempfile.mkdtemp(prefix="dicomsort-test-"))
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", ["--copy", "--move"])
@pytest.mark.parametrize("closed", ["inbox/b", "outbox/CT/b"])
def test_a_folder_that_is_closed_to_the_user(ours: Path, mode: str, closed: str) -> None:
    inbox, outbox = ours / "inbox", ours / "outbox"
    study(inbox)
    before = read_tree(inbox)
    hand_over(ours)
    assert run_unprivileged(*SORT, mode, "--layout", "keep", inbox, outbox).code == 0
    (ours / closed).chmod(0)
    assert run_unprivileged("undo", outbox).code == 3
    (ours / closed).chmod(0o700)
    assert {by_source(outbox)[path]["status"] for path in (VICTIM, "b/c/3.dcm")} == {"failed"}
    assert list(placed(outbox)) == ["CT/b/2.dcm", "CT/b/c/3.dcm"]
    assert run_unprivileged("undo", outbox).code == 0
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])


@pytest.mark.parametrize("door", ["sort", "undo"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_looked_at(
    inbox_of_four: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, door: str, code: int
) -> None:
    """Where rights are missing its files are failed; where the disk refuses, a sort ends, and an undo does the rest."""
    before = read_tree(inbox_of_four)
    real = folders.look_up

    def look(path: str) -> os.stat_result | None:
        if path.endswith("/b"):
            raise OSError(code, os.strerror(code))
        return real(path)

    if door == "undo":
        assert sort("--move", "--settle", 0, "--layout", "keep", inbox_of_four, outbox).code == 0
    monkeypatch.setattr(folders, "look_up", look)
    ran = run("undo", outbox) if door == "undo" else sort("--copy", "--layout", "keep", inbox_of_four, outbox)
    assert ran.code == (1 if code == errno.EIO else 3)
    assert os.strerror(code) in ran.err
    monkeypatch.setattr(folders, "look_up", real)
    if door == "undo":
        check_all_but({VICTIM, "b/c/3.dcm"}, inbox_of_four, before)
        assert run("resume" if code == errno.EIO else "undo", outbox).code == 0
        assert read_tree(inbox_of_four) == before
    elif code == errno.EIO:
        assert run("resume", outbox).code == 0
        assert len(list(placed(outbox))) == 4
    else:
        assert {by_source(outbox)[path]["status"] for path in (VICTIM, "b/c/3.dcm")} == {"failed"}


def test_a_folder_whose_device_cannot_be_told_costs_its_own_files(
    inbox_of_four: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_tree(inbox_of_four)
    assert sort("--move", "--settle", 0, "--layout", "keep", inbox_of_four, outbox).code == 0
    real = folders.Folders.device

    def device(self: folders.Folders, target: str) -> int:
        if target.endswith(VICTIM):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(folders.Folders, "device", device)
    assert run("undo", outbox).code == 1
    assert list(placed(outbox)) == [f"CT/{VICTIM}"]
    monkeypatch.setattr(folders.Folders, "device", real)
    assert run("resume", outbox).code == 0
    assert (read_tree(inbox_of_four), list(placed(outbox))) == (before, [])


@pytest.fixture
def half_undone(inbox_of_four: Path, outbox: Path) -> str:
    """The run of a sort whose undo the disk refused for one file."""
    assert sort("--move", "--settle", 0, inbox_of_four, outbox).code == 0
    assert undone_on(refusing("link", errno.ENOSPC, f"inbox/{VICTIM}"), outbox)[0] == 1
    return next(iter(by_source(outbox).values()))["run_id"]


@pytest.mark.usefixtures("half_undone")
def test_a_sort_finishes_the_undo_of_another_inbox_first(inbox_of_four: Path, outbox: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    kept = make_dicom(other / "kept.dcm", study=1).read_bytes()
    assert sort("--move", "--settle", 0, "--duplicates", "remove", other, outbox).code == 0
    assert (inbox_of_four / VICTIM).is_file()
    assert (read_tree(other), by_source(outbox)["kept.dcm"]["action"]) == ({}, "moved")
    assert run("undo", outbox).code == 0
    assert read_tree(other) == {"kept.dcm": kept}


def test_a_sort_closes_an_undo_that_cannot_be_finished(
    half_undone: str, inbox_of_four: Path, outbox: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    kept = make_dicom(other / "kept.dcm", study=1).read_bytes()
    with mock.patch("dicomsort.files.Files", return_value=refusing("link", errno.ENOSPC, f"inbox/{VICTIM}")):
        ran = sort("--move", "--settle", 0, "--duplicates", "remove", other, outbox)
    assert (ran.code, read_tree(other)) == (3, {})
    row = by_source(outbox)[VICTIM]
    assert (row["status"], row["action"]) == ("failed", "left")
    assert row["message"].startswith("not taken back before the undo was closed; `dicomsort undo ")
    assert "nothing to resume" in run("resume", outbox).out
    assert run("undo", outbox).code == 0
    assert read_tree(other) == {"kept.dcm": kept}
    assert run("undo", outbox, half_undone).code == 0
    assert (inbox_of_four / VICTIM).is_file()
    assert list(placed(outbox)) == []


def test_what_an_undo_leaves_of_a_run_that_was_cut_short_is_known(inbox_of_four: Path, outbox: Path) -> None:
    crash(inbox_of_four / "4.dcm", outbox, "--move", call="unlink")
    assert undone_on(refusing("link", errno.ENAMETOOLONG, f"inbox/{VICTIM}"), outbox)[0] == 3
    (left,) = placed(outbox)
    assert [row["action"] for row in rows(outbox) if row["source"] == VICTIM] == ["moved", "left"]
    assert run("verify", outbox).out.startswith("1 file holds the bytes")
    (outbox / left).write_bytes(b"damaged")
    assert f"different: {left}" in run("verify", outbox).out
