"""One contract over the three engines, and what each alone promises."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import engine_tasks as tasks
import pytest

from dicomsort.cli.options import WARM
from dicomsort.engines import ENGINES, dask_cluster, open_engine, processes
from dicomsort.engines.engine import Engine, TaskLimits, submit_batch
from dicomsort.engines.processes import WAITING_PER_WORKER, ProcessEngine, usable_cores
from dicomsort.errors import DicomsortError, UsageError, WorkerLost
from dicomsort.training.evaluate.evaluation import WARM as EVALUATION

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
LIMITS = TaskLimits(seconds=60, memory_bytes=256 << 20)
PATIENT = TaskLimits(seconds=60, memory_bytes=1 << 30)
WAYS_TO_DIE = ("exit", "signal", "hang", "hog")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no failure of the code under test."""
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 60.0)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    address = request.getfixturevalue("scheduler") if request.param == "dask" else None
    with open_engine(request.param, 2, address, limits=LIMITS) as engine:
        yield engine


@pytest.fixture
def killable(engine: Engine) -> Engine:
    if engine.__class__.__name__ == "SerialEngine":
        pytest.skip("serial runs in the calling process: it has no limits")
    return engine


def processes_of(parent: int, session: int) -> set[int]:
    """Processes with that parent, and those of that session, zombies too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent or int(fields[3]) == session:
            found.add(int(name))
    return found


def test_results_belong_to_their_tasks(engine: Engine) -> None:
    futures = {number: engine.submit(tasks.double, number) for number in range(40)}
    assert {number: future.result() for number, future in reversed(futures.items())} == {n: 2 * n for n in range(40)}


def test_partials_and_builtins_are_functions_too(engine: Engine) -> None:
    assert engine.submit(partial(pow, 2), 5).result() == 32


def test_an_exception_comes_back_as_itself(engine: Engine) -> None:
    future = engine.submit(tasks.fail, "no such thing")
    with pytest.raises(LookupError, match="no such thing"):
        future.result()
    assert engine.submit(tasks.double, 4).result() == 8


def test_what_all_workers_see_is_no_hindrance(engine: Engine) -> None:
    engine.check_workers(Path.cwd, tasks.nothing_amiss)
    assert engine.submit(tasks.double, 4).result() == 8


def test_a_closed_engine_refuses_and_closes_again(engine: Engine) -> None:
    assert engine.submit(tasks.double, 4).result() == 8
    engine.close()
    engine.close()
    with pytest.raises(DicomsortError, match="closed"):
        engine.submit(tasks.double, 4)


@pytest.mark.parametrize("way", WAYS_TO_DIE)
def test_a_lost_worker_costs_its_own_task(killable: Engine, way: str) -> None:
    before = [killable.submit(tasks.double, number) for number in range(3)]
    lost = killable.submit(tasks.die, way, seconds=2 if way == "hang" else None)
    after = [killable.submit(tasks.double, number) for number in range(3, 6)]
    reason = {"exit": "exit status 7", "signal": "signal 9", "hang": "ran past 2 s", "hog": "256 MiB of memory"}[way]
    with pytest.raises(WorkerLost, match=reason):
        lost.result()
    assert [future.result() for future in before + after] == [0, 2, 4, 6, 8, 10]


def test_a_lost_worker_that_left_a_process_behind_costs_its_own_task(tmp_path: Path) -> None:
    flag = tmp_path / "leave"
    with ProcessEngine(1, PATIENT) as engine:
        lost, after = engine.submit(tasks.leave_a_child, str(flag), seconds=1), engine.submit(tasks.double, 4)
        try:
            with pytest.raises(WorkerLost, match="ran past 1 s"):
                lost.result(60)
            assert after.result(60) == 8
        finally:
            flag.touch()


def test_a_lost_batch_singles_out_its_culprits(killable: Engine) -> None:
    lost: list[int] = []

    def on_lost(number: int, error: WorkerLost) -> int:
        assert "exit status 7" in str(error)
        lost.append(number)
        return -1

    batches = [range(start, start + 5) for start in range(0, 60, 5)]  # more than may wait, so submitting blocks
    outcomes = [submit_batch(killable, tasks.double_all, list(batch), on_lost) for batch in batches]
    results = [result for outcome in outcomes for result in outcome.result()]
    assert results == [-1 if number in tasks.EVIL else 2 * number for number in range(60)]
    assert sorted(lost) == list(tasks.EVIL)


def test_a_batch_that_raises_tells_so(engine: Engine) -> None:
    outcome = submit_batch(engine, tasks.fail_all, ["no such thing"], lambda item, _: item)
    with pytest.raises(LookupError, match="no such thing"):
        outcome.result()


def test_submit_waits_while_too_many_tasks_wait_and_closing_ends_them_all(tmp_path: Path) -> None:
    flag, futures, refused = tmp_path / "go", [], threading.Event()
    engine = ProcessEngine(2, PATIENT)

    def submit_until_closed() -> None:
        with contextlib.suppress(DicomsortError):
            while True:
                futures.append(engine.submit(tasks.wait_for, str(flag)))
        refused.set()

    thread = threading.Thread(target=submit_until_closed)
    thread.start()
    while len(futures) < engine.workers * WAITING_PER_WORKER:
        time.sleep(0.01)
    assert not refused.wait(0.3)
    assert len(futures) <= engine.workers * (WAITING_PER_WORKER + 1)
    engine.close()
    thread.join()
    assert all(isinstance(future.exception(), DicomsortError) for future in futures)
    assert not any(isinstance(future.exception(), WorkerLost) for future in futures)


def test_closing_leaves_no_process_and_no_thread() -> None:
    before, threads = processes_of(os.getpid(), -1), set(threading.enumerate())
    with ProcessEngine(3, LIMITS) as engine:
        _, engine_process = engine.submit(tasks.whoami, None).result()
        assert engine_process == os.getpid()
        (server,) = processes_of(os.getpid(), -1) - before
        futures = [engine.submit(time.sleep, 60) for _ in range(3)]
    assert all(future.done() for future in futures)
    assert processes_of(os.getpid(), server) == before
    ours = {thread for thread in threading.enumerate() if thread.name.startswith("dicomsort")}
    assert not ours - threads  # libraries begin and end threads of their own


def test_a_worker_that_dies_idle_is_replaced_unnoticed() -> None:
    with ProcessEngine(1, PATIENT) as engine:
        worker, parent = engine.submit(tasks.whoami, None).result()
        assert parent == os.getpid()
        os.kill(worker, signal.SIGKILL)
        while tasks.is_alive(worker):
            time.sleep(0.01)
        assert engine.submit(tasks.whoami, None).result()[0] != worker


def test_a_fork_server_that_dies_is_replaced_and_blames_no_task() -> None:
    with ProcessEngine(2, PATIENT) as engine:
        first = engine.submit(tasks.whoami, None).result()[0]
        error = engine.submit(tasks.kill_parent, None).exception()
        assert isinstance(error, WorkerLost)
        assert error.from_outside
        assert {engine.submit(tasks.double, number).result() for number in range(4)} == {0, 2, 4, 6}
        while tasks.is_alive(first):  # its workers are, too
            time.sleep(0.01)


def test_a_fork_server_that_stands_still_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessEngine(1, PATIENT) as engine:
        first, _ = engine.submit(tasks.whoami, None).result()
        monkeypatch.setattr(processes, "START_SECONDS", 6)
        os.kill(tasks.parent_of(first), signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        assert submit_batch(engine, tasks.double_all, [1], lambda number, _: number).result() == [2]


def test_a_lost_batch_ends_where_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of processes may be reached just when a worker died: nobody must wait for ever."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "dicomsort-retry":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with ProcessEngine(1, PATIENT) as engine:
        error = submit_batch(engine, tasks.double_all, [3], lambda number, _: number).exception(60)
    assert isinstance(error, DicomsortError)
    assert "expected another thread or process to start" in str(error)


def test_what_a_feeder_does_not_expect_is_the_error_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version's program may answer, where the package was replaced while a service runs."""
    monkeypatch.setattr(processes._ForkServer, "wait", mock.Mock(side_effect=IndexError))
    with ProcessEngine(1, PATIENT) as engine:
        for _ in range(3):
            assert isinstance(engine.submit(tasks.double, 1).exception(60), IndexError)


