"""An undo makes pruned folders again, with mode and time, and leaves alone those that somebody else made since."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import placed, run, sort
from crashing import Crash

from dicomsort.files import Files

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
        if str(path).endswith(self._name):
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
@pytest.mark.parametrize("name", ["/a", "/b"])
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
