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
from building import STORAGE, make_dicom, read_tree, uid
from command import Ran
from peers_send import RawScp, Scp, Stored, raw_server
from rawscu import COMMAND, DATA, LAST, NO_DATA_SET, command_set, pdata, pdu, short
from sending_tools import rows, send, statuses

from dicomsort.config import SendSettings
from dicomsort.pacs.send import workers
from dicomsort.pacs.send.association import Association, request
from dicomsort.pacs.send.c_store import DimseChannel
from dicomsort.pacs.send.destination import destination
from dicomsort.pacs.send.records import Batch, Instance, Permanent, SendStatus, Temporary
from dicomsort.pacs.send.selection import examine
from dicomsort.records import Found

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
FILES = 6
POISON = uid(1, 1, 3)
WHOLE = COMMAND | LAST


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
    """Fragments of a command without end, all of them empty."""
    while True:
        connection.sendall(b"\x04\0\0\0\0\x06\0\0\0\x02\x01\x01" * 100)


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
                    association.store(association.accepted.get((CT, EXPLICIT), 1), CT, uid(1, 1, 0), [b"12"])
                ended["status"] += 1
            except (Temporary, Permanent) as error:
                ended[type(error).__name__] += 1
    assert set(ended) == {"status", "Temporary", "Permanent"}


def response(to: Stored, *lacking: int, **other: bytes) -> bytes:
    """The command set of a C-STORE-RSP that says 0x0000, without some elements, or with others (``x0900=…``)."""
    elements = {
        0x0002: to.sop_class, 0x0100: short(0x8001), 0x0120: short(to.message), 0x0800: short(NO_DATA_SET),
        0x0900: short(0), 0x1000: to.sop_uid + b"\0" * (len(to.sop_uid) % 2),
    }  # fmt: skip
    elements |= {int(name[1:], 16): value for name, value in other.items()}
    return command_set((tag, value) for tag, value in elements.items() if tag not in lacking)


def whole(to: Stored, *lacking: int, **other: bytes) -> bytes:
    """A response in one PDU."""
    return pdata(to.context, WHOLE, response(to, *lacking, **other))


def in_pieces(to: Stored, *, second: int) -> list[bytes]:
    """The PDUs of a response in two fragments, the second in a context of that number."""
    data = response(to)
    return [pdata(to.context, COMMAND, data[:21]), pdata(second, WHOLE, data[21:])]


def joined(pdus: list[bytes]) -> bytes:
    """The presentation data values of several PDUs in one."""
    return pdu(DATA, b"".join(each[6:] for each in pdus))


ANOTHER = uid(1, 1, 4).encode()
TWICE = b"\0\0\0\x10" + len(ANOTHER).to_bytes(4, "little") + ANOTHER
LIES: dict[str, tuple[Callable[[Stored], bytes], str]] = {
    "another instance": (lambda to: whole(to, x1000=ANOTHER), "does not name the SOP Instance UID that was sent"),
    "a failure of another": (lambda to: whole(to, x1000=ANOTHER, x0900=short(0xC000)), "not name the SOP Instance UID"),
    "a longer UID": (lambda to: whole(to, x1000=to.sop_uid + b".1"), "does not name the SOP Instance UID"),
    "an empty UID": (lambda to: whole(to, x1000=b""), "does not name the SOP Instance UID"),
    "another class": (lambda to: whole(to, x0002=STORAGE["MR"].encode()), "does not name the SOP Class UID"),
    "two instances": (lambda to: pdata(to.context, WHOLE, TWICE + response(to)), "a damaged command set"),
    "another message": (lambda to: whole(to, x0120=short(to.message - 1)), "the answer to another message"),
    "no message": (lambda to: whole(to, 0x0120), "the answer to another message"),
    "another command": (lambda to: whole(to, x0100=short(0x8030)), "a message that is no C-STORE response"),
    "no status": (lambda to: whole(to, 0x0900), "one without a status"),
    "a status of four bytes": (lambda to: whole(to, x0900=bytes(4)), "one without a status"),
    "a command set cut short": (lambda to: pdata(to.context, WHOLE, response(to)[:-1]), "a damaged command set"),
    "a header cut short": (lambda to: pdata(to.context, WHOLE, response(to) + bytes(3)), "a damaged command set"),
    "another group": (lambda to: pdata(to.context, WHOLE, response(to) + b"\x08" + bytes(7)), "a damaged command set"),
    "another context": (
        lambda to: pdata(to.context + 2, WHOLE, response(to)), "one in another presentation context",
    ),
    "two contexts": (
        lambda to: b"".join(in_pieces(to, second=to.context + 2)), "one in another presentation context",
    ),
    "two contexts in a PDU": (
        lambda to: joined(in_pieces(to, second=to.context + 2)), "one in another presentation context",
    ),
    "a data set": (lambda to: pdata(to.context, LAST, b"12") + whole(to), "one with a data set"),
    "a data set behind it": (lambda to: joined([whole(to), pdata(to.context, LAST, b"12")]), "with more behind it"),
    "a data set to come": (lambda to: whole(to, x0800=short(1)), "one that says a data set follows"),
    "two answers": (lambda to: joined([whole(to), whole(to)]), "with more behind it"),
    "no value": (lambda _: pdu(DATA, b""), "a damaged P-DATA-TF PDU"),
    "a value of one byte": (lambda _: pdu(DATA, b"\0\0\0\x01\x01\x03"), "a damaged P-DATA-TF PDU"),
    "a value beyond its PDU": (lambda to: pdu(DATA, b"\0\0\1" + whole(to)[9:]), "a damaged P-DATA-TF PDU"),
    "a byte too many": (lambda to: pdu(DATA, whole(to)[6:] + b"\0"), "a damaged P-DATA-TF PDU"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_is_not_about_what_was_sent_acknowledges_nothing(folder: Path, lie: str) -> None:
    """The association is aborted; the instance is tried on another, has failed in the end, and is not journalled."""
    tell, message = LIES[lie]
    is_lying = True

    def answer(to: Stored) -> bytes:
        return tell(to) if is_lying and to.sop_uid == POISON.encode() else whole(to)

    with RawScp(answer).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 1)
        assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=FILES - 1, failed=1)), ran.err
        failed = next(row for row in rows(ran) if row["status"] == "failed")
        assert (failed["sop_uid"], failed["attempts"]) == (POISON, "2")
        assert failed["message"].startswith("expected the answer to a C-STORE, received ")
        assert message in failed["message"]
        journals = [content for path, content in read_tree(folder).items() if path.endswith(".jsonl")]
        assert [content.count(b'"sent"') for content in journals] == [FILES - 1]
        assert POISON.encode() not in b"".join(journals)
        is_lying = False
        assert statuses(send(folder, "--to", scp.to)) == Counter(acknowledged=1, skipped=FILES - 1)
    assert scp.aborts == 2  # counted when the peer has read all that was sent


