"""Runs that cross: each one's inbox is the other's outbox, and each would remove what the other keeps."""

from __future__ import annotations

import errno
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, quiet, run, sort
from test_races import Meddled, fail

from dicomsort import files as files_module
from dicomsort.execute.locks import OutboxLocks
from dicomsort.files import Files
from dicomsort.sorting.outbox import locked

REMOVE = ("--move", "--settle", 0, "--duplicates", "remove")


@pytest.fixture
def outboxes(inbox: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two outboxes with the same files."""
    for name in ("A", "B"):
        assert sort("--settle", 0, inbox, tmp_path / name).code in {0, 3}
    return tmp_path / "A", tmp_path / "B"


def contents(*folders: Path) -> set[bytes]:
    return {content for folder in folders for content in read_tree(folder).values()}


def test_two_runs_that_cross_lose_nothing(outboxes: tuple[Path, Path]) -> None:
    """The other run begins at the last moment: when the first would remove a file for the other's copy of it."""
    one, other = outboxes
    before = {content for path, content in read_tree(one).items() if ".dicomsort" not in path and path[-4:] == ".dcm"}
    codes = list[int]()

    def cross(path: str) -> None:
        if path.endswith(".dcm") and f"{one}/" in path and not codes:
            codes.append(-1)
            command = [sys.executable, "-m", "dicomsort", "sort", "--evidence", "header", *map(str, REMOVE), other, one]
            codes.append(subprocess.run(command, capture_output=True, check=False, timeout=300).returncode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "Files", lambda: Meddled("unlink", cross))
        first = sort(*REMOVE, one, other)
    assert codes[1:] == [4]  # the outbox that it was to place in is locked by the first
    assert first.code in {0, 3}
    assert before <= contents(one, other)


def test_a_file_in_an_outbox_that_another_run_holds_stays(outboxes: tuple[Path, Path]) -> None:
    one, other = outboxes
    there = read_tree(one)
    with locked(quiet(one), create=False):
        ran = sort(*REMOVE, one, other)
    assert ran.code == 3
    held_rows = [row for row in by_source(other).values() if "another run holds the outbox" in row["message"]]
    assert held_rows
    assert {row["status"] for row in held_rows} == {"failed"}
    assert {path: read_tree(one)[path] for path in there if ".dicomsort" not in path} == {
        path: content for path, content in there.items() if ".dicomsort" not in path
    }
    assert sort(*REMOVE, one, other).code in {0, 3}
    assert [path for path in placed(one) if path.endswith(".dcm")] == []


def test_an_undo_removes_no_copy_for_a_file_of_an_outbox_that_another_run_holds(inbox: Path, tmp_path: Path) -> None:
    assert sort("--settle", 0, inbox, tmp_path / "A").code in {0, 3}
    assert sort("--settle", 0, tmp_path / "A", tmp_path / "B").code in {0, 3}
    copies = list(placed(tmp_path / "B"))
    with locked(quiet(tmp_path / "A"), create=False):
        assert run("undo", tmp_path / "B").code == 3
    assert list(placed(tmp_path / "B")) == copies
    assert run("undo", "--dry-run", tmp_path / "B").code in {0, 3}


def test_removing_is_not_finished_while_another_run_holds_the_outbox(outboxes: tuple[Path, Path]) -> None:
    """The other run takes the lock between the result and the removal of the source, as at a resume."""
    one, other = outboxes
    there = {path for path in read_tree(one) if path.endswith(".dcm")}

    class Late(OutboxLocks):
        asked = 0

        def problem(self, path: str) -> str:
            Late.asked += 1
            return "another run holds it" if Late.asked > 2 * len(there) else super().problem(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.execute.placing.OutboxLocks", Late)
        assert sort(*REMOVE, one, other).code == 3
    assert {path for path in read_tree(one) if path.endswith(".dcm")} == there


def test_locks_of_other_outboxes(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for outbox in (own, other):
        make_dicom(outbox / "CT" / "1.dcm")
        with locked(quiet(outbox), create=True):
            pass
    (tmp_path / "odd" / ".dicomsort" / "lock").mkdir(parents=True)
    with closing(OutboxLocks(Files(), str(own))) as locks:
        assert [locks.problem(f"{own}/CT/1.dcm"), locks.problem(f"{tmp_path}/odd/x")] == ["", ""]
        assert locks.problem(f"{other}/CT/1.dcm") == locks.problem(f"{other}/CT/2.dcm") == ""
        with closing(OutboxLocks(Files(), str(own))) as others:
            assert others.problem(f"{other}/CT/1.dcm") == f"another run holds the outbox {str(other)!r}"
    with ExitStack() as stack:
        refused = Meddled("open_append", fail(errno.EACCES))
        locks = stack.enter_context(closing(OutboxLocks(refused, str(own))))
        assert "cannot be locked: Permission denied" in locks.problem(f"{other}/CT/1.dcm")
