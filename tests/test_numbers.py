"""Every number that a command takes has bounds, and workers never outnumber the tasks or what memory allows."""

from __future__ import annotations

import dataclasses
import errno
import re
import resource
import subprocess
import sys
import threading
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import engine_tasks as tasks
import pytest
import typer.main
from building import make_dicom, make_files, read_tree
from command import load, run

from dicomsort import memory
from dicomsort.cli import app
from dicomsort.config import TABLES, TRAINING, load_watch
from dicomsort.engines import open_engine, processes
from dicomsort.engines.engine import TaskLimits
from dicomsort.engines.processes import ProcessEngine
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.training.settings import Settings, checked

MIB = 1 << 20
LIMITS = TaskLimits(seconds=60, memory_bytes=256 * MIB)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WRONG = ("nan", "inf", "-inf", "-1", "1e308", str(10**400), "1" * 5000, "many", "", "0x10", "1,5")
NUMBERS = [
    (name, parameter.opts[0])
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.metavar in {"N", "SECONDS", "PORT", "BYTES", "MIB", "KEEP_DAYS", "INTEGER", "FLOAT"}
]


def test_no_command_takes_a_number_without_bounds() -> None:
    unbounded = []
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in typing.get_type_hints(command.callback, include_extras=True).items():
            kind = (*typing.get_args(hint), None)[0]
            if {int, float} & {kind, *typing.get_args(kind)} and hint.__metadata__[0].parser is None:
                unbounded.append((command.name, name))
    assert unbounded == []
    options = [option for table in TABLES.values() for option in table.values()] + [*TRAINING.values()]
    numbers = [option for option in options if option.kind in {int, float}]
    assert len(numbers) > 15
    assert all(option.minimum is not None and option.maximum is not None for option in numbers)
    assert {name for name, _ in NUMBERS} >= {"sort", "watch", "send", "receive", "review", "report", "runs", "train"}


@pytest.mark.parametrize(("command", "flag"), NUMBERS)
def test_what_is_no_number_in_the_range_is_wrong_usage_and_help_tells_the_range(command: str, flag: str) -> None:
    (helped,) = re.findall(
        rf"^ +{flag} [A-Z].*?Range:\s+(\S+)\s+to\s+(\S+)", run(command, "--help").out, re.MULTILINE | re.DOTALL
    )
    low, high = helped
    least, most = float(low), float(high.rstrip("."))
    assert least <= most
    for wrong in (*WRONG, str(most * 2), str(int(most) + 1)):
        ran = run(command, f"{flag}={wrong}", "a", "b")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"dicomsort: {flag}: expected a"), ran.err
        assert f"from {low} to {high.rstrip('.')}, received " in ran.err
        assert len(ran.err.splitlines()) == 1
        assert len(ran.err) < 200


def test_both_ends_of_a_range_are_in_it() -> None:
    for name, option in TABLES["sort"].items():
        if option.minimum is not None:
            assert getattr(load({}, {f"DICOMSORT_{name.upper()}": str(option.minimum)}, None), name) == option.minimum
            assert getattr(load({}, {f"DICOMSORT_{name.upper()}": str(option.maximum)}, None), name) == option.maximum
    assert load_watch({}, {"DICOMSORT_EVERY": "315360000"}, None).every == 315_360_000


def test_a_training_is_held_to_the_bounds_of_its_options_whoever_asks(tmp_path: Path) -> None:
    asked = Settings(tmp_path, tmp_path / "out", arch="cnn")
    for name in ("epochs", "batch_size", "learning_rate", "validation_split", "seed", "patience"):
        option = TRAINING[name]
        assert option.minimum is not None
        assert option.maximum is not None
        assert getattr(Settings(tmp_path, tmp_path), name) in {option.default, None}
        for wrong in (option.minimum - 1, option.maximum * 2, float("nan"), 10**400):
            settings = dataclasses.replace(asked, **{name: wrong})
            with pytest.raises(UsageError, match="expected a"):
                checked(settings)


