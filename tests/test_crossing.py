"""Runs that cross: each one's inbox is the other's outbox, and each would remove what the other keeps."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, run, sort
from matrix import step, world
from powercut import name_of
from test_races import Meddled, fail

from dicomsort import files as files_module
from dicomsort.execute import Placer, Roots
from dicomsort.execute.outcomes import Fatal
from dicomsort.execute.two_mounts import TwoMounts
from dicomsort.files import Files, opened
from dicomsort.journal import Replay
from dicomsort.records import Operation, Outcome, Result, Verb

NOT_KEPT = "the kept file does not hold the same bytes any more"
REMOVE = ("--move", "--settle", 0, "--duplicates", "remove")


@pytest.fixture
def outboxes(inbox: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two outboxes with the same files."""
    for name in ("A", "B"):
        assert sort("--settle", 0, inbox, tmp_path / name).code in {0, 3}
    return tmp_path / "A", tmp_path / "B"


def images(*folders: Path) -> set[bytes]:
    return {content for folder in folders for path, content in read_tree(folder).items() if path.endswith(".dcm")}


@contextmanager
def flocked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    with path.open("rb") as stream:
        fcntl.flock(stream, how | fcntl.LOCK_NB)
        yield


def test_two_runs_that_cross_lose_nothing(outboxes: tuple[Path, Path]) -> None:
    """The other run begins at the last moment: when the first would remove a file for the other's copy of it."""
    one, other = outboxes
    before = images(one)
    codes = list[int]()

    def cross(path: str) -> None:
        if path.endswith(".dcm") and f"{one}/" in path and not codes:
            codes.append(-1)
            command = [sys.executable, "-m", "dicomsort", "sort", "--evidence", "header", *map(str, REMOVE), other, one]
            codes.append(subprocess.run(command, capture_output=True, check=False, timeout=300).returncode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "Files", lambda: Meddled("unlink", cross))
        first = sort(*REMOVE, one, other)
    assert codes[1:] == [3]  # the file that the first was about to remove for it stays
    assert first.code in {0, 3}
    assert before == images(one, other)


def test_a_file_that_another_run_compares_stays(outboxes: tuple[Path, Path]) -> None:
    one, other = outboxes
    source = next(path for path in sorted(one.rglob("*.dcm")))
    for locked in (source, other / source.relative_to(one)):
        with flocked(locked):
            assert sort(*REMOVE, one, other).code == 3
        row = by_source(other)[str(source.relative_to(one))]
        assert (row["status"], row["message"]) == ("failed", "another run removes it, or its kept copy")
        assert source.is_file()
    with flocked(other / source.relative_to(one), fcntl.LOCK_SH):  # others may compare with it, too
        assert sort(*REMOVE, one, other).code in {0, 3}
    assert [path for path in placed(one) if path.endswith(".dcm")] == []


def test_a_duplicate_that_is_a_link_to_its_kept_copy_locks_no_other_out(tmp_path: Path, outbox: Path) -> None:
    """Two threads: the one that removes the link holds the kept copy's lock when the other asks for it."""
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "a.dcm")
    for name in ("b.dcm", "c.dcm"):
        shutil.copy2(inbox / "a.dcm", inbox / name)
    assert sort("--link", "--settle", 0, inbox, outbox).code == 0
    refused = list[str]()

    class Held(Files):
        def lock(self, descriptor: int, *, shared: bool = False) -> bool:
            if shared and not refused:
                refused.append(name_of(descriptor))
                return False
            return super().lock(descriptor, shared=shared)

    with mock.patch("dicomsort.files.Files", Held):
        assert sort("--settle", 0, *REMOVE, inbox, outbox).code == 0
    assert refused
    assert not any(inbox.iterdir())


def test_an_undo_removes_no_copy_whose_original_another_run_removes(inbox: Path, tmp_path: Path) -> None:
    assert sort("--settle", 0, inbox, tmp_path / "B").code in {0, 3}
    copies = [path for path in placed(tmp_path / "B") if path.endswith(".dcm")]
    row = next(row for row in by_source(tmp_path / "B").values() if row["destination"] == copies[0])
    with flocked(inbox / row["source"]):
        assert run("undo", tmp_path / "B").code == 3
    assert [path for path in placed(tmp_path / "B") if path.endswith(".dcm")] == copies[:1]
    assert run("undo", tmp_path / "B").code == 0
    assert images(tmp_path / "B") == set()


