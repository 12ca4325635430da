"""What a move to another file system keeps beside the bytes, what it says of the rest, and what its undo restores."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from building import attributes_of, make_dicom, make_files, read_tree
from command import by_source, placed, run, sort
from crashing import NoLinks, OtherDevice, Protected, Unsupported
from elsewhere import other_file_system
from killing import run_unprivileged
from matrix import FILES, checked_again, step, world
from powercut import name_of
from test_faults import SORT
from test_placing import carry_out, one
from test_races import Meddled, fail
from unprivileged import NOBODY

from dicomsort.errors import PlacingFailed
from dicomsort.files import CHUNK, Files, closing_descriptor, opened
from dicomsort.files.copying import fill
from dicomsort.journal import pack, replay, unpack
from dicomsort.metadata import ACL, metadata_of
from dicomsort.records import Lost, Operation, Outcome, Row, Verb
from dicomsort.report.manifest_reader import decided_from, message_of, who_of

OWNER = (12_345, 54_321)
BLOCK = 64 << 10  # more than any file system's block
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def acl(group: int, mask: int) -> bytes:
    """An access control list by which one more user may read; permissions of the owning group, and the mask."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 4, NOBODY), (4, group, nobody), (16, mask, nobody), (32, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ATTRIBUTES = {
    "user.note": b"\0\xff",
    "trusted.note": b"t",
    "security.capability": struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0),  # CAP_NET_RAW, permitted and effective
    ACL: acl(6, 4),
}


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Path]:
    with other_file_system(tmp_path) as folder:
        yield folder


def supports(path: Path, name: str, value: bytes) -> bool:
    try:
        os.setxattr(path, name, value)
    except OSError:
        return False
    return True


def facts(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return status.st_uid, status.st_gid, oct(status.st_mode), status.st_mtime_ns, attributes_of(path), path.read_bytes()


def rich(inbox: Path) -> Path:
    """A file of somebody else with set-ID bits, an access control list and attributes."""
    path = make_dicom(inbox / "1.dcm")
    os.chown(path, *OWNER)
    if not all(supports(path, name, value) for name, value in ATTRIBUTES.items()):
        pytest.skip("the file system of the inbox does not take all attributes")
    path.chmod(0o6740)
    os.utime(path, ns=(1_234_567_890_123_456_789,) * 2)
    return path


@as_root
@pytest.mark.parametrize("disk", [Files, NoLinks, Unsupported])
def test_a_move_to_a_real_other_file_system_keeps_all_and_its_undo_brings_it_back(
    tmp_path: Path, apart: Path, disk: type[Files]
) -> None:
    inbox, outbox = tmp_path / "inbox", apart / "o"
    file = rich(inbox)
    (probe := apart / "probe").touch()
    if not all(supports(probe, name, value) for name, value in ATTRIBUTES.items()):
        pytest.skip("the other file system does not take all attributes")
    before = facts(file)
    with mock.patch("dicomsort.files.Files", return_value=disk()):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0
        (name,) = placed(outbox)
        assert facts(outbox / name) == before
        assert not file.exists()
        assert by_source(outbox)["1.dcm"]["message"] == ""
        assert run("undo", outbox).code == 0
    assert facts(file) == before
    assert (list(placed(outbox)), by_source(outbox)["1.dcm"]["message"]) == ([], "")


@as_root
def test_a_file_that_only_its_owner_may_read_stays_readable_for_him(apart: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="dicomsort-test-"))
    try:
        inbox, outbox = folder / "inbox", apart / "o"
        folder.chmod(0o755)
        apart.chmod(0o755)
        file = make_dicom(inbox / "1.dcm")
        os.chown(file, NOBODY, NOBODY)
        file.chmod(0o400)
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0
        (name,) = placed(outbox)
        content = subprocess.run(["cat", outbox / name], user=NOBODY, group=NOBODY, capture_output=True, check=True)
        assert content.stdout == (outbox / name).read_bytes()
        assert run("undo", outbox).code == 0
        content = subprocess.run(["cat", file], user=NOBODY, group=NOBODY, capture_output=True, check=True)
        assert content.stdout == file.read_bytes()
    finally:
        shutil.rmtree(folder)


