"""A link that somebody puts in the place of a folder of the inbox is followed by nothing that sorts."""

from __future__ import annotations

import errno
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, open_descriptors, read_tree
from command import by_source, placed, run, sort
from matrix import step, world
from test_archives_reading import LIMITS
from test_races import Meddled, fail

from dicomsort import files as files_module
from dicomsort.archives import UnpackRequest, unpack
from dicomsort.bundle import default_path, load
from dicomsort.discover import walk
from dicomsort.errors import PlacingFailed
from dicomsort.execute import Placer, Roots
from dicomsort.execute.outcomes import Fatal
from dicomsort.files import beneath, look_up
from dicomsort.files.beneath import Beneath
from dicomsort.journal import Replay
from dicomsort.records import Found, Operation, Outcome, Verb
from dicomsort.tasks import examine, predict_frames


def test_a_path_leads_to_what_lies_below_through_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("here")
    (tmp_path / "link").symlink_to("a")
    below, before = Beneath(str(tmp_path)), open_descriptors()
    with below.kept_open():
        assert Path(below.path("a/b/file")).read_text() == "here"
        for nowhere in ("a/c/file", "a/b/file/x", "a/../a/b/file", "a//b", f"a/{'x' * 256}/file"):
            assert look_up(below.path(nowhere)) is None
        for linked in ("link/b/file", "link/b"):
            with pytest.raises(OSError, match="a link is in the place of a folder") as caught:
                below.path(linked)
            assert caught.value.errno == errno.ELOOP
        assert look_up(below.path("link")) is not None
    assert open_descriptors() <= before


