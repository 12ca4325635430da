"""An undo of a run takes nothing from the runs that came after it: neither what they placed nor what they need."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from building import make_dicom, read_tree
from command import Ran, by_source, placed, rows, run, sort
from crashing import Crash
from test_meanwhile import crash
from test_operator import cut_short, last_line, night
from watching import runs_of

from dicomsort.execute import Placer
from dicomsort.records import Operation, Verb
from dicomsort.sorting import later_runs

MODES = ["--copy", "--move"]


class World(NamedTuple):
    """Two inboxes with the same image, and an outbox that has the first one by a run of its own."""

    one: Path
    other: Path
    outbox: Path
    run: str

    @property
    def target(self) -> Path:
        (name,) = placed(self.outbox)
        return self.outbox / name

    def sort_other(self, *options: object) -> str:
        """Sort the other inbox; the run's id."""
        assert sort("--move", "--settle", 0, *options, self.other, self.outbox).code == 0
        return runs_of(self.outbox)[-1]


@pytest.fixture(params=MODES)
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    one, other, outbox = tmp_path / "one", tmp_path / "other", tmp_path / "outbox"
    image = make_dicom(one / "x.dcm")
    other.mkdir()
    shutil.copy2(image, other / "y.dcm")
    assert sort(request.param, "--settle", 0, one, outbox).code == 0
    return World(one, other, outbox, runs_of(outbox)[-1])


def check_other_comes_back(world: World, later: str, before: dict[str, bytes]) -> None:
    assert run("verify", world.outbox).code == 0
    assert len(list(placed(world.outbox))) == 1
    assert run("undo", world.outbox, later).code == 0
    assert read_tree(world.other) == before


def test_a_run_that_is_undone_already_is_left_alone(world: World) -> None:
    before = read_tree(world.other)
    assert run("undo", world.outbox).code == 0
    undo, later = runs_of(world.outbox)[-1], world.sort_other()
    for options in (["--dry-run"], []):
        ran = run("undo", *options, world.outbox, world.run)
        assert (ran.code, f"run {world.run} is undone already, by run {undo}" in ran.out) == (0, True)
    assert runs_of(world.outbox)[-1] == later
    check_other_comes_back(world, later, before)


@pytest.mark.parametrize("has_source", [True, False])
def test_a_file_that_a_later_run_placed_there_is_not_taken(world: World, *, has_source: bool) -> None:
    before = read_tree(world.other)
    source = world.one / "x.dcm"
    if has_source and not source.exists():  # by a move
        shutil.copy2(world.target, source)
    elif not has_source:
        source.unlink(missing_ok=True)
    world.target.unlink()
    later = world.sort_other()
    ran = run("undo", world.outbox, world.run)
    assert ran.code == (0 if has_source else 3)
    if not has_source:
        message = f"it is gone; run {later} placed another file there since"
        assert [row["message"] for row in rows(world.outbox) if row["status"] == "changed"] == [message]
        assert not source.exists()
    check_other_comes_back(world, later, before)


def test_nor_one_of_a_later_run_whose_plan_is_gone(world: World) -> None:
    world.target.unlink()
    later = world.sort_other()
    target = world.target
    os.utime(target)
    shutil.rmtree(world.outbox / ".dicomsort/runs" / later)
    assert run("undo", world.outbox, world.run).code == 3
    assert target.is_file()


def test_what_a_later_run_removed_duplicates_of_stays_until_that_is_undone(world: World) -> None:
    before, whole = read_tree(world.other), read_tree(world.one)
    later = world.sort_other("--duplicates", "remove")
    assert read_tree(world.other) == {}
    message = f"run {later} removed a duplicate of it: undo that run first"
    dry = run("undo", "--dry-run", world.outbox, world.run)
    assert (dry.code, message in dry.out) == (3, True)
    assert run("undo", world.outbox, world.run).code == 3
    assert rows(world.outbox)[-1]["message"] == message
    check_other_comes_back(world, later, before)
    assert run("undo", world.outbox, world.run).code == 0
    assert list(placed(world.outbox)) == []
    assert [*read_tree(world.one)] == [*whole] or [*read_tree(world.one)] == ["x.dcm"]


