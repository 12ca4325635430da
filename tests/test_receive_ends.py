"""The end of a receiver: instances on their way come in, associations are told, nothing half-written stays."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from building import STORAGE, read_tree, uid
from rawscu import ABORT, ACCEPTED, DATA, LAST, RELEASED, Scu, pdata
from receiving import SETTINGS, listening, made, opened

from dicomsort.pacs.receive import incoming

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

from dicomsort.pacs.receive import network, store_scp
from dicomsort.pacs.receive import receiver as receiver_module

if TYPE_CHECKING:
    from dicomsort.pacs.receive.receiver import Receiver

CT = STORAGE["CT"].encode()
SOP = uid(1, 1, 1).encode()
PLACE = f"{uid(1)}/{uid(1, 1)}/{uid(1, 1, 1)}.dcm"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def begun(port: int, data: bytes) -> Scu:
    """A sender in the middle of an instance."""
    scu = Scu(port)
    scu.associate()
    scu.send(scu.command(1, data_set=True, sop_class=CT, sop=SOP))
    scu.send(pdata(1, 0, data[:300]))
    return scu


def wait_for_part(inbox: Path) -> None:
    while not any(path.endswith(".part") for path in read_tree(inbox)):
        pass


def stopping(receiver: Receiver, grace: float) -> threading.Thread:
    thread = threading.Thread(target=receiver.stop, args=(grace,))
    thread.start()
    return thread


def test_an_instance_on_its_way_is_finished_and_the_next_is_not_begun(inbox: Path, tmp_path: Path) -> None:
    data = made(tmp_path)
    receiver, told = opened(inbox)
    port = receiver.start()
    with Scu(port) as idle, begun(port, data) as busy:
        idle.associate()
        wait_for_part(inbox)
        thread = stopping(receiver, 60)
        assert idle.receive()[0] == ABORT
        with pytest.raises(ConnectionRefusedError):
            Scu(port)
        assert thread.is_alive()
        busy.send(pdata(1, LAST, data[300:]))
        assert busy.status() == 0
        assert busy.receive()[0] == ABORT
    thread.join()
    assert list(read_tree(inbox)) == [PLACE]
    assert not receiver.is_alive
    assert "instances were cut off" not in [record.getMessage() for record in told]


def test_an_instance_that_follows_at_once_is_not_begun_either(inbox: Path, tmp_path: Path) -> None:
    data = made(tmp_path)
    receiver, _ = opened(inbox)
    with mock.patch.object(receiver_module, "_POLL", 5), begun(receiver.start(), data) as busy:
        wait_for_part(inbox)
        server = receiver._server
        assert server is not None
        (dimse,) = server.connections
        thread = stopping(receiver, 60)
        while not dimse._is_ending:
            pass
        rest = pdata(1, LAST, data[300:])
        busy.send(rest + busy.command(1, data_set=True, sop_class=CT, sop=SOP) + pdata(1, 0, data[:300]) + rest)
        answers = [busy.receive()[0] for _ in range(2)]
        assert answers == [DATA, ABORT]
    thread.join()
    assert list(read_tree(inbox)) == [PLACE]


def test_what_is_stored_is_answered(inbox: Path, tmp_path: Path) -> None:
    data, is_stored, may_answer = made(tmp_path), threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        kept = incoming.commit(*arguments)
        is_stored.set()
        may_answer.wait()
        return kept

    receiver, _ = opened(inbox)
    with mock.patch.object(store_scp, "commit", slowly), begun(receiver.start(), data) as busy:
        busy.send(pdata(1, LAST, data[300:]))
        is_stored.wait()
        thread = stopping(receiver, 60)
        while receiver.is_alive:
            pass
        thread.join(0.3)  # some looks at what is to end
        may_answer.set()
        assert (busy.status(), busy.receive()[0]) == (0, ABORT)
    thread.join()


@pytest.mark.parametrize("hurried", [False, True])
def test_what_takes_too_long_is_cut_off(inbox: Path, tmp_path: Path, *, hurried: bool) -> None:
    receiver, told = opened(inbox)
    with begun(receiver.start(), made(tmp_path)) as busy:
        wait_for_part(inbox)
        thread = stopping(receiver, 60 if hurried else 0.2)
        while hurried and thread.is_alive():
            receiver.hurry()
        thread.join()
        assert busy.receive()[:1] in {b"", bytes([ABORT])}
    assert read_tree(inbox) == {}
    assert "instances were cut off" in [record.getMessage() for record in told]


def test_connections_without_an_association_are_not_waited_for(inbox: Path) -> None:
    receiver, _ = opened(inbox, SETTINGS)
    with Scu(receiver.start()) as silent:
        thread = stopping(receiver, 60)
        assert silent.receive() == b""
        thread.join()


def test_a_disk_that_takes_long_is_no_silence_of_the_sender(inbox: Path, tmp_path: Path) -> None:
    passed = [0.0]

    def slowly(*arguments: Any) -> Any:
        passed[0] += 10_000
        return incoming.commit(*arguments)

    clock = SimpleNamespace(time=lambda: time.time() + passed[0])
    receiver, _ = opened(inbox)
    with mock.patch.object(store_scp, "commit", slowly), mock.patch("pynetdicom.timer.time", clock):
        with Scu(receiver.start()) as scu:
            scu.associate()
            assert scu.store(CT, SOP, made(tmp_path)) == 0
            assert (scu.echo(), scu.release()[0]) == (0, RELEASED)
        receiver.stop(60)


def test_a_connection_that_ends_before_its_association_leaves_nothing_behind(inbox: Path) -> None:
    before = threading.active_count()
    with mock.patch.object(receiver_module, "_NEGOTIATION", 10_000):
        receiver, _ = opened(inbox, replace(SETTINGS, timeout=10_000.0))
        port = receiver.start()
        server = receiver._server
        assert server is not None
        peers = [Scu(port) for _ in range(3)]
        while len(server.connections) < 3:
            time.sleep(0.01)
        for scu in peers:
            scu.socket.close()
        while server.connections or threading.active_count() > before + 1:  # the one that accepts
            time.sleep(0.01)
        receiver.stop(60)


def test_a_receiver_that_never_began_ends_too(inbox: Path) -> None:
    receiver, _ = opened(inbox)
    assert not receiver.is_alive
    receiver.stop(60)


def test_a_shortage_of_threads_passes(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be heard while threads were short is no connection for ever."""
    with listening(inbox) as receiver:
        start = threading.Thread.start

        def refused(thread: threading.Thread) -> None:
            if "process_request_thread" in repr(vars(thread)):
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refused)
        for _ in range(SETTINGS.max_associations + 30):
            with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
                connection.settimeout(60)
                assert connection.recv(1) == b""
        monkeypatch.undo()
        with Scu(receiver.port) as scu:
            assert (scu.associate()[0], scu.echo()) == (ACCEPTED, 0)


def test_peers_that_cannot_come_in_are_told_of_once_a_minute(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(inbox) as receiver:
        full = network.Server.verify_request
        monkeypatch.setattr(network.Server, "verify_request", lambda self, *rest: _is_let_in(self, full, rest))
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
                connection.settimeout(60)
                assert connection.recv(1) == b""
        assert receiver.events().count("connections are refused") == 1


def _is_let_in(server: network.Server, verify: Callable[..., bool], rest: tuple[object, ...]) -> bool:
    server._open += 10**6
    try:
        return verify(server, *rest)
    finally:
        server._open -= 10**6
