"""Paths near PATH_MAX and names of 255 bytes: one file that cannot be placed or undone never stops the others."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, make_files, read_tree
from command import by_source, placed, rows, run, sort
from crashing import Crash, CrashingFiles, NoLinks, OtherDevice
from elsewhere import MEMORY, other_file_system
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import NO_RUN_YET

from dicomsort.files import Files, look_up

LONGEST = 4095  # bytes of a path that Linux takes
NAME = 255


def deep(root: Path, length: int) -> Path:
    """A folder below ``root`` whose path has ``length`` bytes, not made yet."""
    left = length - len(os.fsencode(root))
    assert left > 1
    sizes = []
    while left > 251:
        sizes.append(200)
        left -= 201
    sizes.append(left - 1)
    return root.joinpath(*("d" * size for size in sizes))


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Path]:
    with other_file_system(tmp_path) as folder:
        yield folder


TAIL = "/" + "b" * 200 + "/long.dcm"  # the outbox's own state has paths of 54 bytes and more below it


def study(inbox: Path) -> None:
    make_dicom(inbox / "1.dcm", study=1)
    make_dicom(inbox / "a" / "2", study=2)
    make_dicom(inbox / TAIL[1:], study=3)


def everything(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and time of each file."""
    found = {}
    for path, content in read_tree(root).items():
        status = (root / path).stat()
        found[path] = (content, status.st_mode, status.st_mtime_ns)
    return found


def check_placed_and_undone(inbox: Path, base: Path, mode: str, margin: int) -> None:
    study(inbox)
    before = everything(inbox)
    outbox = deep(base, LONGEST - margin - len("/CT" + TAIL))
    ran = sort(mode, "--settle", 0, "--layout", "keep", inbox, outbox)
    assert (ran.code, ran.err) == (0, "")
    assert len(list(placed(outbox))) == 3
    assert run("undo", outbox).code == 0
    assert everything(inbox) == before
    assert list(placed(outbox)) == []


MODES = ["--copy", "--move", "--link"]
MARGINS = [0, 1, 8, 20, 39, 45]  # bytes between the longest target and PATH_MAX


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("mode", MODES)
def test_targets_near_the_limit_are_placed_and_undone(tmp_path: Path, mode: str, margin: int) -> None:
    check_placed_and_undone(tmp_path / "inbox", tmp_path, mode, margin)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("mode", MODES[:2])
def test_targets_near_the_limit_on_another_file_system(tmp_path: Path, apart: Path, mode: str, margin: int) -> None:
    check_placed_and_undone(tmp_path / "inbox", apart, mode, margin)


@pytest.mark.parametrize("margin", MARGINS)
def test_an_inbox_near_the_limit_gets_its_files_back_from_another_file_system(
    tmp_path: Path, apart: Path, margin: int
) -> None:
    inbox = deep(tmp_path, LONGEST - margin - len(TAIL))
    study(inbox)
    before = everything(inbox)
    assert sort("--move", "--settle", 0, inbox, apart / "o").code == 0
    assert read_tree(inbox) == {}
    assert run("undo", apart / "o").code == 0
    assert everything(inbox) == before