@pytest.fixture
def late(tmp_path: Path, outbox: Path) -> tuple[str, str]:
    """Two runs of which the first was resumed after the second had ended, which placed the same image."""
    one, other = tmp_path / "one", tmp_path / "other"
    for name in ("1.dcm", "again.dcm"):
        make_dicom(one / name)
    make_dicom(other / "b.dcm")
    crash(one / "1.dcm", outbox, "--move", "--duplicates", "remove", call="link", nth=0)
    assert sort("--settle", 0, other, outbox).code == 3
    first, second = runs_of(outbox)
    return first, second


def test_what_a_run_needs_that_was_resumed_late_stays(tmp_path: Path, outbox: Path, late: tuple[str, str]) -> None:
    first, second = late
    assert run("resume", outbox, first).code == 0
    assert read_tree(tmp_path / "one").keys() <= {"1.dcm"}
    assert run("undo", outbox, second).code == 3
    assert by_source(outbox)["b.dcm"]["message"] == f"run {first} removed a duplicate of it: undo that run first"
    assert [run("undo", outbox, name).code for name in late] == [0, 0]
    assert sorted(read_tree(tmp_path / "one")) == ["1.dcm", "again.dcm"]
    assert list(placed(outbox)) == []


def test_what_a_run_placed_that_was_resumed_late_stays(tmp_path: Path, outbox: Path, late: tuple[str, str]) -> None:
    first, second = late
    (target,) = placed(outbox)
    (outbox / target).unlink()
    assert run("resume", outbox, first).code == 0
    assert run("undo", outbox, second).code == 3
    assert (outbox / target).is_file()


def edit(path: Path) -> bytes:
    """Let another file take its place, as an editor does; the content before."""
    before = path.read_bytes()
    path.with_name("new").write_bytes(before + b"edited")
    path.with_name("new").rename(path)
    return before


def test_a_run_that_was_cut_short_and_partly_undone_can_be_undone_later(tmp_path: Path, outbox: Path) -> None:
    """What it had begun and not placed is placed by another run meanwhile."""
    inbox = tmp_path / "inbox"
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.execute.executor.BATCH", 2)
        crash(inbox / "0.dcm", outbox, "--move", call="link", nth=2)
    (first,) = runs_of(outbox)
    edited = outbox / min(placed(outbox))
    before = edit(edited)
    assert run("undo", outbox).code == 3
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    assert run("undo", outbox, first).code == 3
    edited.write_bytes(before)
    assert [run("undo", outbox, first).code, run("verify", outbox).code, len(read_tree(inbox))] == [0, 0, 1]


