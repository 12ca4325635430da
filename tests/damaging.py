"""Outboxes with one damaged state file, over which every command is run: what must hold whatever was damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from building import make_dicom
from command import Ran, quiet, run, sort
from crashing import Crash, CrashingFiles
from reviewing import desk_of

from dicomsort.errors import DicomsortError
from dicomsort.sorting import undo
from dicomsort.sorting.runs import all_runs

PATIENCE = 120  # seconds until a command counts as one that hangs
STATE_FILES = ("plan.jsonl", "journal.jsonl", "manifest.csv", "summary.json")
DEEP = b"[" * 100_000 + b"]" * 100_000
VALUES = (
    b"null", b"[]", b"{}", b'""', b"-1", b"1e308", b"18446744073709551616", b"9" * 5000, b"true", b'"\\u0000"', DEEP,
    b'"inbox/../../../etc/passwd"', b'[["end",0,"done","",0]]', b'{"format":1}', b'{"format":2,"verb":"sort"}',
    b'{"sealed":-1,"sha256":""}', b'{"sealed":1000000000000000000,"sha256":"00"}', b'["begin",[99999999],[]]',
    b'["end",-1,"done","",0]', b'["end",0,"done","",-1]', b'["mark","manifest",-5]', b'["mark","manifest",1e300]',
    b'["begin",[0],["outbox/../../x"]]', b"\xff\xfe\x00", b"run_id,source", b'"' + b"x" * 200_000 + b'"',
)  # fmt: skip


class Damage(NamedTuple):
    """What is done to a state file, told by ``name``; ``parts`` are what it consists of, its name where it is one."""

    name: str
    act: Callable[[Path], None]
    parts: tuple[str, ...] = ()


class Hung(BaseException):
    """A command did not end."""


class World:
    """An inbox and an outbox with a finished run, one that was undone, its undo, and one that was cut short.

    ``restore`` puts everything back as it was: images by hard links, so that undo knows them, state by copies.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.inbox, self.outbox = root, root / "inbox", root / "outbox"
        self.runs: dict[str, str] = {}
        for number, name in enumerate(("finished", "undone", "unfinished"), 1):
            make_dicom(self.inbox / name / "1.dcm", study=number, instance=1)
            make_dicom(self.inbox / name / "2.dcm", study=number, instance=2)
        self._sort("finished")
        self._sort("undone")
        undo(quiet(self.outbox))
        self.runs["undo"] = max(all_runs(str(self.outbox)))
        self._cut_short()
        (root / "foreign").write_bytes(b"somebody else's\x00" * 1000)
        self._contents = _contents(self.inbox)
        self._kept = root / "kept"
        _copy(self.inbox, self._kept / "inbox")
        _copy(self.outbox, self._kept / "outbox")

    def _sort(self, name: str) -> None:
        assert sort(self.inbox / name, self.outbox).code == 0
        self.runs[name] = max(all_runs(str(self.outbox)))

    def _cut_short(self) -> None:
        from matrix import start

        from dicomsort.records import Verb

        for at in range(200):
            shutil.rmtree(self.root / "trial", ignore_errors=True)
            shutil.copytree(self.outbox, self.root / "trial" / "outbox")
            with contextlib.suppress(Crash):
                start(CrashingFiles(at), self._matrix_inbox(), self.root / "trial" / "outbox", Verb.COPY)
            newest = max(all_runs(str(self.root / "trial" / "outbox")))
            folder = self.root / "trial" / "outbox" / ".dicomsort" / "runs" / newest
            if (folder / "journal.jsonl").exists() and (folder / "journal.jsonl").read_bytes().count(b"\n") > 1:
                break
        shutil.rmtree(self.root / "trial")
        with contextlib.suppress(Crash):
            start(CrashingFiles(at), self._matrix_inbox(), self.outbox, Verb.COPY)
        self.runs["unfinished"] = max(all_runs(str(self.outbox)))

    def _matrix_inbox(self) -> Path:
        from building import make_files
        from matrix import FILES

        if not (self.root / "other inbox").exists():
            make_files(self.root / "other inbox", FILES)
        return self.root / "other inbox"

    def restore(self) -> None:
        """Put inbox and outbox back; what a damage moved away goes."""
        shutil.rmtree(self.root / "moved away", ignore_errors=True)
        for name in ("inbox", "outbox"):
            shutil.rmtree(self.root / name)
            _copy(self._kept / name, self.root / name)

    def check_nothing_lost(self) -> None:
        """Every image is still there, and what belongs to somebody else is as it was."""
        assert self._contents <= _contents(self.inbox) | _contents(self.outbox)
        assert (self.root / "foreign").read_bytes() == b"somebody else's\x00" * 1000