def test_a_worker_that_dies_is_counted_where_the_death_of_children_is_ignored(tmp_path: Path) -> None:
    """``SIGCHLD`` may be ignored by who starts a daemon, and is inherited."""
    script = (
        "import sys; sys.path.insert(0, 'tests'); import engine_tasks as tasks\n"
        "with ProcessEngine(1, TaskLimits(60, 1 << 30)) as e:\n"
        "    for _ in range(2): print(e.submit(tasks.die, 'exit').exception(), e.submit(tasks.double, 2).result())"
    )
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with run_script(script, ROOT) as parent:
            output, errors = parent.communicate()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (output, errors) == ("the worker process ended with exit status 7 4\n" * 2, "")


def test_a_fork_server_is_not_closed_under_who_asks_it() -> None:
    """The descriptor would be another socket's by then, on which nobody answers."""
    server = processes._ForkServer((sys.path, (), 1 << 30))
    server.wait(lambda: False)
    first = processes._Worker(server)
    os.kill(server._process.pid, signal.SIGSTOP)
    asking = threading.Thread(target=first.stop)
    asking.start()
    while not server._lock.locked():
        time.sleep(0.01)
    server.close()
    asking.join(60)
    assert not asking.is_alive()
    assert first._exit_code == -signal.SIGKILL


