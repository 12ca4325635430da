"""``[routes]``: what is sent when, what is tried again, and what a failing archive changes: nothing but its figures."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, uid
from peers import ENDS
from peers_send import Scp, free_port
from watching import Timer, Watch, runs_of, told

from dicomsort.cli.watch import _send
from dicomsort.config import Destination
from dicomsort.config.routes import check_routes
from dicomsort.errors import DicomsortError, OutboxLocked, UsageError
from dicomsort.report.metrics import Figures
from dicomsort.service.forwarding import LAST_PAUSE, LONGEST_DOWN, MANY, Forwarder, ForwardResult
from dicomsort.service.watch import Stop

ROUTES = {"CT": (Destination("ARCHIVE@pacs:104"),), "MRI": (Destination("https://pacs/dicom-web"),)}


class Archive:
    """Remembers what it was asked to send, and answers as it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.answers: list[ForwardResult | Exception] = []
        self.meanwhile = lambda: None

    def send(self, folder: str, destination: Destination, run: str | None, /) -> ForwardResult:
        self.asked.append((Path(folder).name, destination.to or "", run))
        self.meanwhile()
        answer = self.answers.pop(0) if self.answers else ForwardResult(2, 0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def runs(self, class_: str) -> list[str | None]:
        """What was asked of one class since the last time."""
        found = [run for name, _, run in self.asked if name == class_]
        self.asked = [each for each in self.asked if each[0] != class_]
        return found


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def forwarder(archive: Archive, inbox: Path, outbox: Path) -> Forwarder:
    Watch(inbox, outbox, mode="copy").round()
    return Forwarder(str(outbox), ROUTES, archive.send)


def figures(forwarder: Forwarder) -> str:
    told_of = Figures()
    forwarder.set_metrics(told_of)
    return told_of.text()


def made(outbox: Path, *names: str) -> list[str]:
    """Folders of runs."""
    for name in names:
        (outbox / ".dicomsort" / "runs" / name).mkdir()
    return [*names]


def test_all_that_lies_there_is_sent_at_first_then_run_by_run(
    forwarder: Forwarder, archive: Archive, outbox: Path
) -> None:
    forwarder.call([])
    forwarder.deliver()
    assert archive.asked == [("CT", "ARCHIVE@pacs:104", None), ("MRI", "https://pacs/dicom-web", None)]
    forwarder.call(made(outbox, "1", "2"))
    forwarder.deliver()
    forwarder.deliver()
    assert (archive.runs("CT"), archive.runs("MRI")) == ([None, "1", "2"], [None, "1", "2"])
    assert 'dicomsort_sent_total{class="CT",to="ARCHIVE@pacs:104"} 6' in figures(forwarder)
    assert 'dicomsort_route_up{class="CT",to="ARCHIVE@pacs:104"} 1' in figures(forwarder)


@pytest.mark.parametrize(
    "failure",
    [
        ForwardResult(1, 3, "out of resources", is_down=True),
        ForwardResult(0, 1, "no answer", is_down=True),
        ForwardResult(0, 4, "4 times in a row: the peer did not answer", takes_nothing=True),
    ],
)
def test_a_destination_that_is_not_there_is_tried_after_each_round_and_holds_up_no_other(
    forwarder: Forwarder, archive: Archive, outbox: Path, failure: ForwardResult, caplog: pytest.LogCaptureFixture
) -> None:
    forwarder.deliver()
    archive.asked.clear()
    archive.answers = [failure]
    forwarder.call(made(outbox, "1", "2"))
    forwarder.deliver()
    assert (archive.runs("CT"), archive.runs("MRI")) == (["1"], ["1", "2"])
    total = f'dicomsort_send_failures_total{{class="CT",to="ARCHIVE@pacs:104"}} {failure.failed}\n'
    assert total in figures(forwarder)
    assert 'dicomsort_route_up{class="CT",to="ARCHIVE@pacs:104"} 0' in figures(forwarder)
    told_of = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told_of == ["route down; it is tried again after longer and longer pauses"]
    forwarder.call([])
    forwarder.deliver()
    # What might be at fault itself goes behind the others.
    assert archive.runs("CT") == (["1", "2"] if failure.is_down else ["2", "1"])
    assert 'dicomsort_route_up{class="CT",to="ARCHIVE@pacs:104"} 1' in figures(forwarder)


@pytest.mark.parametrize(
    "error",
    [DicomsortError("expected one of the runs"), OutboxLocked("locked"), OSError(28, "No space left"), KeyError()],
)
def test_an_error_of_our_own_is_told_once_says_nothing_of_the_destination_and_holds_up_no_other_run(
    forwarder: Forwarder, archive: Archive, outbox: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    forwarder._clock = lambda: now
    forwarder.deliver()
    archive.asked.clear()
    archive.answers = [error]
    forwarder.call(made(outbox, "1", "2"))
    forwarder.deliver()
    assert archive.runs("CT") == ["1", "2"]
    for pause in (30, 60, 120):
        archive.answers = [error]
        forwarder.deliver()
        assert archive.runs("CT") == []  # it is not due yet
        now += pause
        forwarder.deliver()
        assert archive.runs("CT") == ["1"]
    told_of = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told_of == ["sending failed; it is tried again later"]
    assert 'dicomsort_route_up{class="CT",to="ARCHIVE@pacs:104"} 1' in figures(forwarder)
    assert 'dicomsort_send_failures_total{class="CT",to="ARCHIVE@pacs:104"} 4\n' in figures(forwarder)


class Night:
    """A forwarder whose clock is the test's, and what it logged."""

    def __init__(self, forwarder: Forwarder, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 1000.0
        self._forwarder, self._caplog = forwarder, caplog
        forwarder._clock = lambda: self.now

    def round(self, *, after: float) -> None:
        self._forwarder.call([])
        self._forwarder.deliver()
        self.now += after

    def lines(self) -> list[tuple[str, dict[str, object]]]:
        """What was logged of routes since the last time."""
        found = [(r.getMessage().partition(";")[0], vars(r)["facts"]) for r in self._caplog.records]
        self._caplog.clear()
        return found


class Picky(Archive):
    """Takes nothing of some runs."""

    def __init__(self, *bad: str | None) -> None:
        super().__init__()
        self.bad = {*bad}

    def send(self, folder: str, destination: Destination, run: str | None, /) -> ForwardResult:
        answer = super().send(folder, destination, run)
        return (
            ForwardResult(0, 3, "3 times in a row: out of resources", takes_nothing=True) if run in self.bad else answer
        )


def test_a_run_of_which_nothing_is_taken_while_others_are_is_no_full_archive(
    forwarder: Forwarder, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picky = Picky("0")
    forwarder = Forwarder(str(outbox), {"CT": ROUTES["CT"]}, picky.send)
    night = Night(forwarder, caplog)
    forwarder.deliver()
    for name in made(outbox, *map(str, range(100))):  # a round a minute
        forwarder.call([name])
        night.round(after=60)
    runs = picky.runs("CT")
    assert [run for run in runs if run != "0"] == [None, *map(str, range(1, 100))]
    assert 6 <= runs.count("0") <= 9
    told_of = [line for line, _ in night.lines()]
    assert (told_of.count("route down"), told_of.count("sending failed")) == (1, 1)
    assert 'dicomsort_route_up{class="CT",to="ARCHIVE@pacs:104"} 1' in figures(forwarder)


def test_what_a_full_archive_refused_is_sent_as_soon_as_it_takes_something(
    forwarder: Forwarder, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = made(outbox, *map(str, range(9)))
    picky = Picky(*names)
    forwarder = Forwarder(str(outbox), {"CT": ROUTES["CT"]}, picky.send)
    night = Night(forwarder, caplog)
    forwarder.deliver()
    forwarder.call(names)
    for _ in range(24 * 60):
        night.round(after=60)
    assert 24 * 3 < len(picky.runs("CT")) < 24 * 6
    assert [line for line, _ in night.lines()].count("route down") == 1
    picky.bad.clear()
    night.now += LONGEST_DOWN
    night.round(after=60)
    assert {*picky.runs("CT")} == {*names}


def test_instances_that_are_refused_are_tried_again_less_and_less_often_and_hold_up_no_run(
    forwarder: Forwarder, archive: Archive, outbox: Path
) -> None:
    now = 0.0
    forwarder._clock = lambda: now
    forwarder.deliver()
    archive.asked.clear()
    forwarder.call(made(outbox, "1", "2"))
    tried = []
    for _ in range(200):  # rounds, one a minute
        archive.answers = [ForwardResult(3, 1, "no valid UID")]
        forwarder.call([])
        forwarder.deliver()
        tried.append(archive.runs("CT"))
        now += 60
    assert tried[:9] == [["1", "2"], ["1"], ["1"], [], ["1"], [], [], [], ["1"]]
    assert 8 <= sum(map(bool, tried)) <= 10
    assert 'dicomsort_route_up{class="CT",to="ARCHIVE@pacs:104"} 1' in figures(forwarder)
    archive.answers.clear()
    now += LAST_PAUSE
    forwarder.deliver()
    now += LAST_PAUSE
    forwarder.deliver()
    assert archive.runs("CT") == ["1"]


def test_what_lies_there_and_is_refused_keeps_no_run_waiting(
    forwarder: Forwarder, archive: Archive, outbox: Path
) -> None:
    archive.answers = [ForwardResult(3, 1, "no valid UID")]
    forwarder.deliver()
    forwarder.call(made(outbox, "1"))
    forwarder.deliver()
    assert archive.runs("CT") == [None, "1"]


def test_of_many_runs_that_wait_the_whole_folder_is_gone_through_instead(
    forwarder: Forwarder, archive: Archive, outbox: Path
) -> None:
    forwarder.deliver()
    archive.asked.clear()
    archive.answers = [ForwardResult(0, 1, "down", is_down=True)] * 4
    names = made(outbox, *map(str, range(MANY + 5)))
    for name in names[:3]:
        forwarder.call([name])
    forwarder.deliver()
    for name in names[3:]:
        forwarder.call([name])
    archive.answers.clear()
    forwarder.deliver()
    assert archive.runs("CT") == ["0", None]


def test_runs_that_come_while_everything_is_sent_are_not_forgotten(
    forwarder: Forwarder, archive: Archive, outbox: Path
) -> None:
    names = made(outbox, *map(str, range(MANY + 5)))

    def more() -> None:
        archive.meanwhile = lambda: None
        for name in names:
            forwarder.call([name])

    archive.meanwhile = more
    forwarder.deliver()
    assert archive.runs("CT") == [None, None]


def test_a_run_that_was_pruned_before_it_was_sent_is_looked_for_in_the_folder(
    forwarder: Forwarder, archive: Archive
) -> None:
    forwarder.deliver()
    archive.asked.clear()
    forwarder.call(["20200101T000000Z-abcdef"])
    forwarder.deliver()
    assert archive.runs("CT") == [None]


def test_a_class_without_a_folder_waits_until_it_has_one(archive: Archive, tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "mr.dcm", modality="MR")
    watch = Watch(inbox, outbox)
    forwarder = Forwarder(str(outbox), {"CT": (Destination("A@b:1"),)}, archive.send)
    watch.round()
    forwarder.deliver()
    assert archive.asked == []
    make_dicom(inbox / "ct.dcm", study=2)
    watch.round()
    forwarder.call(runs_of(outbox)[-1:])
    forwarder.deliver()
    assert archive.runs("CT") == [None]


def test_the_service_sends_beside_its_rounds(inbox: Path, outbox: Path, archive: Archive, tmp_path: Path) -> None:
    gate = threading.Event()
    asked = threading.Semaphore(0)

    def blocked() -> None:
        asked.release()
        gate.wait()

    archive.meanwhile = blocked
    forwarder = Forwarder(str(outbox), {"CT": ROUTES["CT"]}, archive.send)

    def new(study: int) -> None:
        make_dicom(inbox / f"new {study}.dcm", study=study)

    def let_go() -> None:
        gate.set()
        asked.acquire()  # of the second run, which the archive did not hold up
        asked.acquire()

    # What lies there at first is on its way before there are news: else they would go with it.
    timer = Timer(lambda: (asked.acquire(), new(8)), lambda: new(9), let_go)
    service, shown, _ = Watch(inbox, outbox, mode="copy").service(
        timer, forwarder=forwarder, metrics=tmp_path / "m.prom"
    )
    service.run()
    assert told(shown)[1:] == [{"sorted": 1}, {"sorted": 1}]
    assert archive.runs("CT") == [None, *runs_of(outbox)[1:]]
    assert "dicomsort_sent_total" in (tmp_path / "m.prom").read_text()


def test_routes_are_checked() -> None:
    def check(destination: Destination) -> None:
        if "@" not in (destination.to or ""):
            raise UsageError(f"expected AE@HOST:PORT, received {destination.to!r}")

    labels = ("CT", "MRI", "OTHER")
    good, bad = (Destination("A@b:1"), Destination("A@c:1")), (Destination("A@b:1"), Destination("b"))
    check_routes({"CT": good, "OTHER": good}, labels, check)
    check_routes({}, labels, check)
    with pytest.raises(UsageError, match=r"expected a class of the model \(CT, MRI, OTHER\), received 'REVIEW'"):
        check_routes({"REVIEW": good}, labels, check)
    with pytest.raises(UsageError, match=r"\[routes\] MRI: expected AE@HOST:PORT, received 'b'"):
        check_routes({"MRI": bad}, labels, check)


def test_a_dead_route_is_told_once_then_once_a_period_and_when_it_is_back(
    archive: Archive, outbox: Path, forwarder: Forwarder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="dicomsort")
    forwarder = Forwarder(str(outbox), {"CT": ROUTES["CT"]}, archive.send)
    night = Night(forwarder, caplog)
    night.lines()
    archive.answers = [ForwardResult(0, 1, "nobody there", is_down=True)] * 100_000
    tried = []
    for _ in range(2 * 3600 + 60):  # rounds, one a second
        before = len(archive.asked)
        night.round(after=1)
        tried += [night.now] * (len(archive.asked) - before)
    pauses = [round(later - earlier) for earlier, later in pairwise(tried)]
    assert pauses[:7] == [1, 30, 60, 120, 240, 480, 900]
    assert {*pauses[7:]} == {900}
    told_of = night.lines()
    assert [line for line, _ in told_of] == ["route down", "route still down", "route still down"]
    ct = {"class": "CT", "to": "ARCHIVE@pacs:104"}
    assert told_of[0][1] == {**ct, "message": "nobody there"}
    counts = [facts["attempts"] for _, facts in told_of[1:]]
    assert all(isinstance(count, int) and count > 1 for count in counts)
    assert told_of[2][1]["seconds"] >= 7000  # type: ignore[operator]
    archive.answers = [ForwardResult(4, 0)]
    night.round(after=900)
    night.round(after=900)
    assert [line for line, _ in night.lines()] == ["route back", "sent"]
    archive.answers = [ForwardResult(0, 1, "nobody there", is_down=True)]
    forwarder.call(made(outbox, "1"))
    night.round(after=1)
    assert [line for line, _ in night.lines()] == ["route down"]


@pytest.mark.parametrize("sent", [ForwardResult(0, 0), ForwardResult(0, 1, "gone from the outbox", is_asked=False)])
def test_nothing_to_send_is_no_proof_that_a_route_is_back(
    archive: Archive, outbox: Path, forwarder: Forwarder, caplog: pytest.LogCaptureFixture, sent: ForwardResult
) -> None:
    night = Night(forwarder, caplog)
    archive.answers = [ForwardResult(0, 1, "down", is_down=True), ForwardResult(1, 0), sent]
    night.round(after=1)
    night.round(after=1)
    assert 'dicomsort_route_up{class="CT",to="ARCHIVE@pacs:104"} 0' in figures(forwarder)
    assert "route back" not in [line for line, _ in night.lines()]


def test_a_class_may_have_two_destinations_and_one_holds_up_no_other(
    archive: Archive, inbox: Path, outbox: Path
) -> None:
    Watch(inbox, outbox, mode="copy").round()
    two = (Destination("A@a:1"), Destination("B@b:2"))
    forwarder = Forwarder(str(outbox), {"CT": two}, archive.send)
    archive.answers = [ForwardResult(0, 1, "down", is_down=True), ForwardResult(2, 0)]
    forwarder.deliver()
    assert [(to, run) for _, to, run in archive.asked] == [("A@a:1", None), ("B@b:2", None)]
    assert 'dicomsort_route_up{class="CT",to="A@a:1"} 0' in figures(forwarder)
    assert 'dicomsort_route_up{class="CT",to="B@b:2"} 1' in figures(forwarder)


def test_a_dead_archive_costs_one_line_however_many_files_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    caplog.set_level("INFO", logger="dicomsort")
    for number in range(20):
        make_dicom(tmp_path / "inbox" / f"{number}.dcm", instance=number)
    outbox = tmp_path / "outbox"
    Watch(tmp_path / "inbox", outbox).round()
    dead = Destination(f"A@127.0.0.1:{free_port()}")
    with closing(Stop()) as stop:
        forwarder = Forwarder(str(outbox), {"CT": (dead,)}, partial(_send, stop))
        night = Night(forwarder, caplog)
        night.lines()
        for _ in range(5):
            night.round(after=1)
    ((line, facts),) = night.lines()
    assert (line, facts["to"]) == ("route down", dead.to)
    assert "cannot be reached: Connection refused" in str(facts["message"])


def test_an_instance_at_which_the_peer_aborts_keeps_no_other_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    outbox, bad = tmp_path / "outbox", uid(2, 1, 1)
    (tmp_path / "inbox").mkdir()
    watch = Watch(tmp_path / "inbox", outbox)
    with Scp(lambda each, _: None if each == bad else 0).running() as scp, closing(Stop()) as stop:
        forwarder = Forwarder(str(outbox), {"CT": (Destination(scp.to),)}, partial(_send, stop))
        night = Night(forwarder, caplog)
        for study in (1, 2, 3):
            make_dicom(tmp_path / "inbox" / f"{study}.dcm", study=study)
            forwarder.call([summary.run_id for summary in watch.round()])
            night.round(after=1)
        assert {*scp.kept} == {uid(1, 1, 1), uid(3, 1, 1)}
        assert f'dicomsort_route_up{{class="CT",to="{scp.to}"}} 1' in figures(forwarder)
        tried = scp.came[bad]
        night.round(after=100)
        assert scp.came[bad] == tried  # its own pause is not over
        night.round(after=1)
        assert scp.came[bad] > tried
    told_of = [line for line, _ in night.lines()]
    assert (told_of.count("sending failed"), told_of.count("route down")) == (1, 0)


def test_stopping_just_when_a_route_is_called_is_not_missed(outbox: Path) -> None:
    forwarder = Forwarder(str(outbox), {"CT": (Destination("A@a:1"),)}, lambda *_: ForwardResult(0, 0))
    (queue,) = forwarder._queues
    clear = queue.called.clear

    def stopped_before() -> None:
        forwarder._is_stopped = True
        queue.called.set()
        clear()

    with mock.patch.object(queue.called, "clear", stopped_before):
        forwarder.start()
        forwarder.call([])
        (thread,) = forwarder._threads
        thread.join(ENDS)
    assert not thread.is_alive()


def test_a_slow_destination_holds_up_no_other(inbox: Path, outbox: Path) -> None:
    Watch(inbox, outbox, mode="copy").round()
    gate, begun, sent = threading.Event(), threading.Event(), threading.Event()
    asked: list[str] = []

    def send(folder: str, destination: Destination, _: str | None, /) -> ForwardResult:
        asked.append(Path(folder).name)
        if destination.to == "SLOW@a:1":
            begun.set()
            gate.wait(60)
        else:
            sent.set()
        return ForwardResult(1, 0)

    routes = {"CT": (Destination("SLOW@a:1"), Destination("FAST@b:1")), "MRI": (Destination("slow@A:1"),)}
    forwarder = Forwarder(str(outbox), routes, send)
    forwarder.start()
    forwarder.call([])
    assert begun.wait(60)
    assert sent.wait(60)
    assert asked == ["CT", "CT"]  # nor is one address used twice at a time
    gate.set()
    forwarder.stop()
