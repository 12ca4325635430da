"""Several runs of one outbox, cut short for one new name: none takes the other's file, or what the other relies on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import by_source, run, sort
from crashing import Crash, NoLinks, OtherDevice
from packing import zipped
from powercut import named
from test_interrupted_runs import dies
from test_unseen_sources import away

from dicomsort.execute import PartFiles
from dicomsort.files import Files
from dicomsort.sorting.runs import all_runs

KEEP = ("--layout", "keep", "--settle", 0)


def image(path: Path) -> bytes:
    """Make an image with some pixels, and return its bytes."""
    make_dicom(path)
    with path.open("ab") as file:
        file.write(bytes(9000))
    return path.read_bytes()


def killed(command: Callable[[], object], end: str, base: type[Files] = NoLinks) -> None:
    """Run a command that dies before it makes a name that ends so."""
    met = []

    class Dying(base):  # type: ignore[misc, valid-type]
        def create(self, path: str, mode: int = 0o600) -> int:
            if named(path).endswith(end):
                met.append(path)
                raise Crash
            return int(super().create(path, mode))

        def rename(self, source: str, target: str) -> None:
            if named(target).endswith(end):
                met.append(target)
                raise Crash
            super().rename(source, target)

    with mock.patch("dicomsort.files.Files", Dying), contextlib.suppress(Crash):
        command()
    assert met


@pytest.mark.parametrize("door", ["undo", "give-up", "resume"])
@pytest.mark.parametrize("what", ["half", "same"])
def test_an_earlier_run_that_is_resumed_later_keeps_its_file(tmp_path: Path, what: str, door: str) -> None:
    one, other, outbox = tmp_path / "one", tmp_path / "other", tmp_path / "outbox"
    whole = image(other / "IM0001")
    one.mkdir()
    (one / "IM0001").write_bytes(whole if what == "same" else whole[:4000])
    (one / "IM0001").chmod(0o600)
    before = read_tree(one)
    killed(lambda: sort("--move", *KEEP, one, outbox), ".part")
    (earlier,) = all_runs(str(outbox))
    with away(one, "gone"):
        killed(lambda: sort("--move", *KEEP, other, outbox), "/IM0001")
    later = all_runs(str(outbox))[-1]
    assert later != earlier
    with mock.patch("dicomsort.files.Files", NoLinks):
        with away(other, "gone"):
            assert run("resume", outbox, earlier).code in {0, 3}
        arguments = {"undo": ("undo", outbox, later), "give-up": ("resume", "--give-up", outbox, later)}
        run(*arguments.get(door, ("resume", outbox, later)))
        run("undo", outbox, later)
        assert run("undo", outbox, earlier).code == 0
    assert read_tree(one) == before
    assert (other / "IM0001").read_bytes() == whole


@pytest.mark.parametrize("door", ["resume", "sort", "give-up"])
def test_an_undo_keeps_what_another_undo_has_put_back(tmp_path: Path, door: str) -> None:
    inbox, other, outbox = tmp_path / "inbox", tmp_path / "other", tmp_path / "outbox"
    whole = image(tmp_path / "IM0001")
    make_dicom(other / "9.dcm", study=9)
    inbox.mkdir()
    with mock.patch("dicomsort.files.Files", NoLinks):
        for content, mode in ((whole[:4000], 0o600), (whole, 0o644)):
            (inbox / "IM0001").write_bytes(content)
            (inbox / "IM0001").chmod(mode)
            assert sort("--move", *KEEP, inbox, outbox).code in {0, 3}
    first, second = all_runs(str(outbox))
    killed(lambda: run("undo", outbox, second), "/IM0001")
    cut = all_runs(str(outbox))[-1]
    with mock.patch("dicomsort.files.Files", NoLinks):
        assert run("undo", outbox, first).code == 0
        assert (inbox / "IM0001").read_bytes() == whole[:4000]
        if door == "sort":
            sort("--settle", 0, other, outbox)
        else:
            run("resume", *(["--give-up"] if door == "give-up" else []), outbox, cut)
    assert (inbox / "IM0001").read_bytes() == whole[:4000]
    assert whole in {path.read_bytes() for path in outbox.rglob("IM0001*")}


@pytest.mark.parametrize("ended", [True, False])
def test_a_name_that_another_run_keeps_is_not_rolled_back(tmp_path: Path, *, ended: bool) -> None:
    """The source cannot be removed: its disk is write-protected by now."""
    inbox, other, outbox = tmp_path / "inbox", tmp_path / "other", tmp_path / "outbox"
    content = make_dicom(inbox / "a/0.dcm").read_bytes()
    traced = dies(-1, lambda: sort("--move", "--settle", 0, inbox, tmp_path / "trial"), OtherDevice).called
    run("undo", tmp_path / "trial")
    linked = max(i for i, call in enumerate(traced) if call == "link")
    at = traced.index("unlink", linked) if ended else traced.index("flush_system", linked)
    dies(at, lambda: sort("--move", "--settle", 0, inbox, outbox), OtherDevice)
    (name,) = all_runs(str(outbox))
    other.mkdir()
    (other / "0.dcm").write_bytes(content)
    with away(inbox, "gone"):
        sort("--move", "--settle", 0, "--duplicates", "remove", other, outbox)
    assert not list(other.iterdir())
    later = all_runs(str(outbox))[-1]

    class Protected(OtherDevice):
        def unlink(self, path: str) -> None:
            if "/inbox/" in named(path):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
            super().unlink(path)

    with mock.patch("dicomsort.files.Files", Protected):
        run("resume", outbox, name)
    row = by_source(outbox)["a/0.dcm"]
    assert (row["action"], (outbox / row["destination"]).read_bytes()) == ("moved", content)
    assert "may still be there" in row["message"]
    assert run("undo", outbox, later).code == 0
    assert (other / "0.dcm").read_bytes() == content


@pytest.mark.parametrize("base", [NoLinks, OtherDevice])
def test_an_archive_that_is_skipped_at_a_resume_leaves_no_name(tmp_path: Path, base: type[Files]) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    inbox.mkdir()
    members = {f"{i}.dcm": make_dicom(tmp_path / f"{i}.dcm", instance=i).read_bytes() for i in (1, 2)}
    (inbox / "a.zip").write_bytes(zipped(members))
    again = lambda out: sort("--move", "--archives", "open", "--settle", 0, inbox, out)
    traced = dies(-1, lambda: again(tmp_path / "trial"), base)
    run("undo", tmp_path / "trial")
    flushes = [i for i, call in enumerate(traced.called) if call == "flush_system"]
    for at in flushes:
        target = tmp_path / str(at)
        dies(at, lambda target=target: again(target), base)  # type: ignore[misc]
        if (target / "ARCHIVES/a.zip").exists():
            outbox = target
            break
        run("undo", target)
    assert (outbox / "ARCHIVES/a.zip").exists()
    edited = next((outbox / "CT").rglob("*.dcm"))
    edited.write_bytes(edited.read_bytes() + b"x")
    with mock.patch("dicomsort.files.Files", base):
        run("resume", outbox)
    is_placed = base is NoLinks  # as a rename comes after its flush, it was done before the edit
    assert ((inbox / "a.zip").exists(), (outbox / "ARCHIVES/a.zip").exists()) == (not is_placed, is_placed)
    assert by_source(outbox)["a.zip"]["action"] == ("moved" if is_placed else "left")
    assert not list(outbox.rglob("*.part"))


def test_a_begun_name_that_cannot_be_looked_at_is_left(tmp_path: Path) -> None:
    """It belongs to an operation that the resume refuses."""
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    inbox.mkdir()
    (inbox / "a.zip").write_bytes(zipped({"1.dcm": make_dicom(tmp_path / "1.dcm").read_bytes()}))
    again = lambda: sort("--move", "--archives", "open", "--settle", 0, inbox, outbox)
    sorted_ = lambda: sort("--move", "--archives", "open", "--settle", 0, inbox, tmp_path / "trial")
    traced = dies(-1, sorted_, OtherDevice)
    run("undo", tmp_path / "trial")
    dies([i for i, call in enumerate(traced.called) if call == "flush_system"][-1], again, OtherDevice)
    for path in (outbox / "CT").rglob("*.dcm"):
        path.write_bytes(b"edited")
    with (
        mock.patch("dicomsort.files.Files", OtherDevice),
        mock.patch.object(PartFiles, "discard", side_effect=OSError(errno.EIO, "unread")),
    ):
        run("resume", outbox)
    assert (inbox / "a.zip").is_file()
