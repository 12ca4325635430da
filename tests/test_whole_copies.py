"""A run is cut short when a copy is whole, and resumed: the copy stays until it is made anew, whatever happens then."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom
from command import rows, run, sort
from crashing import NoLinks, OtherDevice
from powercut import name_of
from test_interrupted_runs import dies
from test_unseen_sources import away, images

from dicomsort.files import Files
from dicomsort.sorting.runs import all_runs

pytestmark = pytest.mark.parametrize("mode", ["--copy", "--move"])


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    make_dicom(tmp_path / "inbox/a/0.dcm")
    return tmp_path / "inbox"


class Refusing(OtherDevice):
    """Refuses, with an error of the disk, what is written to a copy that is made anew."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        if name_of(descriptor).name.endswith("-3.part"):
            raise OSError(self.code, os.strerror(self.code))
        super().write(descriptor, data)


def cut_short(inbox: Path, outbox: Path, mode: str, base: Callable[[], Files], ends: int = 0) -> int:
    """Sort until the new name is flushed; return how many changes that takes, which ``ends`` gives the next time."""
    if not ends:
        trial = outbox.with_name("trial")
        ends = dies(-1, lambda: sort(mode, "--settle", 0, inbox, trial), base).called.index("flush_system") + 1
        run("undo", trial)
    assert dies(ends, lambda: sort(mode, "--settle", 0, inbox, outbox), base).dead
    return ends


@pytest.mark.parametrize("base", [OtherDevice, NoLinks])
def test_a_death_at_any_change_of_the_resume_leaves_the_bytes(
    tmp_path: Path, inbox: Path, base: Callable[[], Files], mode: str
) -> None:
    content, ends = (inbox / "a/0.dcm").read_bytes(), 0
    for at in range(3, 60):
        outbox = tmp_path / str(at) / "outbox"
        ends = cut_short(inbox, outbox, mode, base, ends)
        died = dies(at, lambda outbox=outbox: run("resume", outbox), base)  # type: ignore[misc]
        if not died.dead:
            break
        with mock.patch("dicomsort.files.Files", base):
            with away(inbox / "a", "gone"):
                run("resume", outbox)
                assert images(outbox) == {content}
                assert not list(outbox.rglob("*.part"))
            run("undo", outbox)
            assert images(inbox) == {content}
    assert 12 < at < 59


def test_a_source_that_cannot_be_read_again_costs_nothing(tmp_path: Path, inbox: Path, mode: str) -> None:
    outbox, content = tmp_path / "outbox", (inbox / "a/0.dcm").read_bytes()
    cut_short(inbox, outbox, mode, OtherDevice)
    with mock.patch("dicomsort.files.Files", return_value=Refusing(errno.EIO)):
        assert run("resume", outbox).code == 1
    assert [path.read_bytes() for path in outbox.rglob("*.part")] == [content]
    with away(inbox / "a", "gone"):
        assert run("resume", outbox).code == 0
    assert (images(outbox), list(outbox.rglob("*.part"))) == ({content}, [])


def test_a_source_that_is_edited_meanwhile_stays_beside_the_copy(tmp_path: Path, inbox: Path, mode: str) -> None:
    class Edited(OtherDevice):
        def create(self, path: str, mode: int = 0o600) -> int:
            if path.endswith("-3.part"):
                (inbox / "a/0.dcm").write_bytes(b"edited")
            return super().create(path, mode)

    outbox, content = tmp_path / "outbox", (inbox / "a/0.dcm").read_bytes()
    cut_short(inbox, outbox, mode, OtherDevice)
    with mock.patch("dicomsort.files.Files", Edited):
        run("resume", outbox)
    assert (images(outbox), list(outbox.rglob("*.part"))) == ({content}, [])
    assert images(inbox) == {b"edited"}


def test_a_renaming_that_the_disk_refuses_leaves_no_mark(tmp_path: Path, inbox: Path, mode: str) -> None:
    """Else the same image that another run places there would be taken for renamed."""

    class Full(NoLinks):
        def rename(self, source: str, target: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)

    other, outbox = tmp_path / "other", tmp_path / "outbox"
    shutil.copytree(inbox, other)
    with mock.patch("dicomsort.files.Files", Full):
        assert sort(mode, "--settle", 0, inbox, outbox).code == 1
    (name,) = all_runs(str(outbox))
    assert not list(outbox.rglob("*.part"))
    with mock.patch("dicomsort.files.Files", NoLinks):
        with away(inbox, "gone"):
            sort("--copy", "--settle", 0, other, outbox)
        run("resume", outbox, name)
        assert (inbox / "a/0.dcm").is_file()
        assert [row["status"] for row in rows(outbox) if row["run_id"] == name] == ["duplicate"]


def test_where_there_is_no_room_for_two_a_whole_copy_is_read_from_the_disk(
    tmp_path: Path, inbox: Path, mode: str
) -> None:
    outbox, content = tmp_path / "outbox", (inbox / "a/0.dcm").read_bytes()
    cut_short(inbox, outbox, mode, OtherDevice)
    with mock.patch("dicomsort.files.Files", return_value=Refusing(errno.ENOSPC)):
        assert run("resume", outbox).code == 0
    assert (images(outbox), list(outbox.rglob("*.part"))) == ({content}, [])
    assert (inbox / "a/0.dcm").exists() == (mode == "--copy")


def test_a_copy_anew_that_was_cut_short_too_is_begun_again(tmp_path: Path, inbox: Path, mode: str) -> None:
    outbox, content = tmp_path / "outbox", (inbox / "a/0.dcm").read_bytes()
    cut_short(inbox, outbox, mode, OtherDevice)
    (part,) = outbox.rglob("*.part")
    part.with_name(part.name.replace(".part", "-3.part")).write_bytes(content[:9])
    with mock.patch("dicomsort.files.Files", OtherDevice):
        assert run("resume", outbox).code == 0
    assert (images(outbox), list(outbox.rglob("*.part"))) == ({content}, [])
