"""An undo makes pruned folders again, with mode and time, and leaves alone those that somebody else made since.

Where a folder is a mount of its own that is gone, nothing counts as taken back that lies there.
Nor is anything placed there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, run, sort
from crashing import Crash
from dask_cluster import mounted
from powercut import named
from reviewing import CONTRADICTING, decide, desk_of, item_of
from test_faults import Broken
from test_metadata import OWNER, as_root, supports
from test_operator import cut_short
from test_races import Meddled, fail
from watching import Watch, runs_of

from dicomsort.errors import DicomsortError
from dicomsort.files import Files
from dicomsort.sorting import later_runs, pipeline
from dicomsort.sorting import outbox as outbox_module

THEN = 1_000_000_000  # seconds


def look(folder: Path) -> tuple[int, float]:
    """Mode and time."""
    status = folder.stat()
    return stat.S_IMODE(status.st_mode), status.st_mtime


@pytest.fixture
def pruned(tmp_path: Path, outbox: Path) -> Path:
    """An inbox from which a move took all, the folders too."""
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "a/b/1.dcm")
    for name, mode in (("a/b", 0o710), ("a", 0o750)):
        (inbox / name).chmod(mode)
        os.utime(inbox / name, (THEN, THEN))
    assert sort("--move", "--settle", 0, "--prune-empty", inbox, outbox).code == 0
    assert not (inbox / "a").exists()
    return inbox


class Dying(Files):
    """The process ends before it sets the mode of a folder of that name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def set_mode(self, path: str | int, mode: int) -> None:
        if Path(f"/proc/self/fd/{path}").readlink().name == self._name:
            raise Crash
        super().set_mode(path, mode)


class Raced(Files):
    """Somebody makes a folder a moment before the undo does."""

    def make_folder(self, path: str, mode: int = 0o777) -> None:
        if path.endswith("/inbox/a"):
            Path(path).mkdir(0o700)
        super().make_folder(path, mode)


def test_a_folder_of_somebody_else_keeps_mode_and_time(pruned: Path, outbox: Path) -> None:
    (pruned / "a").mkdir(0o700)
    (pruned / "a/theirs").write_bytes(b"secret")
    (pruned / "a/b").mkdir(0o500 if os.geteuid() == 0 else 0o700)
    before = look(pruned / "a"), look(pruned / "a/b")[0]
    assert run("undo", outbox).code == 0
    assert (look(pruned / "a"), look(pruned / "a/b")[0]) == before
    assert set(read_tree(pruned)) == {"a/theirs", "a/b/1.dcm"}


def test_so_does_one_that_was_made_at_the_same_moment(pruned: Path, outbox: Path) -> None:
    with mock.patch("dicomsort.files.Files", Raced):
        assert run("undo", outbox).code == 0
    assert (look(pruned / "a")[0], look(pruned / "a/b")) == (0o700, (0o710, THEN))


@pytest.mark.parametrize("is_gone", [False, True])  # the file that lay there: then the folder alone comes back
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_folder_that_an_undo_had_made_when_it_died_is_finished(
    pruned: Path, outbox: Path, name: str, *, is_gone: bool
) -> None:
    if is_gone:
        (outbox / next(placed(outbox))).unlink()
    with mock.patch("dicomsort.files.Files", return_value=Dying(name)), pytest.raises(Crash):
        run("undo", outbox)
    assert look(pruned / "a")[0] != 0o750
    assert run("resume", outbox).code == (3 if is_gone else 0)
    assert (look(pruned / "a"), look(pruned / "a/b")) == ((0o750, THEN), (0o710, THEN))


class Swapping(Files):
    """Somebody puts a link in the place of a folder once a file has been put back there."""

    def __init__(self, folder: Path, victim: Path) -> None:
        super().__init__()
        self._folder, self._victim, self.behind = folder, victim, 0

    def link(self, source: str, target: str) -> None:
        super().link(source, target)
        self.behind += len(list(self._victim.iterdir()))
        if not named(target).startswith(f"{self._folder}/"):
            return
        if not self._folder.is_symlink():
            self._folder.rename(self._folder.with_name("away"))
            self._folder.symlink_to(self._victim)


