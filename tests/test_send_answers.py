"""What a DICOM peer may answer, or not: every answer ends in a status or in an error of ours, and none keeps us."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from building import make_dicom, read_tree, uid
from command import Ran
from peers_send import Scp, raw_server
from sending_tools import send, statuses

from dicomsort.adapters.sending import crew
from dicomsort.adapters.sending.association import Association
from dicomsort.adapters.sending.destination import destination
from dicomsort.adapters.sending.dimse import DimseChannel
from dicomsort.adapters.sending.negotiation import request
from dicomsort.adapters.sending.records import Batch, Fate, Instance, Permanent, Request, Temporary
from dicomsort.adapters.sending.selecting import examine
from dicomsort.records import Found

pytest.importorskip("pynetdicom", reason="the extra dicomsort[pacs] is not installed")

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
FILES = 6
POISON = uid(1, 1, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        make_dicom(tmp_path / "in" / f"{number}.dcm", instance=number)
    return tmp_path / "in"


def nothing_sent(ran: Ran, folder: Path, message: str) -> None:
    """Exit code 1 and the reason; a row for every file, and no acknowledgement remembered."""
    assert (ran.code, statuses(ran)) == (1, Counter(failed=FILES)), ran.err
    assert message in ran.err
    journals = [content for path, content in read_tree(folder).items() if path.endswith(".jsonl")]
    assert all(b'"sent"' not in content for content in journals)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "received what is no DICOM protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "received what is no DICOM protocol"),
        (b"", "the peer closed the connection"),
        (b"\x02\0\0\0\0\x04junk", "accepts without a word of what was proposed"),
        (b"\x02\0\0\0\0\x50" + b"\x21" * 80, "accepts in a form that cannot be read"),
        (b"\x02\0\0\0", "the peer closed the connection"),
        (b"\x03\0\0\0\0\x04\0\x02\x03\x02", "it has as many associations as it takes"),
        (b"\x03\0\0\0\0\x04\0\x01\x01\x03", "it does not know our AE title; name it with --ae-title"),
        (b"\x03\0\0\0\0\x04\0\x01\x09\x09", "reason 9/9"),
        (b"\x03\0\0\0\0\0", "reason 0/0"),
        (b"\x07\0\0\0\0\x04\0\0\x02\x01", "the peer aborted the association: unrecognised PDU"),
        (b"\x06\0\0\0\0\x04\0\0\0\0", "answers a request for an association with a PDU of type 6"),
        (b"\x04\0\xff\xff\xff\xff", "received what is no DICOM protocol"),
    ],
)
def test_what_else_may_listen_there(folder: Path, answer: bytes, message: str) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with raw_server(talk) as port:
        nothing_sent(send(folder, "--to", f"SCP@127.0.0.1:{port}", "--retries", 1), folder, message)


def test_a_peer_that_says_nothing(folder: Path) -> None:
    with raw_server(lambda connection: (connection.recv(65536), time.sleep(1))[0]) as port:
        ran = send(folder, "--to", f"SCP@127.0.0.1:{port}", "--retries", 0, "--timeout", 0.2)
    nothing_sent(ran, folder, "the peer did not answer within 0.2 s")


def drip(connection: socket.socket) -> None:
    """An answer of a hundred bytes, one at a time."""
    for byte in b"\x02\0\0\0\0\x64" + bytes(100):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def pour(connection: socket.socket) -> None:
    """Messages without end, none of them an answer."""
    while True:
        connection.sendall(b"\x04\0\0\0\0\x06\0\0\0\x02\x01\x00" * 100)


@pytest.mark.parametrize("endless", [drip, pour], ids=["drip", "pour"])
def test_a_peer_without_end(folder: Path, endless: Callable[[socket.socket], None]) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        if endless is pour:
            with socket.create_connection(("127.0.0.1", scp.port)) as other:
                other.sendall(request("SCP", "TEST", [(CT, EXPLICIT)]))
                connection.sendall(other.recv(65536))
        endless(connection)

    with Scp().running() as scp, raw_server(talk) as port:
        ran = send(folder, "--to", f"SCP@127.0.0.1:{port}", "--retries", 0, "--timeout", 0.3)
    nothing_sent(ran, folder, "the peer did not answer within 0.3 s")


def test_answers_of_chance_end_in_errors_of_ours(folder: Path) -> None:
    """A real acceptance and a real C-STORE response with bytes changed: never another exception, nor a hang."""
    with Scp().running() as scp, contextlib.ExitStack() as stack:
        recorded: list[bytes] = []
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        real = Association._take

        def take(association: Association, length: int) -> bytes:
            taken = real(association, length)
            recorded.append(taken)
            return taken

        patch.setattr(Association, "_take", take)
        assert send(folder, "--to", scp.to).code == 0
    acceptance, response = b"".join(recorded[:2]), b"".join(recorded[2:4])
    chosen = random.Random(1)
    ended = Counter[str]()
    replies: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        connection.settimeout(0.3)
        for reply in replies:
            connection.recv(65536)
            connection.sendall(reply)

    with raw_server(talk) as port:
        peer = destination(f"SCP@127.0.0.1:{port}")
        for _ in range(150):
            replies[:] = [mutated(acceptance, chosen), mutated(response, chosen)]
            try:
                association = Association(peer, "TEST", [(CT, EXPLICIT)], 0.1, None)
                with contextlib.ExitStack() as held:
                    held.callback(association.cut)
                    association.store(association.accepted.get((CT, EXPLICIT), 1), CT, POISON, [b"12"])
                ended["status"] += 1
            except (Temporary, Permanent) as error:
                ended[type(error).__name__] += 1
    assert set(ended) == {"status", "Temporary", "Permanent"}


def mutated(data: bytes, chosen: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chosen.randrange(4)):
        changed[chosen.randrange(len(changed))] = chosen.randrange(256)
    return bytes(changed[: len(changed) - (chosen.random() < 0.1)])


def test_ends_of_the_peer_between_instances(folder: Path) -> None:
    """A-RELEASE-RQ where an answer was due: the association is done, the instance is sent on another."""
    count = 0

    def talk(connection: socket.socket) -> None:
        nonlocal count
        count += 1
        target = socket.create_connection(("127.0.0.1", scp.port))
        with target:
            connection.settimeout(2)
            target.settimeout(2)
            target.sendall(connection.recv(65536))
            connection.sendall(target.recv(65536))
            connection.recv(65536)
            connection.sendall(bytes.fromhex("05000000000400000000"))
            connection.recv(65536)

    with Scp().running() as scp, raw_server(talk) as port:
        ran = send(folder, "--to", f"SCP@127.0.0.1:{port}", "--retries", 1)
    assert ran.code == 1
    assert "the peer ended the association before it answered" in ran.err
    assert count == 6
    assert Fate.FAILED in statuses(ran)


def test_an_interrupt_does_not_wait_for_a_peer_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "GRACE", 0.05)
    connected, over = threading.Event(), threading.Event()

    def talk(connection: socket.socket) -> None:
        connected.set()
        over.wait(30)

    def batches() -> Iterator[Batch]:
        status = (folder / "0.dcm").stat()
        instance = examine(str(folder), Found("0.dcm", status.st_size, status.st_mtime_ns, 0, status.st_ino))
        assert isinstance(instance, Instance)
        yield Batch((instance,), ((CT, EXPLICIT),))
        connected.wait(30)
        raise KeyboardInterrupt

    settled: list[object] = []
    with raw_server(talk) as port:
        request = Request(str(folder), f"SCP@127.0.0.1:{port}", timeout=1)
        channel = DimseChannel(destination(request.to), request, None, None)  # type: ignore[arg-type]
        team = crew.Crew([channel], request, lambda *told: settled.append(told))
        with pytest.raises(KeyboardInterrupt):
            team.run(batches())
        over.set()
        for thread in team._threads:
            thread.join(30)
            assert not thread.is_alive()
    assert settled == []
