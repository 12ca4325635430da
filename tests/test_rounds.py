"""What rounds of the service do and leave alone; in this process, by the test's clock."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import signal
import tracemalloc
from array import array
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from building import make_dicom, make_files, open_descriptors, read_tree
from command import by_source, placed, rows, run, sort
from crashing import Crash, CrashingFiles
from reviewing import decide, desk_of, held_outbox, item_of
from watching import Timer, Watch, age, runs_of, told

from dicomsort.files import Files
from dicomsort.plan import plan
from dicomsort.records import Operation
from dicomsort.service.known_files import Keys
from dicomsort.service.watch import Stop, StoppableFiles, Stopped

LONG_AGO = 1000.0
GROWTH = 10 << 10  # bytes in 50 rounds; a list of their summaries alone would be ten times as much


@pytest.mark.parametrize("mode", ["move", "copy", "link"])
def test_what_is_new_is_sorted_and_a_round_without_news_makes_no_run(inbox: Path, outbox: Path, mode: str) -> None:
    watch = Watch(inbox, outbox, mode=mode)
    assert told(watch.round()) == [{"sorted": 4, "other": 1, "ignored": 1}]
    tree = read_tree(outbox)
    opened = watch.opened
    for _ in range(3):
        assert watch.round() == []
    assert read_tree(outbox) == tree
    assert watch.opened == opened
    make_dicom(inbox / "ct" / "3.dcm", study=1, instance=3)
    assert told(watch.round()) == [{"sorted": 1}]
    assert len(runs_of(outbox)) == 2
    assert len(rows(outbox)) == 7


@pytest.mark.parametrize("mode", ["move", "copy", "link"])
def test_a_new_service_finds_nothing_new_in_what_an_earlier_one_dealt_with(
    inbox: Path, outbox: Path, mode: str
) -> None:
    make_dicom(inbox / "again.dcm", study=2, modality="MR")
    Watch(inbox, outbox, mode=mode).round()
    tree = read_tree(outbox)
    again = Watch(inbox, outbox, mode=mode)
    assert (again.round(), again.round()) == ([], [])
    assert read_tree(outbox) == tree | {".dicomsort/lock": (outbox / ".dicomsort" / "lock").read_bytes()}


def test_what_stands_before_the_first_news_keeps_its_place_in_a_run_that_is_planned_once(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "inbox"
    known = [make_dicom(inbox / f"{number}.dcm", study=number) for number in range(1, 4)]
    Watch(inbox, outbox, mode="copy").round()
    before = len(rows(outbox))
    make_dicom(inbox / "waits.dcm", study=5)
    for path in known:
        age(path, 3600)
    age(make_dicom(inbox / "3a.dcm", study=4), 3600)
    planned: list[Operation] = []
    monkeypatch.setattr(
        "dicomsort.sorting.pipeline.plan", lambda *given: (planned.append(each) or each for each in plan(*given))
    )
    assert told(Watch(inbox, outbox, mode="copy", settle=60.0).round()) == [{"duplicate": 3, "sorted": 1}]
    assert [operation.number for operation in planned] == [0, 1, 2, 3, 4]
    assert [row["source"] for row in rows(outbox)[before:]] == ["1.dcm", "2.dcm", "3.dcm", "3a.dcm"]


def test_what_is_left_in_the_inbox_gets_its_row_once(inbox: Path, outbox: Path) -> None:
    watch = Watch(inbox, outbox)
    watch.round()
    make_dicom(inbox / "sent twice.dcm", study=3, modality="CR")
    make_files(inbox, {"more.txt": "text"})
    (inbox / "link").symlink_to("more.txt")
    assert told(watch.round()) == [{"duplicate": 1, "ignored": 2}]
    assert watch.round() == []
    make_files(inbox, {"more.txt": "other text"})
    assert told(watch.round()) == [{"ignored": 1}]
    make_files(inbox, {".dicomsort-20260101T000000Z-abc-1.part": "half", "a/.dicomsort-x.part": "of something"})
    assert watch.round() == []


def test_a_study_that_keeps_arriving_waits_whole(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    age(make_dicom(inbox / "1.dcm", study=1, series=1, instance=1), LONG_AGO)
    age(make_dicom(inbox / "other.dcm", study=2, modality="MR"), LONG_AGO)
    make_dicom(inbox / "2.dcm", study=1, series=2, instance=1)
    watch = Watch(inbox, outbox, settle=60)
    assert told(watch.round(after=30)) == [{"sorted": 1}]
    assert [row["source"] for row in rows(outbox)] == ["other.dcm"]
    make_dicom(inbox / "3.dcm", study=1, series=1, instance=2)
    for instance in (3, 4, 5):
        assert watch.round(after=30) == []
        age(make_dicom(inbox / f"old time {instance}.dcm", study=1, series=1, instance=instance), LONG_AGO)
    assert watch.round(after=30) == []
    assert told(watch.round()) == [{"sorted": 6}]
    assert read_tree(inbox) == {}
    assert len(runs_of(outbox)) == 2


def test_a_file_that_grows_waits_though_its_time_is_long_past(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    whole = make_dicom(tmp_path / "whole.dcm", study=1).read_bytes()
    inbox.mkdir()
    watch = Watch(inbox, outbox, settle=60)
    watch.round()
    for size in (100, 300, len(whole)):
        (inbox / "1.dcm").write_bytes(whole[:size])
        age(inbox / "1.dcm", LONG_AGO)
        assert watch.round() == []
    assert told(watch.round()) == [{"sorted": 1}]


def test_a_time_in_the_future_holds_nothing_up_for_ever(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    age(make_dicom(inbox / "1.dcm"), -LONG_AGO * 1000)
    watch = Watch(inbox, outbox, settle=60)
    assert watch.round(after=61) == []
    assert told(watch.round()) == [{"sorted": 1}]


def test_sort_still_settles_by_series(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    age(make_dicom(inbox / "1.dcm", study=1, series=1), LONG_AGO)
    make_dicom(inbox / "2.dcm", study=1, series=2)
    assert sort("--settle", 60, inbox, outbox).code == 0
    assert {source: row["status"] for source, row in by_source(outbox).items()} == {
        "1.dcm": "sorted",
        "2.dcm": "settling",
    }


def test_a_manual_sort_beside_the_service_is_taken_note_of(inbox: Path, outbox: Path) -> None:
    watch = Watch(inbox, outbox, mode="copy")
    watch.round()
    make_dicom(inbox / "by hand.dcm", study=8)
    assert sort(inbox, outbox).code == 0
    assert watch.round() == []
    assert run("undo", outbox).code == 0
    assert told(watch.round()) == [{"sorted": 1, "duplicate": 5, "ignored": 1}]


def test_a_run_that_was_undone_at_once_is_not_sent_on(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    watch = Watch(inbox, outbox, mode="copy")
    watch.round()
    for study in (7, 8):
        make_dicom(tmp_path / f"other {study}" / "1.dcm", study=study)
        assert sort("--settle", 0, tmp_path / f"other {study}", outbox).code == 0
    stands, undone = runs_of(outbox)[-2:]
    assert run("undo", outbox, undone).code == 0
    assert (watch.round(), watch.sent) == ([], [stands])


def test_what_stands_of_a_run_that_was_resumed_and_partly_undone_is_sent_on(
    inbox: Path, outbox: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        make_dicom(tmp_path / "other" / f"{number}.dcm", study=8, instance=number)
    with suppress(Crash):
        Watch(tmp_path / "other", outbox, files=DiesAtTheEnd(), mode="copy").round()
    watch = Watch(inbox, outbox, mode="copy")
    watch.round()
    (name,) = watch.left
    assert run("resume", outbox, name).code == 0
    next(outbox.glob("CT/*/*/*")).write_bytes(b"edited")
    assert run("undo", outbox, name).code == 3
    assert (watch.round(), watch.sent) == ([], [name])


def test_an_unfinished_run_is_finished_first(inbox: Path, outbox: Path) -> None:
    before = read_tree(inbox)
    whole = CrashingFiles(-1)
    Watch(inbox, outbox, files=whole).round()
    assert run("undo", "--quiet", outbox).code == 0
    for at in range(1, len(whole.called), 3):
        shutil.rmtree(outbox)
        with suppress(Crash):
            Watch(inbox, outbox, files=CrashingFiles(at)).round()
        was_sealed = any((outbox / ".dicomsort" / "runs").glob("*/journal.jsonl"))
        watch = Watch(inbox, outbox)
        runs = watch.round()
        assert len(runs) == 1 or was_sealed
        assert watch.round() == []
        assert len(list(placed(outbox))) == 5
        assert sorted(row["source"] for row in rows(outbox)) == sorted(before)
        while read_tree(inbox) != before:
            assert run("undo", "--quiet", outbox).code == 0


class DiesAtTheEnd(Files):
    """Dies before a run's summary is written."""

    def create(self, path: str, mode: int = 0o600) -> int:
        if "summary" in path.rpartition("/")[2]:
            raise Crash
        return super().create(path, mode)


