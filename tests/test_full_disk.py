"""Undo on a full disk: it has room of its own, and where that is not enough it says how much is missing and goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from building import gradient, make_dicom, make_files, read_tree
from command import placed, quiet, run, sort
from crashing import Crash, NoLinks
from matrix import Mode, check_done, check_nothing_lost, check_undone, facts, start, world
from powercut import name_of

from dicomsort.errors import DicomsortError
from dicomsort.files import Files, closing_descriptor
from dicomsort.files.copying import copy
from dicomsort.records import Verb
from dicomsort.sorting import outbox as outbox_module
from dicomsort.sorting import resume, undo

ENOUGH = 1 << 30
MEMORY = Path("/dev/shm")  # noqa: S108 - flushing costs nothing there
MISSING = re.compile(
    r"about ([\d,]+) bytes are to be written below '(.+)', and ([\d,]+) are free: make room, then `(.+)`"
)


class Full(Files):
    """A disk with so many bytes left; what is cut off or removed makes room, and what does not fit is torn."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        fits = min(self.room, len(data))
        self.room -= fits
        super().write(descriptor, memoryview(data)[:fits])
        if fits < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def allocate(self, descriptor: int, size: int) -> None:
        more = size - os.fstat(descriptor).st_size
        if more > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= more
        super().allocate(descriptor, size)

    def truncate(self, descriptor: int, size: int) -> None:
        self.room += os.fstat(descriptor).st_size - size
        super().truncate(descriptor, size)

    def unlink(self, path: str) -> None:
        status = os.lstat(path)
        super().unlink(path)
        self.room += status.st_size if status.st_nlink == 1 else 0


class FullWithoutLinks(Full, NoLinks):
    """One that copies what it moves."""


class NoAllocation(Files):
    """A file system that gives no room ahead of writing, as NFS 3."""

    def allocate(self, descriptor: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def reserve_of(outbox: Path) -> Path:
    return outbox / ".dicomsort" / "reserve"


def has_begun(outbox: Path) -> bool:
    return any(outbox.glob(".dicomsort/runs/*/journal.jsonl"))


def enter(door: str, inbox: Path, outbox: Path, files: Files, verb: Verb = Verb.COPY) -> str:
    """Go in by ``sort``, ``undo`` or ``resume``; the message where that failed."""
    try:
        if door == "sort":
            start(files, inbox, outbox, verb)
        else:
            {"undo": undo, "resume": resume}[door](quiet(outbox, files))
    except (DicomsortError, OSError) as error:
        return str(error)
    return ""


def advised(message: str) -> str:
    """The command that a message about a full disk names."""
    found = MISSING.search(message)
    assert found, message
    return found[4].split()[1]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where flushing costs nothing; a temporary one where there is none."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def allocates(memory: Path, tmp_path: Path) -> None:
    """The file systems give room ahead of writing."""
    for folder in (memory, tmp_path):
        check_allocates(folder / "probe")


def check_allocates(path: Path) -> None:
    with closing_descriptor(Files().open_append(str(path), 0o600)) as descriptor:
        try:
            Files().allocate(descriptor, 4096)
        except OSError as error:
            pytest.skip(f"no room can be kept here: {error.strerror}")


@pytest.mark.usefixtures("allocates")
@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE, Verb.LINK])
@pytest.mark.parametrize("disk", [Full, FullWithoutLinks])
def test_a_run_that_filled_the_disk_is_undone_without_a_byte_more(memory: Path, disk: type[Full], verb: Verb) -> None:
    inbox, outbox = world(memory / "whole")
    start(disk(ENOUGH), inbox, outbox, verb)
    reserve = reserve_of(outbox).stat().st_size
    undone = Counter[bool]()
    for room in (*range(1000, 9000, 53), *range(reserve, reserve + 9000, 53)):
        inbox, outbox = world(memory / str(room))
        before = facts(inbox)
        files = disk(room)
        if (message := enter("sort", inbox, outbox, files, verb)) and has_begun(outbox):
            assert os.strerror(errno.ENOSPC) in message
            check_nothing_lost(inbox, outbox)
            has_reserve = reserve_of(outbox).stat().st_size > 0
            files.room = 0
            message = enter("undo", inbox, outbox, files)
            undone[has_reserve] += 1
            assert not has_reserve or not message, (room, message)
            if message:
                assert enter(advised(message), inbox, outbox, disk(ENOUGH)) == ""
            check_undone(inbox, outbox, before)
        shutil.rmtree(inbox.parent)
    assert min(undone[False], undone[True]) > 10


