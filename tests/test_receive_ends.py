"""The end of a receiver: instances on their way come in, associations are told, nothing half-written stays."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from building import STORAGE, read_tree, uid
from rawscu import ABORT, LAST, Scu, pdata
from receiving import SETTINGS, made, opened

if TYPE_CHECKING:
    from dicomsort.adapters.receiving.receiver import Receiver

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


def test_a_receiver_that_never_began_ends_too(inbox: Path) -> None:
    receiver, _ = opened(inbox)
    assert not receiver.is_alive
    receiver.stop(60)
