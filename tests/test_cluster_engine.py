"""What the engine of a Dask cluster promises beyond the contract: back pressure, limits, and processes that end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import engine_tasks as tasks
import pytest
from dask_cluster import Cluster, running_cluster

from dicomsort.engines import dask_cluster, dask_worker, open_engine
from dicomsort.engines.engine import TaskLimits
from dicomsort.engines.processes import WAITING_PER_WORKER
from dicomsort.errors import DicomsortError

pytest.importorskip("distributed", reason="the extra cluster is not installed")

LIMITS = TaskLimits(seconds=2, memory_bytes=256 << 20)
PATIENT = TaskLimits(seconds=60, memory_bytes=256 << 20)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One without workers so far."""
    folder = tmp_path / "dask"
    folder.mkdir()
    with running_cluster(folder, 0) as cluster:
        yield cluster


def known_tasks(cluster: Cluster) -> int:
    count: int = cluster.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    return count


def test_submit_waits_while_the_cluster_has_enough(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add("--nthreads", "2")
    flag, futures = tmp_path / "go", []
    with open_engine("dask", None, cluster.address, limits=PATIENT) as engine:

        def submit_many() -> None:
            futures.extend(engine.submit(tasks.wait_for, str(flag)) for _ in range(200))

        thread = threading.Thread(target=submit_many)
        thread.start()
        allowed = 2 * WAITING_PER_WORKER
        cluster.wait(lambda: known_tasks(cluster) == allowed)
        thread.join(0.5)
        assert thread.is_alive()
        assert known_tasks(cluster) == len(engine._client.futures) == allowed  # type: ignore[attr-defined]
        flag.touch()
        thread.join()
        assert [future.result() for future in futures] == [None] * 200
        cluster.wait(lambda: known_tasks(cluster) == 0)
        assert len(engine._client.futures) == 0  # type: ignore[attr-defined]


def test_closing_ends_what_waits_and_frees_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add()
    refused = threading.Event()
    futures = []
    with open_engine("dask", None, cluster.address, limits=PATIENT) as engine:

        def submit_until_closed() -> None:
            with contextlib.suppress(DicomsortError):
                while True:
                    futures.append(engine.submit(tasks.wait_for, str(tmp_path / "never")))
            refused.set()

        threading.Thread(target=submit_until_closed).start()
        cluster.wait(lambda: len(futures) == WAITING_PER_WORKER)
    assert refused.wait(60)
    assert all("closed" in str(future.exception()) for future in futures)
    cluster.wait(lambda: known_tasks(cluster) == 0)


@pytest.mark.parametrize("nanny", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_its_processes_end_with_a_dask_worker(
    cluster: Cluster, tmp_path: Path, how: signal.Signals, *, nanny: bool
) -> None:
    started = cluster.add(nanny=nanny)
    with open_engine("dask", None, cluster.address, limits=PATIENT) as engine:
        process, worker = engine.submit(tasks.whoami, None).result()
        assert (worker == started.pid) != nanny
        if how == signal.SIGKILL:  # at work; told to end, a worker gives a task half a minute
            engine.submit(tasks.wait_for, str(tmp_path / "never"))
            cluster.wait(lambda: any(cluster.client.processing().values()))
        assert tasks.is_alive(process)
        os.kill(worker, how)
        cluster.wait(lambda: not tasks.is_alive(process))
    if nanny:  # it has started another worker, which ends with it
        cluster.wait(cluster.workers)
        with open_engine("dask", None, cluster.address, limits=PATIENT) as engine:
            process, worker = engine.submit(tasks.whoami, None).result()
        started.kill()
        cluster.wait(lambda: not tasks.is_alive(process) and not tasks.is_alive(worker))


def test_the_memory_limit_of_a_dask_worker_bounds_its_processes(cluster: Cluster) -> None:
    cluster.add("--nthreads", "4", "--memory-limit", "600MiB")
    with open_engine("dask", None, cluster.address, limits=PATIENT) as engine:
        used = {future.result() for future in [engine.submit(tasks.rest_and_tell, None) for _ in range(12)]}
        assert len(used) == 600 // 256
        with pytest.raises(DicomsortError, match="ran past 256 MiB of memory"):
            engine.submit(tasks.die, "hog").result()


@pytest.mark.parametrize(("limit", "expected"), [(None, 4), (0, 4), (1 << 40, 4), (600 << 20, 2), (1 << 20, 1)])
def test_how_many_processes_a_dask_worker_gets(limit: int | None, expected: int) -> None:
    assert dask_worker.processes_for(4, limit, LIMITS) == expected


def test_processes_that_nobody_asks_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_worker, "IDLE_SECONDS", 0.2)
    memory = SimpleNamespace(memory_limit=None)
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=1), memory_manager=memory)
    seen = set()
    for _ in range(2):
        with dask_worker._local_engine(worker, dask_worker.WorkerSettings(PATIENT, ())) as engine:
            process, _ = engine.submit(tasks.whoami, None).result()
            time.sleep(0.5)  # a task that lasts is no idleness
            assert tasks.is_alive(process)
        seen.add(process)
        while dask_worker._locals or tasks.is_alive(process):
            time.sleep(0.01)
    assert len(seen) == 2


def test_a_file_system_that_does_not_answer_is_named(cluster: Cluster) -> None:
    worker = cluster.address_of(cluster.add())
    with open_engine("dask", None, cluster.address, limits=LIMITS) as engine:
        expected = f"Dask worker {worker} on .*: expected its file system to answer, received: .* ran past 2 s"
        with pytest.raises(DicomsortError, match=expected):
            engine.check_workers(str, tasks.sleep_amiss)


def test_a_worker_that_does_not_answer_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "ANSWER_SECONDS", 3)
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 4)  # which its version is waited for as well
    cluster.add()
    stopped = cluster.add()
    worker = cluster.address_of(stopped)
    stopped.send_signal(signal.SIGSTOP)
    with pytest.raises(
        DicomsortError, match=f"from every Dask worker, received from Dask worker {worker}: none within"
    ):
        open_engine("dask", None, cluster.address, limits=LIMITS)


def test_many_workers_are_told_of_in_one_line() -> None:
    line = dask_cluster.listed([(f"Dask worker {number}", "2.0") for number in range(1000)])
    assert line.endswith("Dask worker 100: 2.0; Dask worker 101: 2.0; and 995 more")
