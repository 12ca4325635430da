"""The walk: every entry, in path order, with few names in memory."""

from __future__ import annotations

import os
import sqlite3
import tracemalloc
from pathlib import Path

import pytest
from statements import CountedConnection

from dicomsort import discover
from dicomsort.discover import Folder, Passed, walk
from dicomsort.errors import DicomsortError
from dicomsort.records import Found


def names_of(inbox: Path) -> list[str]:
    return [entry.path for entry in walk(str(inbox), lambda _: False) if isinstance(entry, Found)]


def test_a_folder_of_many_names_is_walked_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        os.fsdecode(name) for name in (b"b", b"a\n1", b"\xff\xfe", "ä".encode(), b"A", *(b"%d" % n for n in range(40)))
    ]
    for name in made:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "inner").write_bytes(b"")
    expected = names_of(tmp_path)
    assert expected == [*sorted(made, key=os.fsencode), "c/inner"]
    for many in (1, 7, len(made), len(made) + 1, len(made) + 2):
        monkeypatch.setattr(discover, "IN_MEMORY", many)
        assert names_of(tmp_path) == expected


def test_memory_does_not_grow_with_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "IN_MEMORY", 100)
    for number in range(4000):
        (tmp_path / f"a name that takes its room in memory, {number:060d}").touch()
    peaks = []
    for many in (100, 1 << 20):
        monkeypatch.setattr(discover, "IN_MEMORY", many)
        tracemalloc.start()
        assert sum(1 for _ in walk(str(tmp_path), lambda _: False)) == 4000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < peaks[1] / 4


class Full(CountedConnection):
    """A base for which there is no room from the n-th statement on."""

    left = 0

    def count_down(self) -> None:
        Full.left -= 1
        if Full.left < 0:
            raise sqlite3.OperationalError("database or disk is full")


def test_many_names_without_room_to_sort_them_end_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    real = sqlite3.connect
    monkeypatch.setattr(discover, "IN_MEMORY", 1)
    monkeypatch.setattr(sqlite3, "connect", lambda name: real(name, factory=Full))
    for Full.left in range(3):
        expected = "temporary folder .*: expected room for the names of a large folder, received: .* full; free some"
        with pytest.raises(DicomsortError, match=expected):
            names_of(tmp_path)
    Full.left = 3
    assert names_of(tmp_path) == ["a"]


def test_a_folder_that_vanishes_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    entries = []
    for entry in walk(str(tmp_path), lambda _: False):
        entries.append(entry)
        if isinstance(entry, Folder):
            (tmp_path / entry.path).rmdir()
    assert entries[1:] == [Passed("gone/", "unreadable-folder", "No such file or directory")]


@pytest.mark.parametrize("place", ["z", "z/deep"])
def test_a_link_that_takes_a_folders_place_while_others_are_listed_is_not_followed(tmp_path: Path, place: str) -> None:
    inbox, victim = tmp_path / "inbox", tmp_path / "victim"
    for folder in (inbox / "a", inbox / "z/deep", victim / "deep"):
        folder.mkdir(parents=True)
        (folder / f"{folder.parent.name}.png").touch()
    found = []
    for entry in walk(str(inbox), lambda _: False):
        found.append(entry)
        if entry.path == ("z" if place == "z" else "z/deep"):
            (inbox / "z").rename(tmp_path / "away")
            (inbox / "z").symlink_to(victim)
    names = [entry.path for entry in found if isinstance(entry, Found)]
    assert names == ["a/inbox.png"]
    (failed,) = (entry for entry in found if isinstance(entry, Passed))
    assert (failed.path, failed.reason) == (f"{place}/", "unreadable-folder")


def test_a_folder_that_is_mounted_when_somebody_looks_is_gone_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As autofs does: the folder that is met is not the one that is opened."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").touch()
    monkeypatch.setattr(os.path, "samestat", lambda one, other: (one.st_ino, other.st_ino)[0] < 0 or next(answers))
    answers = iter([False, True])
    assert names_of(tmp_path) == ["a/1.png"]


def test_what_a_crash_left_is_passed_with_what_to_do(tmp_path: Path) -> None:
    for name in ("20261123T010203Z-abcdef-7", "receive-0123abcd-1", "mount-0123456789abcdef"):
        (tmp_path / f".dicomsort-{name}.part").touch()
    told = [entry.message for entry in walk(str(tmp_path), lambda _: False) if isinstance(entry, Passed)]
    assert [words for message in told for words in ("resume", "receive", "remove it") if words in message] == [
        "resume", "remove it", "receive",
    ]  # fmt: skip
