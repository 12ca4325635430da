"""DICOM peers that are not there, refuse, break off or talk nonsense: a clear word, nothing lost, nothing half-sent."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import make_dicom, read_tree, uid
from command import Ran
from peers_send import Scp, free_port
from sending_tools import rows, send, statuses

from dicomsort.files import CHUNK
from dicomsort.pacs.send.association import Association
from dicomsort.pacs.send.destination import destination
from dicomsort.pacs.send.records import Instance, Unsendable
from dicomsort.pacs.send.selection import examine, outgoing
from dicomsort.records import Found

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
FILES = 6
POISON = uid(1, 1, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        make_dicom(tmp_path / "in" / f"{number}.dcm", instance=number)
    return tmp_path / "in"


def failed_alone(ran: Ran, message: str) -> None:
    """One file failed, with that message; the others were acknowledged."""
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=FILES - 1, failed=1)), ran.err
    assert message in next(row["message"] for row in rows(ran) if row["status"] == "failed")


def nothing_sent(ran: Ran, folder: Path, message: str) -> None:
    """Exit code 1 and the reason; a row for every file, and no acknowledgement remembered."""
    assert (ran.code, statuses(ran)) == (1, Counter(failed=FILES)), ran.err
    assert message in ran.err
    journals = [content for path, content in read_tree(folder).items() if path.endswith(".jsonl")]
    assert all(b'"sent"' not in content for content in journals)


def test_a_host_that_cannot_be_resolved(folder: Path) -> None:
    ran = send(folder, "--to", "SCP@no-such-host.invalid:104", "--retries", 1)
    nothing_sent(ran, folder, "'no-such-host.invalid' cannot be resolved; check the host in --to")


def test_a_closed_port(folder: Path) -> None:
    ran = send(folder, "--to", f"SCP@127.0.0.1:{free_port()}", "--retries", 2)
    nothing_sent(ran, folder, "cannot be reached: Connection refused")
    assert Counter(row["attempts"] for row in rows(ran)) == {"3": 1, "0": FILES - 1}
    assert rows(ran)[-1]["message"].startswith("not tried: SCP@127.0.0.1:")


def test_a_peer_that_comes_up_while_we_retry(folder: Path) -> None:
    port = free_port()

    with Scp().running() as scp, contextlib.ExitStack() as stack:
        refusals = iter([True, True, False])
        real = socket.create_connection

        def connect(address: tuple[str, int], *arguments: object, **options: object) -> socket.socket:
            if next(refusals, False):
                raise ConnectionRefusedError(111, "Connection refused")
            return real((address[0], scp.port), *arguments, **options)  # type: ignore[arg-type]

        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("socket.create_connection", connect)
        ran = send(folder, "--to", f"SCP@127.0.0.1:{port}")
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=FILES)), ran.err
    assert rows(ran)[0]["attempts"] == "3"


def test_a_called_title_that_the_peer_does_not_know(folder: Path) -> None:
    with Scp().running(called="ARCHIVE") as scp:
        ran = send(folder, "--to", scp.to)
        nothing_sent(ran, folder, "it does not know the AE title that it was called by; check --to")
        assert len(scp.contexts) == 1  # final: not tried again
        assert send(folder, "--to", scp.to.replace("SCP@", "ARCHIVE@")).code == 0


def test_a_peer_that_aborts_once_in_a_while(folder: Path) -> None:
    with Scp(lambda _, times: None if times == 1 else 0).running() as scp:
        ran = send(folder, "--to", scp.to)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=FILES)), ran.err
    assert {row["attempts"] for row in rows(ran)} == {"2"}
    assert len(scp.kept) == FILES


def test_an_instance_at_which_the_peer_always_aborts(folder: Path) -> None:
    with Scp(lambda each, _: None if each == POISON else 0).running() as scp:
        failed_alone(send(folder, "--to", scp.to, "--retries", 1), "the peer aborted the association")
    assert scp.came[POISON] == 2


def test_a_peer_that_always_aborts_is_not_asked_for_ever(folder: Path) -> None:
    with Scp(lambda *_: None).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 1)
    nothing_sent(ran, folder, "4 times in a row: the peer aborted the association")
    assert scp.came.total() == 4


def test_out_of_resources_a_few_times(folder: Path) -> None:
    with Scp(lambda each, times: 0xA700 if each == POISON and times <= 2 else 0).running() as scp:
        ran = send(folder, "--to", scp.to)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=FILES)), ran.err
    assert Counter(row["attempts"] for row in rows(ran)) == {"1": FILES - 1, "3": 1}
    assert len(scp.contexts) == 1  # the association goes on


def test_out_of_resources_for_good(folder: Path) -> None:
    with Scp(lambda *_: 0xA700).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 1)
    nothing_sent(ran, folder, "9 times in a row: the peer says: out of resources (0xA700)")
    assert scp.came.total() == 9
    assert max(scp.came.values()) == 2


@pytest.mark.parametrize("status", [0xC000, 0xA900, 0x0122, 0x0124, 0x1234, 0x0001, 0x0107, 0x0116, 0xB001, 0xBFFF])
def test_a_refusal_is_final(folder: Path, status: int) -> None:
    with Scp(lambda each, _: status if each == POISON else 0).running() as scp:
        failed_alone(send(folder, "--to", scp.to), f"(0x{status:04X})")
        assert scp.came[POISON] == 1
        assert statuses(send(folder, "--to", scp.to)) == Counter(skipped=FILES - 1, failed=1)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xB000, "data elements were changed there"),
        (0xB006, "elements were discarded there"),
        (0xB007, "the data set does not match its SOP class"),
    ],
)
def test_a_warning_is_an_acknowledgement_with_a_message(folder: Path, status: int, words: str) -> None:
    with Scp(lambda *_: status).running() as scp:
        ran = send(folder, "--to", scp.to)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=FILES))
    assert {row["message"] for row in rows(ran)} == {f"the peer says: {words} (0x{status:04X})"}


def test_a_file_that_vanishes_and_one_that_changes_meanwhile(folder: Path) -> None:
    def meddle(_: str, __: int) -> int:
        (folder / "3.dcm").unlink(missing_ok=True)
        with (folder / "4.dcm").open("ab") as file:
            file.write(b"\0\0")
        return 0

    with Scp(meddle).running() as scp:
        ran = send(folder, "--to", scp.to)
        assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=FILES - 2, failed=2)), ran.err
        told = {row["path"]: row["message"] for row in rows(ran)}
        assert told["3.dcm"] == "it is gone since it was found"
        assert told["4.dcm"] == "it changed while it was sent; send again"
        assert scp.came.total() == FILES - 2
        assert len(scp.contexts) == 1


def test_a_large_file_that_changes_on_the_way_leaves_nothing_there(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "1.dcm", has_pixels=False)
    with path.open("ab") as file:
        file.write(bytes.fromhex("e07f1000 4f420000") + (4 * CHUNK).to_bytes(4, "little") + bytes(4 * CHUNK))
    status = path.stat()
    found = Found("1.dcm", status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
    instance = examine(str(tmp_path), found)
    assert isinstance(instance, Instance)
    with Scp().running() as scp:
        peer = destination(scp.to)
        association = Association(peer, "TEST", [(CT, EXPLICIT)], 5, None)
        with outgoing(instance) as file:

            def meddling() -> Iterator[bytes]:
                for number, piece in enumerate(file.pieces(instance.offset)):
                    if number == 2:
                        os.utime(path)
                    yield piece

            with pytest.raises(Unsendable, match="changed while it was sent"):
                association.store(1, instance.sop_class, instance.sop_uid, meddling())
        assert not association.is_open
        assert send(tmp_path, "--to", scp.to).code == 0
    assert scp.came.total() == 1
