"""How a received instance comes to its place: the order of writes, whatever dies, refuses or interferes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from building import STORAGE, make_dicom, read_tree, uid
from crashing import Crash, CrashingFiles
from powercut import LOSSES, Forgetful
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
from receiving import made

from dicomsort.dicom import file_meta
from dicomsort.files import Files, closing_descriptor
from dicomsort.pacs.receive.incoming import Committed, IncomingDataset, PartFiles, StoreRequest, commit

PLACE = f"{uid(1)}/{uid(1, 1)}/{uid(1, 1, 1)}.dcm"
REQUEST = StoreRequest(STORAGE["CT"], uid(1, 1, 1), ExplicitVRLittleEndian)
LIMIT = 1 << 20


def data_set(tmp_path: Path, **tags: str) -> bytes:
    return made(tmp_path, PatientName="A^B", **tags)


def receive(files: Files, inbox: Path, data: bytes, request: StoreRequest = REQUEST) -> tuple[Committed, str]:
    """One instance, in three fragments."""
    arriving = IncomingDataset(lambda: request, PartFiles(files, str(inbox)).begin, LIMIT)
    try:
        for piece in (data[:100], data[100:300], data[300:]):
            arriving.write(piece)
        return commit(files, str(inbox), *arriving.proven())
    finally:
        arriving.discard()


def whole(data: bytes) -> bytes:
    return file_meta.encode(*REQUEST) + data


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def test_it_lies_under_its_uids_with_the_bytes_that_came(inbox: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    assert receive(Files(), inbox, data) == (Committed.STORED, PLACE)
    assert read_tree(inbox) == {PLACE: whole(data)}
    read = dcmread(inbox / PLACE)
    assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (read.file_meta.MediaStorageSOPInstanceUID, read.file_meta.MediaStorageSOPClassUID) == REQUEST[1::-1]
    assert read.SOPInstanceUID == uid(1, 1, 1)
    assert (inbox / PLACE).stat().st_mode & 0o027 == 0
    assert (inbox / uid(1)).stat().st_mode & 0o027 == 0


def test_the_same_again_writes_nothing_and_other_content_is_kept_beside(inbox: Path, tmp_path: Path) -> None:
    first, second = data_set(tmp_path), data_set(tmp_path, StudyDescription="other")
    receive(Files(), inbox, first)
    before = read_tree(inbox)
    assert receive(Files(), inbox, first) == (Committed.REPEATED, PLACE)
    assert read_tree(inbox) == before
    kept, path = receive(Files(), inbox, second)
    assert kept is Committed.BESIDE
    assert path.startswith(PLACE.removesuffix("dcm"))
    assert read_tree(inbox) == before | {path: whole(second)}
    assert receive(Files(), inbox, second) == (Committed.REPEATED, path)
    kept, third = receive(Files(), inbox, first, REQUEST._replace(syntax=JPEGBaseline8Bit))
    assert (kept, len(read_tree(inbox))) == (Committed.BESIDE, 3)
    assert third != path


def test_what_another_program_wrote_is_compared_by_its_data_set(inbox: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    there = make_dicom(inbox / PLACE, PatientName="A^B")
    before = there.read_bytes()
    assert before != whole(data)
    assert receive(Files(), inbox, data) == (Committed.REPEATED, PLACE)
    there.write_bytes(before[:-1])
    assert receive(Files(), inbox, data)[0] is Committed.BESIDE
    there.write_bytes(b"no DICOM")
    assert receive(Files(), inbox, data)[0] is Committed.REPEATED
    assert there.read_bytes() == b"no DICOM"


@pytest.mark.parametrize("losses", LOSSES)
def test_what_it_equals_is_durable_too_before_that_is_success(
    inbox: Path, tmp_path: Path, losses: tuple[bool, bool]
) -> None:
    disk, data = Forgetful(), data_set(tmp_path)
    for folder in (inbox / uid(1), (inbox / PLACE).parent):
        disk.make_folder(str(folder))
    with closing_descriptor(disk.create(str(inbox / PLACE))) as descriptor:
        disk.write(descriptor, whole(data))
    assert receive(disk, inbox, data) == (Committed.REPEATED, PLACE)
    disk.cut(lose_bytes=losses[0], lose_names=losses[1])
    PartFiles(Files(), str(inbox)).clean_up()
    assert read_tree(inbox) == {PLACE: whole(data)}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/hostname")])
def test_whatever_has_its_name_is_not_touched(inbox: Path, tmp_path: Path, make: Callable[[Path], object]) -> None:
    (inbox / PLACE).parent.mkdir(parents=True)
    make(inbox / PLACE)
    before = (inbox / PLACE).lstat()
    kept, path = receive(Files(), inbox, data_set(tmp_path))
    assert (kept, path.count("/")) == (Committed.BESIDE, 2)
    assert (inbox / path).is_file()
    assert (inbox / PLACE).lstat().st_ino == before.st_ino


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path.parents[1])])
def test_a_folder_that_is_none_leads_nowhere(inbox: Path, tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(inbox / uid(1))
    before = read_tree(tmp_path)
    with pytest.raises(NotADirectoryError, match="something else stands"):
        receive(Files(), inbox, data_set(tmp_path))
    assert read_tree(tmp_path) == before


def prepare(case: str, inbox: Path, tmp_path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The data set that comes, and what of the inbox must stay."""
    inbox.mkdir(parents=True)
    if case == "the same is there":
        receive(Files(), inbox, data_set(tmp_path))
    elif case == "another is there":
        receive(Files(), inbox, data_set(tmp_path, StudyDescription="other"))
    return data_set(tmp_path), read_tree(inbox)


