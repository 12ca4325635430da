"""Rounds that fail, or must wait, and those after them; in this process, by the test's clock."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from building import make_dicom, read_tree
from command import by_source, placed, quiet
from test_faults import Broken
from watching import Timer, Watch, told

from dicomsort.errors import DicomsortError, OutboxLocked, UsageError
from dicomsort.sorting import locked
from dicomsort.sorting.outbox import INODES

LONG_AGO = 1000.0


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds take no time, so pauses are as long as they are meant: what a round took is taken off."""
    still = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
    still.monotonic = lambda: 0.0
    monkeypatch.setattr("dicomsort.service.watch.time", still)


def unmounted(inbox: Path) -> None:
    """The folder that a file system was mounted on."""
    inbox.rename(inbox.with_name("elsewhere"))
    inbox.mkdir()


def gone(inbox: Path) -> None:
    inbox.rename(inbox.with_name("elsewhere"))


def mounted(inbox: Path) -> None:
    if inbox.exists():
        inbox.rmdir()
    inbox.with_name("elsewhere").rename(inbox)


@pytest.mark.parametrize("unmount", [unmounted, gone])
def test_an_inbox_that_is_not_mounted_fails_the_round_and_comes_back(
    inbox: Path, outbox: Path, unmount: object
) -> None:
    assert callable(unmount)
    watch = Watch(inbox, outbox, mode="copy")
    timer = Timer(
        lambda: unmount(inbox),
        lambda: None,
        lambda: (mounted(inbox), make_dicom(inbox / "new.dcm", study=7)),
    )
    service, shown, complaints = watch.service(timer, every=60.0)
    assert service.run() == signal.SIGTERM
    assert len(complaints) == 2
    assert all("is it mounted?" in complaint for complaint in complaints)
    assert told(shown) == [{"sorted": 4, "other": 1, "ignored": 1}, {"sorted": 1}]
    assert timer.slept == [60, 120, 240, 60]


def test_an_inbox_whose_folder_was_made_anew_is_no_unmounted_one(inbox: Path, outbox: Path) -> None:
    watch = Watch(inbox, outbox)
    watch.round()
    shutil.rmtree(inbox)
    make_dicom(inbox / "new.dcm", study=7)
    assert told(watch.round()) == [{"sorted": 1}]


def test_an_inbox_that_became_a_link_to_the_outbox_fails_the_round(inbox: Path, outbox: Path) -> None:
    watch = Watch(inbox, outbox, mode="copy")
    watch.round()
    before = read_tree(outbox)
    shutil.rmtree(inbox)
    inbox.symlink_to(outbox)
    with pytest.raises(UsageError, match="expected an OUTBOX other than the INBOX"):
        watch.round()
    inbox.unlink()
    inbox.symlink_to(outbox / "CT")
    with pytest.raises(UsageError, match="expected an INBOX outside what the OUTBOX holds"):
        watch.round()
    assert read_tree(outbox) == before


def test_an_outbox_that_is_not_mounted_fails_the_round_and_nothing_is_made_there(inbox: Path, outbox: Path) -> None:
    watch = Watch(inbox, outbox)
    watch.round()
    unmounted(outbox)
    make_dicom(inbox / "new.dcm", study=7)
    with pytest.raises(DicomsortError, match="is it mounted"):
        watch.round()
    assert list(outbox.iterdir()) == []
    mounted(outbox)
    assert told(watch.round()) == [{"sorted": 1}]


def folder_at(place: int | str) -> Path:
    """The folder that is listed, by its path or an open descriptor."""
    return Path(place) if isinstance(place, str) else Path(f"/proc/self/fd/{place}").readlink()


