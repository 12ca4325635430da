"""Files dated in the future, or in no time that a clock shows: they settle, and no time ends a run with an error."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import by_source, load, rows, run, sort
from watching import SECOND, Watch, told

from dicomsort.engines.engine import SerialEngine
from dicomsort.files import Files
from dicomsort.records import Found
from dicomsort.report import Summary
from dicomsort.sorting import RunContext, check, sort_inbox
from dicomsort.sorting.settling import Clock

HOUR, YEAR = 3600 * SECOND, 365 * 86_400 * SECOND
DATED = "time in the future"
MEMORY = Path("/dev/shm")  # noqa: S108 - a file system that keeps any time
BEYOND_64_BITS = 10**10  # seconds; of nanoseconds, 64 bits end in 2262
TIMES = (-(2**62), -(10**12), -(2**33), -1, 0, 2**32, BEYOND_64_BITS, 2 * BEYOND_64_BITS, 10**12, 2**62)


@dataclass
class Fake:
    """A clock that is wrong by ``off`` nanoseconds, and goes on only where somebody sleeps."""

    off: int = 0
    seconds: float = 100.0
    slept: list[float] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None
    reading: float = 0.0  # seconds that each step of the progress takes before anybody sleeps

    def clock(self) -> Clock:
        return Clock(lambda: time.time_ns() + self.off, lambda: self.seconds, self._sleep)

    def _sleep(self, seconds: float) -> None:
        if not self.slept:
            self.meanwhile()
        self.slept.append(seconds)
        self.seconds += seconds

    def stage(self, name: str, total: int | None) -> None:
        self.stages.append(name)

    def advance(self, steps: int = 1) -> None:
        if not self.slept:
            self.seconds += self.reading


def sort_by(fake: Fake, inbox: Path, outbox: Path | None, **options: object) -> Summary:
    """``dicomsort sort --move --settle 60`` by a fake clock."""
    flags = {"mode": "move", "settle": 60.0, "evidence": "header", "engine": "serial", **options}
    request = check(str(inbox), outbox and str(outbox), load(flags, {}, None), fake.clock())
    return sort_inbox(request, RunContext(request.outbox or "", Files(), fake), SerialEngine(), lambda _: None)


def dated(path: Path, seconds: float) -> Path:
    """Give a file a time so many seconds after 1970."""
    then = int(seconds * SECOND)
    os.utime(path, ns=(then, then))
    return path


@pytest.fixture
def ahead(tmp_path: Path) -> Path:
    """An inbox with two series, in one of them a file dated in 2099 and one of long ago; in the other one of now."""
    inbox = tmp_path / "inbox"
    dated(make_dicom(inbox / "1.dcm", study=1, instance=1), 4_070_908_800)
    dated(make_dicom(inbox / "2.dcm", study=1, instance=2), 1_000_000_000)
    make_dicom(inbox / "3.dcm", study=2, modality="MR")
    return inbox


def states(outbox: Path) -> dict[str, tuple[str, str]]:
    return {source: (row["status"], row["message"]) for source, row in by_source(outbox).items()}


def test_where_only_mtime_lies_ahead_ctime_tells(ahead: Path, outbox: Path) -> None:
    fake = Fake(off=HOUR)
    sort_by(fake, ahead, outbox)
    assert states(outbox) == {"1.dcm": ("sorted", DATED), "2.dcm": ("sorted", ""), "3.dcm": ("sorted", "")}
    assert fake.slept == []
    assert read_tree(ahead) == {}


def test_a_file_from_the_future_that_came_just_now_settles_and_its_row_says_so(ahead: Path, outbox: Path) -> None:
    ran = sort("--move", ahead, outbox)
    assert (ran.code, ran.err) == (0, "")
    assert (
        "3 files were left: their series changed within the last --settle seconds; --settle 0 takes such files now"
        in ran.out
    )
    assert states(outbox) == {"1.dcm": ("settling", DATED), "2.dcm": ("settling", ""), "3.dcm": ("settling", "")}
    assert sort("--move", "--settle", 0, ahead, outbox).code == 0
    assert states(outbox) == {"1.dcm": ("sorted", DATED), "2.dcm": ("sorted", ""), "3.dcm": ("sorted", "")}


@pytest.mark.parametrize("dry_run", [False, True])
def test_where_both_times_lie_ahead_two_looks_tell(ahead: Path, outbox: Path, *, dry_run: bool) -> None:
    fake = Fake(off=-YEAR)
    summary = sort_by(fake, ahead, outbox, dry_run=dry_run)
    assert summary.statuses == {"sorted": 3}
    assert (sum(fake.slept), max(fake.slept)) == (60, 1)
    assert "waiting until files dated in the future have settled" in fake.stages
    if not dry_run:
        assert states(outbox) == {"1.dcm": ("sorted", DATED), "2.dcm": ("sorted", ""), "3.dcm": ("sorted", DATED)}


def grow(path: Path) -> None:
    status = path.stat()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def write_within(path: Path) -> None:
    """Change a byte, and nothing that ``stat`` tells but the ctime."""
    status = path.stat()
    content = path.read_bytes()
    while path.stat().st_ctime_ns == status.st_ctime_ns:  # until the kernel's clock has ticked
        path.write_bytes(content[:-1] + b"!")
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def swap(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new")).rename(path)


CHANGES = {"grows": grow, "changes within": write_within, "is swapped": swap, "goes": Path.unlink}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("what", CHANGES)
def test_where_a_second_look_finds_a_change_the_series_settles(
    ahead: Path, outbox: Path, what: str, *, dry_run: bool
) -> None:
    fake = Fake(off=-YEAR, meanwhile=lambda: CHANGES[what](ahead / "1.dcm"))
    summary = sort_by(fake, ahead, outbox, dry_run=dry_run)
    assert (summary.statuses, summary.needs_person) == ({"settling": 2, "sorted": 1}, False)
    if not dry_run:
        assert states(outbox) == {"1.dcm": ("settling", DATED), "2.dcm": ("settling", ""), "3.dcm": ("sorted", DATED)}


def test_the_time_that_reading_takes_is_no_time_to_wait(ahead: Path, outbox: Path) -> None:
    fake = Fake(off=-YEAR, reading=20.0)
    assert sort_by(fake, ahead, outbox).statuses == {"sorted": 3}
    assert 0 < sum(fake.slept) < 60
    patient = Fake(off=-YEAR, reading=61.0)
    dated(make_dicom(ahead / "4.dcm", study=3), 4_070_908_800)
    assert sort_by(patient, ahead, outbox).statuses == {"sorted": 1}
    assert patient.slept == []


def test_a_clock_that_jumps_while_it_is_waited_changes_nothing(ahead: Path, outbox: Path) -> None:
    fake = Fake(off=-YEAR)
    fake.meanwhile = lambda: setattr(fake, "off", -40 * YEAR)
    assert sort_by(fake, ahead, outbox).statuses == {"sorted": 3}
    assert sum(fake.slept) == 60


@pytest.mark.parametrize(("off", "settle"), [(-YEAR, 0.0), (HOUR, 60.0)])
def test_nothing_is_waited_for_where_nothing_is_in_doubt(ahead: Path, outbox: Path, off: int, settle: float) -> None:
    dated(ahead / "1.dcm", 1_000_000_000)
    fake = Fake(off=off)
    assert sort_by(fake, ahead, outbox, settle=settle).statuses == {"sorted": 3}
    assert fake.slept == []


def test_waiting_can_be_interrupted_and_nothing_was_touched(ahead: Path, outbox: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = read_tree(ahead)
    with pytest.raises(KeyboardInterrupt):
        sort_by(Fake(off=-YEAR, meanwhile=interrupt), ahead, outbox)
    assert read_tree(ahead) == before
    assert not (outbox / "manifest.csv").exists()
    assert sort("--move", "--settle", 0, ahead, outbox).code == 0
    assert read_tree(ahead) == {}


def test_watch_takes_what_is_dated_ahead_in_the_second_round_that_finds_it_the_same(
    tmp_path: Path, outbox: Path
) -> None:
    inbox = tmp_path / "inbox"
    path = dated(make_dicom(inbox / "1.dcm"), 4_070_908_800)
    watch = Watch(inbox, outbox, settle=60)
    watch.now -= YEAR
    assert watch.round(after=59) == []
    grow(path)
    assert watch.round(after=59) == []
    assert watch.round(after=1) == []
    assert told(watch.round()) == [{"sorted": 1}]
    assert states(outbox) == {"1.dcm": ("sorted", DATED)}


def test_watch_goes_by_ctime_where_only_mtime_lies_ahead(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    dated(make_dicom(inbox / "1.dcm"), 4_070_908_800)
    watch = Watch(inbox, outbox, settle=60)
    watch.now += HOUR
    assert told(watch.round()) == [{"sorted": 1}]


def test_what_the_walk_met_goes_to_workers_and_back() -> None:
    found = Found("1.dcm", 1, 2 * 10**19, 3, 4, 0o600, 10**19, 5)
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - our own
    assert (found.is_ahead, found.changed_ns) == (True, 0)
    assert Found("1.dcm", 1, 9, 3, 4, 0o600, 5, 7).changed_ns == 5
    assert Found("1.dcm", 1, 9, 3, 4).changed_ns == 9


def disks(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Each pair of two file systems of this machine, or one where it has no more; folders that do not exist yet."""
    there = [tmp_path]
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        there.append(Path(tempfile.mkdtemp(dir=MEMORY)))
    try:
        for number, inbox in enumerate(there):
            for outbox in there:
                yield inbox / f"in{number}", outbox / f"out{number}"
    finally:
        for folder in there[1:]:
            shutil.rmtree(folder)