def test_a_duplicate_that_was_not_removed_before_its_run_was_undone_needs_nothing(tmp_path: Path, outbox: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    make_dicom(one / "1.dcm")
    for number in (1, 2):
        make_dicom(other / f"{number}.dcm", instance=number)
    assert sort("--move", "--settle", 0, one, outbox).code == 0
    apply = Placer.apply

    def dying(self: Placer, o: Operation) -> object:
        if o.verb is Verb.REMOVE:
            raise Crash
        return apply(self, o)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(Placer, "apply", dying)
        sort("--move", "--duplicates", "remove", "--settle", 0, other, outbox)
    first, second = runs_of(outbox)
    edit(outbox / max(placed(outbox)))
    assert run("undo", outbox, second).code == 3
    assert list(read_tree(other)) == ["1.dcm"]
    assert run("undo", outbox, first).code == 0


def test_a_run_that_was_resumed_late_takes_back_what_it_placed_where_another_had_been(
    tmp_path: Path, outbox: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    make_dicom(one / "1.dcm")
    for number in (1, 2):
        make_dicom(other / f"{number}.dcm", instance=number)
    crash(one / "1.dcm", outbox, "--move", call="link", nth=0)
    assert sort("--move", "--settle", 0, other, outbox).code == 3
    first, second = runs_of(outbox)
    edit(outbox / max(placed(outbox)))
    assert [run("undo", outbox, second).code, run("resume", outbox, first).code] == [3, 0]
    assert run("undo", outbox, first).code == 0
    assert sorted(read_tree(one)) == ["1.dcm"]


def test_rows_are_in_the_order_of_ends_whatever_the_times_of_files_are(tmp_path: Path, outbox: Path) -> None:
    make_dicom(tmp_path / "inbox/1.dcm")
    assert [sort("--move", tmp_path / "inbox", outbox).code, run("undo", outbox).code] == [0, 0]
    assert sort("--move", tmp_path / "inbox", outbox).code == 0
    for at, name in enumerate(reversed(runs_of(outbox))):
        os.utime(outbox / ".dicomsort/runs" / name / "summary.json", (10**9 + at, 10**9 + at))
    told = (outbox / "manifest.csv").read_bytes()
    (outbox / "manifest.csv").unlink()
    assert run("verify", "--repair", outbox).code == 0
    assert (outbox / "manifest.csv").read_bytes() == told


def test_a_repair_writes_rows_in_the_order_in_which_runs_ended(outbox: Path, late: tuple[str, str]) -> None:
    first, second = late
    assert [run("undo", outbox, second).code, run("resume", outbox, first).code] == [0, 0]
    told = (outbox / "manifest.csv").read_bytes()
    assert run("verify", outbox).out.startswith("1 file holds")
    (outbox / "manifest.csv").unlink()
    assert run("verify", "--repair", outbox).code == 0
    assert (outbox / "manifest.csv").read_bytes() == told


@pytest.mark.parametrize("case", ["ignored", "told apart"])
@pytest.mark.parametrize(("name", "other"), [("CT.dcm", "ct.dcm"), ("Scan/001", "scan/001"), ("Maß", "maß")])
def test_names_that_differ_in_case_are_one_where_the_file_system_says_so(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: str, case: str
) -> None:
    for place in (f"one/{name}", f"two/{other}"):
        make_dicom(tmp_path / place)
    assert sort("--settle", 0, "--layout", "keep", tmp_path / "one", outbox).code == 0
    (first,) = runs_of(outbox)
    (outbox / "CT" / name).unlink()
    assert sort("--settle", 0, "--layout", "keep", "--move", tmp_path / "two", outbox).code == 0
    (outbox / "CT" / other).rename(outbox / "CT" / name)  # as a system that ignores case shows it under both names
    if case == "ignored":
        there, top = later_runs.look_up, f"{outbox}/"
        names = {path.relative_to(outbox).as_posix().casefold(): str(path) for path in outbox.rglob("*")}
        monkeypatch.setattr(
            later_runs,
            "look_up",
            lambda path: there(path) or there(names.get(path.removeprefix(top).casefold(), path)),
        )
    assert run("undo", outbox, first).code == 0
    assert (outbox / "CT" / name).is_file() == (case == "ignored")


@pytest.mark.parametrize("mode", MODES)
def test_only_a_file_whose_duplicate_could_not_be_restored_stays(tmp_path: Path, outbox: Path, mode: str) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    other.mkdir()
    for number in (1, 2, 3):
        shutil.copy2(make_dicom(one / f"{number}.dcm", instance=number), other / f"{number}.dcm")
    before = read_tree(one)
    assert sort(mode, "--settle", 0, one, outbox).code == 0
    assert sort("--move", "--settle", 0, "--duplicates", "remove", other, outbox).code == 0
    first, later = runs_of(outbox)
    (other / "2.dcm").write_text("another file")
    assert run("undo", outbox, later).code == 3
    assert read_tree(other) == before | {"2.dcm": b"another file"}
    assert run("undo", outbox, first).code == 3
    assert len([*placed(outbox)]) == 1
    assert by_source(outbox)["2.dcm"]["message"] == f"run {later} removed a duplicate of it: undo that run first"
    assert read_tree(one).keys() | {"2.dcm"} == before.keys()
    (other / "2.dcm").unlink()
    assert (run("undo", outbox, later).code, run("undo", outbox, first).code) == (0, 0)
    assert (read_tree(other), read_tree(one), [*placed(outbox)]) == (before, before, [])


@pytest.fixture
def crossed(tmp_path: Path, outbox: Path) -> tuple[str, Path]:
    """A run of two files, and the folder of a later one that removed a duplicate of the first."""
    one, other = tmp_path / "one", tmp_path / "other"
    make_dicom(other / "y.dcm", study=3)
    for study in (1, 2):
        make_dicom(one / f"{study}.dcm", study=study)
    shutil.copy2(one / "1.dcm", other / "x.dcm")
    assert sort("--move", "--settle", 0, one, outbox).code == 0
    assert sort("--move", "--settle", 0, "--duplicates", "remove", other, outbox).code == 0
    first, later = runs_of(outbox)
    return first, outbox / ".dicomsort/runs" / later


def damage_line(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = b"X" + lines[number][1:]
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("damaged", "gone"),
    [
        ([("journal.jsonl", 0)], []),
        ([("plan.jsonl", 1)], []),  # an operation
        ([("plan.jsonl", 0)], []),  # the head
        ([("journal.jsonl", 0)], ["summary.json"]),
        ([("journal.jsonl", 0)], ["summary.json", "manifest.csv"]),  # as where it was cut short
        ([("journal.jsonl", 0), ("manifest.csv", 1)], []),
        ([("journal.jsonl", 0), ("manifest.csv", 0)], []),
    ],
)
def test_a_later_run_that_cannot_be_read_keeps_what_it_needs_and_no_more(
    tmp_path: Path, outbox: Path, crossed: tuple[str, Path], damaged: list[tuple[str, int]], gone: list[str]
) -> None:
    first, later = crossed
    for name, line in damaged:
        damage_line(later / name, line)
    for name in gone:
        (later / name).unlink()
    if gone:
        (outbox / "manifest.csv").unlink()
    message = f"run {later.name} removed a duplicate of it: undo that run first"
    dry = run("undo", "--dry-run", outbox, first)
    assert (dry.code, dry.out.count(f"[{message}]")) == (3, 1), dry
    ran = run("undo", outbox, first)
    assert (ran.code, [*read_tree(tmp_path / "one")]) == (3, ["2.dcm"]), ran
    assert [row["message"] for row in rows(outbox) if row["status"] == "changed"] == [message]
    assert len([*placed(outbox)]) == 2


def test_where_no_file_tells_what_a_later_run_needs_nothing_is_undone(outbox: Path, crossed: tuple[str, Path]) -> None:
    first, later = crossed
    for name in ("plan.jsonl", "manifest.csv"):
        damage_line(later / name, 2)
    before = [*placed(outbox)]
    for _ in range(2):
        ran = run("undo", outbox, first)
        assert (ran.code, f"run {later.name}, plan.jsonl: expected operation 1" in ran.err) == (1, True), ran
        assert "nor can all its rows be read, so what it needs is not known: put both back from a backup" in ran.err
    assert [*placed(outbox)] == before
    assert runs_of(outbox) == [first, later.name]


def test_a_file_from_a_backup_gets_mode_and_time_back(tmp_path: Path, outbox: Path) -> None:
    image = make_dicom(tmp_path / "inbox" / "1.dcm")
    image.chmod(0o640)
    os.utime(image, (10**9, 10**9))
    assert sort("--move", "--settle", 0, tmp_path / "inbox", outbox).code == 0
    (name,) = placed(outbox)
    content = (outbox / name).read_bytes()
    (outbox / name).unlink()
    (outbox / name).write_bytes(content)
    (outbox / name).chmod(0o600)
    ran = run("undo", outbox)
    assert (ran.code, rows(outbox)[-1]["message"]) == (0, "")
    status = image.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o640, 10**9)
    assert list(placed(outbox)) == []


def test_a_manifest_that_is_none_stops_no_undo_of_other_files(tmp_path: Path, outbox: Path) -> None:
    for number in (1, 2, 3):
        make_dicom(tmp_path / "inbox" / f"{number}.dcm", study=number)
    before = read_tree(tmp_path / "inbox")
    assert sort("--move", "--settle", 0, tmp_path / "inbox", outbox).code == 0
    back = outbox / by_source(outbox)["1.dcm"]["destination"]
    shutil.copy2(back, tmp_path / "copy")
    (tmp_path / "copy").replace(back)  # as from a backup
    (outbox / "manifest.csv").write_bytes(b"x" * 3000)
    ran = run("undo", outbox)
    assert (ran.code, "--repair` writes the manifest anew; only then does an undo take back" in ran.out) == (3, True)
    assert read_tree(tmp_path / "inbox") == {path: before[path] for path in ("2.dcm", "3.dcm")}
    assert back.read_bytes() == before["1.dcm"]


def test_a_damaged_line_that_keeps_files_from_a_backup_is_told_until_it_is_mended(tmp_path: Path, outbox: Path) -> None:
    for study in (1, 2):
        make_dicom(tmp_path / "inbox" / f"{study}.dcm", study=study)
    before = read_tree(tmp_path / "inbox")
    assert sort("--move", "--settle", 0, tmp_path / "inbox", outbox).code == 0
    with (outbox / "manifest.csv").open("a") as lines:
        lines.write("a note of mine\n")
    assert "manifest.csv is damaged" not in run("undo", "--dry-run", outbox).out
    for name in placed(outbox):
        os.utime(outbox / name, (10**9, 10**9))
    for options in (["--dry-run"], []):
        ran = run("undo", *options, outbox)
        assert (ran.code, ran.out.count("manifest.csv is damaged: line 4: ")) == (3, 1)
        assert f"`dicomsort verify {outbox} --repair` mends the manifest; only then does an undo take back" in ran.out
    assert run("verify", "--repair", outbox).code == 0
    assert run("undo", outbox).code == 0
    assert read_tree(tmp_path / "inbox") == before


def test_a_dry_run_refuses_what_an_undo_refuses(tmp_path: Path, outbox: Path) -> None:
    for study in (1, 2):
        make_dicom(tmp_path / "inbox" / f"{study}.dcm", study=study)
        assert sort(tmp_path / "inbox", outbox).code == 0
    (outbox / ".dicomsort/runs" / runs_of(outbox)[-1] / "summary.json").write_text('{"a": 1}')
    dry, ran = run("undo", "--dry-run", outbox), run("undo", outbox)
    assert (dry.code, dry.err) == (ran.code, ran.err)
    assert (dry.code, "to take an earlier run back, name it" in dry.err) == (1, True)


def test_what_a_finished_run_held_is_told(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "1.dcm")
    make_dicom(inbox / "2.dcm", study=2, modality="CT", sop_class="1.2.840.10008.5.1.4.1.1.1")
    cut = cut_short(inbox, outbox, "--move")
    ran = sort("--move", "--settle", 0, "--log-file", tmp_path / "log", "--json", inbox, outbox)
    (reason,) = json.loads(ran.out)["finished"][cut]["held"]
    assert (ran.code, json.loads(ran.out)["found"]) == (3, 0)
    assert f'exit_code=3 cause="held: {reason} 1"' in last_line(tmp_path)
    assert f"run {cut}, which was cut short, was finished first: 1 sorted, 1 review" in last_line(tmp_path)


def test_a_run_that_was_resumed_since_is_not_told_as_unfinished(tmp_path: Path, outbox: Path) -> None:
    inbox, other = tmp_path / "inbox", tmp_path / "other"
    make_dicom(inbox / "1.dcm")
    make_dicom(other / "2.dcm", study=2)
    cut_short(other, outbox)
    assert night(inbox, outbox).code == 3
    last = runs_of(outbox)[-1]
    assert run("resume", outbox).code == 0
    ran: Ran = run("report", outbox, last)
    assert (ran.code, ran.err) == (0, "")
    assert by_source(outbox)["2.dcm"]["status"] == "sorted"


def test_an_undo_that_dies_before_its_plan_is_sealed_leaves_the_run_to_a_resume(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the killed run had begun and not done is done by the resume; the undo had not called it failed."""
    cut_short(inbox, outbox)
    for copy in [path for path in (outbox / "CT").rglob("*") if path.is_file()]:
        copy.unlink()  # begun, and not there

    def die(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["dicomsort.sorting.undo"], "seal_plan", die)
        assert run("undo", outbox).code == 1
    ran = run("resume", outbox)
    assert (ran.code, {row["status"] for row in rows(outbox)} & {"failed"}) == (0, set()), ran