CASES = ["nothing is there", "the same is there", "another is there"]


def check_crashed(
    inbox: Path, data: bytes, there: dict[str, bytes], acknowledged: tuple[Committed, str] | None
) -> None:
    """Every file under a final name is whole; what was acknowledged is there; and all of it comes by sending again."""
    PartFiles(Files(), str(inbox)).clean_up()
    after = read_tree(inbox)
    assert set(after.values()) <= {whole(data), *there.values()}
    assert there.items() <= after.items()
    if acknowledged is not None:
        assert after[acknowledged[1]] == whole(data)
    receive(Files(), inbox, data)
    assert [*read_tree(inbox).values()].count(whole(data)) == 1
    assert len(read_tree(inbox)) == len({whole(data), *there.values()})


@pytest.mark.parametrize("case", CASES)
def test_a_death_before_any_change_leaves_no_half_file_and_loses_nothing_acknowledged(
    tmp_path: Path, case: str, record_property: pytest.RecordProperty
) -> None:
    for at in range(100):
        inbox = tmp_path / str(at) / "inbox"
        data, there = prepare(case, inbox, tmp_path)
        for torn in (0, 1, 77):
            files, acknowledged = CrashingFiles(at, torn=torn), None
            with contextlib.suppress(Crash):
                acknowledged = receive(files, inbox, data)
            check_crashed(inbox, data, there, acknowledged)
            shutil.rmtree(inbox)
            prepare(case, inbox, tmp_path)
        if not files.dead:
            record_property("crash points", (f"receive, {case}", "process", 3 * at))
            assert at > 8
            return
    pytest.fail("100 changes were not enough")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("losses", LOSSES)
def test_a_power_cut_before_any_change_loses_nothing_acknowledged(
    tmp_path: Path, case: str, losses: tuple[bool, bool], record_property: pytest.RecordProperty
) -> None:
    for at in range(100):
        inbox = tmp_path / str(at) / "inbox"
        data, there = prepare(case, inbox, tmp_path)
        disk, acknowledged = Forgetful(), None
        files = CrashingFiles(at, lambda disk=disk: disk)  # type: ignore[misc]
        with contextlib.suppress(Crash):
            acknowledged = receive(files, inbox, data)
        disk.cut(lose_bytes=losses[0], lose_names=losses[1])
        check_crashed(inbox, data, there, acknowledged)
        if not files.dead:
            record_property("crash points", (f"receive, {case}", f"power, {losses}", at))
            assert at > 8
            return
    pytest.fail("100 changes were not enough")
