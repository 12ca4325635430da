"""The crash matrix: a small world, a run that dies at a given change on disk, and what must hold ever after."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from building import attributes_of, make_files, read_tree
from command import quiet
from crashing import (
    Clones,
    Crash,
    CrashingFiles,
    FixedModes,
    NoLinks,
    NoOwners,
    NoSyncfs,
    OtherDevice,
    Protected,
    Shared,
    Subvolumes,
    Unsupported,
)

from dicomsort.errors import DicomsortError
from dicomsort.execute import Placer, Roots
from dicomsort.files import Files
from dicomsort.journal import JOURNAL, Replay
from dicomsort.records import Action, Kind, Operation, Result, Row, Status, Verb
from dicomsort.report import write_summary
from dicomsort.sorting import locked, resume, undo
from dicomsort.sorting.resume import carry_out
from dicomsort.sorting.runs import new_run, seal_plan

FILES = {"a/1": b"one" * 50, "a/2": b"two" * 60, "b/c/3": b"three" * 70, "copy of 1": b"one" * 50, "b/empty": b""}
TARGETS = {"a/1": "CT/s/1", "a/2": "CT/s/2", "b/c/3": "MRI/s/3", "b/empty": "UNREADABLE/b/empty"}
OWNER = (12_345, 54_321)  # of one of the files, where root may give it away
FOLDERS = {"a": 0o750, "b": 0o710, "b/c": 0o700}
FOREIGN = {"CT/foreign": b"not ours", "MRI/s/other": b"not ours either"}
SYSTEMS: dict[str, Callable[[], Files]] = {
    "links": Files,
    "no syncfs": NoSyncfs,
    "two file systems": OtherDevice,
    "links refused, EPERM": Protected,
    "no links, EPERM": NoLinks,
    "no links, ENOTSUP": Unsupported,
}
KEEPING_LESS: dict[str, Callable[[], Files]] = {
    "two file systems, one without owners": NoOwners,
    "two file systems, one without modes": FixedModes,
}
CLONING: dict[str, Callable[[], Files]] = {"clones": Clones, "two subvolumes": Subvolumes, "clones, no links": Shared}
LINKLESS = frozenset(SYSTEMS) - {"links", "no syncfs"}  # there --link fails, with the reason, and places nothing
NO_RUN_YET = ("its plan was sealed", "expected one of the runs", "expected an outbox")


class Death(NamedTuple):
    """Before which change the process dies, or after how many bytes of a write."""

    at: int
    torn: int = 0


class Tears(NamedTuple):
    """Which bytes to tear writes at: every so-manieth of the journal's and of the others', counted from ``first``."""

    journal: int
    others: int
    first: int = 0


NEVER = Death(-1)
Chain = list[tuple[str, Death]]  # what is entered, and where that dies


class Mode(NamedTuple):
    verb: Verb
    system: str

    @property
    def places(self) -> bool:
        return self.verb is not Verb.LINK or self.system not in LINKLESS


MODES = [
    *(Mode(verb, system) for verb in (Verb.MOVE, Verb.COPY, Verb.LINK) for system in SYSTEMS),
    *(Mode(Verb.MOVE, system) for system in ("two subvolumes", "clones, no links")),  # the others link
    *(Mode(Verb.COPY, system) for system in ("clones", "clones, no links")),
    *(Mode(Verb.MOVE, system) for system in KEEPING_LESS),
]


def world(root: Path) -> tuple[Path, Path]:
    inbox, outbox = root / "inbox", root / "outbox"
    make_files(inbox, FILES)
    make_files(outbox, FOREIGN)
    for number, path in enumerate(sorted(FILES)):
        if path == "a/1" and os.geteuid() == 0:
            os.chown(inbox / path, *OWNER)
        (inbox / path).chmod(0o2750 if path == "a/1" else 0o640)
        if path == "a/2":
            with contextlib.suppress(OSError):  # a file system without them
                os.setxattr(inbox / path, "user.note", b"value")
        os.utime(inbox / path, ns=(10**18 + number, 10**18 + number))
    for path, mode in FOLDERS.items():
        (inbox / path).chmod(mode)
    return inbox, outbox


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path, content in read_tree(root).items():
        status = (root / path).stat()
        owner = status.st_uid, status.st_gid
        found[path] = (content, status.st_mode, status.st_mtime_ns, owner, attributes_of(root / path))
    return found | {folder: ((root / folder).stat().st_mode,) for folder in FOLDERS if (root / folder).is_dir()}


def operations(inbox: Path, verb: Verb) -> list[Operation]:
    steps = []
    for path, target in TARGETS.items():
        steps.append(step(inbox, verb, path, target=f"outbox/{target}"))
    if verb is Verb.MOVE:
        steps.append(step(inbox, Verb.REMOVE, "copy of 1", kept="outbox/CT/s/1"))
        for folder in ("b/c", "b", "a"):
            status = (inbox / folder).stat()
            prune = Operation(0, Verb.REMOVE_FOLDER, f"inbox/{folder}", mode=status.st_mode & 0o7777)
            steps.append(dataclasses.replace(prune, mtime_ns=status.st_mtime_ns))
    return [dataclasses.replace(operation, number=number) for number, operation in enumerate(steps)]


def step(inbox: Path, verb: Verb, path: str, *, target: str = "", kept: str = "") -> Operation:
    status = (inbox / path).stat()
    digest = hashlib.sha256((inbox / path).read_bytes()).hexdigest()
    row = Row(path, target.removeprefix("outbox/"), Action.MOVED, Status.SORTED, "CT", kind=Kind.DICOM, sha256=digest)
    return Operation(
        0, verb, f"inbox/{path}", target, kept, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino,
        status.st_mode & 0o7777, digest, row=row,
    )  # fmt: skip


def placer_again(inbox: Path, outbox: Path, files: Files) -> Placer:
    """What goes on with the first operation of the run ``run``, which had begun before that died."""
    known = Replay.empty(1)
    known.begun.add(0)
    return Placer(files, Roots(str(inbox), str(outbox)), "run", known)


def checked_again(inbox: Path, outbox: Path, operation: Operation, files: Files) -> Result | None:
    """What is said of an operation that an attempt of the run ``run`` had begun before it died."""
    return placer_again(inbox, outbox, files).check(operation)


def head_of(inbox: Path, outbox: Path, verb: Verb) -> dict[str, object]:
    return {
        "verb": "sort", "inbox": str(inbox), "outbox": str(outbox), "started": "now", "mode": verb, "model": "ab" * 32,
    }  # fmt: skip


def start(files: Files, inbox: Path, outbox: Path, verb: Verb) -> None:
    context = quiet(outbox, files)
    with locked(context, create=True):
        run = new_run(context)
        plan = seal_plan(context, run, head_of(inbox, outbox, verb), operations(inbox, verb))
        summary = carry_out(context, run, plan)
        write_summary(files, str(outbox), summary)


def check_nothing_lost(inbox: Path, outbox: Path) -> None:
    inside, outside = read_tree(inbox), read_tree(outbox)
    for path, content in FILES.items():
        there = [inside.get(path), outside.get(TARGETS.get(path, "CT/s/1"))]
        assert content in there, f"{path} is lost"
    for path, content in FOREIGN.items():
        assert outside[path] == content, f"{path} was touched"


def check_done(inbox: Path, outbox: Path, mode: Mode) -> None:
    outside = {path: content for path, content in read_tree(outbox).items() if not path.startswith(".dicomsort/")}
    manifest = outside.pop("manifest.csv").decode().splitlines()
    assert outside == FOREIGN | {target: FILES[path] for path, target in TARGETS.items() if mode.places}
    assert len(manifest) == 1 + len(TARGETS) + (mode.verb is Verb.MOVE)
    assert read_tree(inbox) == ({} if mode.verb is Verb.MOVE else FILES)
    assert [path.name for path in inbox.iterdir()] == [] or mode.verb is not Verb.MOVE


def check_undone(inbox: Path, outbox: Path, before: dict[str, tuple[object, ...]]) -> None:
    assert facts(inbox) == before
    left = {path: content for path, content in read_tree(outbox).items() if not path.startswith(".dicomsort/")}
    left.pop("manifest.csv", None)
    assert left == FOREIGN


def enter(door: str, files: Files, inbox: Path, outbox: Path, verb: Verb) -> bool:
    """Go in by ``sort``, ``resume`` or ``undo``; False where there was no run for it yet, or none any more."""
    try:
        if door == "sort":
            start(files, inbox, outbox, verb)
        else:
            {"resume": resume, "undo": undo}[door](quiet(outbox, files))
    except DicomsortError as error:
        if not any(reason in str(error) for reason in NO_RUN_YET):
            raise
        return False
    return True


def play(root: Path, mode: Mode, chain: Chain) -> list[CrashingFiles]:
    """Die as told, then finish, then undo; AssertionError where anything was lost, touched or left over."""
    inbox, outbox = world(root)
    before = facts(inbox)
    disk = (SYSTEMS | CLONING | KEEPING_LESS)[mode.system]
    entered = []
    for door, death in chain:
        files = CrashingFiles(death.at, disk, torn=death.torn)
        with contextlib.suppress(Crash):
            enter(door, files, inbox, outbox, mode.verb)
        check_nothing_lost(inbox, outbox)
        entered.append(files)
    whole = disk()
    finished = enter("resume", whole, inbox, outbox, mode.verb)
    if finished and "undo" not in dict(chain):
        check_done(inbox, outbox, mode)
    enter("undo", whole, inbox, outbox, mode.verb)
    check_undone(inbox, outbox, before)
    shutil.rmtree(root)
    return entered


def deaths(whole: CrashingFiles, tears: Tears) -> Iterator[Death]:
    """Before each change, and within each write at the bytes that ``tears`` names."""
    seen = 0
    for at, (name, size) in enumerate(whole.writes):
        yield Death(at)
        stride = tears.journal if name == JOURNAL else tears.others
        yield from (Death(at, torn) for torn in range(1, size) if (tears.first + seen + torn) % stride == 0)
        seen += max(0, size - 1)


def once(root: Path, mode: Mode, tears: Tears) -> Iterator[Chain]:
    """Chains in which ``sort`` dies once, or its ``undo`` does, or what was cut short is undone at once."""
    sorted_, undone = play(root, mode, [("sort", NEVER), ("undo", NEVER)])
    for death in deaths(sorted_, tears):
        yield [("sort", death)]
    for death in deaths(undone, tears):
        yield [("sort", NEVER), ("undo", death)]
    for at in range(len(sorted_.called)):
        yield [("sort", Death(at)), ("undo", NEVER)]


def twice(root: Path, mode: Mode, chosen: random.Random) -> Iterator[Chain]:
    """For each change of a run, chains in which a second run dies too, at a change taken by chance."""
    sorted_, undone = play(root, mode, [("sort", NEVER), ("undo", NEVER)])
    again = len(sorted_.called) + 8
    for at in range(len(sorted_.called)):
        yield [("sort", Death(at)), (chosen.choice(["resume", "undo"]), Death(chosen.randrange(again)))]
    for at in range(len(undone.called)):
        yield [("sort", NEVER), ("undo", Death(at)), ("resume", Death(chosen.randrange(again)))]


def try_all(root: Path, mode: Mode, chains: Iterator[Chain]) -> int:
    """Play them all; how many there were."""
    tried = 0
    for tried, chain in enumerate(chains, 1):
        play(root / str(tried), mode, chain)
    return tried
