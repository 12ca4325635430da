"""Archives at every instant: a sort that opens them dies before each change on disk, and so does its undo."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree, uid
from command import load, placed, quiet, run
from crashing import Crash, CrashingFiles, NoLinks, OtherDevice
from packing import tarred, zipped

from dicomsort.engines.engine import SerialEngine
from dicomsort.errors import DicomsortError
from dicomsort.files import Files
from dicomsort.report import Summary
from dicomsort.sorting import check, resume, sort_inbox, undo

MEMORY = Path("/dev/shm")  # noqa: S108 - flushing costs nothing there
SYSTEMS: dict[str, Callable[[], Files]] = {"links": Files, "two file systems": OtherDevice, "no links": NoLinks}
FOREIGN = {"CT/foreign": b"not ours"}
CUT_SHORT = ("its plan was sealed", "expected one of the runs", "expected an outbox")


def made(folder: Path) -> dict[str, bytes]:
    """An inbox: a file and two archives, whose files are one study."""
    made = [make_dicom(folder / str(n), study=7, instance=n).read_bytes() for n in range(4)]
    return {
        "a/0.dcm": made[0],
        "a/in.zip": zipped({"1": made[1], "note": b"a text"}),
        "b.tar.gz": tarred({"x/2": made[2], "x/3": made[3], "x/again": made[1]}, "w:gz"),
    }


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def world(root: Path, files: dict[str, bytes]) -> tuple[Path, Path]:
    make_files(root / "inbox", files)  # type: ignore[arg-type]
    make_files(root / "outbox", FOREIGN)  # type: ignore[arg-type]
    for number, path in enumerate(sorted((root / "inbox").rglob("*"), reverse=True)):
        os.utime(path, (1_500_000_000 + number, 1_500_000_000 + number))
    return root / "inbox", root / "outbox"


def start(inbox: Path, outbox: Path, mode: str, files: Files) -> Summary:
    settings = load({"archives": "open", "mode": mode, "evidence": "header", "prune_empty": True}, {}, None)
    request = check(str(inbox), str(outbox), settings)
    with SerialEngine() as engine:
        return sort_inbox(request, quiet(outbox, files), engine, lambda _: None)


def check_nothing_lost(inbox: Path, outbox: Path, files: dict[str, bytes]) -> None:
    everything = {*read_tree(inbox).values(), *read_tree(outbox).values()}
    assert everything.issuperset(files.values())
    assert read_tree(outbox).items() >= FOREIGN.items()


def check_done(inbox: Path, outbox: Path, files: dict[str, bytes], mode: str) -> None:
    archives = {f"ARCHIVES/{name}" for name in files if not name.endswith(".dcm")} if mode == "move" else set()
    series = f"CT/{uid(7)}/{uid(7, 1)}"
    assert {*placed(outbox)} == {*FOREIGN, *archives, *(f"{series}/{uid(7, 1, n)}.dcm" for n in range(4))}
    assert read_tree(inbox) == ({} if mode == "move" else files)
    assert not [*outbox.glob(".dicomsort/runs/*/staging")]
    assert run("verify", outbox).code == 0


def undo_all(outbox: Path, files: Files) -> None:
    """Take every run back that stands."""
    while not any("left to undo" in note for note in undo(quiet(outbox, files)).notes):
        pass


def play(root: Path, files: dict[str, bytes], mode: str, disk: Callable[[], Files], at: tuple[int, int]) -> list[int]:
    """Die before those changes of a sort and of its undo; the number of changes that either made."""
    inbox, outbox = world(root, files)
    before = {path: (root / "inbox" / path).stat().st_mtime_ns for path in files}
    dying = CrashingFiles(at[0], disk)
    with contextlib.suppress(Crash):
        start(inbox, outbox, mode, dying)
    check_nothing_lost(inbox, outbox, files)
    start(inbox, outbox, mode, disk())
    check_done(inbox, outbox, files, mode)
    undoing = CrashingFiles(at[1], disk)
    with contextlib.suppress(Crash):
        undo_all(outbox, undoing)
    check_nothing_lost(inbox, outbox, files)
    with contextlib.suppress(DicomsortError):
        resume(quiet(outbox, disk()))
    undo_all(outbox, disk())
    assert read_tree(inbox) == files
    assert {path: (inbox / path).stat().st_mtime_ns for path in files} == before
    assert [*placed(outbox)] == [*FOREIGN]
    assert not [*outbox.glob(".dicomsort/runs/*/staging")]
    shutil.rmtree(root)
    return [len(dying.called), len(undoing.called)]


MODES = [(mode, system) for mode in ("copy", "move") for system in SYSTEMS]
STRIDE = 4  # `make torture` tries every change


def try_all(root: Path, mode: str, system: str, first: int = 0, stride: int = 1) -> int:
    """Die before each change, or each so-manieth from the first on; how many there were."""
    disk, files = SYSTEMS[system], made(root / "made")
    sorted_, undone = play(root / "whole", files, mode, disk, (-1, -1))
    assert min(sorted_, undone) > 30
    chosen = range(first, sorted_, stride)
    for at in chosen:
        play(root / str(at), files, mode, disk, (at, at * undone // sorted_))
    return len(chosen)


@pytest.mark.parametrize("number", range(len(MODES)), ids=[" ".join(mode) for mode in MODES])
def test_a_death_at_any_change_loses_nothing(root: Path, number: int, record_property: pytest.RecordProperty) -> None:
    tried = try_all(root, *MODES[number], first=number % STRIDE, stride=STRIDE)
    record_property("crash points", (" ".join(MODES[number]), "archives", tried))