def test_the_longest_settle_and_the_oldest_runs_are_no_overflow(tmp_path: Path) -> None:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    ran = run("sort", "--engine", "serial", "--settle", 315_360_000, tmp_path / "inbox", tmp_path / "outbox")
    assert (ran.code, "1 file was left: its series changed within" in ran.out) == (0, True)
    assert run("runs", "--prune", 36_500, "--keep", 1_000_000, tmp_path / "outbox").code == 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The workers that were started."""
    workers: list[object] = []

    class Counted(processes._Worker):
        def __init__(self, server: Any) -> None:
            super().__init__(server)
            workers.append(self)

    monkeypatch.setattr(processes, "_Worker", Counted)
    monkeypatch.setattr(memory, "available", lambda: 1 << 50)
    return workers


def test_no_more_workers_start_than_tasks_wait(started: list[object], tmp_path: Path) -> None:
    with ProcessEngine(1000, LIMITS) as engine:
        assert (engine.workers, started) == (1000, [])
        for number in range(20):
            assert engine.submit(tasks.double, number).result() == 2 * number
        assert len(started) == 1
        waiting = [engine.submit(tasks.wait_for, str(tmp_path / "go")) for _ in range(3)]
        while len(started) < 3:
            assert not any(future.done() for future in waiting)
        (tmp_path / "go").touch()
        assert [future.result() for future in waiting] == [None, None, None]
    assert len(started) == 3


def test_a_worker_starts_before_there_is_a_task_and_gets_the_first(started: list[Any]) -> None:
    with ProcessEngine(4, LIMITS) as engine:
        engine.warm_up()
        engine.warm_up()
        assert engine.submit(tasks.whoami, None).result()[0] == started[0].pid
        assert len(started) == 1
    with ProcessEngine(4, LIMITS) as engine:
        engine.warm_up()
    assert not any(Path(f"/proc/{worker.pid}").exists() for worker in started)
    engine.warm_up()  # it is closed: nothing starts
    assert len(started) <= 2


def test_no_more_workers_start_than_memory_allows(started: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    tell = lambda message, extra: told.append((message, extra["facts"]["workers"]))
    monkeypatch.setattr(processes._log, "warning", tell)
    room = memory.WORKER + LIMITS.memory_bytes
    for free, workers in ((0, 1), (room, 1), (2 * room + 1, 2), (1 << 50, 8)):
        monkeypatch.setattr(memory, "available", partial(int, free))
        before = list(told)
        with open_engine("processes", 8, None, limits=LIMITS) as engine:
            assert told == before  # no log may be open yet
            futures = [engine.submit(tasks.double, number) for number in range(4 * workers)]
            assert [future.result() for future in futures] == [2 * number for number in range(4 * workers)]
            assert engine.workers == workers
        assert len(started) <= workers
        started.clear()
    assert told == [("fewer workers than asked for", workers) for workers in (1, 1, 2)]


def test_an_engine_goes_on_with_the_workers_that_the_system_starts(
    started: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted = processes._Worker

    def start(server: Any) -> object:
        if len(started) >= 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return counted(server)

    monkeypatch.setattr(processes, "_Worker", start)
    with ProcessEngine(4, LIMITS) as engine:
        futures = [engine.submit(tasks.wait_for, str(tmp_path / "go")) for _ in range(4)]
        while engine.workers > 2:
            assert not any(future.done() for future in futures)
        (tmp_path / "go").touch()
        assert [future.result() for future in futures] == [None] * 4
    assert len(started) == 2


@pytest.mark.parametrize("threads", [0, 2])
def test_an_engine_goes_on_with_the_threads_that_the_system_starts(
    monkeypatch: pytest.MonkeyPatch, started: list[object], threads: int, tmp_path: Path
) -> None:
    begun, start = [], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "dicomsort-feeder":
            if len(begun) == threads:
                raise RuntimeError("can't start new thread")
            begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with ProcessEngine(4, LIMITS) as engine:
        if not threads:
            with pytest.raises(DicomsortError, match="expected a thread to start, received: can't start"):
                engine.warm_up()
            for _ in range(40):  # more than may wait: what was refused holds no place
                with pytest.raises(DicomsortError, match="expected a thread to start, received: can't start"):
                    engine.submit(tasks.double, 1)
            return
        (tmp_path / "go").touch()
        futures = [engine.submit(tasks.wait_for, str(tmp_path / "go")) for _ in range(12)]
        assert [future.result() for future in futures] == [None] * 12
        assert engine.workers <= 4


MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 8000 << 10),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 8000 << 10),
        (
            {  # version 2: the tightest of those above, and what is cached can be given up
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "5000\n",
                "sys/fs/cgroup/a/memory.current": "4000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 300\n",
                "sys/fs/cgroup/a/b/memory.max": "9000\n",
                "sys/fs/cgroup/a/b/memory.current": "4000\n",
            },
            1300,
        ),
        (
            {  # version 1, in a container: the path is the host's
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/0123\n0::/y\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "8000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 500\n",
            },
            0,
        ),
        (
            {  # a path may hold what ends a line elsewhere, and lines that are not known tell nothing
                "proc/meminfo": b"\nMemAvailable:\nMemAvailable: many kB\n" + MEMINFO.encode(),
                "proc/self/cgroup": "0::/a\v\f\x1c\x85\u2028b \n0:\n".encode() + b"1:memory:/\xff\n",
                "sys/fs/cgroup/a\v\f\x1c\x85\u2028b /memory.max": "5000\n",
                "sys/fs/cgroup/a\v\f\x1c\x85\u2028b /memory.current": "4000\n",
                "sys/fs/cgroup/a\v\f\x1c\x85\u2028b /memory.stat": "inactive_file\ninactive_file x\ninactive_file 7\n",
                "sys/fs/cgroup/memory/\udcff/memory.limit_in_bytes": "5000\n",
                "sys/fs/cgroup/memory/\udcff/memory.usage_in_bytes": "4500\n",
            },
            500,
        ),
    ],
)
def test_memory_is_what_the_system_and_each_cgroup_leave(
    tmp_path: Path, files: dict[str, str | bytes], expected: int | None
) -> None:
    make_files(tmp_path, files)
    assert memory.available(tmp_path) == expected


def test_memory_is_told_here() -> None:
    free = memory.available()
    assert free is None or free > MIB


def limited(mib: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (mib * MIB, mib * MIB))


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({}, "received a refusal; raise `ulimit -u`"),
        ({resource.RLIMIT_NPROC: 1234}, "received a limit of 1,234 for all of this user; raise `ulimit -u`"),
        ({resource.RLIMIT_AS: 1 << 30}, "received a limit of 1024 MiB; raise `ulimit -v`, or `ulimit -u`"),
    ],
)
def test_a_thread_that_was_refused_is_told_of_with_the_limit(
    monkeypatch: pytest.MonkeyPatch, limits: dict[int, int], told: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(which, resource.RLIM_INFINITY),) * 2)
    assert told in memory.refusal()


@pytest.mark.parametrize("most", [0, 512, 20_000])
def test_a_limit_on_the_size_of_files_is_told_of(tmp_path: Path, most: int) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    make_dicom(inbox / "1.dcm")

    def told(*words: object) -> str:
        command = [sys.executable, "-B", "-m", "dicomsort", *map(str, words)]  # -B: no half .pyc stays behind
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
        assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (1, "", 1), ran.stderr
        return ran.stderr

    words = ("sort", "--engine", "serial", "--evidence", "header", "--settle", 0, inbox, outbox)
    assert f"files may have {most:,} bytes at most: raise `ulimit -f`" in told(*words)
    if most < 20_000:  # which the undo of a file needs not
        assert run("sort", *words[1:]).code == 0
        assert f"[Errno {errno.EFBIG}]" in (message := told("undo", outbox))
        assert f"files may have {most:,} bytes at most: raise `ulimit -f`" in message


@pytest.mark.parametrize("mib", [32, 128, 300, 600, 1200])
@pytest.mark.parametrize("command", ["sort", "sort --engine serial", "predict", "report", "review", "watch", "doctor"])
def test_a_small_address_space_is_one_line_and_nothing_is_changed(tmp_path: Path, mib: int, command: str) -> None:
    if command == "sort --engine serial" and mib > 300:
        pytest.skip("it needs no room for workers")
    name, *more = command.split()
    make_dicom(tmp_path / "inbox" / "1.dcm")
    outbox = tmp_path / "outbox"
    if name in {"report", "review"}:
        assert run("sort", "--engine", "serial", "--settle", 0, "--quiet", tmp_path / "inbox", outbox).code == 0
    before = read_tree(tmp_path)
    places = {"predict": [tmp_path / "inbox" / "1.dcm"], "review": [outbox], "doctor": [tmp_path / "inbox"]}
    places["report"] = [outbox, "--html", tmp_path / "report.html"]
    words = [*more, *places.get(name, [tmp_path / "inbox", outbox])]
    ran = subprocess.run(
        [sys.executable, "-m", "dicomsort", name, *words], capture_output=True, text=True, check=False,
        preexec_fn=limited(mib),
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, ""), ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert "MiB of address space, received a limit of " in ran.stderr
    assert "raise `ulimit -v`" in ran.stderr
    assert read_tree(tmp_path) == before
    assert name == "watch" or (tmp_path / "outbox").is_dir() == (name in {"report", "review"})


def test_an_address_space_that_is_enough_is_enough(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "inbox" / "1.dcm")
    needed = (memory.ADDRESSES >> 20) + 1024
    command = [sys.executable, "-m", "dicomsort", "sort", "--settle", "0", path.parent, tmp_path / "outbox"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited(needed))
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_worker_that_gets_no_memory_before_its_task_fails_the_run_not_the_file() -> None:
    with ProcessEngine(1, LIMITS) as engine:
        error = engine.submit(tasks.Unloadable(), 1).exception()
    assert type(error) is DicomsortError
    assert "expected memory for a worker process, received none" in str(error)