def tree_times(inbox: Path) -> dict[str, tuple[bytes, int]]:
    paths = sorted(inbox.rglob("*"))
    return {str(path): (b"" if path.is_dir() else path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("seconds", TIMES)
@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_no_time_is_too_early_or_too_late_for_a_run_and_its_undo(tmp_path: Path, mode: str, seconds: int) -> None:
    options = ("--prune-empty", "--duplicates", "remove") if mode == "--move" else ()
    for inbox, outbox in disks(tmp_path):
        make_dicom(inbox / "a" / "1.dcm", study=1)
        make_dicom(inbox / "2.dcm", study=2)
        shutil.copy(inbox / "2.dcm", inbox / "again.dcm")
        for path in (inbox / "a" / "1.dcm", inbox / "a", inbox / "again.dcm"):
            dated(path, seconds)
        before = tree_times(inbox)
        ran = sort(mode, "--settle", 0, *options, inbox, outbox)
        assert (ran.code, ran.err) == (0, "")
        ran = run("undo", outbox)
        assert (ran.code, ran.err) == (0, "")
        assert tree_times(inbox) == before
        assert {row["status"] for row in rows(outbox)} == {"sorted", "duplicate"}
        shutil.rmtree(inbox)
        shutil.rmtree(outbox)


@pytest.mark.parametrize("seconds", [BEYOND_64_BITS, -(10**12)])
def test_watch_and_a_late_settling_know_such_times_too(tmp_path: Path, outbox: Path, seconds: int) -> None:
    inbox = tmp_path / "inbox"
    dated(make_dicom(inbox / "1.dcm"), seconds)
    watch = Watch(inbox, outbox, settle=60, mode="copy")
    watch.now += HOUR
    assert told(watch.round()) == [{"sorted": 1}]
    assert watch.round() == []
    fake = Fake(off=-YEAR)
    assert sort_by(fake, inbox, tmp_path / "other").statuses == {"sorted": 1}
    assert sum(fake.slept) == (60 if seconds > 0 else 0)


@pytest.mark.parametrize("is_changed", [True, False])
def test_an_undo_of_a_copy_that_was_touched_since_goes_by_its_bytes(
    tmp_path: Path, outbox: Path, *, is_changed: bool
) -> None:
    inbox = tmp_path / "inbox"
    dated(make_dicom(inbox / "1.dcm"), BEYOND_64_BITS)
    assert sort(inbox, outbox).code == 0
    (copy,) = (outbox / "CT").rglob("*.dcm")
    if is_changed:
        copy.write_bytes(copy.read_bytes()[::-1])
    os.utime(copy)
    assert run("undo", outbox).code == (3 if is_changed else 0)
    assert copy.exists() == is_changed
