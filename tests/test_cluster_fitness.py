"""Workers that see something else than the run does are named before anything happens, also where they join later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import Popen

import engine_tasks as tasks
import pytest
from building import make_dicom, make_files, read_tree
from command import Ran, by_source, placed, sort
from dask_cluster import WORKER, Cluster, mounted, running_cluster

from dicomsort import __version__
from dicomsort.bundle import default_path
from dicomsort.discover import walk
from dicomsort.engines import open_engine
from dicomsort.engines.engine import TaskLimits
from dicomsort.engines.worker_check import SAMPLE, Snapshot, difference, snapshot
from dicomsort.errors import DicomsortError
from dicomsort.files import sha256_of
from dicomsort.records import Found
from dicomsort.tasks import examine

ROOT = Path(__file__).parents[1]
LIMITS = TaskLimits(seconds=10, memory_bytes=256 << 20)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One without workers so far."""
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    folder = tmp_path / "dask"
    folder.mkdir()
    with running_cluster(folder, 0) as cluster:
        yield cluster


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the bundle that ships, on the shared file system."""
    folder = tmp_path / "share" / "bundle"
    shutil.copytree(default_path(), folder)
    return folder


def seeing(script: str, *arguments: object) -> tuple[str, ...]:
    return mounted(script, *arguments) or pytest.skip("this user may not make mounts of its own (unshare --mount)")


def on(cluster: Cluster, *arguments: object) -> Ran:
    return sort("--engine", "dask", "--scheduler", cluster.address, *arguments)


def without_product(cluster: Cluster) -> Popen[bytes]:
    hidden = f"import sys; sys.modules['dicomsort'] = None; from {WORKER} import main; main()"
    return cluster.add(run=("-c", hidden))


def other_version(cluster: Cluster, folder: Path) -> Popen[bytes]:
    """A worker that has the product as it is, but of another version."""
    shutil.copytree(ROOT / "dicomsort", folder / "dicomsort", ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "dicomsort" / "__init__.py"
    init.write_text(init.read_text().replace(f'"{__version__}"', '"0.0.1"'))
    paths = [str(folder), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return cluster.add(settings={"PYTHONPATH": os.pathsep.join(filter(None, paths))})


def test_workers_without_the_product_or_of_another_version_are_named(
    cluster: Cluster, inbox: Path, outbox: Path, elsewhere: Path
) -> None:
    cluster.add()
    none, other = (cluster.address_of(w) for w in (without_product(cluster), other_version(cluster, elsewhere)))
    ran = on(cluster, inbox, outbox)
    assert ran.code == 1
    host = os.uname().nodename
    assert f"expected dicomsort {__version__} on every Dask worker, received Dask worker " in ran.err
    assert f"Dask worker {none} on {host}: none (" in ran.err
    assert f"Dask worker {other} on {host}: 0.0.1" in ran.err
    assert "install this version" in ran.err
    assert not outbox.exists()


def test_a_worker_of_another_dask_is_named(cluster: Cluster, inbox: Path, outbox: Path, elsewhere: Path) -> None:
    make_files(
        elsewhere, {"distributed-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: distributed\nVersion: 1.0"}
    )
    paths = [str(elsewhere), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    worker = cluster.add(settings={"PYTHONPATH": os.pathsep.join(filter(None, paths))})
    ran = on(cluster, inbox, outbox)
    assert ran.code == 1
    assert "expected Python 3." in ran.err
    assert f"as here, at scheduler and workers, received from Dask worker {cluster.address_of(worker)}: " in ran.err
    assert "with distributed 1.0; install the same" in ran.err
    assert not outbox.exists()


def similar(folder: Path) -> None:
    """Another inbox, with files of the same names."""
    make_dicom(folder / "ct" / "1.dcm", study=5, StudyDescription="longer than the other")
    make_files(folder, {"ct/2": "x", "mr.dcm": "y", "cr.dcm": "z", "us.dcm": "", "notes.txt": "hello?"})


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda _: None, "a folder with 0 of 6 of its files (others: No such file or directory)"),
        (similar, "a folder with 0 of 6 of its files (others: another size or time)"),
    ],
)
def test_a_worker_with_another_folder_in_place_of_the_inbox_is_named(
    cluster: Cluster, inbox: Path, outbox: Path, elsewhere: Path, make: Callable[[Path], None], received: str
) -> None:
    make(elsewhere)
    cluster.add()
    worker = cluster.address_of(cluster.add(view=seeing('mount --bind "$1" "$2"', elsewhere, inbox)))
    before = read_tree(inbox)
    ran = on(cluster, "--move", "--settle", 0, inbox, outbox)
    assert ran.code == 1
    assert ran.err.startswith(f"dicomsort: Dask worker {worker} on {os.uname().nodename}: inbox {str(inbox)!r}: ")
    assert f"expected the folder that the run sees, received: {received}; mount the same file system at" in ran.err
    assert not outbox.exists()
    assert read_tree(inbox) == before


def test_a_worker_without_the_inbox_is_named(cluster: Cluster, tmp_path: Path, outbox: Path, elsewhere: Path) -> None:
    make_dicom(tmp_path / "share" / "inbox" / "1.dcm")
    cluster.add(view=seeing('mount --bind "$1" "$2"', elsewhere, tmp_path / "share"))
    ran = on(cluster, tmp_path / "share" / "inbox", outbox)
    assert ran.code == 1
    assert "expected the folder that the run sees, received: No such file or directory; mount the same" in ran.err
    assert not outbox.exists()


def test_a_worker_with_another_model_or_none_is_named(
    cluster: Cluster, inbox: Path, outbox: Path, bundle: Path, elsewhere: Path
) -> None:
    shutil.copytree(bundle, elsewhere / "bundle")
    model = elsewhere / "bundle" / "model.tflite"
    model.write_bytes(model.read_bytes() + b"!")
    digests = [sha256_of(str(folder / "model.tflite"))[:16] for folder in (bundle, elsewhere / "bundle")]
    worker = cluster.add(view=seeing('mount --bind "$1" "$2"', elsewhere / "bundle", bundle))
    ran = on(cluster, "--model", bundle, "--evidence", "auto", inbox, outbox)
    assert ran.code == 1
    assert f"model {str(bundle)!r}: model.tflite: expected SHA-256 {digests[0]}…, received: {digests[1]}…; " in ran.err
    assert "name a bundle by --model that every worker sees" in ran.err
    worker.kill()
    cluster.wait(lambda: not cluster.workers())
    cluster.add(view=seeing('mount --bind "$1" "$2"', elsewhere, bundle))
    ran = on(cluster, "--model", bundle, "--evidence", "auto", inbox, outbox)
    assert ran.code == 1
    assert "bundle.json: expected SHA-256" in ran.err
    assert "received: No such file or directory" in ran.err
    assert not outbox.exists()
    assert on(cluster, "--model", bundle, "--evidence", "header", inbox, outbox).code == 0


@pytest.mark.parametrize("odd", ["inbox", "version", "product"])
def test_a_worker_that_joins_later_is_asked_before_its_first_task(
    cluster: Cluster, inbox: Path, elsewhere: Path, odd: str
) -> None:
    first = cluster.add()
    with open_engine("dask", None, cluster.address, limits=LIMITS) as engine:
        engine.check_workers(partial(snapshot, str(inbox), None, ""), difference)
        assert engine.submit(tasks.double, 2).result() == 4
        if odd == "inbox":
            cluster.add(view=seeing('mount --bind "$1" "$2"', elsewhere, inbox))
        elif odd == "version":
            other_version(cluster, elsewhere)
        else:
            without_product(cluster)
        first.kill()
        cluster.wait(lambda: len(cluster.workers()) == 1)
        error = engine.submit(tasks.double, 2).exception()
    assert type(error) is DicomsortError
    expected = {
        "inbox": f"on {os.uname().nodename}: inbox {str(inbox)!r}: expected the folder",
        "version": f"on {os.uname().nodename}: expected dicomsort {__version__}, received 0.0.1; install",
        "product": f"on {os.uname().nodename}: expected dicomsort {__version__}, received none (",
    }
    assert expected[odd] in str(error)


def test_a_worker_that_joins_later_takes_its_share(cluster: Cluster) -> None:
    cluster.add()
    with open_engine("dask", None, cluster.address, limits=LIMITS) as engine:
        assert engine.workers == 1
        cluster.add("--nthreads", "2")
        cluster.wait(lambda: engine.workers == 3)
        assert [future.result() for future in [engine.submit(tasks.double, n) for n in range(20)]] == [*range(0, 40, 2)]


def test_another_device_number_is_the_same_file_system(cluster: Cluster, inbox: Path, tmp_path: Path) -> None:
    """As on NFS: the worker sees the same files under the same inode numbers, but on another device."""
    (tmp_path / "nothing").mkdir()
    overlay = 'mount -t overlay overlay -o "lowerdir=$1:$2" "$1"'
    worker = cluster.add(view=seeing(overlay, inbox, tmp_path / "nothing"))
    device = cluster.client.run(os.stat, str(inbox / "mr.dcm"), workers=[cluster.address_of(worker)])
    assert {status.st_dev for status in device.values()} != {(inbox / "mr.dcm").stat().st_dev}
    assert on(cluster, "--move", "--settle", 0, inbox, tmp_path / "outbox").code == 0
    assert {row["status"] for row in by_source(tmp_path / "outbox").values()} == {"sorted", "other", "ignored"}
    assert len(list(placed(tmp_path / "outbox"))) == 5


def found(inbox: Path, name: str) -> Found:
    (one,) = (each for each in walk(str(inbox), lambda _: False) if each.path == name)
    assert isinstance(one, Found)
    return one


@pytest.mark.parametrize(
    "elsewhere_as",
    [
        {"device": 1},  # another host's number
        {"device": 1, "inode": 1},  # made up by a client of SMB or FUSE
        {"device": 1, "mtime_ns": -1},  # cut to a second there
    ],
)
def test_a_file_seen_from_another_host_is_read_and_keeps_its_record(inbox: Path, elsewhere_as: dict[str, int]) -> None:
    seen = found(inbox, "mr.dcm")
    if "mtime_ns" in elsewhere_as:
        elsewhere_as = elsewhere_as | {"mtime_ns": seen.mtime_ns // 10**9 * 10**9 + 987_654_321}
    told = replace(seen, **elsewhere_as)
    (examined,) = examine(str(inbox), [told])
    assert (examined.failed, examined.header.modality) == ("", "MR")
    assert examined.sha256 == sha256_of(str(inbox / "mr.dcm"))
    assert examined.found == told


def test_a_file_that_another_one_replaced_since_the_walk_fails(inbox: Path) -> None:
    seen = found(inbox, "mr.dcm")
    shutil.copy(inbox / "cr.dcm", inbox / "new.dcm")
    os.utime(inbox / "new.dcm", (1, 1))
    (inbox / "new.dcm").replace(inbox / "mr.dcm")
    (examined,) = examine(str(inbox), [seen])
    assert examined.failed == "replaced by another file while it was read"


def test_a_file_that_grew_since_the_walk_is_recorded_as_it_was_read(inbox: Path) -> None:
    seen = found(inbox, "mr.dcm")
    with (inbox / "mr.dcm").open("ab") as file:
        file.write(b"\0" * 1000)
    (examined,) = examine(str(inbox), [seen])
    assert (examined.found.size, examined.found.device) == (seen.size + 1000, seen.device)


def test_what_is_amiss(inbox: Path, tmp_path: Path, bundle: Path) -> None:
    seen = snapshot(str(inbox), None, str(bundle))
    assert {path for path, _, _ in seen.files} == {"ct/1.dcm", "ct/2", "mr.dcm", "cr.dcm", "us.dcm", "notes.txt"}
    assert difference(seen) == ""
    assert "received: Not a directory" in difference(replace(seen, inbox=str(inbox / "mr.dcm")))
    (inbox / "mr.dcm").unlink()
    (inbox / "cr.dcm").write_bytes(b"being written just now")
    assert difference(seen) == ""
    shutil.copytree(inbox, tmp_path / "copy")  # a true copy: the same bytes
    assert difference(replace(seen, inbox=str(tmp_path / "copy"))) == ""
    (inbox / "us.dcm").unlink()
    (inbox / "us.dcm").symlink_to("ct/2")
    assert "received: a folder with 3 of 6 of its files (others: " in difference(seen)
    (bundle / "bundle.json").write_text("{}")
    assert "bundle.json: expected SHA-256" in difference(replace(seen, files=()))


def test_the_view_of_an_inbox_is_small_and_leaves_the_outbox_out(tmp_path: Path) -> None:
    make_files(tmp_path, {f"sorted/{number}.dcm": "x" for number in range(5)})
    assert snapshot(str(tmp_path), str(tmp_path / "sorted"), "") == Snapshot(str(tmp_path), (), "", ())
    make_files(tmp_path, {f"a/b/{number}.dcm": "x" * number for number in range(100)})
    assert len(snapshot(str(tmp_path), str(tmp_path / "sorted"), "").files) == SAMPLE


def test_engines_of_this_machine_require_nothing() -> None:
    for name in ("serial", "processes"):
        with open_engine(name, 1, None, limits=LIMITS) as engine:
            engine.check_workers(lambda: pytest.fail("nobody need look"), difference)