def _contents(root: Path) -> set[bytes]:
    """The hashes of the regular files below a folder."""
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return {hashlib.sha256(path.read_bytes()).digest() for path in paths if stat.S_ISREG(path.lstat().st_mode)}


def _copy(source: Path, target: Path) -> None:
    """Copy a tree: images by links, state files and the manifest by bytes."""
    for folder, _, names in os.walk(source):
        relative = Path(folder).relative_to(source)
        (target / relative).mkdir(parents=True)
        for name in names:
            is_state = ".dicomsort" in relative.parts or name == "manifest.csv"
            (shutil.copy2 if is_state else os.link)(Path(folder, name), target / relative / name)


def state_files(world: World) -> Iterator[Path]:
    """Every file and folder of the state, the manifest too; relative to the outbox."""
    yield Path("manifest.csv")
    yield Path(".dicomsort/lock")
    yield Path(".dicomsort/runs")
    yield Path(".dicomsort")
    for run_id in world.runs.values():
        yield Path(".dicomsort/runs", run_id)
        for name in STATE_FILES:
            if (world.outbox / ".dicomsort/runs" / run_id / name).exists():
                yield Path(".dicomsort/runs", run_id, name)


def damages(world: World) -> Iterator[Damage]:
    """Every damage: another kind of file, a cut, other bytes, another value at a place."""
    yield Damage("empty", lambda path: _write(path, b""))
    yield Damage("garbage", lambda path: _write(path, bytes(range(256)) * 50))
    yield Damage("zeroes", lambda path: _write(path, bytes(5000)))
    yield Damage("gone", _remove)
    yield Damage("link", lambda path: _replace(path, lambda: path.symlink_to(world.root / "foreign")))
    yield Damage(
        "link to a folder", lambda path: _replace(path, lambda: path.symlink_to(world.root / "kept/outbox/CT"))
    )
    yield Damage("dangling link", lambda path: _replace(path, lambda: path.symlink_to("nowhere")))
    yield Damage("directory", lambda path: _replace(path, path.mkdir))
    yield Damage("FIFO", lambda path: _replace(path, lambda: os.mkfifo(path)))
    for share in (0.1, 0.5, 0.9):
        yield Damage(f"cut at {share}", lambda path, share=share: _cut(path, share))
    for value in VALUES:
        said = repr(value[:30])
        for place in ("first", "middle", "last"):
            as_line = f"as the {place} line"
            yield Damage(f"{said} {as_line}", lambda p, v=value, at=place: _line(p, v, at), (said, as_line))
        yield Damage(f"{said} as each value", lambda p, v=value: _values(p, v), (said, "as each value"))


def every_case(world: World) -> list[tuple[Path, Damage]]:
    """Each damage of each state file."""
    return [(path, damage) for path in state_files(world) for damage in damages(world)]


def sample(world: World, seed: int) -> list[tuple[Path, Damage]]:
    """Some of all cases, by the seed alone, in which each file, each kind of damage and each value occurs."""
    cases = every_case(world)
    random.Random(seed).shuffle(cases)
    parts = [{str(path), *(damage.parts or (damage.name,))} for path, damage in cases]
    left, chosen = set().union(*parts), []
    for news in (3, 2, 1):  # those first that bring much that is new
        for case, having in zip(cases, parts, strict=True):
            if len(having & left) >= news:
                chosen.append(case)
                left -= having
    assert not left
    return chosen


