"""Undo where no file more can be made, though the disk has bytes: it keeps inodes, and says that they are missing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import run, sort
from matrix import check_undone, facts, start, world
from test_full_disk import check_as_before, enter, studies

from dicomsort.errors import counted
from dicomsort.files import Files
from dicomsort.records import Verb


class NoInodes(Files):
    """A disk that lets so many files and folders more be made; what is removed lets others be made."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def _take(self) -> None:
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1

    def make_folder(self, path: str, mode: int = 0o777) -> None:
        self._take()
        super().make_folder(path, mode)

    def create(self, path: str, mode: int = 0o600) -> int:
        if not os.path.lexists(path):
            self._take()
        return super().create(path, mode)

    def open_append(self, path: str, mode: int = 0o666) -> int:
        if not os.path.lexists(path):
            self._take()
        return super().open_append(path, mode)

    def unlink(self, path: str) -> None:
        status = os.lstat(path)
        super().unlink(path)
        self.left += status.st_nlink == 1

    def remove_folder(self, path: str) -> None:
        super().remove_folder(path)
        self.left += 1


@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_a_run_is_undone_where_no_file_more_can_be_made(tmp_path: Path, verb: Verb) -> None:
    inbox, outbox = world(tmp_path)
    before = facts(inbox)
    start(Files(), inbox, outbox, verb)
    assert enter("undo", inbox, outbox, NoInodes(0)) == ""
    check_undone(inbox, outbox, before)


@pytest.mark.parametrize("left", range(4))
def test_an_undo_that_cannot_make_its_files_leaves_none_behind(
    tmp_path: Path, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, outbox = world(tmp_path)
    before = facts(inbox)
    start(Files(), inbox, outbox, Verb.COPY)
    for each in (outbox / ".dicomsort").glob("reserve*"):
        each.unlink()  # an earlier version kept fewer
    lacking, full = NoInodes(left), {"f_files": 120, "f_bavail": 1 << 20, "f_frsize": 4096}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**full, f_favail=lacking.left))
    message = enter("undo", inbox, outbox, lacking)
    assert (
        f"{counted(lacking.left, 'file')} more (inodes) can be made below '{outbox}': remove some files there, then"
        in message
    )
    if "dicomsort undo" in message:
        assert lacking.left == left
        assert len([*(outbox / ".dicomsort" / "runs").iterdir()]) == 1
    assert enter("resume" if "dicomsort resume" in message else "undo", inbox, outbox, Files()) == ""
    check_undone(inbox, outbox, before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB that holds few files."""
    (folder := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=100", "tmpfs", folder]
    if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here; a double stands for it in the tests above")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_disk_without_inodes_is_told_of_as_such_and_a_run_on_it_is_undone(disk: Path, *, reserves: bool) -> None:
    inbox, outbox = disk / "inbox", disk / "outbox"
    before = studies(inbox, 5)
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    if not reserves:  # as after a run of an earlier version
        for each in (outbox / ".dicomsort").glob("reserve*"):
            each.unlink()
    made = list(every_file_that_can_be_made(disk))
    for _ in range(0 if reserves else 3):
        ran = run("undo", outbox)
        assert ran.code == 1
        assert f"0 files more (inodes) can be made below '{outbox}': remove some files there, then `" in ran.err
        assert len([*(outbox / ".dicomsort" / "runs").iterdir()]) == 1
    for each in made[: 0 if reserves else 12]:
        each.unlink()
    ran = run("undo", outbox)
    assert (ran.code, ran.err) == (0, "")
    for each in disk.glob("filler*"):
        each.unlink()
    check_as_before(inbox, outbox, before)


def every_file_that_can_be_made(disk: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (disk / f"filler {number}").touch()
            yield disk / f"filler {number}"
