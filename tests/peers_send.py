"""Peers to send to, all on loopback: DCMTK's storescp, Orthanc, a pynetdicom SCP and an HTTP server with a script."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rawscu import ABORT, ACCEPTED, ASSOCIATE, DATA, LAST, RELEASE, RELEASED, elements_of, item, pdu

HOST = "127.0.0.1"
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 120


# Below those that the system gives to who names none (ip_local_port_range), and for each worker of the suite others.
_PORTS = itertools.count(20_000 + 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody else will be given; each is given once."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise AssertionError


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process is not None and process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.02)
    pytest.fail(f"nothing listens on port {port}")


@contextlib.contextmanager
def storescp(folder: Path, *options: str) -> Iterator[str]:
    """DCMTK's receiver, which keeps what comes in ``folder``; yields its ``AE@HOST:PORT``."""
    program = shutil.which("storescp")
    if program is None:
        pytest.skip("storescp of DCMTK is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [program, *(options or ("+xa",)), "--output-directory", str(folder), str(port)]
    environment = os.environ | {"TCP_NODELAY": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield f"STORESCP@{HOST}:{port}"
    finally:
        process.terminate()
        process.wait()


class Orthanc(NamedTuple):
    """A running Orthanc: its DICOM address, its DICOMweb address, its REST address."""

    dicom: str
    web: str
    rest: str

    def files(self) -> dict[str, bytes]:
        """SOP Instance UID -> the DICOM file, of all that it holds."""
        found = {}
        for each in json.loads(self.get("/instances?expand")):
            found[each["MainDicomTags"]["SOPInstanceUID"]] = self.get(f"/instances/{each['ID']}/file")
        return found

    def get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment names
        with opener.open(self.rest + path, timeout=START_SECONDS) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def orthanc(folder: Path, **settings: Any) -> Iterator[Orthanc]:
    """An Orthanc that keeps what it gets as it is, with its DICOMweb plugin."""
    if ORTHANC is None or not DICOMWEB.is_file():
        pytest.skip("Orthanc with its DICOMweb plugin is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    dicom, http = free_port(), free_port()
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": http, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [str(DICOMWEB)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, "DicomAet": "ORTHANC", "DicomPort": dicom,
        "DicomCheckCalledAet": False, "DicomAlwaysAllowStore": True, "UnknownSopClassAccepted": True,
        "DeflatedTransferSyntaxAccepted": True, "StorageCompression": False, "SaveJobs": False,
        "OverwriteInstances": True, "DicomScpTimeout": 5, **settings,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait_for_port(http, process)
        wait_for_port(dicom, process)
        yield Orthanc(f"ORTHANC@{HOST}:{dicom}", f"http://{HOST}:{http}/dicom-web", f"http://{HOST}:{http}")
    finally:
        process.terminate()
        process.wait()


def _serve_promptly(server: socketserver.BaseServer) -> None:
    """Serve, and notice a shutdown at once, not after half a second."""
    socketserver.BaseServer.serve_forever(server, 0.01)


class Scp:
    """A pynetdicom SCP that answers by a function of (SOP Instance UID, how often it came): a status, or None to abort.

    ``came`` counts the C-STOREs of each SOP Instance UID, ``kept`` the data sets answered with 0x0000.
    """

    def __init__(self, answer: Callable[[str, int], int | None] = lambda _uid, _times: 0) -> None:
        self.came: Counter[str] = Counter()
        self.kept: dict[str, bytes] = {}
        self.contexts: list[int] = []  # proposed by each association
        self.port = 0
        self._answer = answer
        self._lock = threading.Lock()

    @property
    def to(self) -> str:
        return f"SCP@{HOST}:{self.port}"

    @contextlib.contextmanager
    def running(
        self,
        *,
        syntaxes: list[str] | None = None,
        called: str = "",
        unrestricted: bool = True,
        tls: ssl.SSLContext | None = None,
        pdu: int = 16_382,
        associations: int = 20,
    ) -> Iterator[Scp]:
        from pynetdicom import AE, _config, evt
        from pynetdicom.presentation import AllStoragePresentationContexts
        from pynetdicom.transport import ThreadedAssociationServer

        entity = AE("SCP")
        entity.require_called_aet = bool(called)
        if called:
            entity.ae_title = called
        entity.maximum_associations, entity.maximum_pdu_size = associations, pdu
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, syntaxes or context.transfer_syntax)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_CONN_OPEN, _no_delay),
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", unrestricted and syntaxes is None)
            patch.setattr(ThreadedAssociationServer, "serve_forever", _serve_promptly)
            server = entity.start_server((HOST, 0), block=False, evt_handlers=handlers, ssl_context=tls)
            self.port = server.server_address[1]
            try:
                yield self
            finally:
                server.shutdown()

    def _requested(self, event: Any) -> None:
        self.contexts.append(len(event.assoc.requestor.primitive.presentation_context_definition_list))

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        with self._lock:
            self.came[uid] += 1
            times = self.came[uid]
        status = self._answer(uid, times)
        if status is None:
            event.assoc.abort()
            return 0xA700
        if status == 0:
            self.kept[uid] = event.request.DataSet.getvalue()
        return status


def _no_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Stored(NamedTuple):
    """A C-STORE request as a peer sees it."""

    context: int
    message: int
    sop_class: bytes
    sop_uid: bytes


class RawScp:
    """A C-STORE SCP of plain bytes: a request gets the bytes that a function makes of it. ``came`` keeps them all."""

    def __init__(self, answer: Callable[[Stored], bytes]) -> None:
        self.came: list[Stored] = []
        self.aborts = 0  # A-ABORTs that were received
        self.to = ""
        self._answer = answer

    @contextlib.contextmanager
    def running(self) -> Iterator[RawScp]:
        with raw_server(self._talk) as port:
            self.to = f"RAW@{HOST}:{port}"
            yield self

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(30)
        request = None
        with connection.makefile("rb") as stream:
            while len(head := stream.read(6)) == 6:
                body = stream.read(int.from_bytes(head[2:], "big"))
                if head[0] == ASSOCIATE:
                    connection.sendall(_acceptance(body))
                elif head[0] == RELEASE:
                    connection.sendall(pdu(RELEASED, bytes(4)))
                elif head[0] == ABORT:
                    self.aborts += 1
                elif head[0] == DATA and body[5] & 1:
                    found = elements_of(body[6:])
                    message = int.from_bytes(found[0x0110], "little")
                    request = Stored(body[4], message, *(found[tag].rstrip(b"\0") for tag in (0x0002, 0x1000)))
                elif head[0] == DATA and body[5] & LAST:
                    assert request is not None
                    self.came.append(request)
                    connection.sendall(self._answer(request))


def _acceptance(request: bytes) -> bytes:
    """The A-ASSOCIATE-AC that takes every context of a request (PS3.8 9.3.3)."""
    items, at = item(0x10, b"1.2.840.10008.3.1.1.1"), 68
    while at < len(request):
        size = int.from_bytes(request[at + 2 : at + 4], "big")
        if request[at] == 0x20:
            syntax = request[at + 4 : at + 4 + size].rpartition(b"\x40\0")[2][2:]
            items += item(0x21, bytes([request[at + 4], 0, 0, 0]) + item(0x40, syntax))
        at += 4 + size
    user = item(0x50, item(0x51, (16384).to_bytes(4, "big")) + item(0x52, b"1.2.3"))
    return pdu(ACCEPTED, request[:68] + items + user)


class Reply(NamedTuple):
    """What the scripted HTTP server answers; without a status it closes the connection in the middle."""

    status: int | None
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


class Web:
    """An HTTP server that answers by a function of (how many requests came, the body); ``requests`` keeps them all."""

    def __init__(self, answer: Callable[[int, bytes], Reply]) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._answer = answer
        self.port = 0

    @property
    def to(self) -> str:
        return f"http://{HOST}:{self.port}/dicom-web"

    @contextlib.contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator[Web]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                web.requests.append((self.path, dict(self.headers), body))
                reply = web._answer(len(web.requests), body)
                if reply.status is None:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer((HOST, 0), Handler)
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server that treats each connection by ``talk`` and closes it; yields its port."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    talk(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(60)