def duplicate(root: Path, *, is_link: bool = False) -> tuple[Operation, Path, Path, Callable[..., Placer]]:
    """A duplicate in an inbox, its operation and kept copy, and what makes a placer."""
    inbox, outbox = world(root)
    kept = outbox / "CT" / "kept"
    kept.parent.mkdir(exist_ok=True)
    (os.link if is_link else shutil.copy2)(inbox / "a/1", kept)
    operation = step(inbox, Verb.REMOVE, "a/1", kept="outbox/CT/kept")
    roots = Roots(str(inbox), str(outbox))
    return operation, inbox / "a/1", kept, lambda files=None: Placer(files or Files(), roots, "run", Replay.empty(1))


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_system_without_locks_is_as_before(tmp_path: Path, *, is_link: bool) -> None:
    operation, source, kept, placer = duplicate(tmp_path, is_link=is_link)
    assert placer(Meddled("lock", fail(errno.ENOLCK))).remove_source(operation) is None
    assert (source.exists(), kept.exists()) == (False, True)


def test_a_kept_copy_that_is_gone_or_a_link_keeps_the_duplicate(tmp_path: Path) -> None:
    operation, source, kept, placer = duplicate(tmp_path)
    kept.rename(kept.with_name("elsewhere"))
    assert placer().remove_source(operation) == Result(operation.number, Outcome.CHANGED, NOT_KEPT)
    kept.symlink_to("elsewhere")
    result = placer().remove_source(operation)
    assert isinstance(result, Result)
    assert (result.outcome, "the kept copy cannot be compared" in result.message) == (Outcome.FAILED, True)
    assert source.is_file()
    kept.unlink()
    with mock.patch("dicomsort.execute.removing.opened", lambda path: source.unlink() or opened(path)):
        assert placer().remove_source(operation) is None  # somebody else removed it


def test_a_kept_copy_whose_name_another_file_has_by_now_keeps_the_duplicate(tmp_path: Path) -> None:
    operation, source, kept, placer = duplicate(tmp_path)

    class Late(Files):
        def lock(self, descriptor: int, *, shared: bool = False) -> bool:
            if shared:  # between the opening of the kept copy and its lock
                kept.unlink()
                kept.write_bytes(source.read_bytes())
            return super().lock(descriptor, shared=shared)

    assert placer(Late()).remove_source(operation) == Result(operation.number, Outcome.CHANGED, NOT_KEPT)
    assert source.is_file()


def test_a_kept_copy_is_flushed_before_its_duplicate_is_removed(tmp_path: Path) -> None:
    operation, source, kept, placer = duplicate(tmp_path)
    told = placer(Meddled("flush", fail(errno.EIO))).remove_source(operation)
    assert isinstance(told, Result)
    assert (told.outcome, "Input/output error" in told.message) == (Outcome.FAILED, True)
    assert source.is_file()
    done: list[Path] = []
    files = Meddled("unlink", lambda path: done.append(Path(path)))
    files.flush = lambda descriptor: done.append(name_of(descriptor))  # type: ignore[method-assign]
    assert placer(files).remove_source(operation) is None
    assert (source.exists(), done) == (False, [kept, source])


