"""Peers that break the protocol, stall, or are no DICOM at all: they cost bounded memory and time, and nobody else."""

from __future__ import annotations

import contextlib
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from building import STORAGE, read_tree, uid
from rawscu import ABORT, ACCEPTED, ASSOCIATE, COMMAND, DATA, LAST, RELEASE, Scu, command_set, pdata, pdu, short
from receiving import SETTINGS, Listening, listening, made

CT = STORAGE["CT"].encode()
SOP = uid(1, 1, 1).encode()
QUICK = replace(SETTINGS, timeout=3.0)
WHOLE = COMMAND | LAST


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def receiver(inbox: Path) -> Iterator[Listening]:
    before = threading.active_count()
    with listening(inbox, replace(SETTINGS, timeout=3.0)) as receiver:
        yield receiver
        with Scu(receiver.port) as scu:  # others are served as ever
            assert (scu.associate()[0], scu.echo()) == (ACCEPTED, 0)
    assert read_tree(inbox) == {}
    while threading.active_count() > before:
        time.sleep(0.01)


def command(*elements: tuple[int, bytes], context: int = 1) -> bytes:
    return pdata(context, WHOLE, command_set(elements))


def uid_element(tag: int, value: bytes) -> tuple[int, bytes]:
    return tag, value + b"\0" * (len(value) % 2)


STORE = [(0x0100, short(1)), (0x0110, short(1)), (0x0800, short(1)), uid_element(2, CT), uid_element(0x1000, SOP)]
AGREED = {
    "a PDU of an unknown kind": pdu(0x42, b"x" * 100),
    "a PDU of 4 GiB": struct.pack(">BBI", DATA, 0, 0xFFFFFFFF) + bytes(100_000),
    "a second request": pdu(ASSOCIATE, bytes(200)),
    "an answer to no request": pdu(6, bytes(4)),
    "a message without a value": pdu(DATA, struct.pack(">IB", 1, 1)),
    "a value without a length": pdu(DATA, b"\0\0"),
    "a value of no length": pdu(DATA, struct.pack(">I", 0)),
    "a value beyond its PDU": pdu(DATA, struct.pack(">IBB", 0xFFFFFF, 1, WHOLE) + b"x"),
    "a command that never ends": b"".join([pdata(1, COMMAND, bytes(16000))] * 5),
    "a command of noise": pdata(1, WHOLE, bytes(range(256))),
    "an empty command": pdata(1, WHOLE, b""),
    "a command without a kind": command((0x0110, short(1)), (0x0800, short(0x0101))),
    "a command of an unknown kind": command((0x0100, short(0x7777)), (0x0110, short(1)), (0x0800, short(0x0101))),
    "a priority that is none": command(*STORE, (0x0700, short(9))) + pdata(1, LAST, b"x"),
    "a message number that is none": command((0x0100, short(1)), (0x0110, b"x" * 7), (0x0800, short(1))),
    "a context that was not agreed on": command(*STORE, context=99) + pdata(99, LAST, b"x" * 100),
    "a query on a context of storage": command((0x0100, short(0x20)), (0x0110, short(1)), (0x0800, short(1)),
                                               uid_element(2, CT)) + pdata(1, LAST, b"x" * 100),
    "an answer of storage": command((0x0100, short(0x8001)), (0x0120, short(1)), (0x0900, short(0)),
                                    (0x0800, short(0x0101))) + pdu(RELEASE, bytes(4)),
    "many instances without waiting": (command(*STORE) + pdata(1, 0, b"x" * 9) + pdata(1, LAST, b"x")) * 50,
    "many echoes without waiting": command((0x0100, short(0x30)), (0x0110, short(1)), (0x0800, short(0x0101)),
                                           uid_element(2, b"1.2.840.10008.1.1"), context=3) * 500,
    "half a message, then release": command(*STORE) + pdata(1, 0, b"x" * 300) + pdu(RELEASE, bytes(4)),
    "half a message, then another command": command(*STORE) + pdata(1, 0, b"x" * 300) + command(*STORE) * 3,
}  # fmt: skip
REFUSED_AT_ONCE = {
    "a PDU of an unknown kind", "a message without a value", "a value without a length", "a value of no length",
    "a command that never ends", "a command of noise", "a command without a kind", "a command of an unknown kind",
    "a priority that is none", "many instances without waiting",
}  # fmt: skip
UNAGREED = {
    "a web browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100),
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(600),
    "data before an association": pdata(1, LAST, b"x"),
    "release before an association": pdu(RELEASE, bytes(4)),
    "abort before an association": pdu(ABORT, bytes(4)),
    "a request of nothing": pdu(ASSOCIATE, b""),
    "a request of zeros": pdu(ASSOCIATE, bytes(68)),
    "a request of another version": pdu(ASSOCIATE, struct.pack(">HH", 2, 0) + b"A" * 32 + bytes(32)),
    "a request with names of no text": pdu(ASSOCIATE, struct.pack(">HH", 1, 0) + b"\xff\n" * 16 + bytes(32)),
    "a request with an item beyond it": pdu(ASSOCIATE, struct.pack(">HH", 1, 0) + b"A" * 64 + b"\x20\0\xff\xff"),
    "a request of 2 GiB": struct.pack(">BBI", ASSOCIATE, 0, 1 << 31) + bytes(1000),
    "nothing": b"",
}