def test_an_inbox_that_has_no_room_for_a_temporary_name_gets_its_files_back(tmp_path: Path, apart: Path) -> None:
    """Not even beside the inbox's own files: the temporary copy is kept in the outbox then."""
    inbox = deep(tmp_path, LONGEST - 8)
    make_dicom(inbox / "1.dcm", study=1)
    before = everything(inbox)
    assert sort("--move", "--settle", 0, inbox, apart / "o").code == 0
    assert read_tree(inbox) == {}
    assert run("undo", apart / "o").code == 0
    assert everything(inbox) == before
    assert [path.name for path in (apart / "o").iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize("mode", MODES)
def test_a_target_beyond_the_limit_is_refused_before_anything_is_placed(tmp_path: Path, mode: str) -> None:
    inbox = tmp_path / "inbox"
    study(inbox)
    before = everything(inbox)
    outbox = deep(tmp_path, LONGEST + 1 - len("/CT" + TAIL))
    assert sort(mode, "--settle", 0, "--layout", "keep", inbox, outbox).code == 3
    found = by_source(outbox)
    row = found[TAIL[1:]]
    assert (row["status"], row["action"]) == ("conflict", "left")
    assert "too long" in row["message"]
    assert {found["1.dcm"]["status"], found["a/2"]["status"]} == {"sorted"}
    assert run("undo", outbox).code == 0
    assert everything(inbox) == before


@pytest.mark.parametrize("files", [Files, OtherDevice, NoLinks])
@pytest.mark.parametrize("door", ["resume", "undo"])
def test_a_death_near_the_limit_is_gone_on_with(tmp_path: Path, files: type[Files], door: str) -> None:
    """At every fourth change of a run: what it left is recognised under its shorter name, too."""
    for at in range(12, 200, 4):
        root = tmp_path / str(at)
        inbox = root / "inbox"
        study(inbox)
        before = everything(inbox)
        outbox = deep(root, LONGEST - 3 - len("/CT" + TAIL))
        dying = CrashingFiles(at, files)
        with mock.patch("dicomsort.files.Files", return_value=dying), contextlib.suppress(Crash):
            sort("--move", "--settle", 0, "--layout", "keep", inbox, outbox)
        with mock.patch("dicomsort.files.Files", return_value=files()):
            if door == "resume":
                run("resume", outbox)
            ran = run("undo", outbox)
        assert ran.code == 0 or any(reason in ran.err for reason in NO_RUN_YET), ran.err[-300:]
        assert everything(inbox) == before
        assert not outbox.exists() or list(placed(outbox)) == []
        shutil.rmtree(root)
        if not dying.dead:
            return
    pytest.fail("200 changes were not enough")


def test_paths_of_the_inbox_that_no_call_takes_are_failed_rows(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "1.dcm", study=1)
    names = ["e" * NAME] * 17
    make_below(inbox, names, "2.dcm")
    try:
        ran = sort("--move", "--settle", 0, inbox, outbox)
        assert ran.code == 3
        assert ran.err.startswith("dicomsort: files: 1 failed: File name too long (1): eee")
        found = rows(outbox)
        assert sorted(row["status"] for row in found) == ["failed", "sorted"]
        assert [row["message"] for row in found if row["status"] == "failed"] == ["File name too long"]
        assert run("undo", outbox).code == 0
        assert (inbox / "1.dcm").is_file()
    finally:
        shutil.rmtree(inbox)


def make_below(root: Path, names: list[str], file: str) -> None:
    """A file below nested folders, made name by name, since their path is longer than a call takes."""
    folder = os.open(root, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)


def test_a_name_that_cannot_exist_is_absent(tmp_path: Path) -> None:
    assert look_up(str(tmp_path / ("n" * (NAME + 1)))) is None
    assert look_up(str(deep(tmp_path, LONGEST + 1))) is None


def cut(text: str, size: int) -> str:
    """The name's first bytes."""
    return os.fsdecode(os.fsencode(text)[:size])


SIZES = st.one_of(st.integers(1, 12), st.integers(200, NAME), st.just(NAME))
COMPONENTS = st.builds(lambda letter, size: cut(letter * size, size), st.sampled_from("xXé日\udce9"), SIZES)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=18).map("/".join).filter(lambda path: len(os.fsencode(path)) < 3700)


@st.composite
def inboxes(draw: st.DrawFn) -> dict[str, str | bytes]:
    """Files that all go below UNREADABLE, whatever their names: none is a folder of another."""
    paths = draw(st.lists(PATHS, min_size=1, max_size=3))
    kept: dict[str, str | bytes] = {}
    for number, path in enumerate(paths):
        if not any(f"{one}/".startswith(f"{other}/") for one, other in ((path, k) for k in kept)) and not any(
            f"{k}/".startswith(f"{path}/") for k in kept
        ):
            kept[path] = bytes(128) + b"DICM" + b"%d" % number
    return kept


@settings(max_examples=60)
@given(
    files=inboxes(),
    beyond=st.one_of(st.integers(-60, 4), st.just(-2000)),
    deep_inbox=st.booleans(),
    mode=st.sampled_from(MODES),
    disk=st.sampled_from([Files, OtherDevice, NoLinks]),
    death=st.one_of(st.none(), st.integers(10, 60)),
)
def test_whatever_its_length_a_path_is_placed_or_left_and_comes_back(
    *,
    files: dict[str, str | bytes],
    beyond: int,
    deep_inbox: bool,
    mode: str,
    disk: type[Files],
    death: int | None,
) -> None:
    """The longest path of the inbox, or else of the outbox, ends so many bytes before or beyond the limit."""
    longest = max(len(os.fsencode(path)) for path in files)
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        root = Path(folder)
        inbox, outbox = root / "inbox", root / "o"
        if deep_inbox:
            inbox = deep(inbox, max(LONGEST + min(beyond, 0) - longest - 1, len(str(inbox)) + 2))
        else:
            room = LONGEST + beyond - longest - len("/UNREADABLE/")
            outbox = deep(outbox, min(max(room, len(str(outbox)) + 2), LONGEST - 64))
        make_files(inbox, files)
        before = everything(inbox)
        dying = CrashingFiles(-1 if death is None else death, disk)
        with mock.patch("dicomsort.files.Files", return_value=dying), contextlib.suppress(Crash):
            assert sort(mode, "--settle", 0, inbox, outbox).code == 3  # held, for they are unreadable
        with mock.patch("dicomsort.files.Files", return_value=disk()):
            run("resume", outbox)
            inside, outside = read_tree(inbox), read_tree(outbox) if outbox.exists() else {}
            assert {*files.values()} <= {*inside.values(), *outside.values()}
            ran = run("undo", outbox)
        assert ran.code == 0 or any(reason in ran.err for reason in NO_RUN_YET), ran.err[-300:]
        assert everything(inbox) == before
        assert not outbox.exists() or list(placed(outbox)) == []
