"""The real process, killed or interrupted in the middle: what was acknowledged is not sent again, nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from building import UID_ROOT, make_dicom
from killing import start
from peers_send import Reply, Scp, Web
from sending_tools import send, statuses, stored, uids

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

FILES, KILLS = 120, 6


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_dicom(tmp_path_factory.mktemp("one") / "1.dcm", instance=10_000).read_bytes()


@pytest.fixture
def folder(tmp_path: Path, template: bytes) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        content = template.replace(b".1.1.10000", b".1.1.%d" % (10_000 + number))
        (tmp_path / "in" / f"{number}.dcm").write_bytes(content)
    return tmp_path / "in"


class Trigger:
    """Called by a peer as each instance comes: slow, and after ``every`` instances it tells who waits.

    ``is_held``: from then on it answers only when ``go`` is set.
    """

    def __init__(self, every: int, *, is_held: bool = False) -> None:
        self._every, self._is_held, self.go = every, is_held, threading.Event()
        self._count = 0
        self.reached = threading.Event()
        self.is_armed = True

    def __call__(self, _uid: str, _times: int) -> int:
        self._count += 1
        if self.is_armed:
            if self._count % self._every == 0:
                self.reached.set()
            if self._is_held and self.reached.is_set():
                self.go.wait(60)
            time.sleep(0.004)
        return 0


@pytest.mark.parametrize("associations", [1, 3])
def test_kill_9_sends_again_only_what_was_not_acknowledged(folder: Path, associations: int) -> None:
    trigger = Trigger(every=FILES // (2 * (KILLS + 1)))  # half of the files are left over, however late a kill is
    with Scp(trigger).running() as scp:
        command = ("send", folder, "--to", scp.to, "--associations", associations)
        killed = 0
        for _ in range(KILLS):
            trigger.reached.clear()
            process = start(*command)
            assert trigger.reached.wait(60)
            process.kill()
            process.join()
            killed += process.exitcode == -9
        trigger.is_armed = False
        assert killed == KILLS
        assert 0 < len(scp.came) < FILES
        ran = send(folder, "--to", scp.to)
        assert ran.code == 0
        told = statuses(ran)
        assert told["acknowledged"] + told["skipped"] == FILES
    assert len(scp.kept) == FILES
    assert scp.came.total() - FILES <= KILLS * associations
    assert max(scp.came.values()) <= KILLS + 1


def test_kill_9_in_the_middle_of_a_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = threading.Event()
    release = threading.Event()
    kept: Counter[str] = Counter()

    def answer(times: int, body: bytes) -> Reply:
        kept.update(uids(body))
        if times == 2:
            arrived.set()
            release.wait(60)
        return stored(body)

    with Web(answer).running() as web:
        process = start("send", folder, "--to", web.to)
        assert arrived.wait(60)
        process.kill()
        process.join()
        release.set()
        assert process.exitcode == -9
        ran = send(folder, "--to", web.to)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=FILES - 64, skipped=64))
    assert len(kept) == FILES
    assert kept.total() == 2 * FILES - 64  # the second request was not acknowledged


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_instance_at_hand_be_finished(folder: Path, number: signal.Signals) -> None:
    trigger = Trigger(every=20, is_held=True)
    with Scp(trigger).running() as scp:
        process = start("send", folder, "--to", scp.to, "--associations", 2)
        assert trigger.reached.wait(60)
        assert process.pid is not None
        os.kill(process.pid, number)
        trigger.go.set()
        process.join(60)
        assert process.exitcode == 130
        assert 20 <= scp.came.total() < FILES
        trigger.is_armed = False
        ran = send(folder, "--to", scp.to)
    assert ran.code == 0
    assert set(scp.came.values()) == {1}
    assert len(scp.came) == FILES
    assert all(each.startswith(UID_ROOT) for each in scp.came)