def test_no_thread_runs_where_workers_are_forked() -> None:
    """A fork copies the locks that another thread holds, and nobody releases them in the copy."""
    for warm in (WARM, ("dicomsort.training.data.rendered",), EVALUATION):
        with ProcessEngine(1, PATIENT, warm) as engine:
            assert engine.submit(tasks.threads_of_parent, None).result() == 1


def test_what_cannot_be_pickled_is_told() -> None:
    with ProcessEngine(1, PATIENT) as engine:
        assert isinstance(engine.submit(tasks.double, threading.Lock()).exception(), TypeError)  # type: ignore[arg-type]
        assert isinstance(engine.submit(lambda number: number, 1).exception(), AttributeError)
        assert "RuntimeError in a worker" in str(engine.submit(tasks.fail_unpicklably, "lock").exception())
        assert isinstance(engine.submit(open, os.devnull).exception(), TypeError)  # its result
        assert "worker process" in "".join(engine.submit(tasks.fail, "note").exception().__notes__)  # type: ignore[union-attr]


def test_where_a_worker_lives() -> None:
    with ProcessEngine(1, PATIENT, warm=("colorsys", "no_such_module")) as engine:
        here = engine.submit(tasks.surroundings, None).result()
        assert engine.submit(tasks.sys_has, "colorsys").result()
    assert here == {"modules": set(), "threads": "1", "stdin": "null", "stdout": "null", "interrupt": True}
    with ProcessEngine(1, PATIENT, warm=("pydicom",)) as engine:  # it would import requests, for downloads
        assert [engine.submit(tasks.sys_has, name).result() for name in ("pydicom", "requests")] == [True, False]
        assert engine.submit(tasks.can_import, "requests").result() == (find_spec("requests") is not None)
    with mock.patch("dicomsort.memory.available", return_value=None), ProcessEngine(None, LIMITS) as engine:
        assert engine.workers == usable_cores() == len(os.sched_getaffinity(0))


def test_a_worker_that_cannot_start_fails_the_run_not_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with ProcessEngine(1, LIMITS) as engine:
        error = engine.submit(tasks.double, 1).exception()
    assert "expected a worker process to start, received: the worker process ended with exit status 1" in str(error)
    assert not isinstance(error, WorkerLost)