@as_root
@pytest.mark.parametrize("mode", ["--copy", "--link"])
def test_copies_keep_mode_and_time_as_ever_and_links_are_the_file(tmp_path: Path, outbox: Path, mode: str) -> None:
    file = rich(tmp_path / "inbox")
    before = facts(file)
    assert sort(mode, tmp_path / "inbox", outbox).code == 0
    (name,) = placed(outbox)
    status = (outbox / name).stat()
    if mode == "--link":
        assert facts(outbox / name) == before
    else:
        assert (status.st_uid, status.st_mode & 0o7777, attributes_of(outbox / name)) == (0, 0o740, {})
        assert status.st_mtime_ns == file.stat().st_mtime_ns
    assert run("undo", outbox).code == 0
    assert facts(file) == before


class Poor(OtherDevice):
    """The outbox is on a file system that keeps no owner, or no attributes, or no mode."""

    def __init__(self, *refused: str, code: int = errno.EPERM) -> None:
        super().__init__()
        for call in refused:
            change = getattr(self, call)
            setattr(self, call, self._refusing(change, code))

    @staticmethod
    def _refusing(change: Callable[..., None], code: int) -> Callable[..., None]:
        def refuse(descriptor: int, *arguments: object) -> None:
            if "/outbox/" in str(name_of(descriptor)):
                raise OSError(code, os.strerror(code))
            change(descriptor, *arguments)

        return refuse


POOR = [
    (("set_owner",), "not kept: owner, group, set-ID bits, 1 extended attribute", 0o740),
    (("set_owner", "set_attribute"), "not kept: owner, group, set-ID bits, 4 extended attributes", 0o740),
    (("set_attribute",), "not kept: 4 extended attributes", 0o6740),
    (("set_mode",), "not kept: set-ID bits", 0o740),  # the access control list has the others
    (("set_owner", "set_attribute", "set_mode"),
     "not kept: owner, group, set-ID bits, permission bits, 4 extended attributes", 0o600),
]  # fmt: skip


@as_root
@pytest.mark.parametrize(("refused", "message", "mode"), POOR)
def test_what_cannot_be_kept_is_told_and_journalled_and_restored(
    tmp_path: Path, outbox: Path, refused: tuple[str, ...], message: str, mode: int
) -> None:
    inbox = tmp_path / "inbox"
    file = rich(inbox)
    before, whole = facts(file), file.stat()
    with mock.patch("dicomsort.files.Files", return_value=Poor(*refused)):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0
        (name,) = placed(outbox)
        row = by_source(outbox)["1.dcm"]
        assert (row["status"], row["action"], row["message"]) == ("sorted", "moved", message)
        assert (outbox / name).stat().st_mode & 0o7777 == mode
        assert (outbox / name).stat().st_uid == (0 if "set_owner" in refused else OWNER[0])
        ends = [end for end in journal(outbox) if end[0] == "end"]
        attributes = int(message.split()[-3]) if "extended" in message else 0
        assert ends == [["end", 0, "done", message, (outbox / name).stat().st_ino, [*OWNER, 0o6740, attributes]]]
        assert run("undo", outbox).code == 0
    status = file.stat()
    if attributes:
        assert by_source(outbox)["1.dcm"]["message"] == f"not restored: extended attributes ({attributes})"
        assert (status.st_uid, status.st_gid, status.st_mode) == (*OWNER, whole.st_mode)
    else:
        assert facts(file) == before
    assert status.st_mtime_ns == whole.st_mtime_ns
    assert list(placed(outbox)) == []


def journal(outbox: Path) -> list[list[object]]:
    """The journal of the oldest run."""
    run_ = min((outbox / ".dicomsort" / "runs").iterdir())
    return [json.loads(line) for line in (run_ / "journal.jsonl").read_text().splitlines()]


