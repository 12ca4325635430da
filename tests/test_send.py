"""Sending to real peers: what arrives is what was sent, whatever its encoding, and sending again sends the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from building import UID_ROOT, make_dicom, make_files, read_tree
from peers_send import Orthanc, Scp, orthanc, storescp
from pydicom import dcmread
from sending_tools import data_set, rows, send, statuses

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two series of one study, and what is no instance."""
    root = tmp_path / "in"
    for number in range(10):
        make_dicom(root / f"s{number % 2}" / f"{number}.dcm", series=number % 2, instance=number)
    make_files(root, {"notes.txt": "hello", "s0/picture.png": b"\x89PNG\r\n\x1a\n"})
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.mark.peers
def test_storescp_gets_each_data_set_as_it_is(sample_inbox: Path, tmp_path: Path) -> None:
    before = read_tree(sample_inbox)
    with storescp(tmp_path / "scp", "+xa", "+B", "--promiscuous") as to:
        ran = send(sample_inbox, "--to", to, "--journal", tmp_path / "journal")
    assert ran.code in {0, 3}, ran.err
    assert read_tree(sample_inbox) == before
    came = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in (tmp_path / "scp").iterdir()}
    sent = [row for row in rows(ran) if row["status"] == "acknowledged"]
    assert len(sent) > 25
    for row in sent:
        twins = [other["path"] for other in sent if other["sop_uid"] == row["sop_uid"]]
        assert data_set(came[row["sop_uid"]].read_bytes()) in {data_set(before[path]) for path in twins}


@pytest.mark.peers
def test_orthanc_gets_the_same_bytes_by_stow(folder: Path, archive: Orthanc) -> None:
    ran = send(folder, "--to", archive.web, "--associations", 2)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=10, ignored=2)), ran.err
    held = archive.files()
    for row in rows(ran):
        if row["status"] == "acknowledged":
            assert held[row["sop_uid"]] == (folder / row["path"]).read_bytes(), row


