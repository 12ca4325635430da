"""A receiver and a peer made of plain bytes: what is answered, and what is in the inbox then."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from building import STORAGE, read_tree, uid
from pydicom import dcmread
from pydicom import uid as syntaxes
from rawscu import ABORT, ACCEPTED, ECHO, LAST, REJECTED, RELEASED, Scu, pdata
from receiving import SETTINGS, Listening, listening, made
from test_faults import Broken

from dicomsort.pacs.receive import store_scp

CT = STORAGE["CT"].encode()
SOP = uid(1, 1, 1).encode()
PLACE = f"{uid(1)}/{uid(1, 1)}/{uid(1, 1, 1)}.dcm"
PRIVATE = "1.2.826.0.1.3680043.10.999.77"
EXPLICIT, IMPLICIT = syntaxes.ExplicitVRLittleEndian, syntaxes.ImplicitVRLittleEndian
FULL, MISMATCH, NOT_UNDERSTOOD = 0xA700, 0xA900, 0xC000


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def receiver(inbox: Path) -> Iterator[Listening]:
    with listening(inbox) as receiver:
        yield receiver
    assert [path for path in read_tree(inbox) if not path.endswith(".dcm")] == []


def test_echo_store_release(receiver: Listening, inbox: Path, tmp_path: Path) -> None:
    data = made(tmp_path)
    with Scu(receiver.port) as scu:
        assert scu.associate()[0] == ACCEPTED
        assert scu.echo() == 0
        assert scu.store(CT, SOP, data) == 0
        assert (inbox / PLACE).read_bytes().endswith(data)
        assert scu.store(CT, SOP, data) == 0
        assert list(read_tree(inbox)) == [PLACE]
        assert scu.release()[0] == RELEASED
    receiver.wait_for("association ended")
    facts = receiver.facts("association ended")
    assert (facts["stored"], facts["repeated"], facts["how"], facts["calling"]) == (1, 1, "released", "TEST")
    assert receiver.facts("instance stored")["path"] == PLACE


def negotiated(answer: bytes) -> dict[int, tuple[int, str]]:
    """Result and transfer syntax of each presentation context of an A-ASSOCIATE-AC (PS3.8 9.3.3)."""
    found, offset = {}, 74
    while offset < len(answer):
        kind, size = answer[offset], int.from_bytes(answer[offset + 2 : offset + 4], "big")
        if kind == 0x21:
            found[answer[offset + 4]] = (answer[offset + 6], answer[offset + 12 : offset + 4 + size].decode())
        offset += 4 + size
    return found


def test_every_storage_class_and_usual_syntax_is_agreed_on_and_no_other(receiver: Listening) -> None:
    usual = ["1.2.840.10008.1.2.4.53", *syntaxes.AllTransferSyntaxes]
    unfit = [s for s in usual if s.endswith((".94", ".95", ".204", ".205")) or ".1.2.7." in s]
    proposed = [(2 * n + 1, CT.decode(), [s]) for n, s in enumerate(usual)]
    proposed += [
        (201, PRIVATE, [EXPLICIT]), (203, STORAGE["SR"], ["1.2.3", IMPLICIT, EXPLICIT]), (205, ECHO, [IMPLICIT]),
        (207, "1.2.840.10008.5.1.4.1.2.2.1", [IMPLICIT]), (209, CT.decode(), ["1.2.3"]), (211, "../../x", [IMPLICIT]),
    ]  # fmt: skip
    with Scu(receiver.port) as scu:
        found = negotiated(scu.associate(contexts=proposed))
    assert len(found) == len(proposed)
    for n, syntax in enumerate(usual):
        assert found[2 * n + 1] == (4 if syntax in unfit else 0, syntax)
    assert [found[n][0] for n in range(201, 213, 2)] == [0, 0, 0, 3, 4, 0]
    assert found[203][1] == IMPLICIT  # the sender's first that is known


@pytest.mark.parametrize(
    "syntax", [EXPLICIT, IMPLICIT, syntaxes.ExplicitVRBigEndian, syntaxes.DeflatedExplicitVRLittleEndian]
)
def test_bytes_are_kept_as_they_came(receiver: Listening, inbox: Path, tmp_path: Path, syntax: str) -> None:
    data = made(tmp_path, syntax=syntax, modality="SR", has_pixels=False, sop_class=PRIVATE)
    with Scu(receiver.port) as scu:
        scu.associate(contexts=[(1, PRIVATE, [syntax])])
        assert scu.store(PRIVATE.encode(), SOP, data, size=77) == 0
    assert (inbox / PLACE).read_bytes().endswith(data)
    read = dcmread(inbox / PLACE)
    assert (read.file_meta.TransferSyntaxUID, read.file_meta.MediaStorageSOPClassUID) == (syntax, PRIVATE)
    assert read.SOPInstanceUID == uid(1, 1, 1)


HOSTILE = [b"../../x", b"", b"1" * 65, b"1." * 40 + b"1", b"1.2\n3", b"1.2\x1b[2J", b"/etc/x", b"..", b"1.2/3", b"1..2",
           b"\xff\xfe", b"1.2\\../../x", b"x" * 300, b"con", "٣.٤".encode()]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_no_uid_becomes_no_path(receiver: Listening, inbox: Path, tmp_path: Path, hostile: bytes) -> None:
    before = read_tree(tmp_path)
    with Scu(receiver.port) as scu:
        scu.associate()
        for sop_class, sop in ((CT, hostile), (hostile, SOP)):
            assert scu.store(sop_class, sop, made(tmp_path)) in {NOT_UNDERSTOOD, MISMATCH}
        for tag in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
            data = made(tmp_path, **{tag: "9.9.9.9"}).replace(*padded(hostile))
            assert scu.store(CT, SOP, data) in {NOT_UNDERSTOOD, MISMATCH}
        assert scu.store(CT, hostile, made(tmp_path).replace(SOP, hostile[: len(SOP)].ljust(len(SOP), b"\0"))) != 0
        assert scu.echo() == 0
        assert scu.store(CT, SOP, made(tmp_path)) == 0
    assert read_tree(tmp_path).keys() - before.keys() == {f"inbox/{PLACE}"}


def padded(value: bytes) -> tuple[bytes, bytes]:
    """What stands for a UID in an explicit data set, and what takes its place: length and value."""
    value += b"\0" * (len(value) % 2)
    return b"UI\x08\x009.9.9.9\0", b"UI" + len(value).to_bytes(2, "little") + value


def test_uids_that_are_missing_are_answered(receiver: Listening, tmp_path: Path) -> None:
    data = made(tmp_path)
    with Scu(receiver.port) as scu:
        scu.associate()
        assert scu.store(None, SOP, data) == NOT_UNDERSTOOD
        assert scu.store(CT, None, data) == NOT_UNDERSTOOD
        assert scu.store(CT, SOP, made(tmp_path, SeriesInstanceUID=None)) == NOT_UNDERSTOOD
        assert scu.store(CT, SOP, made(tmp_path, StudyInstanceUID=None)) == NOT_UNDERSTOOD
        for tag, status in ((b"\x08\0\x16\0", MISMATCH), (b"\x08\0\x18\0", NOT_UNDERSTOOD)):
            assert scu.store(CT, SOP, data.replace(tag, b"\x08\0\x17\0")) == status
        assert scu.store(CT, uid(9).encode(), data) == MISMATCH
        assert scu.store(STORAGE["MR"].encode(), SOP, data) == MISMATCH
        assert scu.store(CT, SOP, b"junk" * 100) == NOT_UNDERSTOOD
        scu.send(scu.command(1, data_set=False, sop_class=CT, sop=SOP))
        assert scu.status() == NOT_UNDERSTOOD
        assert scu.store(CT, SOP, data) == 0
    assert receiver.facts("instance refused")["reason"] == "there is no data set"


def test_an_instance_over_the_limit_is_refused_and_the_association_goes_on(
    receiver: Listening, inbox: Path, tmp_path: Path
) -> None:
    data = made(tmp_path)
    with Scu(receiver.port) as scu:
        scu.associate()
        assert scu.store(CT, SOP, data + bytes(1 << 20)) == FULL
        assert read_tree(inbox) == {}
        assert scu.store(CT, SOP, data) == 0
    assert "larger" in receiver.facts("instance refused")["reason"]


@pytest.mark.parametrize("how", ["abort", "close"])
def test_an_instance_that_is_cut_off_leaves_nothing(receiver: Listening, inbox: Path, tmp_path: Path, how: str) -> None:
    with Scu(receiver.port) as scu:
        scu.associate()
        scu.send(scu.command(1, data_set=True, sop_class=CT, sop=SOP))
        scu.send(pdata(1, 0, made(tmp_path)[:300]))
        while not read_tree(inbox):
            time.sleep(0.01)
        if how == "abort":
            scu.abort()
    receiver.wait_for("association ended")
    assert receiver.facts("association ended")["how"] == "aborted"
    assert read_tree(inbox) == {}


def test_only_those_who_are_allowed_may_come(inbox: Path) -> None:
    with listening(inbox, replace(SETTINGS, allow=("CT1", "ARCHIVE"))) as receiver:
        for name, expected in (("CT1", ACCEPTED), ("ARCHIVE", ACCEPTED), ("CT2", REJECTED), ("ct1", REJECTED)):
            with Scu(receiver.port) as scu:
                answer = scu.associate(calling=name)
                assert answer[0] == expected
                if expected == REJECTED:
                    assert answer[7:10] == bytes([1, 1, 3])  # permanent; by the user: calling AE title not recognized
        receiver.wait_for("association rejected")
        assert "--allow" in receiver.facts("association rejected")["reason"]


def test_no_more_associations_than_may_be_open(inbox: Path) -> None:
    with listening(inbox, replace(SETTINGS, max_associations=2)) as receiver:
        with Scu(receiver.port) as one, Scu(receiver.port) as two, Scu(receiver.port) as three:
            assert (one.associate()[0], two.associate()[0]) == (ACCEPTED, ACCEPTED)
            answer = three.associate()
            assert answer[0] == REJECTED
            assert answer[7:10] == bytes([2, 3, 2])  # transient; by the provider: local limit exceeded
            assert (one.echo(), two.echo(), one.release()[0]) == (0, 0, RELEASED)
        while receiver.events().count("association ended") < 2:  # the released one, and the one that was closed
            time.sleep(0.01)
        assert "--max-associations" in receiver.facts("association rejected")["reason"]
        with Scu(receiver.port) as one, Scu(receiver.port) as two, Scu(receiver.port) as three:
            assert (two.associate()[0], three.associate()[0]) == (ACCEPTED, ACCEPTED)  # one has asked for nothing yet


def test_a_full_disk_is_out_of_resources_and_room_lets_it_go_on(inbox: Path, tmp_path: Path) -> None:
    data = made(tmp_path)
    broken = Broken("write", 3, errno.ENOSPC)  # the first is the check at the start
    with listening(inbox, files=broken) as receiver, Scu(receiver.port) as scu:
        scu.associate()
        assert scu.store(CT, SOP, data, size=100) == FULL
        assert read_tree(inbox) == {}
        assert scu.store(CT, SOP, data) == 0
        told = receiver.facts("instance refused")
        assert (told["status"], os.strerror(errno.ENOSPC) in told["reason"]) == ("0xA700", True)


def test_an_error_of_our_own_is_a_failure(receiver: Listening, inbox: Path, tmp_path: Path) -> None:
    with Scu(receiver.port) as scu, mock.patch.object(store_scp, "commit", side_effect=ZeroDivisionError("A^B")):
        scu.associate()
        assert scu.store(CT, SOP, made(tmp_path)) == 0x0110
        assert scu.echo() == 0
    assert receiver.facts("instance refused")["reason"] == "an error of the receiver: ZeroDivisionError"
    assert read_tree(inbox) == {}


def test_nothing_that_is_logged_holds_what_a_data_set_holds(receiver: Listening, tmp_path: Path) -> None:
    marked = {"PatientName": "ZQX^M", "PatientID": "ZQX", "StudyDescription": "ZQX", "AccessionNumber": "ZQX"}
    with Scu(receiver.port) as scu:
        scu.associate()
        for tags in ({}, {"StudyInstanceUID": "ZQX"}, {"SOPInstanceUID": "ZQX"}, {"StudyDescription": "ZQX2"}):
            scu.store(CT, SOP, made(tmp_path, **(marked | tags)))
        scu.store(CT, b"ZQX", made(tmp_path, **marked))
        scu.send(pdata(1, LAST, b"ZQX"))
        assert scu.receive()[:1] in {b"", bytes([ABORT])}
    receiver.wait_for("association ended")
    assert "ZQX" not in repr([vars(record) for record in receiver.told])
    assert {"instance stored", "instance stored beside another", "instance refused"} <= set(receiver.events())