@pytest.mark.parametrize(
    "tell",
    [
        lambda to: whole(to, 0x1000),
        lambda to: whole(to, 0x0002, 0x1000),
        lambda to: whole(to, x1000=to.sop_uid),
        lambda to: whole(to, x1000=to.sop_uid + b" "),
        lambda to: whole(to, x0002=to.sop_class + b"\0\0"),
        lambda to: b"".join(in_pieces(to, second=to.context)),
        lambda to: joined(in_pieces(to, second=to.context)),
        lambda to: pdata(to.context, COMMAND, b"") + whole(to),
    ],
    ids=[
        "no instance",
        "no class",
        "not padded",
        "a blank",
        "much padding",
        "two PDUs",
        "two values",
        "empty fragment",
    ],
)
def test_an_answer_as_the_standard_or_the_field_allows_it(folder: Path, tell: Callable[[Stored], bytes]) -> None:
    with RawScp(tell).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 0)
    assert (ran.code, statuses(ran), scp.aborts) == (0, Counter(acknowledged=FILES), 0), ran.err


def test_a_late_answer_to_an_earlier_message_is_none_to_the_next(folder: Path) -> None:
    """The peer answers the first request of each association twice, without the UIDs that would tell them apart."""
    with RawScp(lambda to: whole(to, 0x0002, 0x1000) * (2 if to.message == 1 else 1)).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 1)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=FILES)), ran.err
    assert sorted(row["attempts"] for row in rows(ran)) == ["1"] * (FILES // 2) + ["2"] * (FILES // 2)
    assert scp.aborts == FILES // 2  # each of these was tried again on an association of its own


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
            connection.settimeout(60)
            target.settimeout(60)
            target.sendall(connection.recv(65536))
            connection.sendall(target.recv(65536))
            connection.recv(65536)
            connection.sendall(bytes.fromhex("05000000000400000000"))
            connection.recv(65536)

    with Scp().running() as scp, raw_server(talk) as port:
        ran = send(folder, "--to", f"SCP@127.0.0.1:{port}", "--retries", 1)
    assert ran.code == 1
    assert "4 times in a row: the peer ended the association before it answered" in ran.err
    assert count == 4
    assert SendStatus.FAILED in statuses(ran)


def test_an_interrupt_does_not_wait_for_a_peer_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.05)
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
        to = f"SCP@127.0.0.1:{port}"
        settings = SendSettings(to, timeout=1)
        channel = DimseChannel(destination(to), settings, None, None)  # type: ignore[arg-type]
        team = workers.SendWorkers([channel], settings, lambda *told: settled.append(told))
        with pytest.raises(KeyboardInterrupt):
            team.run(batches())
        over.set()
        for thread in team._threads:
            thread.join(30)
            assert not thread.is_alive()
    assert settled == []