@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_a_run_that_filled_a_disk_without_links_is_resumed_and_leaves_nothing_torn(memory: Path, verb: Verb) -> None:
    resumed = 0
    for room in range(1000, 9000, 53):
        inbox, outbox = world(memory / str(room))
        if enter("sort", inbox, outbox, FullWithoutLinks(room), verb) and has_begun(outbox):
            resumed += 1
            check_nothing_lost(inbox, outbox)
            assert enter("resume", inbox, outbox, NoLinks()) == ""
            check_done(inbox, outbox, Mode(verb, "no links, EPERM"))
        shutil.rmtree(inbox.parent)
    assert resumed > 10


@pytest.mark.parametrize("disk", [Full, FullWithoutLinks])
@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_an_undo_that_has_too_little_room_loses_nothing_and_goes_on(memory: Path, disk: type[Full], verb: Verb) -> None:
    """At every so-manieth byte, without a reserve: as after a run of an earlier version, or of one beyond the limit."""
    doors = set()
    for room in range(0, 500_000, 47):
        inbox, outbox = world(memory / str(room))
        before = facts(inbox)
        start(Files(), inbox, outbox, verb)
        reserve_of(outbox).unlink()
        message = enter("undo", inbox, outbox, disk(room))
        if not message:
            break
        check_nothing_lost(inbox, outbox)
        doors.add(door := advised(message))
        assert len(list((outbox / ".dicomsort" / "runs").iterdir())) == (1 if door == "undo" else 2)
        assert enter(door, inbox, outbox, disk(ENOUGH)) == ""
        check_undone(inbox, outbox, before)
        shutil.rmtree(inbox.parent)
    else:
        pytest.fail("no room was enough")
    assert doors == {"undo", "resume"}


def test_an_undo_that_was_cut_short_for_want_of_room_uses_a_later_reserve(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    before = facts(inbox)
    start(Files(), inbox, outbox, Verb.COPY)
    reserve_of(outbox).unlink()
    full = Full(3_000)
    assert advised(enter("undo", inbox, outbox, full)) == "resume"
    make_files(outbox / ".dicomsort", {"reserve": bytes(100_000)})
    full.room = 0
    assert enter("resume", inbox, outbox, full) == ""
    check_undone(inbox, outbox, before)


@pytest.mark.parametrize("is_whole", [False, True])
def test_the_reserve_grows_with_the_plan_as_the_undo_does(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, *, is_whole: bool
) -> None:
    """Where the run was cut short, its undo writes its rows, too."""
    for number in range(300):
        make_dicom(tmp_path / "inbox" / f"{number}.dcm", instance=number, has_pixels=False)
    with monkeypatch.context() as patch, suppress(Crash):
        if not is_whole:
            patch.setattr(Files, "flush_system", mock.Mock(side_effect=Crash))
        sort("--move", "--settle", 0, tmp_path / "inbox", outbox)
    (plan,) = outbox.glob(".dicomsort/runs/*/plan.jsonl")
    size, reserved, full = plan.stat().st_size, reserve_of(outbox).stat().st_size, Full(ENOUGH)
    with monkeypatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: full)
        assert run("undo", outbox).code == 0
    written = ENOUGH - (full.room - reserved)
    assert written < outbox_module.room_for_undo(size) - outbox_module.room_for_undo(0)


