"""A cluster behind TLS, by Dask's own configuration: certificates of a CA made here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from command import Ran, placed
from dask_cluster import ROOT, Cluster, running_cluster

pytest.importorskip("distributed", reason="the extra cluster is not installed")
if shutil.which("openssl") is None:
    pytest.skip("openssl is not installed, which makes the certificates", allow_module_level=True)

NAME = "DASK_DISTRIBUTED__COMM__TLS__"


def certificates(folder: Path) -> dict[str, str]:
    """Make a CA and one certificate for scheduler, workers and client; return the variables that name them."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "rsa:2048", "-nodes", "-subj")
    openssl("req", "-x509", *new, "/CN=CA of a test", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new, "/CN=dask", "-keyout", "key.pem", "-out", "request.pem")
    openssl("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-out", "cert.pem")  # fmt: skip
    named = {f"{NAME}CA_FILE": str(folder / "ca.pem")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        named |= {f"{NAME}{role}__KEY": str(folder / "key.pem"), f"{NAME}{role}__CERT": str(folder / "cert.pem")}
    return named


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return certificates(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]) -> Iterator[Cluster]:
    import dask

    with mock.patch.dict(os.environ, settings):
        dask.config.refresh()
    options = ("--protocol", "tls")
    with running_cluster(tmp_path_factory.mktemp("dask"), 2, *options, **settings) as cluster:
        yield cluster
    dask.config.refresh()


def run(address: str, inbox: Path, outbox: Path, settings: dict[str, str]) -> Ran:
    """The command in a process of its own, which reads its own configuration of Dask."""
    command = [sys.executable, "-m", "dicomsort", "sort", "--engine", "dask", "--scheduler", address]
    command += ["--evidence", "header", "--quiet", str(inbox), str(outbox)]
    ran = subprocess.run(command, env=os.environ | settings, cwd=ROOT, capture_output=True, text=True, check=False)
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def test_a_cluster_behind_tls_sorts(cluster: Cluster, inbox: Path, outbox: Path, settings: dict[str, str]) -> None:
    assert cluster.address.startswith("tls://")
    ran = run(cluster.address, inbox, outbox, settings)
    assert ran == (0, "", "")
    assert len(list(placed(outbox))) == 5


def test_without_certificates_it_says_which_to_name(cluster: Cluster, inbox: Path, outbox: Path) -> None:
    ran = run(cluster.address, inbox, outbox, {})
    assert ran.code == 2
    assert "expected certificates in Dask's configuration (distributed.comm.tls.ca-file" in ran.err
    assert not outbox.exists()


def test_certificates_that_cannot_be_read_are_told(
    cluster: Cluster, inbox: Path, outbox: Path, settings: dict[str, str]
) -> None:
    name = next(name for name in settings if name.endswith("CLIENT__CERT"))
    ran = run(cluster.address, inbox, outbox, settings | {name: "/no such file"})
    assert ran.code == 2
    assert "received files that cannot be used: " in ran.err
    assert not outbox.exists()


@pytest.mark.parametrize("name", ["CA_FILE", "CLIENT__CERT", "CLIENT__KEY"])
def test_a_fifo_in_the_place_of_a_certificate_is_not_waited_for(
    inbox: Path, outbox: Path, settings: dict[str, str], tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    ran = run("tls://127.0.0.1:1", inbox, outbox, settings | {f"{NAME}{name}": str(tmp_path / "fifo")})
    assert ran.code == 2
    assert "received files that cannot be used: " in ran.err
    assert not outbox.exists()


def test_certificates_of_another_ca_are_refused(cluster: Cluster, inbox: Path, outbox: Path, tmp_path: Path) -> None:
    ran = run(cluster.address, inbox, outbox, certificates(tmp_path / "theirs"))
    assert ran.code == 1
    assert f"expected a Dask scheduler at {cluster.address} to answer within 10 s, received: " in ran.err
    assert "certificate verify failed" in ran.err
    assert not outbox.exists()


def test_tls_is_not_spoken_by_tcp(cluster: Cluster, inbox: Path, outbox: Path, settings: dict[str, str]) -> None:
    ran = run(cluster.address.replace("tls://", "tcp://"), inbox, outbox, settings)
    assert ran.code == 1
    assert "to answer within 10 s" in ran.err
    assert not outbox.exists()
