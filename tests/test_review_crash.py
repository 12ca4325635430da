"""A decision, or its undo, that dies before any change on disk, or within a write: nothing is lost or half-done."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import quiet, rows, run
from crashing import Crash, CrashingFiles, NoLinks, NoSyncfs
from reviewing import decide, desk_of, held_outbox, item_of

from dicomsort.errors import DicomsortError
from dicomsort.files import Files
from dicomsort.sorting import ReviewService, resume
from dicomsort.sorting.corrections import images_by_run
from dicomsort.sorting.runs import load_runs

MEMORY = Path("/dev/shm")  # noqa: S108 - flushing costs nothing there
SYSTEMS: dict[str, Callable[[], Files]] = {"links": Files, "no syncfs": NoSyncfs, "no links": NoLinks}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as made:
        yield Path(made)


def contents(outbox: Path) -> list[bytes]:
    """Every file that is a user's; what has a second name, as a crash may leave it, counts once."""
    inodes = {}
    for path in outbox.rglob("*"):
        name = path.relative_to(outbox).as_posix()
        if path.is_file() and not name.startswith(".dicomsort/") and name != "manifest.csv":
            inodes[path.stat().st_ino] = path.read_bytes()
    return sorted(inodes.values())


def check(outbox: Path, before: list[bytes], key: str, system: str) -> ReviewService:
    """Whatever died, the next start finishes it: all is there, and item, manifest and corrections say the same."""
    assert set(contents(outbox)) >= set(before)  # a file that is being written is there beside what it copies
    desk = desk_of(outbox, SYSTEMS[system]())
    assert contents(outbox) == before
    assert not list(outbox.rglob("*.part"))
    is_held = key in desk.queue.items
    assert len(list((outbox / "REVIEW").rglob("odd[12].dcm"))) == (2 if is_held else 0)
    images = sorted(p.relative_to(outbox).as_posix() for p in (outbox / ".dicomsort/corrections").rglob("*.png"))
    assert len(images) == (0 if is_held else 2)
    table = images_by_run(f"{outbox}/.dicomsort/corrections")
    assert sorted(f".dicomsort/corrections/{image}" for each in table.values() for image in each) == images
    assert run("verify", outbox).code == 0
    return desk


def deaths(make: Callable[[], Path], act: Callable[[ReviewService], object], system: str) -> Iterator[Path]:
    """A new outbox for each change at which ``act`` can die, whole writes and torn ones, and one where it does not."""
    places, torn, called = iter(range(10**6)), 0, list[str]()
    while (at := next(places, -1)) >= 0:
        outbox = make()
        files = CrashingFiles(at, SYSTEMS[system], torn=torn)
        with contextlib.suppress(Crash, DicomsortError):  # an error at closing may come in the way of a death
            act(desk_of(outbox, files))
        yield outbox
        if not files.dead and not called:  # the first that lived tells which calls are writes
            called, torn = files.called, 7
            places = iter([place for place, name in enumerate(called) if name == "write"])


def newest_decision(outbox: Path) -> str:
    return next(row["run_id"] for row in reversed(rows(outbox)) if row["reason"] == "reviewed")


class World:
    """Makes the same outbox again and again; what was in it then, and what is decided about."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.template = folder, held_outbox(folder / "template")
        outbox = self.make()
        self.before = contents(outbox)
        self.key = item_of(desk_of(outbox), "odd1.dcm")
        self.decided = ""

    def make(self) -> Path:
        outbox = self.folder / "outbox"
        shutil.rmtree(outbox, ignore_errors=True)
        shutil.copytree(self.template, outbox)
        (self.folder / "inbox").mkdir(exist_ok=True)
        return outbox

    def make_decided(self) -> Path:
        outbox = self.make()
        self.decided = decide(desk_of(outbox), self.key, "CT", "anna").run
        return outbox


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_decision_that_dies_anywhere(folder: Path, system: str, record_property: pytest.RecordProperty) -> None:
    world, tried = World(folder / "world"), 0
    key = world.key
    for outbox in deaths(world.make, lambda desk: decide(desk, key, "CT", "anna"), system):
        desk = check(outbox, world.before, key, system)
        if key not in desk.queue.items:
            desk.undo(newest_decision(outbox))
            check(outbox, world.before, key, system)
        else:
            assert decide(desk, key, "MRI", "bert").moved == 2
        tried += 1
    record_property("crash points", (f"decision, {system}", "once", tried))
    assert tried > 60


@pytest.mark.parametrize("system", ["links", "no links"])
def test_an_undo_that_dies_anywhere(folder: Path, system: str, record_property: pytest.RecordProperty) -> None:
    world, tried = World(folder / "world"), 0
    for outbox in deaths(world.make_decided, lambda desk: desk.undo(world.decided), system):
        assert set(contents(outbox)) >= set(world.before)
        for cut_short in load_runs(str(outbox)).unfinished():
            resume(quiet(outbox, SYSTEMS[system]()), cut_short)
        check(outbox, world.before, world.key, system)
        tried += 1
    record_property("crash points", (f"undo of a decision, {system}", "once", tried))
    assert tried > 40


def test_a_sort_that_comes_upon_half_a_decision_loses_nothing(folder: Path) -> None:
    world = World(folder / "world")
    for number, outbox in enumerate(deaths(world.make, lambda desk: decide(desk, world.key, "CT", "anna"), "links")):
        if number % 5 == 0:
            inbox = outbox.with_name("inbox")
            assert run("sort", "--evidence", "header", "--engine", "serial", inbox, outbox).code in {0, 3}
            check(outbox, world.before, world.key, "links")
