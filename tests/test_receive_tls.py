"""TLS, with certificates made for the test by openssl."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from building import STORAGE, read_tree, uid
from rawscu import ACCEPTED, Scu
from receiving import SETTINGS, listening, made, opened

from dicomsort.errors import UsageError

CT = STORAGE["CT"].encode()
SOP = uid(1, 1, 1).encode()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ca.pem``, and ``NAME.pem``, ``NAME.key`` of server, client and a stranger; ``locked.key``."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(folder, *new, "-x509", "-subj", "/CN=CA", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(folder, *new, "-x509", "-subj", "/CN=stranger", "-keyout", "stranger.key", "-out", "stranger.pem")
    for name in ("server", "client"):
        openssl(folder, *new, "-subj", "/CN=localhost", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem",
        )  # fmt: skip
    openssl(folder, "ec", "-in", "server.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key")
    return folder


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def client(certificates: Path, name: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates / "ca.pem")
    if name:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


def test_an_instance_comes_over_tls_while_others_stall_or_speak_without(
    inbox: Path, tmp_path: Path, certificates: Path
) -> None:
    settings = replace(SETTINGS, tls_cert=certificates / "server.pem", tls_key=certificates / "server.key")
    data = made(tmp_path) + bytes(200_000)
    with listening(inbox, settings) as receiver, Scu(receiver.port), Scu(receiver.port) as plain:
        plain.send(b"\1" + bytes(100))
        with Scu(receiver.port, tls=client(certificates)) as scu:
            assert (scu.associate()[0], scu.store(CT, SOP, data)) == (ACCEPTED, 0)
            assert plain.receive()[:1] in {b"", b"\x15"}  # an alert of TLS
        receiver.wait_for("connection failed")
        assert receiver.facts("connection failed")["address"] == "127.0.0.1"
    (content,) = read_tree(inbox).values()
    assert content.endswith(data)


def test_with_a_ca_only_its_own_are_heard(inbox: Path, certificates: Path) -> None:
    settings = replace(
        SETTINGS,
        tls_cert=certificates / "server.pem",
        tls_key=certificates / "server.key",
        tls_ca=certificates / "ca.pem",
    )
    with listening(inbox, settings) as receiver:
        with Scu(receiver.port, tls=client(certificates, "client")) as scu:
            assert (scu.associate()[0], scu.echo()) == (ACCEPTED, 0)
        for name in ("", "stranger"):
            assert heard(receiver.port, client(certificates, name)) == b""
        receiver.wait_for("connection failed")
        assert "CERT" in receiver.facts("connection failed")["reason"]


def test_no_more_handshakes_than_can_be_told(inbox: Path, certificates: Path) -> None:
    settings = replace(SETTINGS, tls_cert=certificates / "server.pem", tls_key=certificates / "server.key")
    with listening(inbox, replace(settings, max_associations=1, timeout=60)) as receiver:
        many = [Scu(receiver.port) for _ in range(40)]
        many[-1].socket.settimeout(50)  # those that are heard have longer
        assert many[-1].receive() == b""
        for scu in many:
            scu.socket.close()
        ready = client(certificates)
        while heard(receiver.port, ready)[:1] != bytes([ACCEPTED]):
            pass


def heard(port: int, context: ssl.SSLContext) -> bytes:
    """The answer to a request for an association; empty where none is listened to."""
    try:
        with Scu(port, tls=context) as scu:
            return scu.associate()
    except (ssl.SSLError, ConnectionError):
        return b""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("missing.pem", None, None), "No such file"),
        (("server.pem", None, None), "expected a certificate and its key"),
        (("server.pem", "client.key", None), "KEY_VALUES_MISMATCH"),
        (("server.pem", "locked.key", None), "without a password"),
        (("server.pem", "server.key", "server.key"), "expected a PEM file of certificates"),
        (("server.pem", "server.key", "missing.pem"), "No such file"),
        ((None, "server.key", None), "expected --tls-cert beside"),
        ((None, None, "ca.pem"), "expected --tls-cert beside"),
    ],
)
def test_files_that_are_none_are_wrong_usage(
    inbox: Path, certificates: Path, given: tuple[str | None, ...], expected: str
) -> None:
    cert, key, ca = (certificates / name if name else None for name in given)
    with pytest.raises(UsageError, match=expected):
        opened(inbox, replace(SETTINGS, tls_cert=cert, tls_key=key, tls_ca=ca))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("option", ["tls_cert", "tls_key", "tls_ca"])
def test_a_fifo_is_wrong_usage_and_not_waited_for(inbox: Path, tmp_path: Path, certificates: Path, option: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    settings = replace(SETTINGS, tls_cert=certificates / "server.pem", tls_key=certificates / "server.key")
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}: .*: it is no regular file"):
        opened(inbox, replace(settings, **{option: tmp_path / "fifo"}))