@pytest.mark.peers
def test_orthanc_gets_the_same_data_sets_by_c_store(folder: Path, archive: Orthanc) -> None:
    ran = send(folder, "--to", archive.dicom, "--associations", 3)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=10, ignored=2)), ran.err
    held = archive.files()
    for row in rows(ran):
        if row["status"] == "acknowledged":
            assert data_set(held[row["sop_uid"]]) == data_set((folder / row["path"]).read_bytes())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 instances of 200 kinds: classes of the standard and private ones, each in three transfer syntaxes."""
    from pynetdicom.presentation import AllStoragePresentationContexts

    root = tmp_path_factory.mktemp("many")
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts][:60]
    classes += [f"{UID_ROOT}.77.{number}" for number in range(7)]
    kinds = [(sop_class, syntax) for sop_class in classes for syntax in (IMPLICIT, EXPLICIT, DEFLATED)][:200]
    for number in range(600):
        sop_class, syntax = kinds[number % 200]
        path = root / f"{number % 7}" / f"{number}.dcm"
        make_dicom(path, instance=number, sop_class=sop_class, syntax=syntax, has_pixels=number % 3 == 0)
    return root


def test_more_kinds_than_one_association_can_propose(many: Path, tmp_path: Path) -> None:
    with Scp().running() as scp:
        ran = send(many, "--to", scp.to, "--journal", tmp_path / "journal")
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=600)), ran.err
    assert len(scp.kept) == scp.came.total() == 600
    assert len(scp.contexts) == 2
    assert max(scp.contexts) == 128


@pytest.mark.peers
def test_more_kinds_than_one_association_can_propose_to_storescp(many: Path, tmp_path: Path) -> None:
    with storescp(tmp_path / "scp", "+xa", "+B", "--promiscuous") as to:
        ran = send(many, "--to", to, "--associations", 4, "--journal", tmp_path / "journal")
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=600)), ran.err
    # It takes one association at a time: no idle one may keep the others waiting until their patience ends.
    assert {row["attempts"] for row in rows(ran)} == {"1"}
    sent = {data_set(content) for content in read_tree(many).values()}
    assert {data_set(path.read_bytes()) for path in (tmp_path / "scp").iterdir()} == sent


def test_sending_again_sends_only_what_is_new_or_changed(folder: Path) -> None:
    with Scp().running() as scp:
        assert send(folder, "--to", scp.to).code == 0
        assert scp.came.total() == 10
        assert statuses(send(folder, "--to", scp.to)) == Counter(skipped=10, ignored=2)
        make_dicom(folder / "s0" / "0.dcm", series=0, instance=0, PatientComments="read again")
        make_dicom(folder / "new.dcm", series=1, instance=99)
        (folder / "s1" / "1.dcm").rename(folder / "renamed.dcm")
        os.utime(folder / "s1" / "3.dcm", (1, 1))
        assert statuses(send(folder, "--to", scp.to)) == Counter(skipped=9, acknowledged=2, ignored=2)
        assert scp.came.total() == 12
        assert statuses(send(folder, "--to", scp.to)) == Counter(skipped=11, ignored=2)
        assert scp.came.total() == 12
        assert statuses(send(folder, "--to", scp.to, "--again")) == Counter(acknowledged=11, ignored=2)


def test_another_destination_gets_all_of_it(folder: Path) -> None:
    with Scp().running() as one, Scp().running() as other:
        assert send(folder, "--to", one.to).code == send(folder, "--to", other.to).code == 0
    assert one.kept == other.kept
    assert len(one.kept) == 10


def test_a_folder_that_moved_is_not_sent_again(folder: Path) -> None:
    with Scp().running() as scp:
        send(folder, "--to", scp.to)
        moved = folder.rename(folder.with_name("elsewhere"))
        for _ in range(2):
            assert statuses(send(moved, "--to", scp.to)) == Counter(skipped=10, ignored=2)
    assert scp.came.total() == 10


def test_the_same_instance_twice_is_sent_once_and_a_different_one_too(folder: Path) -> None:
    content = (folder / "s0" / "0.dcm").read_bytes()
    make_files(folder, {"twin/0.dcm": content})
    make_dicom(folder / "twin" / "other.dcm", series=0, instance=0, PatientComments="another")
    with Scp().running() as scp:
        ran = send(folder, "--to", scp.to)
        assert statuses(ran)["failed"] == 0
        assert statuses(send(folder, "--to", scp.to)) == Counter(skipped=12, ignored=2)
    assert scp.came.total() in {11, 12}  # the twin may be under way before the first is acknowledged


@pytest.mark.peers
def test_a_large_instance_is_streamed(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "in" / "large.dcm", has_pixels=False)
    size = 64 << 20
    with path.open("ab") as file:
        file.write(bytes.fromhex("e07f1000 4f420000") + size.to_bytes(4, "little"))
        file.write(os.urandom(1 << 20) * 64)
    small = make_dicom(tmp_path / "small" / "1.dcm")
    with storescp(tmp_path / "scp", "+xa", "+B", "--promiscuous") as to, orthanc(tmp_path / "orthanc") as archive:
        for address in (to, archive.web):
            peaks = [_peak(folder, address, tmp_path / "journal") for folder in (small.parent, path.parent)]
            assert peaks[1] - peaks[0] < 24 << 10
        (received,) = [each for each in (tmp_path / "scp").iterdir() if each.stat().st_size > size]
        assert data_set(received.read_bytes()) == data_set(path.read_bytes())
        assert path.read_bytes() in archive.files().values()


def _peak(folder: Path, address: str, journal: Path) -> int:
    """Kilobytes of memory that sending the folder needs at most."""
    code = (
        "import re, sys; from dicomsort.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print(re.search('VmHWM: *([0-9]+)', open('/proc/self/status').read().expandtabs())[1], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "send", str(folder), "--to", address, "--quiet", "--again"]
    name = address.replace("/", "_")
    ran = subprocess.run([*command, "--journal", f"{journal}{name}"], capture_output=True, text=True, check=True)
    return int(ran.stderr.splitlines()[-1])


@pytest.mark.peers
def test_files_without_meta_information_arrive_as_dicom_files(folder: Path, tmp_path: Path, archive: Orthanc) -> None:
    whole = make_dicom(tmp_path / "1.dcm", study=7, syntax=IMPLICIT).read_bytes()
    start = whole.index(b"\x08\x00\x16\x00")
    plain = make_dicom(tmp_path / "2.dcm", study=8).read_bytes()
    make_files(tmp_path / "bare", {"bare": whole[start:], "no preamble": plain[132:], "no zeros": plain[128:]})
    for to in (archive.web, archive.dicom):
        ran = send(tmp_path / "bare", "--to", to, "--again")
        assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=3)), ran.out
        held = archive.files()
        for row in rows(ran):
            if row["sop_uid"].endswith("7.1.1"):
                assert data_set(held[row["sop_uid"]]) == data_set(whole)
                assert dcmread(BytesIO(held[row["sop_uid"]])).file_meta.TransferSyntaxUID == IMPLICIT
            else:
                assert data_set(held[row["sop_uid"]]) == data_set(plain)


@pytest.mark.parametrize("pdu", [0, 100, 16_382, 1 << 20])
def test_messages_fit_into_what_the_peer_takes_at_once(folder: Path, pdu: int) -> None:
    with Scp().running(pdu=pdu) as scp:
        ran = send(folder, "--to", scp.to)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=10, ignored=2)), ran.err
    sent = {data_set(path.read_bytes()) for path in folder.rglob("*.dcm")}
    assert {data_set(b"\x08\0" + content[2:]) for content in scp.kept.values()} == sent


def test_a_peer_that_takes_fewer_associations_than_we_open(folder: Path) -> None:
    retries = 3
    more = 4 * (retries + 1) + 1  # associations that are asked for than would be, if an open one did not count

    def slow(_: str, __: int) -> int:
        until = time.monotonic() + 120
        while len(scp.contexts) < more and time.monotonic() < until:
            time.sleep(0.01)
        return 0

    scp = Scp(slow)
    with scp.running(associations=1):
        ran = send(
            folder, "--to", scp.to, "--associations", 4, "--retries", retries, "--retry-wait", 0.1, "--timeout", 200
        )
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=10, ignored=2)), ran.err
    assert set(scp.came.values()) == {1}
    assert len(scp.contexts) >= more