def test_a_path_is_valid_until_its_block_ends(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("here")
    below = Beneath(str(tmp_path))
    with below.kept_open():
        with below.kept_open():
            path = below.path("a/file")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").symlink_to("elsewhere")
        assert Path(path).read_text() == "here"
    if beneath._shows_folders():
        assert not os.path.lexists(path)
        with pytest.raises(AssertionError, match="kept_open"):
            below.path("a/file")


def test_few_folders_stay_open(tmp_path: Path) -> None:
    below, before = Beneath(str(tmp_path)), open_descriptors()
    with below.kept_open():
        for number in range(3 * beneath._OPEN):
            (tmp_path / f"{number}").mkdir()
            (tmp_path / f"{number}/file").write_text(str(number))
            assert Path(below.path(f"{number}/file")).read_text() == str(number)
        assert open_descriptors() <= before + beneath._OPEN + 1
    assert open_descriptors() <= before


def test_without_proc_paths_are_ordinary_ones(tmp_path: Path) -> None:
    with mock.patch.object(beneath, "_shows_folders", return_value=False):
        assert Beneath(str(tmp_path)).path("a/b/file") == f"{tmp_path}/a/b/file"
    beneath._shows_folders.cache_clear()
    with mock.patch.object(beneath, "_DESCRIPTORS", "/nowhere"):
        assert not beneath._shows_folders()
    beneath._shows_folders.cache_clear()


def test_another_error_is_told(tmp_path: Path) -> None:
    below = Beneath(str(tmp_path))
    with below.kept_open(), mock.patch.object(os, "open", side_effect=PermissionError(errno.EACCES, "closed")):  # noqa: SIM117
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


def test_what_is_too_long_for_an_ordinary_path_is_too_long_here(tmp_path: Path) -> None:
    below = Beneath(str(tmp_path))
    path = "/".join(["x" * 250] * 17)
    with below.kept_open():
        assert below.path(path) == f"{tmp_path}/{path}"


@pytest.mark.parametrize("verb", ["undo", "sort"])
def test_where_a_folder_is_renamed_before_its_sources_go_they_stay(tmp_path: Path, outbox: Path, verb: str) -> None:
    inbox = tmp_path / "inbox"
    for number in range(4):
        make_dicom(inbox / f"a/{number}.dcm", instance=number)
    before = set(read_tree(inbox).values())
    if verb == "undo":
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0

    def rename(*_: object) -> None:
        if (inbox / "a/0.dcm").exists() and not (inbox / "b").exists():
            (inbox / "a").rename(inbox / "b")

    with mock.patch.object(files_module, "Files", return_value=Meddled("flush_system", rename)):
        ran = run("undo", outbox) if verb == "undo" else sort("--move", "--settle", 0, inbox, outbox)
    assert (inbox / "b").is_dir()
    assert set(read_tree(inbox / "b").values()) == before
    told = [row["action"] for row in by_source(outbox).values()]
    assert (ran.code, "undone" in told) == (3 if verb == "undo" else 0, False)
    assert {path.read_bytes() for path in outbox.rglob("*.dcm")} == before


def begun(tmp_path: Path, verb: Verb) -> tuple[Placer, Operation, Path]:
    """An operation whose target was made before its run died; the folder of its source is a link now."""
    inbox, outbox = world(tmp_path)
    operation = step(inbox, verb, "a/1", target="outbox/CT/1")
    known = Replay.empty(1)
    known.begun.add(0)
    placer = Placer(files_module.Files(), Roots(str(inbox), str(outbox)), "run", known)
    (outbox / "CT").mkdir(exist_ok=True)
    if verb is Verb.MOVE:
        (outbox / "CT/1").hardlink_to(inbox / "a/1")
    else:
        part = outbox / "CT/.dicomsort-run-0.part"
        part.write_bytes((inbox / "a/1").read_bytes())
        (outbox / "CT/1").hardlink_to(part)
    swap(inbox / "a", tmp_path)
    return placer, operation, outbox / "CT/1"


@pytest.mark.parametrize("verb", [Verb.MOVE, Verb.COPY])
def test_what_was_placed_before_its_source_went_behind_a_link_is_recognised(tmp_path: Path, verb: Verb) -> None:
    placer, operation, target = begun(tmp_path, verb)
    checked = placer.check(operation)
    assert checked is not None
    assert (checked.outcome, target.is_file()) == (Outcome.DONE, True)


@pytest.mark.parametrize("code", [errno.ELOOP, errno.EACCES])
def test_a_part_file_that_cannot_be_reached_keeps_no_run_from_its_end(tmp_path: Path, code: int) -> None:
    placer, operation, _ = begun(tmp_path, Verb.COPY)
    with mock.patch("dicomsort.execute.part_files.look_up", side_effect=OSError(code, os.strerror(code))):
        assert placer.parts.is_there(operation) is False
    back = replace(operation, source="outbox/CT/1", target="inbox/a/1")
    assert (placer.parts.is_there(back), placer.parts.remove(back)) == (False, None)


def test_pixels_behind_a_link_are_a_problem_of_their_own(tmp_path: Path, victim: Path) -> None:
    swap(tmp_path / "inbox/z", victim)
    (seen,) = predict_frames(load(default_path()).reference, str(tmp_path / "inbox"), [("z/1.dcm", None)])
    assert (seen.problem, seen.probabilities) == ("a link is in the place of a folder", ())


@pytest.mark.parametrize("verb", [Verb.MOVE, Verb.REMOVE])
def test_two_mounts_are_compared_by_the_paths_by_which_files_are_removed(tmp_path: Path, verb: Verb) -> None:
    """A folder that was renamed since it was opened is asked where it is now."""
    inbox, outbox = world(tmp_path)
    placer = Placer(files_module.Files(), Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    operation = step(inbox, verb, "a/1", target="outbox/CT/1" if verb is Verb.MOVE else "", kept="outbox/CT/1")
    asked: list[str] = []
    with placer.kept_open(), mock.patch("dicomsort.execute.two_mounts.look_up", asked.append):
        placer.parts.is_there(operation)
        placer._path("inbox/a/1")
        (inbox / "a").rename(inbox / "moved")
        assert not placer._mounts.may_be_one("inbox/a/1", "outbox/CT/1")
        assert os.path.realpath(asked[0]) == str(inbox / "moved/1")


def test_a_part_file_that_is_there_and_may_not_be_removed_is_told(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/1")
    (outbox / "CT").mkdir(exist_ok=True)
    (outbox / "CT/.dicomsort-run-0.part").write_text("left")
    files = Meddled("unlink", fail(errno.EPERM))
    placer = Placer(files, Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    failed = placer.parts.remove(operation)
    assert isinstance(failed, Fatal)
    assert "Operation not permitted" in failed.message


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO])
@pytest.mark.parametrize("verb", [Verb.MOVE, Verb.COPY])
def test_what_was_placed_before_its_source_was_lost_from_sight_is_recognised(
    tmp_path: Path, verb: Verb, code: int
) -> None:
    placer, operation, target = begun(tmp_path, verb)

    def look(path: str) -> os.stat_result | None:
        if "/outbox/" not in path:
            raise OSError(code, "lost")
        return look_up(path)

    with (
        mock.patch.object(placer, "_path", placer._roots.absolute),
        mock.patch.object(placer.parts, "_path", placer._roots.absolute),
        mock.patch("dicomsort.execute.placing.look_up", look),
        mock.patch("dicomsort.execute.part_files.look_up", look),
    ):
        checked = placer.check(operation)
    assert checked is not None
    assert (checked.outcome, target.is_file()) == (Outcome.DONE, True)


def test_an_operation_whose_target_cannot_be_seen_for_once_gets_no_end(tmp_path: Path) -> None:
    placer, operation, _ = begun(tmp_path, Verb.COPY)
    closed = mock.patch("dicomsort.execute.placing.look_up", side_effect=PermissionError(errno.EACCES, "closed"))
    with closed, pytest.raises(PlacingFailed, match="outbox/CT/1': expected to look at it, received closed"):
        placer.check(operation)
    back = replace(operation, source="outbox/CT/1", target="inbox/a/1")
    with mock.patch("dicomsort.execute.placing.look_up", side_effect=PermissionError(errno.EACCES, "closed")):
        checked = placer.check(back)
    assert checked is not None
    assert checked.outcome is Outcome.FAILED