@as_root
def test_a_lost_access_control_list_gives_the_group_no_more_than_it_gave(tmp_path: Path, outbox: Path) -> None:
    """The group bits of a mode beside a list are its mask."""
    inbox = tmp_path / "inbox"
    file = make_dicom(inbox / "1.dcm")
    if not supports(file, ACL, acl(0, 6)):
        pytest.skip("no access control lists here")
    assert file.stat().st_mode & 0o777 == 0o660
    with mock.patch("dicomsort.files.Files", return_value=Poor("set_attribute", code=errno.ENOTSUP)):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0
        (name,) = placed(outbox)
        assert (outbox / name).stat().st_mode & 0o777 == 0o600
        assert run("undo", outbox).code == 0
    assert file.stat().st_mode & 0o777 == 0o600


@as_root
def test_an_unprivileged_move_says_what_it_could_not_keep_and_root_restores_it() -> None:
    folder = Path(tempfile.mkdtemp(prefix="dicomsort-test-"))
    try:
        with other_file_system(folder) as apart:
            inbox, outbox = folder / "inbox", apart / "o"
            file = make_dicom(inbox / "1.dcm")
            for path in (folder, inbox, apart):
                os.chown(path, NOBODY, NOBODY)
            file.chmod(0o4755)
            before = facts(file)
            assert run_unprivileged(*SORT, "--move", inbox, outbox).code == 0
            (name,) = placed(outbox)
            assert (outbox / name).stat().st_mode & 0o7777 == 0o755
            assert by_source(outbox)["1.dcm"]["message"] == "not kept: owner, group, set-ID bits"
            assert run("undo", outbox).code == 0
            assert facts(file) == before
    finally:
        shutil.rmtree(folder)


@as_root
def test_what_links_back_gets_its_owner_back_too(tmp_path: Path, outbox: Path) -> None:
    """A move without the right to link a file of others copies; its undo may link, as root or of its own file."""
    inbox = tmp_path / "inbox"
    file = make_dicom(inbox / "1.dcm")
    os.chown(file, *OWNER)
    file.chmod(0o640)
    supports(file, "user.note", b"kept")
    before = facts(file)
    refusing = Meddled("set_owner", fail(errno.EPERM))
    refusing.link = Protected().link  # type: ignore[method-assign]
    with mock.patch("dicomsort.files.Files", return_value=refusing):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    (name,) = placed(outbox)
    assert (outbox / name).stat().st_uid == 0
    unlabelled = Meddled("set_attribute", fail(errno.EPERM))  # a name more needs no attribute set
    with mock.patch("dicomsort.files.Files", return_value=unlabelled):
        assert run("undo", outbox).code == 0
    assert facts(file) == before
    assert by_source(outbox)["1.dcm"]["message"] == ""


