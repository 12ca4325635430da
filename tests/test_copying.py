"""Copies: the bytes, the hash that is told of them, and reflinks, pretended and real."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, make_files, read_tree
from command import by_source, placed, run, sort
from crashing import Clones, OtherDevice, Subvolumes
from matrix import FILES, step, world
from test_placing import one
from test_races import Meddled, fail

from dicomsort.execute import Roots
from dicomsort.execute.placing import Placer
from dicomsort.files import CHUNK, Files, chunks, flush_and_drop, hashed, opened
from dicomsort.files.copying import copy
from dicomsort.journal import Replay
from dicomsort.records import Outcome, Verb

SIZES = (0, 1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("files", [Files(), Clones()], ids=["written", "cloned"])
@pytest.mark.parametrize("size", SIZES)
def test_a_copy_holds_the_bytes_and_tells_of_them(tmp_path: Path, files: Files, size: int) -> None:
    content = os.urandom(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    made = copy(files, str(source), str(target), 0o640, 1_000_000_007)
    status = target.stat()
    assert target.read_bytes() == content
    assert made == (digest(content), status.st_dev, status.st_ino)
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, 1_000_000_007)
    with pytest.raises(FileExistsError):
        copy(files, str(source), str(target), 0o640, 0)


def test_the_hash_of_a_file_whose_head_is_read_already(tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK)
    (tmp_path / "file").write_bytes(content)
    with opened(str(tmp_path / "file")) as descriptor:
        for head, size in ((0, -1), (16, len(content)), (CHUNK, len(content)), (len(content), len(content))):
            assert hashed(descriptor, content[:head], size) == digest(content)


def test_a_file_that_grows_is_read_to_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first, then more")
    with opened(str(tmp_path / "file")) as descriptor:
        assert [bytes(piece) for piece in chunks(descriptor, size=16)] == [b"first, then more"]
        assert [bytes(piece) for piece in chunks(descriptor, 7, size=5)] == [b"then more"]


def test_two_files_read_at_once_have_two_buffers(tmp_path: Path) -> None:
    make_files(tmp_path, {"a": "a" * 10, "b": "b" * 10})
    with opened(str(tmp_path / "a")) as first, opened(str(tmp_path / "b")) as second:
        pairs = [(bytes(one), bytes(other)) for one, other in zip(chunks(first), chunks(second), strict=True)]
    assert pairs == [(b"a" * 10, b"b" * 10)]


@pytest.mark.parametrize(
    ("code", "calls"), [(errno.EOPNOTSUPP, 1), (errno.EXDEV, 1), (errno.ENOTTY, 1), (errno.EINVAL, 3), (errno.EIO, 3)]
)
def test_a_file_system_that_cannot_share_is_asked_once(tmp_path: Path, code: int, calls: int) -> None:
    make_files(tmp_path, dict.fromkeys("abc", "content"))
    asked: list[object] = []
    files = Meddled("clone", lambda *fds: asked.append(fds) or fail(code)(""))
    for name in "abc":
        made = copy(files, str(tmp_path / name), str(tmp_path / f"copy of {name}"), 0o600, 0)
        assert made.sha256 == digest(b"content")
        assert (tmp_path / f"copy of {name}").read_bytes() == b"content"
    assert len(asked) == calls


class Snapshots(Clones):
    """Somebody writes to the source just before or just after it was cloned."""

    def __init__(self, before: Callable[[], object], after: Callable[[], object]) -> None:
        super().__init__()
        self._before, self._after = before, after

    def clone(self, source: int, target: int) -> None:
        self._before()
        super().clone(source, target)
        self._after()


def nothing() -> None: ...


@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
@pytest.mark.parametrize("hidden", [True, False], ids=["mtime set back", "mtime new"])
def test_what_is_told_of_a_clone_is_what_it_holds(tmp_path: Path, verb: Verb, hidden: bool) -> None:  # noqa: FBT001
    """The source holds other bytes at the moment of the snapshot, and the judged ones again when it is read."""
    inbox, outbox = world(tmp_path)
    operation = step(inbox, verb, "a/1", target="outbox/CT/1")
    source, stamp = inbox / "a/1", operation.mtime_ns
    made = source.stat().st_ctime_ns

    def put(content: bytes) -> None:
        with source.open("r+b") as file:
            file.write(content)
        if hidden:
            os.utime(source, ns=(stamp, stamp))
            while source.stat().st_ctime_ns == made:  # until the kernel's clock has ticked
                os.utime(source, ns=(stamp, stamp))

    files = Snapshots(lambda: put(b"ONE" * 50), lambda: put(FILES["a/1"]))
    if verb is Verb.MOVE:
        files.link = Subvolumes().link  # type: ignore[method-assign]
    assert one(inbox, outbox, operation, files).outcome is Outcome.CHANGED
    assert read_tree(inbox) == FILES
    assert [path for path in outbox.rglob("*") if path.name.endswith(".part") or path.name == "1"] == []


def test_a_clone_of_bytes_that_changed_behind_an_equal_stat_is_no_copy(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/1")
    (inbox / "a/1").write_bytes(b"ONE" * 50)
    os.utime(inbox / "a/1", ns=(operation.mtime_ns, operation.mtime_ns))
    assert one(inbox, outbox, operation, Clones()).outcome is Outcome.CHANGED
    assert not (outbox / "CT/1").exists()


def test_somebody_who_touches_the_source_meanwhile_costs_a_look_at_the_clone(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/1")
    files = Snapshots(nothing, (inbox / "a/1").touch)
    assert one(inbox, outbox, operation, files).outcome is Outcome.DONE
    assert (outbox / "CT/1").read_bytes() == FILES["a/1"]


class Flipping(OtherDevice):
    """What is written is not what is read back."""

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        flipped = bytes(data)[:-1] + b"?" if bytes(data) == FILES["a/1"] else data
        super().write(descriptor, flipped)


def test_a_move_to_another_file_system_reads_again_what_it_wrote(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    assert one(inbox, outbox, operation, Flipping()).outcome is Outcome.CHANGED
    assert read_tree(inbox) == FILES
    assert not (outbox / "CT/1").exists()


@pytest.mark.parametrize("content", [b"ONE" * 50, b"shorter", None])
def test_a_copy_that_was_swapped_or_went_before_its_source_is_removed(tmp_path: Path, content: bytes | None) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")

    def swap(_: str) -> None:
        (outbox / "CT/1").unlink()
        if content is not None:
            make_files(outbox, {"CT/1": content})

    files = Meddled("flush_system", swap)
    files.link = OtherDevice().link  # type: ignore[method-assign]
    result = one(inbox, outbox, operation, files)
    why = "its new name is gone" if content is None else "it and its new name hold different bytes by now"
    assert (result.outcome, result.message) == (Outcome.CHANGED, f"{why}; it stays")
    assert read_tree(inbox) == FILES
    assert read_tree(outbox).get("CT/1") == content


def test_a_copy_that_is_edited_in_place_before_its_source_is_removed_stays(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    files = Meddled("flush_system", lambda _: (outbox / "CT/1").write_bytes(b"ONE" * 50))
    files.link = OtherDevice().link  # type: ignore[method-assign]
    assert one(inbox, outbox, step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1"), files).outcome is Outcome.CHANGED
    assert (read_tree(inbox), (outbox / "CT/1").read_bytes()) == (FILES, b"ONE" * 50)


@pytest.mark.parametrize("there", [True, False])
def test_a_temporary_copy_that_cannot_be_removed(tmp_path: Path, there: bool) -> None:  # noqa: FBT001
    inbox, outbox = world(tmp_path)
    placer = Placer(Meddled("unlink", fail(errno.EROFS)), Roots(str(inbox), str(outbox)), "run", Replay.empty(1))
    if there:
        make_files(outbox, {"CT/.dicomsort-run-0.part": "left"})
    failed = placer.parts.remove(step(inbox, Verb.COPY, "a/1", target="outbox/CT/1"))
    assert ("Read-only" in failed.message) if there else failed is None


MAKING = {"btrfs": ["mkfs.btrfs", "-q"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"]}


@pytest.fixture(params=MAKING)
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mounted file system with reflinks."""
    make = MAKING[request.param]
    if not shutil.which(make[0]):
        pytest.skip(f"{make[0]} is not installed")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run([*make, image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True).returncode:
        pytest.skip(f"{request.param} may not be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def used(folder: Path) -> int:
    os.sync()
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_real_reflinks_share_their_blocks_and_keep_their_bytes_apart(sharing: Path) -> None:
    content = os.urandom(32 << 20)
    (sharing / "source").write_bytes(content)
    before = used(sharing)
    files = Files()
    assert copy(files, str(sharing / "source"), str(sharing / "target"), 0o644, 0).sha256 == digest(content)
    assert not files.without_clones
    assert used(sharing) - before < 1 << 20
    with (sharing / "source").open("r+b") as file:
        file.write(b"changed")
    assert (sharing / "target").read_bytes() == content


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_a_run_on_a_file_system_with_reflinks(sharing: Path, mode: str) -> None:
    inbox, outbox = sharing / "inbox", sharing / "outbox"
    if mode == "--move" and shutil.which("btrfs"):  # a subvolume: no names across, but bytes may be shared
        subprocess.run(["btrfs", "subvolume", "create", outbox], check=False, capture_output=True)
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", study=number)
    make_files(inbox, {"empty.dcm": b""})
    before = read_tree(inbox)
    cloned: list[object] = []
    with mock.patch("dicomsort.files.Files", return_value=Meddled("clone", lambda *fds: cloned.append(fds))):
        assert sort(mode, "--settle", 0, inbox, outbox).code == 3
    assert len(cloned) == (3 if mode == "--copy" or inbox.stat().st_dev != outbox.stat().st_dev else 0)
    assert {row["status"] for row in by_source(outbox).values()} == {"sorted", "unreadable"}
    assert sorted(read_tree(outbox)[name] for name in placed(outbox)) == sorted(before.values())
    assert run("undo", outbox).code == 0
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])


def test_a_system_without_advice_reads_what_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    (tmp_path / "a").write_bytes(b"one")
    with opened(str(tmp_path / "a")) as descriptor:
        flush_and_drop(Files(), descriptor)
        assert hashed(descriptor) == hashlib.sha256(b"one").hexdigest()
