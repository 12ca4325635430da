"""Instances that a peer refuses, or breaks off at: they hold up no other, and a full archive is told from them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from building import make_dicom, read_tree, uid
from command import Ran
from peers_send import Reply, Scp, Web, free_port, orthanc, raw_server
from sending_tools import rows, send, statuses, stored, uids

from dicomsort.config import SendSettings
from dicomsort.files import Files
from dicomsort.pacs.send import send as deliver
from dicomsort.pacs.send.records import Answer, Batch, Instance, Temporary
from dicomsort.pacs.send.retry import MOST_BYTES, Pace
from dicomsort.pacs.send.workers import SendWorkers
from dicomsort.progress import Silent

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

FULL = 0xA700


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "in"


def made(folder: Path, first: int, last: int) -> list[str]:
    """Instances by number; their SOP Instance UIDs."""
    for number in range(first, last):
        make_dicom(folder / f"{number:03}.dcm", instance=number, has_pixels=False)
    return [uid(1, 1, number) for number in range(first, last)]


class Refusing(Scp):
    """Answers 0xA700 to some, and remembers in which order all came."""

    def __init__(self, bad: list[str], status: int | None = FULL) -> None:
        self.order: list[str] = []
        self.bad = {*bad}
        super().__init__(lambda each, _: self._judge(each, status))

    def _judge(self, each: str, status: int | None) -> int | None:
        self.order.append(each)
        return status if each in self.bad else 0


def failed(ran: Ran) -> list[dict[str, str]]:
    return [row for row in rows(ran) if row["status"] == "failed"]


@pytest.mark.parametrize("associations", [1, 3])
@pytest.mark.parametrize("count", [3, 12, 60])
def test_refused_instances_at_the_front_hold_up_no_other(folder: Path, count: int, associations: int) -> None:
    bad, good = made(folder, 0, count), made(folder, count, count + 40)
    with Refusing(bad).running() as scp:
        ran = send(folder, "--to", scp.to, "--associations", associations, "--retries", 4)
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=40, failed=count)), ran.err
    assert {*scp.kept} == {*good}
    assert "sending ended early" not in ran.err
    assert {row["message"].partition(" (0x")[0] for row in failed(ran)} == {"the peer says: out of resources"}
    assert all(row["attempts"] == "5" for row in failed(ran))
    assert any("others were accepted meanwhile" in row["message"] for row in failed(ran))


def test_one_refused_instance_holds_up_no_association(folder: Path) -> None:
    """The others go on while it waits for its next attempt, which would be far away."""
    (bad,), good = made(folder, 0, 1), made(folder, 1, 30)
    taken: list[int] = []

    class Watched(Refusing):
        def _judge(self, each: str, status: int | None) -> int | None:
            if each == bad and self.order:
                taken.append(len({*self.order} & {*good}))
            return super()._judge(each, status)

    with Watched([bad]).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 1, "--retry-wait", 2)
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=29, failed=1)), ran.err
    assert taken  # it was tried a second time, behind others
    assert taken[0] > 0
    assert len(scp.contexts) == 1


def test_the_next_run_tries_what_was_refused_last_and_once(folder: Path) -> None:
    bad, _ = made(folder, 0, 3), made(folder, 3, 10)
    with Refusing(bad).running() as scp:
        assert send(folder, "--to", scp.to, "--retries", 1).code == 3
        new = made(folder, 10, 15)
        scp.order.clear()
        ran = send(folder, "--to", scp.to)
        assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=5, skipped=7, failed=3)), ran.err
        refused = scp.order[5:]  # in the order in which they failed on several associations
        assert ({*scp.order[:5]}, sorted(refused)) == ({*new}, sorted(bad))
        assert all("it failed before, so it was tried last, and once" in row["message"] for row in failed(ran))
        scp.order.clear()
        ran = send(folder, "--to", scp.to)  # nothing but these is left
        assert (ran.code, scp.order) == (3, refused), ran.err
        scp.bad.clear()
        assert statuses(send(folder, "--to", scp.to)) == Counter(acknowledged=3, skipped=12)
        make_dicom(folder / "000.dcm", instance=0, has_pixels=False, PatientComments="again")
        scp.bad = {*bad}
        assert failed(send(folder, "--to", scp.to, "--retries", 1))[0]["attempts"] == "2"  # a changed file is a new one


def test_a_full_archive_is_given_up_and_the_next_run_begins_with_what_was_not_tried(folder: Path) -> None:
    every = made(folder, 0, 60)
    with Refusing(every).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 1)
        assert (ran.code, statuses(ran)) == (1, Counter(failed=60)), ran.err
        assert "nothing was sent: 9 times in a row: the peer says: out of resources (0xA700)" in ran.err
        tried = {*scp.order}
        assert len(scp.order) == 9
        untried = [row for row in failed(ran) if row["attempts"] == "0"]
        assert {row["message"].partition(":")[0] for row in untried} == {"not tried"}
        assert len(untried) == 60 - len(tried)
        scp.order.clear()
        assert send(folder, "--to", scp.to, "--retries", 1).code == 1
        assert not tried & {*scp.order}
        scp.bad.clear()
        assert statuses(send(folder, "--to", scp.to)) == Counter(acknowledged=60)


def test_an_archive_that_is_full_for_a_while(folder: Path) -> None:
    made(folder, 0, 30)
    answers = iter([FULL] * 40)
    with Scp(lambda *_: next(answers, 0)).running() as scp:
        ran = send(folder, "--to", scp.to)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=30)), ran.err
    assert sum(int(row["attempts"]) for row in rows(ran)) == scp.came.total() == 70


def test_instances_that_break_the_association_at_the_front(folder: Path) -> None:
    bad, good = made(folder, 0, 4), made(folder, 4, 14)
    with Refusing(bad, None).running() as scp:
        ran = send(folder, "--to", scp.to)
        assert (ran.code, {*scp.kept}) == (3, {*good}), ran.err
        assert all("the peer aborted the association" in row["message"] for row in failed(ran))
        new = made(folder, 14, 16)
        scp.order.clear()
        assert statuses(send(folder, "--to", scp.to)) == Counter(acknowledged=2, skipped=10, failed=4)
        assert {*scp.order[:2]} == {*new}


def test_by_stow_one_that_breaks_the_connection_is_alone_the_next_time(folder: Path) -> None:
    bad = made(folder, 0, 20)[3]

    def answer(_: int, body: bytes) -> Reply:
        return Reply(None) if bad in uids(body) else stored(body)

    with Web(answer).running() as web:
        ran = send(folder, "--to", web.to, "--retries", 1)
        assert (ran.code, statuses(ran)) == (1, Counter(failed=20)), ran.err
        ran = send(folder, "--to", web.to, "--retries", 1)
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=19, failed=1)), ran.err
    assert failed(ran)[0]["sop_uid"] == bad


def test_by_stow_refused_ones_hold_up_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomsort.pacs.send.stow.BATCH_FILES", 4)
    bad, _ = made(folder, 0, 20), made(folder, 20, 40)
    with Web(lambda _, body: stored(body, {each: FULL for each in uids(body) if each in bad})).running() as web:
        ran = send(folder, "--to", web.to, "--retries", 2)
    assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=20, failed=20)), ran.err


def test_a_local_fault_is_no_answer_and_no_refusal(folder: Path) -> None:
    """A file that was cut short says nothing of the peer, and is tried like any other the next time."""
    made(folder, 0, 3)
    with (folder / "000.dcm").open("ab") as file:
        file.write(b"\0")
    with Refusing([uid(1, 1, 1), uid(1, 1, 2)]).running() as scp:
        ran = send(folder, "--to", scp.to, "--retries", 0)
    assert (ran.code, statuses(ran)) == (1, Counter(failed=3)), ran.err
    (journal,) = (content for path, content in read_tree(folder).items() if path.endswith(".jsonl"))
    assert journal.count(b'"failed"') == 2
    assert b"000.dcm" not in journal


@pytest.mark.parametrize("count", [2, 30])
def test_a_peer_that_takes_one_association_gets_all_by_it(folder: Path, count: int) -> None:
    made(folder, 0, count)
    with Scp().running(associations=1) as scp:
        ran = send(folder, "--to", scp.to, "--associations", 2, "--retry-wait", 1)
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=count)), ran.err
    assert len(scp.contexts) < 20


class Full:
    """A channel for which the peer has no room."""

    is_open = False

    def __init__(self, refused: threading.Event) -> None:
        self.refused = refused

    def deliver(self, _: Batch) -> list[Answer]:
        self.refused.set()
        raise Temporary("it has as many associations as it takes", is_down=True)

    def close(self) -> None: ...

    def abort(self) -> None: ...


class Open(Full):
    """A channel that the peer has taken, also while it idles; nothing goes by it before another was refused."""

    is_open = True

    def deliver(self, batch: Batch) -> list[Answer]:
        assert self.refused.wait(60)
        return [Answer(acknowledged=True) for _ in batch.instances]


def test_what_a_refused_association_was_for_goes_by_the_open_one() -> None:
    refused, settled = threading.Event(), Counter[tuple[bool, int]]()
    crew = SendWorkers(
        [Open(refused), Full(refused)],
        SendSettings(retries=1),
        lambda _, answer, attempts: settled.update([(answer.acknowledged, attempts)]),
    )
    crew.run(Batch((Instance(str(number), "", 1, 1, 1, 0, "", "", ""),)) for number in range(5))
    assert (crew.problem, settled) == ("", Counter({(True, 1): 5}))


@pytest.mark.parametrize(
    ("count", "status", "flags"),
    [(1, None, (False, False)), (1, FULL, (False, False)), (9, None, (False, True)), (9, FULL, (False, True))],
)
def test_a_peer_that_takes_nothing_is_told_from_one_bad_instance(
    folder: Path, count: int, status: int | None, flags: tuple[bool, bool]
) -> None:
    made(folder, 0, count)
    with Scp(lambda *_: status).running() as scp:
        sent = deliver(str(folder), SendSettings(scp.to, retries=1, retry_wait=0.01), Files(), Silent())
    assert (sent.is_down, sent.takes_nothing) == flags
    assert sent.is_asked
    assert sent.problem  # `send` says in either case that nothing was sent


def test_a_peer_that_takes_no_association(folder: Path) -> None:
    made(folder, 0, 1)
    settings = SendSettings(f"SCP@127.0.0.1:{free_port()}", retries=1, retry_wait=0.01)
    assert deliver(str(folder), settings, Files(), Silent()).is_down
    with raw_server(lambda connection: connection.recv(1 << 16) and None) as port:
        sent = deliver(str(folder), replace(settings, to=f"SCP@127.0.0.1:{port}"), Files(), Silent())
    assert (sent.is_down, sent.takes_nothing) == (False, True), sent.problem


@pytest.mark.peers
def test_orthanc_refuses_what_has_no_study(folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        make_dicom(folder / f"a{number}.dcm", instance=number, StudyInstanceUID=None)
    good = made(folder, 10, 30)
    with orthanc(tmp_path / "orthanc") as archive:
        ran = send(folder, "--to", archive.dicom)
        assert (ran.code, statuses(ran)) == (3, Counter(acknowledged=20, failed=5)), ran.err
        assert {*archive.files()} == {*good}
        ran = send(folder, "--to", archive.dicom)
    assert (ran.code, statuses(ran)) == (3, Counter(skipped=20, failed=5)), ran.err
    assert all((row["attempts"], "(0xA700)" in row["message"]) == ("1", True) for row in failed(ran))


@pytest.mark.parametrize(
    ("retries", "size", "is_broken", "most"),
    [
        *((retries, 1, False, most) for retries, most in ((0, 3), (1, 9), (2, 21), (5, 189))),
        *((retries, 1, True, most) for retries, most in ((0, 3), (1, 4), (5, 8))),
        (5, MOST_BYTES, False, 6),
    ],
)
def test_how_often_a_peer_that_takes_nothing_is_asked(retries: int, size: int, *, is_broken: bool, most: int) -> None:
    pace = Pace(retries, 0.01)
    calls: Callable[[], bool] = lambda: pace.failed(size, is_broken=is_broken)
    assert next(number for number in range(1, 1000) if calls()) == most
    pace.answered()
    assert (pace.in_vain, pace.until) == (0, 0.0)
    assert next(number for number in range(1, 1000) if calls()) == most
