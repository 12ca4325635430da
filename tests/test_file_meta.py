"""File meta information: whatever announces an implementation announces the same one, by the same bytes."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pytest
from building import STORAGE, make_dicom, uid
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from receiving import listening, made

from dicomsort.dicom import file_meta
from dicomsort.dicom.elements import ByteSource
from dicomsort.pacs.send.records import Instance
from dicomsort.pacs.send.selection import examine
from dicomsort.records import Found

OURS = (file_meta.IMPLEMENTATION_CLASS_UID, file_meta.IMPLEMENTATION_VERSION_NAME)
PLACE = f"{uid(1)}/{uid(1, 1)}/{uid(1, 1, 1)}.dcm"


def announced(content: bytes) -> tuple[str, str]:
    meta = dcmread(BytesIO(content), force=True).file_meta
    return meta.ImplementationClassUID, meta.ImplementationVersionName


def negotiated(pdu: bytes) -> tuple[str, str]:
    """The same of an A-ASSOCIATE PDU (PS3.7 D.3.3.2)."""
    found = []
    for kind in (b"\x52\0", b"\x55\0"):
        at = pdu.rindex(kind)
        found.append(pdu[at + 4 : at + 4 + int.from_bytes(pdu[at + 2 : at + 4], "big")].decode())
    return found[0], found[1]


def test_what_is_announced_fits_its_vr() -> None:
    assert len(OURS[0]) <= 64
    assert len(OURS[1]) <= 16


def test_an_association_that_is_requested_announces_ours() -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    from dicomsort.pacs.send import association

    assert negotiated(association.request("PEER", "OURS", [(STORAGE["CT"], ExplicitVRLittleEndian)])) == OURS


def test_an_association_that_is_accepted_and_a_received_file_announce_ours(tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    from rawscu import Scu

    inbox = tmp_path / "inbox"
    inbox.mkdir()
    data = made(tmp_path)
    with listening(inbox) as receiver, Scu(receiver.port) as scu:
        answer = scu.associate(contexts=[(1, STORAGE["CT"], [ExplicitVRLittleEndian])])
        assert scu.store(STORAGE["CT"].encode(), uid(1, 1, 1).encode(), data) == 0
    assert negotiated(answer) == OURS
    assert announced((inbox / PLACE).read_bytes()) == OURS


@pytest.mark.parametrize("kept", ["nothing", "prefix and meta", "meta"])
def test_what_a_server_gets_that_takes_whole_files_announces_ours_where_the_file_has_none(
    tmp_path: Path, kept: str
) -> None:
    whole = make_dicom(tmp_path / "1.dcm").read_bytes()
    meta = file_meta.read(ByteSource.of_bytes(whole), 132)
    head = {"nothing": whole[meta.end :], "prefix and meta": whole[128:], "meta": whole[132:]}[kept]
    sent = file_meta.lacking(head, STORAGE["CT"], uid(1, 1, 1), ExplicitVRLittleEndian) + head
    assert announced(sent) == (OURS if kept == "nothing" else announced(whole))
    assert dcmread(BytesIO(sent)) == dcmread(BytesIO(whole))


def test_a_part_for_a_web_server_announces_ours(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "1.dcm")
    content = path.read_bytes()
    path.write_bytes(content[file_meta.read(ByteSource.of_bytes(content), 132).end :])
    status = os.lstat(path)
    instance = examine(str(tmp_path), Found("1.dcm", status.st_size, status.st_mtime_ns, 0, status.st_ino))
    assert isinstance(instance, Instance)
    assert announced(instance.lacking + path.read_bytes()) == OURS


def test_what_is_written_is_read_again() -> None:
    written = file_meta.encode(STORAGE["CT"], uid(1), ImplicitVRLittleEndian)
    whole = written + b"\x08\0\x05\0\0\0\0\0"
    found = file_meta.read(ByteSource.of_bytes(whole), 132)
    assert found == (STORAGE["CT"], ImplicitVRLittleEndian, len(written), True)
    assert file_meta.offset(whole) == 132


@pytest.mark.parametrize("damage", [b"\x02\0\x12\0ZZ\2\0ab", b"\x02\0\x01\0OB\0\0\2\0\0\0\0\1", b"\x02\0\x13\0SH"])
def test_what_goes_on_in_another_form_is_not_whole(damage: bytes) -> None:
    written = file_meta.encode(STORAGE["CT"], uid(1), ImplicitVRLittleEndian)
    assert not file_meta.read(ByteSource.of_bytes(written + damage), 132).is_whole