def _write(path: Path, content: bytes) -> None:
    if path.is_file():
        path.write_bytes(content)


def _remove(path: Path) -> None:
    if path.is_dir():
        away = path.parents[1 if path.name == ".dicomsort" else 2] / "moved away"
        shutil.move(path, away)
    else:
        path.unlink()


def _replace(path: Path, make: Callable[[], object]) -> None:
    _remove(path)
    make()


def _cut(path: Path, share: float) -> None:
    if path.is_file():
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _line(path: Path, value: bytes, place: str) -> None:
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True) or [b"\n"]
    at = {"first": 0, "middle": len(lines) // 2, "last": len(lines) - 1}[place]
    lines[at] = value + b"\n"
    path.write_bytes(b"".join(lines))


def _values(path: Path, value: bytes) -> None:
    """Put a value in the place of each of an object's values, or of a list's or row's cells, in the first line."""
    if not path.is_file():
        return
    first, _, rest = path.read_bytes().partition(b"\n")
    try:
        head: Any = json.loads(path.read_bytes() if path.suffix == ".json" else first)
    except ValueError:
        path.write_bytes(b",".join([value] * (first.count(b",") + 1)) + b"\n" + rest)
        return
    items = (
        [json.dumps(name).encode() + b":" + value for name in head] if isinstance(head, dict) else [value] * len(head)
    )
    text = b"{%s}" % b",".join(items) if isinstance(head, dict) else b"[%s]" % b",".join(items)
    path.write_bytes(text + b"\n" + (b"" if path.suffix == ".json" else rest))


def commands(world: World) -> Iterator[tuple[str, Callable[[], Ran]]]:
    """Every command that reads an outbox, by name."""
    out = world.outbox
    yield "runs", lambda: run("runs", out)
    yield "verify", lambda: run("verify", out)
    yield "report", lambda: run("report", out)
    yield "doctor", lambda: run("doctor", world.inbox, out)
    yield "review", lambda: _reviewed(out)
    yield "send", lambda: run("send", out, "--retries", 0, "--run", world.runs["finished"], "--to", "A@127.0.0.1:9")
    yield "prune", lambda: run("runs", out, "--prune", 1000)
    yield "dry run", lambda: sort("--dry-run", world.inbox, out)
    yield "sort", lambda: sort(world.inbox, out)
    yield "resume", lambda: run("resume", out)
    yield "undo", lambda: run("undo", out)
    yield "repair", lambda: run("verify", "--repair", out)
    yield "undo of the finished run", lambda: run("undo", out, world.runs["finished"])
    yield "sort again", lambda: sort(world.inbox, out)


def _reviewed(outbox: Path) -> Ran:
    try:
        desk_of(outbox)
    except DicomsortError as error:
        return Ran(error.exit_code, "", str(error))
    return Ran(0, "", "")


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raise ``Hung`` where what is done takes far longer than it can."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def play(world: World, path: Path, damage: Damage) -> dict[str, Ran]:
    """Damage a file, run every command one after another, and check after each that nothing is lost."""
    world.restore()
    damage.act(world.outbox / path)
    ended = {}
    for name, command in commands(world):
        with patience():
            ended[name] = ran = command()
        assert ran.code in {0, 1, 2, 3}, (name, ran)
        assert "Traceback" not in ran.err, (name, ran)
        assert not ran.code or ran.err or ran.out, (name, ran)
        world.check_nothing_lost()
    return ended


def check(world: World, path: Path, damage: Damage) -> None:
    """Play one damage; other runs than the damaged one work, sorting too."""
    try:
        ended = play(world, path, damage)
    except BaseException as error:
        error.add_note(f"{path}: {damage.name}")
        raise
    run = path.parts[2] if len(path.parts) > 2 else ""
    if run and run != world.runs["finished"]:
        codes = {name: ended[name].code for name in ("sort", "undo of the finished run", "sort again")}
        assert set(codes.values()) <= {0, 3}, (path, damage.name, codes)
