"""A link that somebody puts in the place of a folder of the inbox is followed by nothing that sorts."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, run, sort
from test_archives_reading import LIMITS
from test_races import Meddled

from dicomsort import files as files_module
from dicomsort.archives import UnpackRequest, unpack
from dicomsort.discover import walk
from dicomsort.files import beneath, look_up
from dicomsort.files.beneath import Beneath
from dicomsort.records import Found
from dicomsort.tasks import examine


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_path_leads_to_what_lies_below_through_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("here")
    (tmp_path / "link").symlink_to("a")
    below, before = Beneath(str(tmp_path)), descriptors()
    with below.held():
        assert Path(below.path("a/b/file")).read_text() == "here"
        for nowhere in ("a/c/file", "a/b/file/x", "a/../a/b/file", "a//b", f"a/{'x' * 256}/file"):
            assert look_up(below.path(nowhere)) is None
        for linked in ("link/b/file", "link/b"):
            with pytest.raises(OSError, match="a link is in the place of a folder") as caught:
                below.path(linked)
            assert caught.value.errno == errno.ELOOP
        assert look_up(below.path("link")) is not None
    assert descriptors() == before


def test_a_path_is_valid_until_its_block_ends(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("here")
    below = Beneath(str(tmp_path))
    with below.held():
        with below.held():
            path = below.path("a/file")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").symlink_to("elsewhere")
        assert Path(path).read_text() == "here"
    if beneath._shows_folders():
        assert not os.path.lexists(path)
        with pytest.raises(AssertionError, match="held"):
            below.path("a/file")


def test_few_folders_stay_open(tmp_path: Path) -> None:
    below, before = Beneath(str(tmp_path)), descriptors()
    with below.held():
        for number in range(3 * beneath._OPEN):
            (tmp_path / f"{number}").mkdir()
            (tmp_path / f"{number}/file").write_text(str(number))
            assert Path(below.path(f"{number}/file")).read_text() == str(number)
        assert descriptors() <= before + beneath._OPEN + 1
    assert descriptors() == before


def test_without_proc_paths_are_ordinary_ones(tmp_path: Path) -> None:
    with mock.patch.object(beneath, "_shows_folders", return_value=False):
        assert Beneath(str(tmp_path)).path("a/b/file") == f"{tmp_path}/a/b/file"
    beneath._shows_folders.cache_clear()
    with mock.patch.object(beneath, "_DESCRIPTORS", "/nowhere"):
        assert not beneath._shows_folders()
    beneath._shows_folders.cache_clear()


def test_another_error_is_told(tmp_path: Path) -> None:
    below = Beneath(str(tmp_path))
    with below.held(), mock.patch.object(os, "open", side_effect=PermissionError(errno.EACCES, "closed")):  # noqa: SIM117
        with pytest.raises(PermissionError):
            below.path("a/b")


def swap(folder: Path, other: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.symlink_to(other)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside the inbox with another name of a file of the inbox: inode, size and time are the same."""
    make_dicom(tmp_path / "inbox/0.dcm", instance=5)
    source = tmp_path / "inbox/z/1.dcm"
    make_dicom(source, study=2)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/1.dcm").hardlink_to(source)
    return tmp_path / "victim"


@pytest.mark.parametrize("call", ["make_folder", "link", "flush_system", "unlink"])
def test_a_move_takes_nothing_from_behind_a_link(tmp_path: Path, victim: Path, outbox: Path, call: str) -> None:
    inbox = tmp_path / "inbox"
    swapped: list[str] = []

    def meddle(*given: object) -> None:
        if not swapped and (call != "make_folder" or str(given[0]).endswith("/CT")):
            swapped.append(call)
            swap(inbox / "z", victim)

    with mock.patch.object(files_module, "Files", return_value=Meddled(call, meddle)):
        ran = sort("--move", "--settle", 0, inbox, outbox)
    assert swapped
    assert ran.code in {0, 3}
    assert (victim / "1.dcm").is_file()
    row = by_source(outbox)["z/1.dcm"]
    assert (row["action"] == "moved") == (row["destination"] in placed(outbox))
    assert run("verify", outbox).code == 0
    undone = run("undo", outbox)
    assert (undone.code in {0, 3}, (victim / "1.dcm").is_file()) == (True, True)


def test_a_duplicate_behind_a_link_is_not_removed(tmp_path: Path, victim: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    assert sort("--copy", "--settle", 0, inbox, outbox).code == 0

    def meddle(*_: object) -> None:
        if not (inbox / "z").is_symlink():
            swap(inbox / "z", victim)

    with mock.patch.object(files_module, "Files", return_value=Meddled("lock", meddle)):
        sort("--move", "--duplicates", "remove", "--settle", 0, inbox, outbox)
    assert (victim / "1.dcm").is_file()


def found_in(inbox: Path, path: str) -> Found:
    return next(each for each in walk(str(inbox), lambda _: False) if isinstance(each, Found) and each.path == path)


def test_a_worker_reads_nothing_behind_a_link(tmp_path: Path, victim: Path) -> None:
    inbox = tmp_path / "inbox"
    found = found_in(inbox, "z/1.dcm")
    swap(inbox / "z", victim)
    (read,) = examine(str(inbox), [found])
    assert (read.failed, read.sha256) == ("a link is in the place of a folder", "")


def test_no_archive_behind_a_link_is_unpacked(tmp_path: Path) -> None:
    inbox, other = tmp_path / "inbox", tmp_path / "other"
    for folder in (inbox / "z", other):
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "box.zip", "w") as archive:
            archive.writestr("1.dcm", "x" if folder == other else "y")
        os.utime(folder / "box.zip", (10**9, 10**9))
    found = found_in(inbox, "z/box.zip")
    swap(inbox / "z", other)
    unpacked = unpack(UnpackRequest(str(inbox), found, str(tmp_path / "staging"), LIMITS))
    assert (unpacked.failed, unpacked.members) == ("a link is in the place of a folder", ())
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_nothing_is_lost_where_a_folder_is_renamed_meanwhile(tmp_path: Path, outbox: Path, mode: str) -> None:
    inbox = tmp_path / "inbox"
    for number in range(3):
        make_dicom(inbox / f"{number}/1.dcm", study=number)
    before = set(read_tree(inbox).values())

    def rename(path: str, *_: object) -> None:
        if path.endswith("/CT"):
            (inbox / "1").rename(tmp_path / "away")

    with mock.patch.object(files_module, "Files", return_value=Meddled("make_folder", rename)):
        assert sort(mode, "--settle", 0, inbox, outbox).code in {0, 3}
    row = by_source(outbox)["1/1.dcm"]
    assert (row["action"] in {"copied", "moved"}) == (row["destination"] in placed(outbox))
    assert run("verify", outbox).code == 0
    assert run("undo", outbox).code in {0, 3}
    kept = (*read_tree(inbox).values(), *read_tree(outbox).values(), *read_tree(tmp_path / "away").values())
    assert before <= set(kept)
