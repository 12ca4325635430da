"""The whole command on a real Dask cluster: workers and schedulers that die, hostile files, connections that fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import Ran, by_source, placed, rows, sort
from dask_cluster import Cluster, running_cluster
from pydicom.data import get_testdata_files

from dicomsort.engines import dask_cluster
from dicomsort.engines import dask_cluster as engine

pytest.importorskip("distributed", reason="the extra cluster is not installed")

FILES = 2000
HOSTILE = """
import importlib.abc, importlib.util, os, signal, sys

class Trap(importlib.abc.MetaPathFinder):
    '''The parser of worker processes crashes on hostile.dcm.'''
    def find_spec(self, name, path, target=None):
        if name != "dicomsort.dicom.headers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            read = module.read_header
            def read_header(data, size, name, more):
                if name == "hostile.dcm":
                    os.kill(os.getpid(), signal.SIGABRT)
                return read(data, size, name, more)
            module.read_header = read_header
        spec.loader.exec_module = exec_module
        return spec

if any(argument.endswith("engines/fork_server.py") for argument in sys.orig_argv):
    sys.meta_path.insert(0, Trap())
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "dask"
    folder.mkdir()
    with running_cluster(folder) as cluster:
        yield cluster


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inbox of so many files, in so small tasks, that a run lasts a while."""
    monkeypatch.setattr("dicomsort.sorting.examine.BATCH_FILES", 16)
    inbox = tmp_path / "many"
    content = make_dicom(inbox / "0.dcm", study=1, instance=10_000).read_bytes()
    for number in range(1, FILES):
        (inbox / f"{number}.dcm").write_bytes(content.replace(b".1.1.10000", b".1.1.%d" % (10_000 + number)))
    return inbox


def on(address: str, *arguments: object) -> Ran:
    return sort("--engine", "dask", "--scheduler", address, *arguments)


def told(outbox: Path) -> list[dict[str, str]]:
    """The manifest less what differs from run to run."""
    return [{name: cell for name, cell in row.items() if name != "run_id"} for row in rows(outbox)]


def meanwhile(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def kill_while_it_holds_tasks(cluster: Cluster, address: str, process: int) -> None:
    """Stop a worker first, so that what it holds when it dies is known."""
    while True:
        cluster.wait(lambda: cluster.client.processing().get(address))
        os.kill(process, signal.SIGSTOP)
        if cluster.client.processing().get(address):
            break
        os.kill(process, signal.SIGCONT)
    os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("evidence", ["auto", "header"])
def test_a_cluster_sorts_as_one_machine_does(sample_inbox: Path, tmp_path: Path, scheduler: str, evidence: str) -> None:
    options = ("--evidence", evidence, "--quiet")
    ran = on(scheduler, *options, sample_inbox, tmp_path / "cluster")
    alone = sort("--engine", "serial", *options, sample_inbox, tmp_path / "alone")
    assert (ran.code, ran.out, ran.err) == (alone.code, "", "")
    assert told(tmp_path / "cluster") == told(tmp_path / "alone")
    assert list(placed(tmp_path / "cluster")) == list(placed(tmp_path / "alone"))


def test_a_cluster_moves_test_files_of_pydicom_and_others(tmp_path: Path, inbox: Path, scheduler: str) -> None:
    for number, path in enumerate(sorted(get_testdata_files("*.dcm"))):
        (inbox / f"{number}.dcm").write_bytes(Path(path).read_bytes())
        os.utime(inbox / f"{number}.dcm", (1, 1))
    options = ("--evidence", "auto", "--settle", 0)
    alone = sort("--engine", "serial", *options, inbox, tmp_path / "alone")
    assert on(scheduler, *options, "--move", "--workers", 2, inbox, tmp_path / "cluster").code == alone.code
    cells = [{name: row[name] for name in row.keys() - {"action"}} for row in told(tmp_path / "cluster")]
    assert cells == [{name: row[name] for name in row.keys() - {"action"}} for row in told(tmp_path / "alone")]


@pytest.mark.parametrize("nanny", [False, True])
def test_a_worker_that_is_killed_while_it_holds_tasks_loses_nothing(
    cluster: Cluster, many: Path, tmp_path: Path, *, nanny: bool
) -> None:
    others = cluster.processes()
    cluster.add(nanny=nanny)
    ((address, process),) = cluster.processes().items() - others.items()
    before = read_tree(many)
    killer = meanwhile(lambda: kill_while_it_holds_tasks(cluster, address, process))
    ran = on(cluster.address, "--quiet", "--move", "--settle", 0, many, tmp_path / "outbox")
    killer.join()
    assert (ran.code, ran.err) == (0, "")
    assert address not in cluster.workers()
    assert len(rows(tmp_path / "outbox")) == len({row["source"] for row in rows(tmp_path / "outbox")}) == FILES
    assert {row["status"] for row in rows(tmp_path / "outbox")} == {"sorted"}
    assert {(tmp_path / "outbox" / path).read_bytes() for path in placed(tmp_path / "outbox")} == set(before.values())
    assert read_tree(many) == {}


def test_without_any_worker_left_a_run_gives_up(
    cluster: Cluster, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "GIVE_UP_SECONDS", 1)
    monkeypatch.setattr(engine, "WATCH_SECONDS", 0.1)
    outbox, before = tmp_path / "outbox", read_tree(many)

    def kill() -> None:
        workers = cluster.processes().values()
        cluster.wait(lambda: any(cluster.client.processing().values()))
        for pid in workers:
            os.kill(pid, signal.SIGKILL)

    killer = meanwhile(kill)
    ran = on(cluster.address, "--move", "--settle", 0, many, outbox)
    killer.join()
    assert ran.code == 1
    assert f"expected a running worker behind the Dask scheduler at {cluster.address}, received none for 1 s" in ran.err
    assert list(placed(outbox)) == []
    assert read_tree(many) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scheduler_that_is_lost_ends_the_run(
    cluster: Cluster, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(engine, "GIVE_UP_SECONDS", 4)
    monkeypatch.setattr(engine, "WATCH_SECONDS", 0.1)
    address, before = cluster.address, read_tree(many)

    def lose() -> None:
        cluster.wait(lambda: any(cluster.client.processing().values()))
        monkeypatch.setattr(engine, "CONNECT_SECONDS", 2)
        cluster.scheduler.send_signal(how)

    loser = meanwhile(lose)
    ran = on(address, many, tmp_path / "outbox")
    loser.join()
    cluster.scheduler.kill()
    assert ran.code == 1
    assert f"scheduler at {address}" in ran.err
    assert ran.err.endswith("run the command again\n")
    assert read_tree(many) == before


@pytest.mark.parametrize("name", ["processes", "dask"])
def test_a_file_that_kills_its_worker_suffers_alone(
    sample_inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    inbox = tmp_path / "inbox"
    for path, content in read_tree(sample_inbox).items():
        (inbox / path).parent.mkdir(parents=True, exist_ok=True)
        (inbox / path).write_bytes(content)
    sort("--engine", "serial", "--evidence", "auto", inbox, tmp_path / "alone")
    make_dicom(inbox / "export" / "hostile.dcm", study=77)
    options = ("--engine", name, "--evidence", "auto", inbox, tmp_path / "outbox")
    if name == "dask":
        with running_cluster(tmp_path, 1) as cluster:
            workers = set(cluster.workers())
            ran = on(cluster.address, *options[2:])
            assert set(cluster.workers()) == workers
    else:
        ran = sort(*options)
    assert ran.code == 3
    found = by_source(tmp_path / "outbox")
    hostile = found.pop("export/hostile.dcm")
    assert (hostile["status"], hostile["reason"]) == ("unreadable", "beyond-limit")
    assert hostile["destination"] == "UNREADABLE/export/hostile.dcm"
    assert "the worker process was killed by signal 6" in hostile["message"]
    assert [row for row in told(tmp_path / "outbox") if row["source"] in found] == told(tmp_path / "alone")


@pytest.fixture
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        meanwhile(lambda: server.serve_forever(0.01))
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "silent", "web", "tcp://no-such-host.invalid:8786"])
def test_what_is_no_scheduler_is_named(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, address: str
) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 1)
    address = address if "://" in address else request.getfixturevalue(address)
    ran = on(address, inbox, outbox)
    assert ran.code == 1
    assert f"expected a Dask scheduler at {address} to answer within 1 s, received: " in ran.err
    assert not outbox.exists()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8786", "tcp://127.0.0.1", "http://127.0.0.1:8786", "tcp://a:b", "tcp://"]
)
def test_an_address_of_another_form_is_wrong_usage(inbox: Path, outbox: Path, address: str) -> None:
    ran = on(address, inbox, outbox)
    assert ran.code == 2
    assert f"received {address}" in ran.err
    assert not outbox.exists()


def test_a_scheduler_without_workers_is_named(
    inbox: Path, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = dask_cluster._connect

    def connected(address: str) -> object:
        client = connect(address)  # however long that takes
        monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 1)
        return client

    monkeypatch.setattr(dask_cluster, "_connect", connected)
    with running_cluster(tmp_path, 0) as cluster:
        ran = on(cluster.address, inbox, outbox)
    assert ran.code == 1
    assert "expected a Dask worker behind" in ran.err
    assert not outbox.exists()


def test_an_interrupted_run_leaves_the_cluster_as_it_was(cluster: Cluster, many: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dicomsort", "sort", "--engine", "dask", "--scheduler", cluster.address]
    with subprocess.Popen([*command, "--quiet", many, tmp_path / "outbox"], stderr=subprocess.PIPE) as run:
        cluster.wait(lambda: run.poll() is not None or any(cluster.client.processing().values()))
        run.send_signal(signal.SIGINT)
        _, complaint = run.communicate()
    assert run.returncode == 130
    assert b"Traceback" not in complaint
    cluster.wait(lambda: not any(cluster.client.processing().values()))
    assert on(cluster.address, "--quiet", many, tmp_path / "outbox").code == 0
