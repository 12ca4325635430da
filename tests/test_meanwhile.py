"""What somebody does to a file while a run places it, or between a crash and its resume or undo, is not lost."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, run, sort
from crashing import Crash, CrashingFiles, OtherDevice

from dicomsort import files as files_module
from dicomsort.execute import removing
from dicomsort.files import Files
from dicomsort.sorting.runs import all_runs


@pytest.fixture
def one(tmp_path: Path) -> tuple[Path, Path]:
    """An inbox with one file, and an outbox to be."""
    make_dicom(tmp_path / "inbox" / "a.dcm")
    return tmp_path / "inbox" / "a.dcm", tmp_path / "outbox"


def crash(
    source: Path, outbox: Path, *options: object, call: str, base: Callable[[], Files] = Files, nth: int = -1
) -> None:
    """A sort that dies before its last call of that kind, or before the ``nth``."""
    counted = CrashingFiles(-1, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: counted)
        sort("--settle", 0, *options, source.parent, outbox.with_name("trial"))
    run("undo", outbox.with_name("trial"))
    begun = range(counted.called.count(call))[nth]
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr("dicomsort.files.Files", lambda: CrashingFiles(begun, base, only=call))
        sort("--settle", 0, *options, source.parent, outbox)


@pytest.mark.parametrize("door", ["resume", "undo"])
def test_a_placed_file_that_was_edited_after_a_crash_stays(one: tuple[Path, Path], door: str) -> None:
    source, outbox = one
    crash(source, outbox, "--copy", call="flush_system")
    (place,) = [path for path in placed(outbox) if path.startswith("CT/") and not path.endswith(".part")]
    edited = (outbox / place).read_bytes() + b"a note"
    (outbox / place).write_bytes(edited)
    assert run(door, outbox).code in {0, 3}
    assert (outbox / place).read_bytes() == edited
    assert list(placed(outbox)) == [place]
    assert source.exists()


def copy_two_of_three(inbox: Path, outbox: Path) -> None:
    """A sort that dies when two of three files were copied and are durable."""
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.execute.executor.BATCH", 2)
        crash(inbox / "0.dcm", outbox, "--copy", call="link", nth=2)


def test_a_copy_that_is_gone_or_another_at_a_resume_is_told(tmp_path: Path, outbox: Path) -> None:
    copy_two_of_three(tmp_path / "inbox", outbox)
    gone, another = sorted(path for path in placed(outbox) if path.endswith(".dcm"))
    (outbox / gone).unlink()
    (outbox / another).unlink()
    make_dicom(outbox / another, instance=9)
    assert run("resume", outbox).code == 3
    told = [(row["status"], row["message"]) for row in by_source(outbox).values()]
    assert told == [("changed", "it was placed, and is gone since")] * 2 + [("sorted", "")]


def test_a_copy_that_cannot_be_looked_at_at_a_resume_is_believed(tmp_path: Path, outbox: Path) -> None:
    copy_two_of_three(tmp_path / "inbox", outbox)
    lstat = os.lstat

    def refused(path: str | Path, **more: int) -> os.stat_result:
        if str(path).endswith("1.1.0.dcm"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return lstat(path, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "lstat", refused)
        assert run("resume", outbox).code == 0


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_a_placed_file_is_known_though_its_source_is_gone(one: tuple[Path, Path], mode: str) -> None:
    source, outbox = one
    content = source.read_bytes()
    base = OtherDevice if mode == "--move" else Files
    crash(source, outbox, mode, call="flush_system", base=base)
    source.unlink()
    assert run("resume", outbox).code == 0
    assert [Path(path).suffix for path in placed(outbox)] == [".dcm"]
    assert run("undo", outbox).code == 0
    assert source.read_bytes() == content
    assert list(placed(outbox)) == []


def test_a_source_that_is_replaced_while_bytes_are_compared_stays(
    one: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outbox = one
    assert sort(source.parent, outbox).code == 0
    calls: list[str] = []

    def replacing(first: str, second: str) -> bool:
        same = files_module.same_bytes(first, second)
        calls.append(first)
        if len(calls) > 1:  # the second look is the last before the file goes
            source.with_name("new").write_bytes(b"new")
            source.with_name("new").replace(source)
        return same

    monkeypatch.setattr(removing, "same_bytes", replacing)
    ran = sort("--move", "--settle", 0, "--duplicates", "remove", source.parent, outbox)
    assert len(calls) == 2
    assert source.read_bytes() == b"new"
    assert (ran.code, by_source(outbox)["a.dcm"]["status"]) == (3, "changed")


@pytest.mark.parametrize(("call", "nth"), [("unlink", 0), ("flush_system", -1)])
def test_a_source_that_changed_in_place_after_a_crash_stays(one: tuple[Path, Path], call: str, nth: int) -> None:
    source, outbox = one
    crash(source, outbox, "--move", call=call, base=OtherDevice, nth=nth)
    before, content = source.stat(), source.read_bytes()
    changed = bytes(len(content))
    with source.open("r+b") as stream:
        stream.write(changed)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", OtherDevice)
        run("resume", outbox)
    assert source.read_bytes() == changed
    assert content in read_tree(outbox).values()


def test_what_is_taken_back_is_only_what_was_placed(one: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, outbox = one
    foreign: list[Path] = []

    class Sticky(Files):
        def unlink(self, path: str) -> None:
            if path == str(source):
                (place,) = outbox.glob("CT/*/*/*.dcm")
                place.unlink()
                place.write_bytes(b"somebody's")
                foreign.append(place)
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
            super().unlink(path)

    monkeypatch.setattr("dicomsort.files.Files", Sticky)
    assert sort("--move", "--settle", 0, source.parent, outbox).code == 3
    assert foreign[0].read_bytes() == b"somebody's"
    assert source.exists()


def test_nothing_is_taken_back_where_the_source_was_replaced(
    one: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outbox = one
    before = source.read_bytes()

    class Replaced(Files):
        def unlink(self, path: str) -> None:
            if path == str(source):
                source.rename(outbox.parent / "aside")
                source.write_bytes(b"somebody's")
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
            super().unlink(path)

    monkeypatch.setattr("dicomsort.files.Files", Replaced)
    sort("--move", "--settle", 0, source.parent, outbox)
    assert source.read_bytes() == b"somebody's"
    (place,) = outbox.glob("CT/*/*/*.dcm")
    assert place.read_bytes() == before
    row = by_source(outbox)["a.dcm"]
    assert (row["action"], row["destination"]) == ("moved", str(place.relative_to(outbox)))
    assert "the source cannot be removed: Operation not permitted; it may still be there" in row["message"]


def test_a_folder_name_that_the_outbox_refuses_costs_its_own_files(one: tuple[Path, Path]) -> None:
    source, outbox = one
    make_dicom(source.parent / "b.dcm", study=2, modality="MR")

    class Choosy(Files):
        def make_folder(self, path: str, mode: int = 0o777) -> None:
            if path.endswith("/CT"):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            super().make_folder(path, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", Choosy)
        ran = sort("--move", "--settle", 0, source.parent, outbox)
    told = by_source(outbox)
    assert (ran.code, told["a.dcm"]["status"], told["b.dcm"]["status"]) == (3, "failed", "sorted")


@pytest.mark.parametrize("door", ["resume", "undo"])
def test_an_inbox_whose_mount_is_gone_is_waited_for(
    one: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    source, outbox = one
    mounted = {str(source.parent), "/"}
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) in mounted)
    crash(source, outbox, "--move", call="unlink")
    mounted.remove(str(source.parent))
    before = read_tree(source.parent), list(placed(outbox))
    ran = run(door, outbox)
    assert (ran.code, f"; mount it, then {door}" in ran.err) == (1, True)
    assert (read_tree(source.parent), list(placed(outbox))) == before
    mounted.add(str(source.parent))
    assert run(door, outbox).code == 0


@pytest.mark.parametrize("name", ["huge.dcm", "huge"])
def test_a_sparse_file_of_a_petabyte_is_no_work(one: tuple[Path, Path], name: str) -> None:
    source, outbox = one
    huge = source.with_name(name)
    try:
        with huge.open("wb") as stream:
            stream.write(bytes(128) + b"DICM")
            stream.truncate(1 << 43)
    except OSError as error:
        pytest.skip(f"the file system keeps no such file: {error.strerror}")
    ran = sort(source.parent, outbox)
    assert (ran.code, by_source(outbox)[name]["status"]) == (3, "failed")
    assert by_source(outbox)[name]["message"] == "more than 64 GiB of it are holes"
    assert len(all_runs(str(outbox))) == 1