def test_a_link_that_takes_a_folders_place_is_never_followed_and_gets_no_mode(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, victim = tmp_path / "inbox", tmp_path / "victim"
    victim.mkdir(0o700)
    for number in range(20):
        make_dicom(inbox / "s" / f"{number}.dcm", instance=number)
    (inbox / "s").chmod(0o777)
    assert sort("--move", "--prune-empty", "--settle", 0, inbox, outbox).code == 0
    monkeypatch.setattr("dicomsort.execute.executor.BATCH", 4)
    files = Swapping(inbox / "s", victim)
    with mock.patch("dicomsort.files.Files", return_value=files):
        assert run("undo", outbox).code == 3
    assert (files.behind, look(victim)[0]) == (0, 0o700)
    (inbox / "s").unlink()
    (inbox / "away").rename(inbox / "s")
    assert run("undo", outbox).code == 0
    assert (len(read_tree(inbox)), read_tree(victim)) == (20, {})


def test_no_folder_is_pruned_behind_a_link(tmp_path: Path, outbox: Path) -> None:
    inbox, victim = tmp_path / "inbox", tmp_path / "victim"
    make_dicom(inbox / "s/spool/1.dcm")
    (victim / "spool").mkdir(parents=True)

    class Dies(Files):
        def remove_folder(self, path: str) -> None:
            raise Crash

    with mock.patch("dicomsort.files.Files", Dies), pytest.raises(Crash):
        sort("--move", "--prune-empty", "--settle", 0, inbox, outbox)
    (inbox / "s").rename(tmp_path / "away")
    (inbox / "s").symlink_to(victim)
    assert run("resume", outbox).code == 0
    assert (victim / "spool").is_dir()


NOT_MOUNTED = "expected the file system that was mounted at {!r}, received none: mount it, then undo again"
NOT_THERE = "expected the file system that was mounted at {!r}, received an empty folder: mount it, or remove that"


def test_the_folder_of_a_class_that_is_not_mounted_keeps_its_copies_until_a_later_undo(
    tmp_path: Path, outbox: Path
) -> None:
    inbox, disk = tmp_path / "inbox", tmp_path / "a disk"
    for number in (1, 2):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    make_dicom(inbox / "mr.dcm", study=2, modality="MR")
    for folder in (disk, outbox / "CT"):
        folder.mkdir(parents=True)
    if not (view := mounted('mount --bind "$1" "$2"', disk, outbox / "CT")):
        pytest.skip("this user may not make mounts of its own (unshare --mount)")

    def there(*arguments: object) -> int:
        command = [*view, sys.executable, "-m", "dicomsort", *map(str, arguments)]
        return subprocess.run(command, check=False, capture_output=True, timeout=300).returncode

    assert there("sort", "--copy", "--evidence", "header", "--engine", "serial", inbox, outbox) == 0
    copies = read_tree(disk)
    assert len(copies) == 2
    first, refused = runs_of(outbox)[0], sort("--copy", inbox, outbox)
    assert (refused.code, NOT_THERE.format("outbox/CT") in refused.err) == (1, True), refused
    for ran in (run("undo", "--dry-run", outbox), run("undo", outbox), run("undo", outbox, first)):
        assert (ran.code, NOT_MOUNTED.format("outbox/CT") in ran.out + ran.err) == (3, True), ran
    assert (read_tree(disk), list(placed(outbox))) == (copies, [])
    assert by_source(outbox)["1.dcm"]["status"] == "failed"
    assert there("undo", outbox, first) == 0
    assert (read_tree(disk), len(read_tree(inbox))) == ({}, 3)
    assert "is undone already" in run("undo", outbox, first).out


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is mounted below inbox and outbox, as a test says."""
    there: list[str] = []
    for module in (later_runs, pipeline, outbox_module):
        monkeypatch.setattr(module, "mounts_below", lambda *_: [*there])
    return there


def test_nothing_goes_back_to_a_folder_of_the_inbox_that_is_not_mounted(
    tmp_path: Path, outbox: Path, mounts: list[str]
) -> None:
    inbox = tmp_path / "inbox"
    for number, path in enumerate(("disk/1.dcm", "2.dcm", "3.dcm")):
        make_dicom(inbox / path, study=number)
    shutil.copy2(inbox / "2.dcm", inbox / "disk/again.dcm")
    before = read_tree(inbox)
    mounts.append("inbox/disk")
    assert sort("--move", "--settle", 0, "--duplicates", "remove", inbox, outbox).code == 0
    mounts.clear()
    assert run("undo", outbox).code == 3
    assert [*read_tree(inbox)] == ["3.dcm"]
    for path in ("disk/1.dcm", "disk/again.dcm", "2.dcm"):  # that one is the kept copy of the one before
        assert by_source(outbox)[path]["message"] == NOT_MOUNTED.format("inbox/disk")
    mounts.append("inbox/disk")
    assert run("undo", outbox).code == 0
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])


def test_what_a_run_had_begun_where_nothing_is_mounted_now_waits_too(
    tmp_path: Path, outbox: Path, mounts: list[str]
) -> None:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    (outbox / "CT").mkdir(parents=True)
    mounts.append("outbox/CT")
    first = cut_short(tmp_path / "inbox", outbox)
    (outbox / "CT").rename(tmp_path / "disk")
    (outbox / "CT").mkdir()
    mounts.clear()
    assert run("undo", outbox, first).code == 3
    (outbox / "CT").rmdir()
    (tmp_path / "disk").rename(outbox / "CT")
    mounts.append("outbox/CT")
    assert run("undo", outbox, first).code == 0
    assert (list(placed(outbox)), [*read_tree(tmp_path / "inbox")]) == ([], ["1.dcm"])


def unmounted(folder: Path, mounts: list[str]) -> None:
    """Leave the empty folder that a file system was mounted on, and keep that one elsewhere."""
    folder.rename(folder.parent.parent / "disk")
    folder.mkdir()
    mounts.clear()


def again(folder: Path, mounts: list[str]) -> None:
    """Mount it again."""
    folder.rmdir()
    (folder.parent.parent / "disk").rename(folder)
    mounts.append("outbox/CT")


@pytest.mark.parametrize("is_back", [True, False])
def test_nothing_is_placed_while_the_folder_of_a_class_is_not_mounted(
    tmp_path: Path, outbox: Path, mounts: list[str], *, is_back: bool
) -> None:
    inbox, class_ = tmp_path / "inbox", outbox / "CT"
    make_dicom(inbox / "1.dcm")
    make_dicom(inbox / "odd.dcm", study=2, **CONTRADICTING)
    class_.mkdir(parents=True)
    mounts.append("outbox/CT")
    assert sort("--copy", inbox, outbox).code == 3
    unmounted(class_, mounts)
    make_dicom(inbox / "new.dcm", study=3)
    before, desk = read_tree(tmp_path), desk_of(outbox, learn=False)
    for options in ([], ["--dry-run"]):
        ran = sort("--copy", *options, inbox, outbox)
        assert (ran.code, NOT_THERE.format("outbox/CT") in ran.err) == (1, True), ran
    with pytest.raises(DicomsortError, match="received an empty folder"):
        Watch(inbox, outbox, mode="copy").round()
    with pytest.raises(DicomsortError, match="received an empty folder"):
        decide(desk, item_of(desk, "odd.dcm"), "CT", "anna")
    assert {k: v for k, v in read_tree(tmp_path).items() if k in before or "/CT/" in k} == before | {
        "outbox/.dicomsort/lock": read_tree(outbox)[".dicomsort/lock"]
    }
    assert run("undo", outbox).code == 3
    assert sort("--copy", inbox, outbox).code == 1
    if is_back:
        again(class_, mounts)
    else:
        class_.rmdir()
    assert sort("--copy", inbox, outbox).code == 3
    assert len(read_tree(class_)) == 2


def test_a_resume_waits_for_the_folder_of_a_class_to_be_mounted(
    tmp_path: Path, outbox: Path, mounts: list[str]
) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "1.dcm")
    (outbox / "CT").mkdir(parents=True)
    mounts.append("outbox/CT")
    cut_short(inbox, outbox)
    unmounted(outbox / "CT", mounts)
    ran = run("resume", outbox)
    assert (ran.code, NOT_THERE.format("outbox/CT") in ran.err) == (1, True), ran
    with pytest.raises(DicomsortError, match="received an empty folder"):
        Watch(inbox, outbox, mode="copy").round()
    assert read_tree(outbox / "CT") == {}
    again(outbox / "CT", mounts)
    assert run("resume", outbox).code == 0
    assert len([*placed(outbox)]) == 1


def test_the_resume_of_an_undo_waits_for_a_folder_of_the_inbox_to_be_mounted(
    tmp_path: Path, outbox: Path, mounts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "disk/1.dcm")
    mounts.append("inbox/disk")
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    with monkeypatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("link", 0, errno.EIO))
        assert run("undo", outbox).code == 1
    mounts.clear()
    ran = run("resume", outbox)
    assert (ran.code, NOT_THERE.format("inbox/disk") in ran.err) == (1, True), ran
    assert read_tree(inbox) == {}
    mounts.append("inbox/disk")
    assert run("resume", outbox).code == 0
    assert [*read_tree(inbox)] == ["disk/1.dcm"]


@as_root
@pytest.mark.parametrize("allowed", [True, False])
def test_folders_and_duplicates_that_were_removed_get_their_owner_back(
    tmp_path: Path, outbox: Path, *, allowed: bool
) -> None:
    inbox, pruned = tmp_path / "inbox", tmp_path / "inbox/anna"
    kept = make_dicom(inbox / "1.dcm")
    pruned.mkdir()
    twin, plain = (Path(shutil.copy2(kept, inbox / name)) for name in ("anna/twin.dcm", "z.dcm"))
    supports(twin, "user.note", b"gone")
    supports(kept, "user.note", b"of another file")
    for path, mode in ((pruned, 0o700), (twin, 0o640)):
        os.chown(path, *OWNER)
        path.chmod(mode)
    assert sort("--move", "--settle", 0, "--duplicates", "remove", "--prune-empty", inbox, outbox).code == 0
    assert not any(inbox.iterdir())
    with mock.patch(
        "dicomsort.files.Files", return_value=Files() if allowed else Meddled("set_owner", fail(errno.EPERM))
    ):
        assert run("undo", outbox).code == 0
    assert [(path.stat().st_uid, path.stat().st_gid) for path in (pruned, twin)] == [OWNER if allowed else (0, 0)] * 2
    assert [path.stat().st_mode & 0o777 for path in (pruned, twin)] == [0o700, 0o640]
    assert os.listxattr(twin) == []
    told = by_source(outbox)
    assert told["anna/twin.dcm"]["message"].endswith("not restored: extended attributes (1)")
    assert (told["z.dcm"]["message"], plain.stat().st_uid) == ("", 0)
