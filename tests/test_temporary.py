"""The spool's temporary folder runs full: whenever that is, the run says so, and nothing has been placed."""

from __future__ import annotations

import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from building import make_dicom, read_tree
from command import Ran, placed, sort
from statements import CountedConnection

SIZE = 1 << 20


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of 1 MB that is a file system of its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system may not be mounted here")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a failed test may hold a file in it


class Filling(CountedConnection):
    """Somebody takes all the room there is just before the n-th statement; next to nothing is kept in memory."""

    left = 0
    folder = Path()

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        self.count_down()
        made = super().executescript(*arguments)
        sqlite3.Connection.execute(self, "PRAGMA cache_size = 1")
        return made

    def count_down(self) -> None:
        Filling.left -= 1
        if Filling.left == 0:
            fill(Filling.folder)


def fill(folder: Path) -> None:
    with (folder / "somebody's").open("wb", buffering=0) as file:
        while file.tell() < SIZE:
            try:
                file.write(b"x" * 4096)
            except OSError:
                return


def sorted_while_filling(statement: int, temporary: Path, inbox: Path, outbox: Path, *options: object) -> Ran:
    Filling.left, Filling.folder = statement, temporary
    real = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **o: real(*a, **o, factory=Filling))
        return sort(*options, "--settle", 0, inbox, outbox)


def test_a_temporary_folder_that_is_full_from_the_beginning(tmp_path: Path, temporary: Path, inbox: Path) -> None:
    ran = sorted_while_filling(1, temporary, inbox, tmp_path / "outbox")
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
    assert f"temporary folder {temporary}: expected room for the catalog, received: " in ran.err


@pytest.mark.parametrize("options", [("--move", "--prune-empty"), ("--dry-run",)], ids=["move", "dry run"])
def test_a_temporary_folder_that_runs_full_at_any_statement(
    tmp_path: Path, temporary: Path, options: tuple[str, ...]
) -> None:
    """Files are many enough that the spool goes on growing to its end; a step of 7 meets every kind of statement."""
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    template = make_dicom(inbox / "a" / "0.dcm", study=1, instance=10_000).read_bytes()
    for number in range(1, 120):
        (inbox / "a" / f"{number}.dcm").write_bytes(template.replace(b".1.1.10000", b".1.1.%d" % (10_000 + number)))
    before = read_tree(inbox)
    ended = 0
    for statement in count(2, 7):
        ran = sorted_while_filling(statement, temporary, inbox, outbox, *options)
        if ran.code == 0:
            break
        ended += 1
        assert ran.code == 1
        assert f"temporary folder {temporary}: expected room for the catalog, received: " in ran.err
        assert len(ran.err.splitlines()) == 1
        assert read_tree(inbox) == before
        assert list(placed(outbox)) == []
        (temporary / "somebody's").unlink()
    assert ended > 5
    assert {path.name for path in temporary.iterdir()} <= {"somebody's"}
