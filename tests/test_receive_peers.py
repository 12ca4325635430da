"""DCMTK and Orthanc send to a process of ``dicomsort receive``: many at once, while it dies, while its disk is full."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from building import make_dicom, read_tree, uid
from command import by_source, placed, rows, sort
from peers import ENDS, Receiving, dcmsend, orthanc, receiving, tool
from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from receiving import data_of

pytestmark = pytest.mark.peers
ACKNOWLEDGED = re.compile(r"Received (?:C-STORE|Store) Response \(Success\)")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def fill(folder: Path, count: int, *, study: int = 1, rows: int = 16) -> dict[str, bytes]:
    """``count`` CT slices: where each will lie in an inbox -> its data set."""
    template = make_dicom(folder / "0.dcm", study=study, instance=10_000)
    content, expected = template.read_bytes(), {}
    for number in range(count):
        sop = uid(study, 1, 10_000 + number)
        path = folder / f"{number}.dcm"
        path.write_bytes(content.replace(uid(study, 1, 10_000).encode(), sop.encode()) + bytes(rows * 2 % 2))
        expected[f"{uid(study)}/{uid(study, 1)}/{sop}.dcm"] = data_of(path)
    return expected


def check_whole(inbox: Path, expected: dict[str, bytes]) -> None:
    """What of these is in the inbox is whole, by its data set."""
    for path, data in expected.items():
        if (inbox / path).exists():
            assert data_of(inbox / path) == data, path


def arrived(inbox: Path) -> list[str]:
    """The instances that have their place."""
    return [path.relative_to(inbox).as_posix() for path in inbox.glob("*/*/*.dcm")]


def wait_for_ends(receiver: Receiving, count: int) -> None:
    """Until so many associations ended: a peer may be gone before the receiver says so."""
    until = time.monotonic() + ENDS
    while sum(event["event"] == "association ended" for event in receiver.events()) < count:
        assert time.monotonic() < until, receiver.events()
        time.sleep(0.01)


def test_dcmtk_echoes_and_sends_what_it_has_as_it_is(inbox: Path, tmp_path: Path, sample_inbox: Path) -> None:
    expected = fill(tmp_path / "plain", 2)
    make_dicom(tmp_path / "plain" / "implicit.dcm", study=2, syntax=ImplicitVRLittleEndian)
    make_dicom(tmp_path / "plain" / "big.dcm", study=3, syntax=ExplicitVRBigEndian)
    make_dicom(tmp_path / "plain" / "report.dcm", study=4, modality="SR", has_pixels=False)
    with receiving(inbox) as receiver:
        subprocess.run([tool("echoscu"), "-aet", "CT1", "127.0.0.1", str(receiver.port)], check=True)
        wait_for_ends(receiver, 1)
        code, out = dcmsend(receiver.port, tmp_path / "plain", sample_inbox / "from-modality" / "us").finish()
        assert (code, len(ACKNOWLEDGED.findall(out))) == (0, 7), out
        wait_for_ends(receiver, 2)
        code, out = dcmsend(receiver.port, tmp_path / "plain").finish()
        assert (code, len(ACKNOWLEDGED.findall(out))) == (0, 5), out
        assert receiver.end() == 0
    assert len(read_tree(inbox)) == 7
    ended = [event for event in receiver.events() if event["event"] == "association ended"]
    assert [(event.get("stored"), event.get("repeated")) for event in ended] == [(None, None), (7, None), (None, 5)]
    check_whole(inbox, expected)
    for study, modality in ((2, "CT"), (3, "CT"), (4, "SR")):  # dcmsend itself makes explicit little endian of them
        assert dcmread(inbox / uid(study) / uid(study, 1) / f"{uid(study, 1, 1)}.dcm").Modality == modality
    compressed = dcmread(sample_inbox / "from-modality" / "us" / "heart.dcm")
    there = dcmread(next(inbox.rglob(f"{compressed.SOPInstanceUID}.dcm")))
    assert there.file_meta.TransferSyntaxUID == compressed.file_meta.TransferSyntaxUID
    assert compressed.file_meta.TransferSyntaxUID.is_compressed
    assert there.PixelData == compressed.PixelData


def test_500_instances_arrive_over_4_associations_while_a_sort_runs(inbox: Path, tmp_path: Path, outbox: Path) -> None:
    expected: dict[str, bytes] = {}
    for number in range(4):
        expected |= fill(tmp_path / f"source{number}", 125, study=number + 1)
    with receiving(inbox) as receiver:
        senders = [dcmsend(receiver.port, tmp_path / f"source{number}") for number in range(4)]
        while len(arrived(inbox)) < 20:
            time.sleep(0.01)
        codes = [sort(inbox, outbox).code]
        out = "".join(sender.finish()[1] for sender in senders)
        codes.append(sort("--move", "--settle", 0, "--duplicates", "remove", inbox, outbox).code)
        assert receiver.end() == 0
    assert len(ACKNOWLEDGED.findall(out)) == 500, out[-2000:]
    assert codes == [0, 0]
    assert [row for row in rows(outbox) if row["status"] not in {"sorted", "duplicate", "ignored"}] == []
    ignored = {(row["reason"], row["source"].endswith(".part")) for row in rows(outbox) if row["status"] == "ignored"}
    assert ignored <= {("part-file", True), ("vanished", True)}  # a part may go between being met and being looked at
    assert read_tree(inbox) == {}
    assert {path.removeprefix("CT/"): data_of(outbox / path) for path in placed(outbox)} == expected
    assert len(by_source(outbox)) >= 500


def killed_amid(inbox: Path, sources: list[Path], least: int) -> list[int]:
    """How many instances of each source a receiver acknowledged that was killed when so many had arrived."""
    with receiving(inbox) as receiver:
        senders = [dcmsend(receiver.port, source) for source in sources]
        while len(arrived(inbox)) < least:
            time.sleep(0.001)
        receiver.process.kill()
        told = [sender.finish()[1] for sender in senders]
    return [len(ACKNOWLEDGED.findall(out)) for out in told]


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_loses_no_instance_that_was_acknowledged(inbox: Path, tmp_path: Path, seed: int) -> None:
    count, least = 50, random.Random(seed).randrange(10, 100)
    expected: dict[str, bytes] = {}
    acknowledged: list[int] = []
    while sum(acknowledged) == len(expected):  # more of them, where the kill came too late to be in their midst
        count *= 2
        shutil.rmtree(inbox)
        inbox.mkdir()
        for number in range(3):
            expected |= fill(tmp_path / f"source{number}", count, study=number + 1)
        acknowledged = killed_amid(inbox, [tmp_path / f"source{number}" for number in range(3)], least)
    assert sum(acknowledged) > 0
    after = arrived(inbox)
    assert set(after) <= expected.keys()
    check_whole(inbox, expected)
    for number, count in enumerate(acknowledged):
        mine = [path for path in after if path.startswith(f"{uid(number + 1)}/")]
        assert len(mine) - 1 <= count <= len(mine)  # one may lie there that was not answered any more
    with receiving(inbox) as receiver:
        assert [path for path in read_tree(inbox) if path.endswith(".part")] == []
        for number in range(3):
            assert dcmsend(receiver.port, tmp_path / f"source{number}").finish()[0] == 0
        assert receiver.end() == 0
    assert read_tree(inbox).keys() == expected.keys()
    check_whole(inbox, expected)


def test_orthanc_sends_a_study(inbox: Path, tmp_path: Path) -> None:
    expected = fill(tmp_path / "source", 20)
    with receiving(inbox, "--ae-title", "SORTER", "--allow", "ORTHANC") as receiver:
        with orthanc(tmp_path / "orthanc", {"sorter": ("SORTER", receiver.port)}) as archive:
            studies = {archive.add(path) for path in sorted((tmp_path / "source").iterdir())}
            assert archive.ask("/modalities/sorter/echo", b"{}") == {}
            answer = archive.send(studies.pop(), "sorter")
            assert (answer["InstancesCount"], answer["FailedInstancesCount"], studies) == (20, 0, set())
            assert archive.instances().keys() == {path.rpartition("/")[2][:-4] for path in expected}
        assert receiver.end() == 0
    assert read_tree(inbox).keys() == expected.keys()
    check_whole(inbox, expected)


def test_who_is_not_allowed_is_told_so(inbox: Path, tmp_path: Path) -> None:
    fill(tmp_path / "source", 1)
    with receiving(inbox, "--allow", "CT1") as receiver:
        for program in (["echoscu"], ["storescu"]):
            files = [str(tmp_path / "source" / "0.dcm")] if program == ["storescu"] else []
            command = [tool(program[0]), "-aet", "OTHER", "127.0.0.1", str(receiver.port), *files]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ran.returncode != 0
            assert "Calling AE Title Not Recognized" in ran.stderr
    assert read_tree(inbox) == {}


def test_storescu_sends_over_tls(inbox: Path, tmp_path: Path) -> None:
    expected = fill(tmp_path / "source", 1)
    if "tls" not in subprocess.run([tool("storescu"), "--help"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this storescu is built without TLS")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", cert]
    subprocess.run([tool("openssl"), *make], check=True, capture_output=True)
    with receiving(inbox, "--tls-cert", cert, "--tls-key", key, "--tls-ca", cert) as receiver:
        peer = ["127.0.0.1", str(receiver.port), str(tmp_path / "source" / "0.dcm")]
        for options in (["-tls"], ["+tla", "-ic"]):  # without TLS, without a certificate
            assert subprocess.run([tool("storescu"), *options, *peer], capture_output=True, check=False).returncode != 0
        subprocess.run([tool("storescu"), "+tls", str(key), str(cert), "+cf", str(cert), *peer], check=True)
        assert receiver.end() == 0
    check_whole(inbox, expected)
    assert read_tree(inbox).keys() == expected.keys()


def test_a_full_disk_is_told_to_the_sender(inbox: Path, tmp_path: Path) -> None:
    fill(tmp_path / "small", 1)
    make_dicom(tmp_path / "large.dcm", study=2, StudyDescription="large")
    large = tmp_path / "large.dcm"
    content = large.read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00OW")
    large.write_bytes(content[: pixels + 8] + (400_000).to_bytes(4, "little") + bytes(400_000))
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", inbox], check=False, capture_output=True
    ).returncode:
        pytest.skip("a small file system may not be mounted here")
    try:
        with receiving(inbox) as receiver:
            out = "".join(dcmsend(receiver.port, path).finish()[1] for path in (large, tmp_path / "small"))
            assert "Refused: OutOfResources" in out, out
            assert len(ACKNOWLEDGED.findall(out)) == 1
            assert [path for path in read_tree(inbox) if path.endswith(".part")] == []
            assert len(read_tree(inbox)) == 1
            subprocess.run(["mount", "-o", "remount,size=4m", inbox], check=True)
            assert dcmsend(receiver.port, large).finish()[0] == 0
    finally:
        subprocess.run(["umount", inbox], check=True)