def test_an_unfinished_run_of_another_inbox_is_left_to_a_person(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    for study in (8, 9):
        make_dicom(tmp_path / f"other {study}" / "1.dcm", study=study)
        with suppress(Crash):
            Watch(tmp_path / f"other {study}", outbox, files=DiesAtTheEnd(), mode="copy").round()
    assert [r["state"] for r in json.loads(run("runs", "--json", outbox).out)] == ["unfinished"] * 2
    watch = Watch(inbox, outbox)
    assert told(watch.round()) == [{"sorted": 4, "other": 1, "ignored": 1}]
    states = [r["state"] for r in json.loads(run("runs", "--json", outbox).out)]
    assert states == ["unfinished", "unfinished", "finished"]
    assert watch.round() == []
    first, second, _ = runs_of(outbox)
    assert sorted(watch.left) == [first, second]
    assert run("resume", "--quiet", outbox, first).code == 0
    assert (watch.round(), watch.sent, watch.left) == ([], [first], [second])  # what it placed is sent on
    assert run("undo", "--quiet", outbox, second).code == 0
    assert (watch.round(), watch.sent, watch.left) == ([], [], [])


def test_a_decision_that_was_cut_short_is_finished_first(tmp_path: Path) -> None:
    outbox = held_outbox(tmp_path)
    key = item_of(desk_of(outbox), "odd1.dcm")
    with pytest.raises(Crash):
        decide(desk_of(outbox, DiesAtTheEnd()), key, "CT", "anna")
    make_dicom(tmp_path / "elsewhere" / "1.dcm", study=8)
    assert told(Watch(tmp_path / "elsewhere", outbox).round()) == [{"sorted": 2}, {"sorted": 1}]
    assert {r["state"] for r in json.loads(run("runs", "--json", outbox).out)} == {"finished"}


def test_a_stop_in_the_middle_finishes_the_file_at_hand_and_leaves_the_rest(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    for number in range(20):
        make_dicom(inbox / f"{number}.dcm", study=number)
    before = read_tree(inbox)
    stop = Stop()

    class Asked(StoppableFiles):
        links = 0

        def link(self, source: str, target: str) -> None:
            super().link(source, target)
            Asked.links += 1
            if Asked.links == 5:
                stop.make(signal.SIGTERM)

    service, shown, complaints = Watch(inbox, outbox, mode="move", files=Asked(stop.check)).service(stop)
    assert (service.run(), shown, complaints) == (signal.SIGTERM, [], [])
    assert 5 <= Asked.links < 8  # the threads that place may each have one at hand
    assert set(before.values()) <= {*read_tree(inbox).values(), *read_tree(outbox).values()}
    assert not list(outbox.rglob("*.part"))
    assert told(Watch(inbox, outbox).round()) == [{"sorted": 20}]
    assert read_tree(inbox) == {}


def test_a_stop_is_heard_while_files_are_read(inbox: Path, outbox: Path) -> None:
    from dicomsort.service.watch import StoppableProgress

    stop = Stop()
    stop.make(signal.SIGINT)

    class Never:
        def stage(self, name: str, total: int | None) -> None:
            raise AssertionError

        def advance(self, steps: int = 1) -> None:
            raise AssertionError

    progress = StoppableProgress(Never(), stop.check)
    for tell in (lambda: progress.stage("", None), progress.advance):
        with pytest.raises(Stopped):
            tell()
    service, _, _ = Watch(inbox, outbox).service(stop)
    assert service.run() == signal.SIGINT
    assert runs_of(outbox) == []


def test_many_rounds_take_no_more_memory_and_no_more_files(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "inbox"
    content = make_dicom(tmp_path / "one.dcm", study=1, instance=10_000).read_bytes()
    inbox.mkdir()
    watch = Watch(inbox, outbox, settle=0)
    arrived = iter(range(10_001, 20_000))

    def arrive() -> None:
        number = next(arrived)
        (inbox / f"{number}.dcm").write_bytes(content.replace(b".1.1.10000", b".1.1.%d" % number))

    sizes: list[tuple[int, int]] = []

    def measure() -> None:
        gc.collect()
        sizes.append((tracemalloc.get_traced_memory()[0], open_descriptors()))

    steps = [arrive, lambda: None] * 25
    timer = Timer(*[*steps, measure] * 4)
    service, _, complaints = watch.service(timer, every=0.0, metrics=tmp_path / "m.prom")
    found = array("q")
    service.show = lambda summary: found.append(summary.found)
    log = logging.getLogger("dicomsort")
    monkeypatch.setattr(log, "propagate", False)  # pytest would keep each line
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    tracemalloc.start()
    try:
        service.run()
    finally:
        tracemalloc.stop()
    assert complaints == []
    assert len(timer.slept) == 205
    assert found.tolist() == [1] * 100
    assert len(runs_of(outbox)) == 100
    # What a round leaves, every 25 leave; what else this process does meanwhile is no round's.
    assert min(later - files for (_, files), (_, later) in pairwise(sizes)) <= 0
    assert min(later - memory for (memory, _), (later, _) in pairwise(sizes)) < GROWTH


def test_keys_are_a_set_of_numbers() -> None:
    keys = Keys([5, 1, 5, 2**64 - 1])
    assert (len(keys), 1 in keys, 2 in keys, 2**64 - 1 in keys) == (3, True, False, True)
    keys.update([2, 1])
    assert (len(keys), 2 in keys, 5 in keys) == (4, True, True)
    assert 0 not in Keys()


def test_what_the_service_remembers_ends_with_the_files(inbox: Path, outbox: Path) -> None:
    watch = Watch(inbox, outbox, mode="copy")
    watch.round()
    known = watch.rounds._known_files
    assert len(known._known) == 6
    shutil.rmtree(inbox / "ct")
    watch.round()
    assert (len(known._known), len(known._changed)) == (4, 0)