def test_an_inbox_that_cannot_be_read_fails_the_round(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(inbox, outbox)
    real = os.scandir

    def refuse(place: int | str) -> object:
        if folder_at(place) == inbox:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(place)

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        with pytest.raises(DicomsortError, match="expected a folder that can be read, received: Input/output error"):
            watch.round()
    assert told(watch.round()) == [{"sorted": 4, "other": 1, "ignored": 1}]


def test_a_folder_that_was_closed_is_told_once_and_gone_into_when_it_opens(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(inbox, outbox)
    real = os.scandir

    def refuse(place: int | str) -> object:
        if folder_at(place).name == "ct":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(place)

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        assert told(watch.round()) == [{"sorted": 2, "other": 1, "ignored": 1, "failed": 1}]
        assert (watch.round(), watch.round()) == ([], [])
        watch.now += 3600 * 10**9
        assert watch.round() == []  # tried again: the same, and the manifest tells it already
    assert told(watch.round()) == [{"sorted": 2}]


CALLS = [("write", 3), ("write", 8), ("flush", 4), ("link", 1), ("create", 2 + INODES)]


@pytest.mark.parametrize(("call", "at"), CALLS)
@pytest.mark.parametrize("mode", ["move", "copy"])
def test_a_full_disk_fails_the_round_and_room_lets_the_next_go_on(
    inbox: Path, outbox: Path, mode: str, call: str, at: int
) -> None:
    before = read_tree(inbox)
    watch = Watch(inbox, outbox, mode=mode, files=Broken(call, at, errno.ENOSPC))
    with pytest.raises((DicomsortError, OSError), match="No space left on device"):
        _ = [watch.round(), watch.round()]
    inside = {*read_tree(inbox).values(), *(read_tree(outbox).values())}
    assert set(before.values()) <= inside
    for _ in range(3):
        watch.round()
    assert len(list(placed(outbox))) == 5
    assert set(read_tree(inbox)) == ({"notes.txt"} if mode == "move" else set(before))
    assert watch.round() == []
    by_status = {source: row["status"] for source, row in by_source(outbox).items()}
    assert [by_status[source] for source in sorted(before)] == ["sorted"] * 3 + ["sorted", "ignored", "other"]


def test_a_failing_round_makes_pauses_longer_and_is_counted(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    watch = Watch(inbox, outbox)
    gone(inbox)
    timer = Timer(*[lambda: None] * 6, lambda: mounted(inbox))
    metrics = tmp_path / "watch.prom"
    service, shown, complaints = watch.service(timer, every=30.0, metrics=metrics)
    service.run()
    assert timer.slept == [60, 120, 240, 480, 900, 900, 900, 30]
    assert (len(complaints), len(shown)) == (7, 1)
    text = metrics.read_text()
    assert 'dicomsort_rounds_total{result="failed"} 7' in text
    assert "dicomsort_failures_in_a_row 0" in text


def test_an_unexpected_error_fails_a_round_and_its_words_are_not_repeated(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(inbox, outbox)
    patch = pytest.MonkeyPatch()
    service, shown, complaints = watch.service(Timer(patch.undo))
    patch.setattr("dicomsort.sorting.pipeline.classify_study", lambda *_: [][len("MARKER^JANE")])
    service.run()
    assert complaints == [complaints[0]]
    assert complaints[0].startswith("unexpected IndexError at test_rounds_failing.py:")
    assert told(shown) == [{"sorted": 4, "other": 1, "ignored": 1}]


def test_an_outbox_held_by_somebody_else_is_waited_for(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    watch = Watch(inbox, outbox)
    holding = locked(quiet(outbox), create=False)
    timer = Timer(lambda: None, lambda: holding.__exit__(None, None, None))
    metrics = tmp_path / "watch.prom"
    service, shown, complaints = watch.service(timer, metrics=metrics)
    holding.__enter__()
    service.run()
    assert complaints == []
    assert told(shown) == [{"sorted": 4, "other": 1, "ignored": 1}]
    assert 'dicomsort_rounds_total{result="locked"} 2' in metrics.read_text()
    assert timer.slept == [60, 60, 60]


def test_locked_is_told_apart(inbox: Path, outbox: Path) -> None:
    watch = Watch(inbox, outbox)
    with locked(quiet(outbox), create=False), pytest.raises(OutboxLocked):
        watch.round()


def test_rounds_fail_while_the_inbox_of_earlier_runs_is_not_mounted(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_mount = os.path.ismount
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: str(path) == str(inbox) or is_mount(path))
        assert Watch(inbox, outbox).round()
    shutil.rmtree(inbox)
    inbox.mkdir()
    watch = Watch(inbox, outbox)
    for _ in range(2):
        with pytest.raises(DicomsortError, match="received an empty folder, and nothing is mounted at"):
            watch.round()
    make_dicom(inbox / "new.dcm", study=9)
    assert told([summary for _ in range(2) for summary in watch.round()]) == [{"sorted": 1}]