@pytest.mark.usefixtures("allocates")
def test_one_reserve_grows_with_the_largest_run_and_ends_with_an_undo(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", study=1, instance=number)
    assert sort("--dry-run", inbox, outbox).code == 0
    assert not outbox.exists()
    assert sort(inbox, outbox).code == 0
    first = reserve_of(outbox).stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    assert first.st_blocks * 512 >= first.st_size > 256 << 10
    for number in range(40):
        make_dicom(inbox / f"more{number}.dcm", study=2, instance=number)
    assert sort(inbox, outbox).code == 0
    larger = reserve_of(outbox).stat()
    assert larger.st_size > first.st_size
    assert run("runs", "--prune", 0, "--keep", 1, outbox).code == 0
    make_dicom(inbox / "last.dcm", study=3)
    assert sort(inbox, outbox).code == 0
    assert reserve_of(outbox).stat().st_size >= larger.st_size
    assert run("undo", outbox).code == 0
    assert not reserve_of(outbox).exists()
    assert sort(inbox, outbox).code == 0
    assert reserve_of(outbox).exists()
    assert "reserve, " in (outbox / ".dicomsort" / "README").read_text()


@pytest.mark.usefixtures("allocates")
def test_a_reserve_has_a_limit(inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "RESERVE_LIMIT", 8192)
    assert sort(inbox, outbox).code == 0
    assert reserve_of(outbox).stat().st_size == 8192


def test_where_no_room_can_be_kept_a_run_goes_on_and_can_be_undone(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    before = facts(inbox)
    start(NoAllocation(), inbox, outbox, Verb.MOVE)
    assert reserve_of(outbox).stat().st_size == 0
    assert enter("undo", inbox, outbox, NoAllocation()) == ""
    check_undone(inbox, outbox, before)


def test_a_system_without_fallocate_keeps_no_room(inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert sort(inbox, outbox).code == 0
    assert reserve_of(outbox).stat().st_size == 0
    assert run("undo", outbox).code == 0


def test_what_somebody_put_in_the_place_of_a_copy_that_failed_stays(tmp_path: Path) -> None:
    make_files(tmp_path, {"source": b"ours", "new": b"somebody's"})

    class Swapped(Files):
        def write(self, descriptor: int, data: bytes | memoryview) -> None:
            (tmp_path / "new").rename(tmp_path / "target")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        copy(Swapped(), f"{tmp_path}/source", f"{tmp_path}/target", 0o600, 0)
    assert (tmp_path / "target").read_bytes() == b"somebody's"


@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_a_disk_that_says_when_a_file_is_closed_that_it_is_full_keeps_nothing_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    """As file servers do."""
    inbox, outbox = world(tmp_path)
    close = os.close

    def full(descriptor: int) -> None:
        path = name_of(descriptor)
        if is_copy := re.fullmatch(r"\.dicomsort-.*Z-\w+-\d+\.part", path.name) and "w" in mode_of(descriptor):
            os.truncate(path, 3)
        close(descriptor)
        if is_copy:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", full)
        assert os.strerror(errno.ENOSPC) in enter("sort", inbox, outbox, NoLinks(), verb)
    assert not list((outbox / "CT/s").iterdir())
    assert enter("resume", inbox, outbox, NoLinks()) == ""
    check_done(inbox, outbox, Mode(verb, "no links, EPERM"))


def mode_of(descriptor: int) -> str:
    return "w" if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY else "r"


def test_something_else_in_the_place_of_the_reserve_hinders_nothing(inbox: Path, outbox: Path) -> None:
    before = read_tree(inbox)
    make_files(outbox, {".dicomsort/reserve/not ours": "stays"})
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    assert run("undo", outbox).code == 0
    assert read_tree(inbox) == before
    assert (outbox / ".dicomsort" / "reserve" / "not ours").read_text() == "stays"


@pytest.mark.parametrize("content", ["a beginning of zeros", "a hole and data", "more than we make"])
def test_a_file_that_is_not_all_zeros_is_no_reserve(inbox: Path, outbox: Path, content: str) -> None:
    assert sort(inbox, outbox).code == 0
    with reserve_of(outbox).open("wb") as file:
        if content == "more than we make":
            file.truncate(outbox_module.RESERVE_LIMIT + 1)
        else:
            file.write(bytes(1 << 21))
            file.seek((1 << 21) if content == "a beginning of zeros" else (1 << 23))
            file.write(b"mine")
    size = reserve_of(outbox).stat().st_size
    empty = reserve_of(outbox).with_name("reserve-1")
    empty.write_bytes(b"\0")
    assert run("undo", outbox).code == 0
    assert reserve_of(outbox).stat().st_size == size
    assert empty.read_bytes() == b"\0"


def test_zeros_that_were_written_are_a_reserve(inbox: Path, outbox: Path) -> None:
    assert sort(inbox, outbox).code == 0
    reserve_of(outbox).write_bytes(bytes(3 << 20))
    assert run("undo", outbox).code == 0
    assert not [*(outbox / ".dicomsort").glob("reserve*")]


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if request.param == "ext4":
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "1024", image], check=True)
        mount = ["mount", "-o", "loop", image, folder]
    if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip(f"a small {request.param} may not be mounted here; a double stands for it in the tests above")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk to the last byte with somebody's file."""
    path = disk / "somebody's"
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 1024, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
        os.fsync(file.fileno())
    return path


def studies(inbox: Path, count: int) -> dict[str, bytes]:
    for number in range(count):
        make_dicom(inbox / f"{number}" / "1.dcm", study=number, pixels=gradient(500, 400))
    return read_tree(inbox)


def check_as_before(inbox: Path, outbox: Path, before: dict[str, bytes]) -> None:
    assert read_tree(inbox) == before
    assert [*placed(outbox)] == []


def test_copies_that_filled_a_disk_are_undone(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dicomsort.sorting.outbox.require_free", lambda *_, **__: None
    )  # as if others filled it meanwhile
    inbox, outbox = tmp_path / "inbox", disk / "outbox"
    before = studies(inbox, 30)
    ran = sort("--copy", inbox, outbox)
    assert (ran.code, ran.out) == (1, "")
    found = MISSING.search(ran.err)
    assert found, ran.err
    assert int(found[1].replace(",", "")) > 3_000_000
    assert found[2] == str(outbox)
    assert len(ran.err.splitlines()) == 1
    assert run(*found[4].split()[1:]).code == 1
    fill(disk)
    ran = run("undo", outbox)
    assert (ran.code, ran.err) == (0, "")
    check_as_before(inbox, outbox, before)


def test_a_move_within_a_disk_that_is_full_since_is_undone(disk: Path) -> None:
    inbox, outbox = disk / "inbox", disk / "outbox"
    before = studies(inbox, 5)
    assert sort("--move", "--settle", 0, "--prune-empty", inbox, outbox).code == 0
    fill(disk)
    ran = run("undo", outbox)
    assert (ran.code, ran.err) == (0, "")
    check_as_before(inbox, outbox, before)


def test_a_full_disk_without_a_reserve_is_told_of_with_what_is_needed(disk: Path) -> None:
    inbox, outbox = disk / "inbox", disk / "outbox"
    before = studies(inbox, 5)
    assert sort("--move", "--settle", 0, "--prune-empty", inbox, outbox).code == 0
    reserve_of(outbox).unlink()  # an earlier version kept none
    filler = fill(disk)
    for _ in range(3):
        ran = run("undo", outbox)
        assert ran.code == 1
        assert advised(ran.err) in {"undo", "resume"}
    found = MISSING.search(ran.err)
    assert found, ran.err
    os.truncate(filler, filler.stat().st_size - int(found[1].replace(",", "")))
    ran = run(*found[4].split()[1:])
    assert (ran.code, ran.err) == (0, "")
    check_as_before(inbox, outbox, before)


def test_commands_that_free_room_work_on_a_full_disk_and_a_sort_says_that_it_is_full(disk: Path) -> None:
    inbox, outbox = disk / "inbox", disk / "outbox"
    studies(inbox, 3)
    assert sort(inbox, outbox).code == 0
    assert sort(inbox, outbox).code == 0
    fill(disk)
    ran = sort(inbox, outbox)
    assert ran.code == 1
    assert os.strerror(errno.ENOSPC) in ran.err
    ran = run("runs", "--keep", 1, outbox)
    assert (ran.code, ran.err) == (0, "")
    assert "removed the state of" in ran.out