def test_a_kept_copy_that_only_memory_holds_keeps_the_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk did not take it, and another process was told so."""
    operation, source, kept, placer = duplicate(tmp_path)
    size = len(source.read_bytes())
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: kept.write_bytes(bytes(size)))
    assert placer().remove_source(operation) == Result(operation.number, Outcome.CHANGED, NOT_KEPT)
    assert source.is_file()


def test_what_cannot_be_looked_at_ends_the_run_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    """A resume of a run whose source is on a disk that fails now: its result stays."""
    operation, _, _, placer = duplicate(tmp_path)
    with mock.patch("dicomsort.execute.removing.look_up", side_effect=OSError(errno.EIO, os.strerror(errno.EIO))):
        assert isinstance(placer().remove_source(operation), Fatal)


def test_a_new_name_is_rolled_back_before_the_journal_says_so(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    move = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    placer = Placer(Files(), Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    (outbox / "CT").mkdir(exist_ok=True)
    os.link(inbox / "a/1", outbox / "CT/1")
    stubborn = Placer(Meddled("unlink", fail(errno.EPERM)), Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    assert stubborn.roll_back(move, move.inode) is True
    assert placer.roll_back(move, move.inode) is False
    assert not (outbox / "CT/1").exists()


@pytest.mark.parametrize("verb", [Verb.MOVE, Verb.REMOVE])
def test_a_source_that_changes_while_it_is_compared_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    operation, source, _, placer = duplicate(tmp_path)
    if verb is Verb.MOVE:
        operation = step(tmp_path / "inbox", verb, "a/1", target="outbox/CT/kept")

    def change(*_: object) -> bool:
        before = source.stat().st_ctime_ns
        while source.stat().st_ctime_ns == before:  # until the kernel's clock has ticked
            source.chmod(0o600)
        return True

    monkeypatch.setattr("dicomsort.execute.removing.same_bytes", change)
    result = placer().remove_source(operation)
    assert isinstance(result, Result)
    assert (result.outcome, result.message) == (Outcome.CHANGED, "the file changed while it was placed")
    assert source.is_file()


IS_KEPT = "it may be the kept file itself, seen through another mount; it stays"


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Inbox and outbox are two mounts, so their devices differ; the names in this set are not seen in the outbox."""
    lstat, open_, fstat = os.lstat, os.open, os.fstat
    places, names = dict[int, str](), set[str]()

    def by_its_mount(status: os.stat_result, path: str) -> os.stat_result:
        fields = list(status)
        fields[2] = 2 if "/outbox/" in path else 1  # st_dev
        return os.stat_result(fields, {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": status.st_mtime_ns})

    def opening(path: str, *arguments: int, **more: int) -> int:
        descriptor = open_(path, *arguments, **more)
        places[descriptor] = str(path)
        return descriptor

    def looking(path: str, *, dir_fd: int | None = None) -> os.stat_result:
        whole = str(path) if dir_fd is None else f"{places[dir_fd]}/{path}"
        if "/outbox/" in whole and Path(path).name in names:
            raise FileNotFoundError(errno.ENOENT, "")
        return by_its_mount(lstat(path, dir_fd=dir_fd), whole)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "lstat", looking)
    monkeypatch.setattr(os, "fstat", lambda descriptor: by_its_mount(fstat(descriptor), places.get(descriptor, "")))
    return names


def one_folder(inbox: Path, outbox: Path) -> None:
    shutil.rmtree(outbox / "CT")
    (outbox / "CT").symlink_to(inbox / "a")


@pytest.mark.parametrize("refused", ["nowhere", "/inbox/", "/"])
@pytest.mark.parametrize("is_one", [True, False])
def test_one_file_by_two_mounts_is_no_duplicate_and_a_copy_with_its_times_is(
    tmp_path: Path, hidden: set[str], refused: str, *, is_one: bool
) -> None:
    """Times tell nothing: a server rounds them, and some file systems have no ctime of their own."""
    operation, source, kept, placer = duplicate(tmp_path)
    kept.rename(kept.with_name("1"))
    operation = dataclasses.replace(operation, kept="outbox/CT/1")
    if is_one:
        one_folder(tmp_path / "inbox", tmp_path / "outbox")
    stays = is_one or refused == "/"  # where no file can be made, nothing tells, so it may be one
    result = placer(Meddled("create", fail(errno.EACCES, where=refused))).remove_source(operation)
    assert result == (Result(operation.number, Outcome.CHANGED, IS_KEPT) if stays else None)
    assert source.exists() == stays
    assert not [*tmp_path.rglob("*.part")]


@pytest.mark.parametrize("is_renamed", [True, False])
def test_another_name_in_one_folder_is_another_file_unless_the_mount_gives_other_names(
    tmp_path: Path, hidden: set[str], *, is_renamed: bool
) -> None:
    operation, source, _, placer = duplicate(tmp_path)
    one_folder(tmp_path / "inbox", tmp_path / "outbox")
    shutil.copy2(source, source.with_name("kept"))
    hidden.update(["1"] if is_renamed else [])
    assert (placer().remove_source(operation) is None) != is_renamed
    assert source.exists() == is_renamed


@pytest.mark.parametrize("staying", ["outbox", "inbox"])
def test_what_the_folder_that_keeps_shows_is_tried_too_but_not_in_an_inbox(
    tmp_path: Path, hidden: set[str], staying: str
) -> None:
    """As in a union of file systems, which makes its own files in another branch."""
    inbox, outbox = world(tmp_path)
    one_folder(inbox, outbox)
    made = list[str]()
    files = Meddled("create", lambda path, *_: hidden.add(Path(path).name) or made.append(path))
    mounts = TwoMounts(files, Roots(str(inbox), str(outbox)).absolute)
    going = {"outbox": "inbox/a/1", "inbox": "outbox/CT/1"}[staying]
    shown = {"outbox": "outbox/CT/1", "inbox": "inbox/a/1"}[staying]
    assert mounts.may_be_one(going, shown)
    assert mounts.may_be_one(going, shown)
    folders = [str(Path(path).parent.relative_to(tmp_path)) for path in made]
    assert folders == (["inbox/a", "outbox/CT"] if staying == "outbox" else ["outbox/CT"])


def test_where_a_folder_cannot_be_looked_into_it_may_be_one(tmp_path: Path, hidden: set[str]) -> None:
    inbox, outbox = world(tmp_path)
    shutil.copy2(inbox / "a/1", outbox / "CT/1")
    absolute = Roots(str(inbox), str(outbox)).absolute
    assert not TwoMounts(Files(), absolute).may_be_one("outbox/CT/1", "inbox/a/1")
    assert not TwoMounts(Files(), absolute).may_be_one("inbox/a/gone", "outbox/CT/1")
    looking = os.lstat

    def closed(path: str, *, dir_fd: int | None = None) -> os.stat_result:
        if dir_fd is not None:
            raise PermissionError(errno.EACCES, "")
        return looking(path)

    with mock.patch.object(os, "lstat", closed):
        assert TwoMounts(Files(), absolute).may_be_one("outbox/CT/1", "inbox/a/1")