def run_script(script: str, folder: Path) -> subprocess.Popen[str]:
    head = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    head += "from dicomsort.engines.processes import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + script],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def test_workers_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "gdcm.py").write_text("raise SystemExit")
    script = "with ProcessEngine(1, TaskLimits(60, 1 << 30)) as e: print(e.submit(__import__, 'gdcm').exception())"
    output, errors = run_script(script, tmp_path).communicate()
    assert (output, errors) == ("No module named 'gdcm'\n", "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_die_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = (
        "with ProcessEngine(1, TaskLimits(60, 1 << 30)) as e:\n"
        "    print(e.submit(eval, '__import__(\"os\").getpid()').result(), flush=True)\n"
        "    e.submit(time.sleep, 60).result()"
    )
    with run_script(script, tmp_path) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert tasks.is_alive(worker)
        os.killpg(parent.pid, how)
        assert parent.wait() == -how
        while tasks.is_alive(worker):
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "scheduler_address", "expected"),
    [
        ("threads", None, "processes|serial|dask"),
        ("dask", None, "expected --scheduler ADDRESS"),
        ("dask", "host:8786", "received host:8786"),
    ],
)
def test_a_wrong_engine_is_a_usage_error(name: str, scheduler_address: str | None, expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        open_engine(name, None, scheduler_address, limits=LIMITS)


def test_dask_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # what an import finds where it is not installed
    with pytest.raises(
        UsageError,
        match=re.escape(
            "expected the extra cluster, received: not installed; run pip install '.[cluster]' in the checkout"
        ),
    ):
        open_engine("dask", None, "tcp://127.0.0.1:8786", limits=LIMITS)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DicomsortError, match=f"scheduler at {address} to answer within 1 s"):
            open_engine("dask", None, address, limits=LIMITS)


def test_dask_workers_of_another_version_are_named(monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    monkeypatch.setattr(dask_cluster, "__version__", "0.0.0")
    with pytest.raises(
        DicomsortError, match=r"expected dicomsort 0\.0\.0 on every Dask worker, received Dask worker tcp://"
    ):
        open_engine("dask", None, scheduler, limits=LIMITS)


def test_a_lost_dask_worker_loses_its_task_alone(scheduler: str) -> None:  # the last test: a worker is gone
    with open_engine("dask", None, scheduler, limits=PATIENT) as engine:
        assert isinstance(engine.submit(tasks.kill_engine, None).exception(), WorkerLost)
        assert engine.submit(tasks.double, 4).result() == 8


def test_a_worker_that_something_else_killed_blames_no_task(tmp_path: Path) -> None:
    """The system without memory, or a person: the item is tried again, and what is lost says so."""
    blamed: list[bool] = []

    def on_lost(_: str, error: WorkerLost) -> str:
        blamed.append(not error.from_outside)
        return "lost"

    with ProcessEngine(1, PATIENT) as engine:
        twice, always, crash = (str(tmp_path / name) for name in ("2", "9", "crash"))
        assert submit_batch(engine, tasks.killed_at_first, [twice], on_lost).result() == ["done"]
        assert submit_batch(engine, tasks.killed_at_first, [always], on_lost).result() == ["lost"]
        assert submit_batch(engine, tasks.killed_at_first, [crash], on_lost).result() == ["lost"]
    assert blamed == [False, True]


@pytest.mark.parametrize("computes", [False, True])
def test_a_task_that_mostly_waited_is_not_to_blame(tmp_path: Path, *, computes: bool) -> None:
    """Its disk may stand still: then the limit of time says nothing about the file."""
    flag = tmp_path / "flag"
    with ProcessEngine(1, PATIENT) as engine:
        engine._stopped.set()  # the test is the clock
        task = partial(tasks.compute_then_wait, 0.3 if computes else 0.0)
        future = engine.submit(task, str(flag), seconds=0.4)
        while not flag.exists():
            time.sleep(0.01)
        next(iter(engine._running.values())).spend(1)
        error = future.exception()
    assert isinstance(error, WorkerLost)
    assert "ran past 0.4 s" in str(error)
    assert ("most of them waiting" in str(error), error.from_outside) == (not computes, not computes)
