"""TLS to peers and servers: trusted certificates only, and ours where they ask for it."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from building import make_dicom
from command import Ran
from peers_send import Scp, Web, raw_server
from sending_tools import send, statuses, stored

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

# pynetdicom's server closes a connection whose handshake fails, and tells its log.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ours``, ``theirs`` and ``others``: certificates that sign themselves, and their keys."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes certificates for this test, is not installed")
    folder = tmp_path_factory.mktemp("keys")
    for name, host in {"ours": "DNS:ours", "theirs": "IP:127.0.0.1", "others": "DNS:elsewhere.example"}.items():
        new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={host}"]
        command = [openssl, *new, *names, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        make_dicom(tmp_path / "in" / f"{number}.dcm", instance=number)
    return tmp_path / "in"


@pytest.fixture(params=["AE", "https"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def peer(kind: str, keys: Path, name: str, *, asks: bool = False) -> Iterator[str]:
    """A peer with that certificate; ``asks``: it wants to see ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / f"{name}.pem", keys / f"{name}.key")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(keys / "ours.pem")
    with ExitStack() as stack:
        if kind == "AE":
            yield stack.enter_context(Scp().running(tls=context)).to
        else:
            web = stack.enter_context(Web(lambda _, body: stored(body)).running(tls=context))
            yield web.to.replace("http:", "https:")


def refused(ran: Ran, message: str) -> None:
    assert (ran.code, statuses(ran)) == (1, Counter(failed=3)), ran.err
    assert message in ran.err


def test_a_certificate_that_we_trust(kind: str, folder: Path, keys: Path) -> None:
    with peer(kind, keys, "theirs") as to:
        ran = send(folder, "--to", to, "--tls-ca", keys / "theirs.pem")
    assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=3)), ran.err


def test_a_certificate_that_nobody_vouches_for(kind: str, folder: Path, keys: Path) -> None:
    with peer(kind, keys, "theirs") as to:
        refused(send(folder, "--to", to, *(["--tls"] if kind == "AE" else [])), "is not trusted: self")
        refused(send(folder, "--to", to, "--tls-ca", keys / "others.pem"), "see --tls-ca")


def test_a_certificate_of_another_host(kind: str, folder: Path, keys: Path) -> None:
    with peer(kind, keys, "others") as to:
        refused(send(folder, "--to", to, "--tls-ca", keys / "others.pem"), "is not trusted: IP address mismatch")


def test_a_peer_that_wants_our_certificate(kind: str, folder: Path, keys: Path) -> None:
    ours = ("--tls-cert", keys / "ours.pem", "--tls-key", keys / "ours.key")
    with peer(kind, keys, "theirs", asks=True) as to:
        ran = send(folder, "--to", to, "--tls-ca", keys / "theirs.pem", *ours)
        assert (ran.code, statuses(ran)) == (0, Counter(acknowledged=3)), ran.err
        ran = send(folder, "--to", to, "--tls-ca", keys / "theirs.pem", "--again", "--retries", 0)
    assert ran.code == 1


def test_a_peer_without_tls(kind: str, folder: Path, keys: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"\x07\0\0\0\0\x04\0\0\x02\x01")

    with raw_server(talk) as port:
        to = f"SCP@127.0.0.1:{port}" if kind == "AE" else f"https://127.0.0.1:{port}"
        ran = send(folder, "--to", to, "--tls-ca", keys / "theirs.pem", "--retries", 1)
    refused(ran, "no TLS with")


def test_an_answer_that_trickles_over_tls_is_cut_off(folder: Path, keys: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "theirs.pem", keys / "theirs.key")

    def trickle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            while (piece := secure.recv(1 << 16)) and b"--\r\n" not in piece:
                pass
            while True:
                secure.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                time.sleep(0.02)

    with raw_server(trickle) as port:
        to = f"https://127.0.0.1:{port}"
        ran = send(folder, "--to", to, "--tls-ca", keys / "theirs.pem", "--retries", 1, "--timeout", 2)
    refused(ran, "did not answer within 2 s")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-ca", "missing.pem"], "--tls-ca: expected a PEM file, received 'missing.pem'"),
        (["--tls-key", "missing.pem"], "--tls-key: expected --tls-cert beside it"),
        (["--tls-cert", "missing.pem"], "--tls-cert: expected a PEM file, received 'missing.pem'"),
    ],
)
def test_files_that_are_not_there(folder: Path, options: list[str], message: str) -> None:
    ran = send(folder, "--to", "SCP@127.0.0.1:1", *options)
    assert ran.code == 2
    assert message in ran.err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("option", ["--tls-ca", "--tls-cert", "--tls-key", "--auth"])
@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_a_file_that_is_no_regular_file_is_not_waited_for(
    folder: Path, tmp_path: Path, keys: Path, option: str, kind: str
) -> None:
    place = tmp_path / "place"
    if kind == "FIFO":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    beside = ["--tls-cert", keys / "ours.pem"] if option == "--tls-key" else []
    ran = send(folder, "--to", "https://127.0.0.1:1/", *beside, option, place)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert f"{option}: expected a" in ran.err
    assert ("Is a directory" if kind == "folder" else "it is no regular file") in ran.err


def test_tls_for_an_address_without(folder: Path, keys: Path) -> None:
    ran = send(folder, "--to", "http://127.0.0.1:1", "--tls-ca", keys / "theirs.pem")
    assert ran.code == 2
    assert "expected an https:// address beside it" in ran.err


def test_the_files_of_tls_are_read_once(folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda **facts: made.append(facts) or create(**facts))
    with peer("AE", keys, "theirs") as to:
        ran = send(folder, "--to", to, "--tls-ca", keys / "theirs.pem")
    assert (ran.code, [facts["cafile"] for facts in made]) == (0, [keys / "theirs.pem"]), ran.err


def test_a_key_with_a_password_is_refused_without_asking_for_one(folder: Path, keys: Path) -> None:
    locked = keys / "locked.key"
    make = ["openssl", "ec", "-in", keys / "ours.key", "-aes128", "-passout", "pass:secret", "-out", locked]
    subprocess.run(make, check=True, capture_output=True)
    ran = send(folder, "--to", "SCP@127.0.0.1:1", "--tls-cert", keys / "ours.pem", "--tls-key", locked)
    assert (ran.code, ran.out) == (2, "")
    assert "--tls-cert, --tls-key: expected a certificate and its key without a password, as PEM" in ran.err