def ends(scu: Scu) -> bytes:
    """Read until the receiver closes; its last PDU."""
    last = b""
    while answer := scu.receive():
        last = answer
    return last


@pytest.mark.parametrize("name", AGREED)
def test_within_an_association(receiver: Listening, name: str) -> None:
    with Scu(receiver.port) as scu:
        assert scu.associate()[0] == ACCEPTED
        send_as_far_as_it_listens(scu, AGREED[name])
        last = ends(scu)
        if name in REFUSED_AT_ONCE and last:
            assert (last[0], last[8]) == (ABORT, 2)  # by the provider, not by its limit of time


def send_as_far_as_it_listens(scu: Scu, data: bytes) -> None:
    try:
        scu.send(data)
    except ConnectionError:
        return


@pytest.mark.parametrize("is_agreed", [False, True])
def test_a_length_beyond_any_limit_ends_it_at_once(inbox: Path, *, is_agreed: bool) -> None:
    with listening(inbox, replace(SETTINGS, timeout=10_000.0)) as receiver, Scu(receiver.port) as scu:
        if is_agreed:
            scu.associate()
        scu.send(struct.pack(">BBI", DATA if is_agreed else ASSOCIATE, 0, (1 << 20) + 1))
        ends(scu)


@pytest.mark.parametrize("name", UNAGREED)
def test_without_an_association(receiver: Listening, name: str) -> None:
    with Scu(receiver.port) as scu:
        send_as_far_as_it_listens(scu, UNAGREED[name])


STALLS: dict[str, Callable[[Scu], object]] = {
    "nothing is sent": lambda scu: None,
    "half a request": lambda scu: scu.send(pdu(ASSOCIATE, bytes(200))[:50]),
    "nothing after the association": lambda scu: scu.associate(),
    "half a PDU": lambda scu: (scu.associate(), scu.send(pdata(1, WHOLE, bytes(100))[:20])),
    "half an instance": lambda scu: (scu.associate(), scu.send(command(*STORE) + pdata(1, 0, b"x" * 100))),
}


def test_who_stalls_is_cut_off(inbox: Path) -> None:
    with listening(inbox, QUICK) as receiver, contextlib.ExitStack() as stack:
        scus = {name: stack.enter_context(Scu(receiver.port)) for name in STALLS}
        other = stack.enter_context(Scu(receiver.port))
        for name, scu in scus.items():
            STALLS[name](scu)
        assert other.associate()[0] == ACCEPTED
        assert other.echo() == 0
        for scu in scus.values():
            ends(scu)
        while [*inbox.iterdir()]:
            time.sleep(0.01)


def trickle(scu: Scu) -> None:
    while True:
        scu.send(b"x")
        time.sleep(0.2)


def test_who_sends_a_byte_now_and_then_is_cut_off_too(inbox: Path) -> None:
    with listening(inbox, QUICK) as receiver, Scu(receiver.port) as scu:
        scu.associate()
        scu.send(pdata(1, WHOLE, bytes(1000))[:12])
        with pytest.raises(ConnectionError):
            trickle(scu)


def test_connections_beyond_what_can_be_told_are_closed(inbox: Path) -> None:
    with listening(inbox, replace(SETTINGS, max_associations=1, timeout=60)) as receiver:
        many = [Scu(receiver.port) for _ in range(40)]
        many[-1].socket.settimeout(25)  # those that are heard have longer
        assert many[-1].receive() == b""
        for scu in many:
            scu.socket.close()


def test_noise_in_a_conversation(inbox: Path, tmp_path: Path) -> None:
    chosen = random.Random(6)
    data = made(tmp_path)
    talk = command(*STORE) + pdata(1, 0, data[:200]) + pdata(1, LAST, data[200:]) + pdu(RELEASE, bytes(4))
    with listening(inbox, QUICK) as receiver:
        for _ in range(60):
            noisy = bytearray(talk)
            for _ in range(chosen.randrange(1, 8)):
                noisy[chosen.randrange(min(400, len(noisy)))] = chosen.randrange(256)
            with Scu(receiver.port) as scu:
                scu.associate()
                send_as_far_as_it_listens(scu, bytes(noisy[: chosen.randrange(len(noisy))]))
        with Scu(receiver.port) as scu:
            assert (scu.associate()[0], scu.store(CT, SOP, data)) == (ACCEPTED, 0)
        for path in inbox.rglob("*"):
            assert path.relative_to(inbox).as_posix().startswith((uid(1), ".dicomsort-receive-"))
    assert [path for path in read_tree(inbox) if path.endswith(".part")] == []