@as_root
def test_what_links_back_and_cannot_be_opened_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, outbox = world(tmp_path)
    operation = replace(step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1"), owner=(1, 1))
    monkeypatch.setattr("dicomsort.execute.placing.metadata_of", fail(errno.EACCES))
    result = one(inbox, outbox, operation)
    assert (result.outcome, result.message) == (
        Outcome.DONE, "not restored: owner, mode and time (Permission denied)",
    )  # fmt: skip
    assert (outbox / "CT/1").read_bytes() == FILES["a/1"]


@as_root
def test_the_undo_of_a_copy_gives_nobody_a_program_of_root(tmp_path: Path, apart: Path) -> None:
    """The plan knows set-ID bits that the copy never had; it goes back where its source is gone."""
    inbox, outbox = tmp_path / "inbox", apart / "o"
    file = make_dicom(inbox / "1.dcm")
    os.chown(file, *OWNER)
    file.chmod(0o6755)
    assert sort("--copy", inbox, outbox).code == 0
    file.unlink()
    assert run("undo", outbox).code == 0
    assert (file.stat().st_uid, file.stat().st_mode & 0o7777) == (0, 0o755)


@as_root
def test_set_id_bits_that_were_taken_away_since_the_plan_stay_away(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    (inbox / "a/1").chmod(0o6755)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    os.chown(inbox / "a/1", 0, 0)  # which takes them away
    assert one(inbox, outbox, operation, OtherDevice()).outcome is Outcome.DONE
    assert (outbox / "CT/1").stat().st_mode & 0o7777 == 0o755


FULL = [
    (errno.ENOSPC, 1, Outcome.DONE),  # too large for this file system, which has room
    (errno.ENOSPC, 0, None),
    (errno.EIO, 1, None),
    (errno.E2BIG, 1, Outcome.DONE),
]


@pytest.mark.parametrize(("code", "free", "outcome"), FULL)
def test_an_attribute_that_is_too_large_is_told_apart_from_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, free: int, outcome: Outcome | None
) -> None:
    inbox, outbox = world(tmp_path)
    if "user.note" not in attributes_of(inbox / "a/2"):
        pytest.skip("no attributes here")
    operation = step(inbox, Verb.MOVE, "a/2", target="outbox/CT/2")
    monkeypatch.setattr(os, "fstatvfs", lambda _: mock.Mock(f_bavail=free))
    files = Meddled("set_attribute", fail(code))
    files.link = OtherDevice().link  # type: ignore[method-assign]
    if outcome is None:
        with pytest.raises(PlacingFailed, match=os.strerror(code)):
            carry_out(inbox, outbox, [operation], files)
        assert read_tree(inbox) == FILES
        return
    result = one(inbox, outbox, operation, files)
    assert (result.outcome, result.message) == (outcome, "not kept: 1 extended attribute")


@pytest.mark.parametrize("call", ["listxattr", "getxattr"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOTSUP])
def test_attributes_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    inbox, _ = world(tmp_path)
    if "user.note" not in attributes_of(inbox / "a/2"):
        pytest.skip("no attributes here")
    monkeypatch.setattr(os, call, fail(code))
    with opened(str(inbox / "a/2")) as descriptor:
        if code == errno.EIO:
            with pytest.raises(OSError, match="Input/output error"):
                metadata_of(descriptor)
        else:
            assert metadata_of(descriptor).attributes == ({} if call == "listxattr" else {"user.note": None})


def test_a_system_without_attributes_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, _ = world(tmp_path)
    monkeypatch.delattr(os, "listxattr")
    with opened(str(inbox / "a/2")) as descriptor:
        assert metadata_of(descriptor).attributes == {}


def test_labels_of_the_system_and_notes_of_a_file_system_are_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["security.selinux", "security.ima", "trusted.overlay.origin", "system.nfs4_acl", "btrfs.compression"]
    (file := tmp_path / "file").touch()
    monkeypatch.setattr(os, "listxattr", lambda _: [*names, "user.a", "trusted.b", "security.c", ACL])
    monkeypatch.setattr(os, "getxattr", lambda _, name: name.encode())
    with opened(str(file)) as descriptor:
        assert {*metadata_of(descriptor).attributes} == {"user.a", "trusted.b", "security.c", ACL}


SPARSE: dict[str, tuple[dict[int, bytes], int]] = {
    "all": ({}, 5 * BLOCK),
    "at the start": ({4 * BLOCK: b"end"}, 4 * BLOCK + 3),
    "in the middle": ({0: b"start", 20 * BLOCK: b"end"}, 20 * BLOCK + 3),
    "at the end": ({0: b"start", BLOCK: b"more"}, 2 * CHUNK + 7),
    "everywhere": ({2 * n * BLOCK: b"%d" % n for n in range(1, 40)}, 100 * BLOCK),
}


def make_sparse(path: Path, data: dict[int, bytes], size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
        file.truncate(size)


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("holes", SPARSE)
@pytest.mark.parametrize("disk", [Files, NoLinks])
def test_holes_stay_holes(tmp_path: Path, apart: Path, holes: str, disk: type[Files]) -> None:
    inbox, outbox = tmp_path / "inbox", apart / "o"
    file = inbox / "1.dcm"  # unreadable by its name
    make_sparse(file, *SPARSE[holes])
    content, before = file.read_bytes(), used(file)
    if before + 2 * BLOCK > len(content):
        pytest.skip("the file system of the inbox has no holes")
    with mock.patch("dicomsort.files.Files", return_value=disk()):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 3
        (name,) = placed(outbox)
        assert (outbox / name).read_bytes() == content
        assert by_source(outbox)["1.dcm"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert used(outbox / name) <= before + BLOCK
        assert run("undo", outbox).code == 0
    assert file.read_bytes() == content
    assert used(file) <= before + BLOCK  # what a file system needs to know the extents counts, too


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_tell_its_holes_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    seek = os.lseek

    def blind(descriptor: int, position: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(code, os.strerror(code))
        return seek(descriptor, position, how)

    make_sparse(tmp_path / "file", *SPARSE["in the middle"])
    monkeypatch.setattr(os, "lseek", blind)
    files, target = Files(), str(tmp_path / "copy")
    with opened(str(tmp_path / "file")) as reader, closing_descriptor(files.create(target)) as writer:
        told = fill(files, reader, writer, os.fstat(writer), target, holes=True)
    content = (tmp_path / "file").read_bytes()
    assert (Path(target).read_bytes(), told.sha256) == (content, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(("holes", "call"), [("in the middle", "write"), ("all", "clone")])
def test_a_sparse_file_that_grows_meanwhile_is_copied_to_where_it_ended(tmp_path: Path, holes: str, call: str) -> None:
    make_sparse(tmp_path / "file", *SPARSE[holes])
    content, target = (tmp_path / "file").read_bytes(), str(tmp_path / "copy")
    files = Meddled(call, lambda *_: append(tmp_path / "file"))
    files.clone = files.clone if call == "clone" else fail(errno.ENOTSUP)  # type: ignore[method-assign]
    with opened(str(tmp_path / "file")) as reader, closing_descriptor(files.create(target)) as writer:
        fill(files, reader, writer, os.fstat(writer), target, holes=True)
    assert Path(target).read_bytes() == content


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@as_root
def test_a_foreign_file_of_the_same_bytes_is_not_given_away(tmp_path: Path) -> None:
    """It came while the run was down, and has another name elsewhere: it is none that the run made."""
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    make_files(outbox, {"CT/theirs": FILES["a/1"], "CT/.dicomsort-run-0.part": FILES["a/1"]})
    os.link(outbox / "CT/theirs", outbox / "CT/1")
    before = facts(outbox / "CT/theirs")
    result = checked_again(inbox, outbox, operation, Files())
    assert result is not None
    assert result.outcome is Outcome.DUPLICATE
    assert facts(outbox / "CT/theirs") == before


def test_a_copy_whose_source_changed_while_the_run_was_down_is_completed_by_the_plan(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = replace(step(inbox, Verb.MOVE, "a/2", target="outbox/CT/2"), mode=0o4604)
    make_files(outbox, {"CT/2": FILES["a/2"], "CT/.dicomsort-run-0-2.part": b""})
    os.utime(outbox / "CT/2", ns=(operation.mtime_ns, operation.mtime_ns))
    append(inbox / "a/2")
    result = checked_again(inbox, outbox, operation, NoLinks())
    assert result is not None
    assert (result.outcome, result.lost) == (Outcome.DONE, None)
    assert (outbox / "CT/2").stat().st_mode & 0o7777 == 0o604


def test_plans_and_journals_of_before_are_read(tmp_path: Path) -> None:
    operation = Operation(0, Verb.MOVE, "inbox/a", "outbox/CT/a", "", 1, 2, 3, 4, 0o640, "ab" * 32)
    assert len(pack(operation)) == 13
    assert unpack(pack(operation)) == operation
    with_owner = replace(operation, owner=(1, 2))
    assert unpack(json.loads(json.dumps(pack(with_owner)))) == with_owner
    lines = [["end", 0, "done", "", 7], ["end", 1, "done", "not kept: owner", 8, [1, 2, 0o6755, 3]]]
    (tmp_path / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    known = replay(str(tmp_path), 2)
    first, second = known.result(0), known.result(1)
    assert first is not None
    assert second is not None
    assert (first.lost, second.lost) == (None, Lost(1, 2, 0o6755, 3))


def test_a_decision_is_known_by_its_message_whatever_its_move_could_not_keep() -> None:
    message = f"not kept: owner, 2 extended attributes; {message_of('anna', 'REVIEW/unsure/a; was b')}"
    assert who_of(message) == "anna"
    assert who_of(message_of("anna", "REVIEW/unsure/a")) == "anna"
    assert decided_from(Row("x.dcm", action="moved", reason="reviewed", message=message)) == "REVIEW/unsure/a; was b"
