"""Real peers, each started on loopback with a configuration, ports and folders of its own, and ended with its context.

A test that uses them is marked ``peers``; where a program is missing it is skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from peers_send import free_port

ROOT = Path(__file__).resolve().parents[1]
DICOM_WEB = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/lib/orthanc/plugins/libOrthancDicomWeb.so")
ENDS = 120  # seconds that a peer has to begin or to end before the test fails


def tool(name: str) -> str:
    """The path of a program, also where only root looks; skips the test where it is not installed."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: dcmtk, orthanc, orthanc-dicomweb)")
    return path


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the context, kindly first."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(ENDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Receiving(NamedTuple):
    """A process of ``dicomsort receive``."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def events(self) -> list[dict[str, Any]]:
        whole, _, _ = self.log.read_text("utf-8").rpartition("\n")  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines()]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(ENDS)


def environment() -> dict[str, str]:
    """Of a process that runs this checkout."""
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}


@contextlib.contextmanager
def receiving(inbox: Path, *options: object, name: str = "receiver") -> Iterator[Receiving]:
    """``dicomsort receive INBOX`` at a free port, as a process; its log, called by ``name``, lies beside the inbox."""
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    log = inbox.with_name(f"{name}.log")
    log.unlink(missing_ok=True)
    words = ["receive", "--bind", "127.0.0.1", "--port", "0", "--log-file", str(log), "--log-format", "json"]
    command = [sys.executable, "-P", "-m", "dicomsort", *words, *map(str, options), str(inbox)]
    errors = inbox.with_name(f"{name}.err")
    with errors.open("wb") as stream, running(command, env=environment(), cwd="/", stderr=stream) as process:
        deadline = time.monotonic() + ENDS
        while not log.is_file() or b'"listening"' not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the receiver did not listen: {errors.read_text('utf-8', 'replace')}")
            time.sleep(0.02)
        found = Receiving(process, 0, log)
        yield found._replace(port=found.events()[-1]["port"])


class Sending(NamedTuple):
    """A process that sends, and what it prints."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def finish(self) -> tuple[int, str]:
        """Wait for its end: its exit code, and what it printed."""
        code = self.process.wait(ENDS * 5)
        with self.output as stream:
            stream.seek(0)
            return code, stream.read().decode("utf-8", "replace")


def dcmsend(port: int, *paths: Path) -> Sending:
    """Begin to send files and folders, each as it is, over one association."""
    command = [tool("dcmsend"), "-v", "-dn", "-nh", "+sd", "+r", "127.0.0.1", str(port), *map(str, paths)]
    output = tempfile.TemporaryFile()  # noqa: SIM115 - ``finish`` closes it
    return Sending(subprocess.Popen(command, stdout=output, stderr=output), output)


@contextlib.contextmanager
def storescp(folder: Path, *options: str, title: str = "ARCHIVE") -> Iterator[int]:
    """DCMTK's receiver, which writes to ``folder`` as it got it: its port."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    with running([tool("storescp"), "-aet", title, "+xa", "+B", "-od", str(folder), *options, str(port)]):
        wait_until_it_answers(port)
        yield port


def wait_until_it_answers(port: int) -> None:
    """C-ECHO is answered there."""
    for _ in range(ENDS * 10):
        if not subprocess.run([tool("echoscu"), "127.0.0.1", str(port)], capture_output=True, check=False).returncode:
            return
        time.sleep(0.1)
    pytest.fail(f"nobody answered C-ECHO at port {port}")


class Orthanc(NamedTuple):
    """An Orthanc: its DICOM port, and its REST API."""

    dicom_port: int
    http_port: int

    @property
    def dicom_web(self) -> str:
        """Where STOW-RS is spoken, if its plugin is installed."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def ask(self, path: str, body: bytes | None = None) -> Any:
        """GET, or POST of ``body``; the JSON of the answer."""
        return json.loads(self.fetch(path, body))

    def fetch(self, path: str, body: bytes | None = None) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.http_port}{path}", body, timeout=ENDS) as answer:
            return bytes(answer.read())

    def add(self, path: Path) -> str:
        """Upload a file; the id of its study."""
        return str(self.ask("/instances", path.read_bytes())["ParentStudy"])

    def send(self, study: str, modality: str) -> Any:
        """Send a study on by C-STORE."""
        return self.ask(f"/modalities/{modality}/store", study.encode())

    def instances(self) -> dict[str, bytes]:
        """SOP Instance UID -> the file, of all that it holds."""
        return {
            self.ask(f"/instances/{each}")["MainDicomTags"]["SOPInstanceUID"]: self.fetch(f"/instances/{each}/file")
            for each in self.ask("/instances")
        }


@contextlib.contextmanager
def orthanc(
    folder: Path, modalities: dict[str, tuple[str, int]] | None = None, title: str = "ORTHANC"
) -> Iterator[Orthanc]:
    """An Orthanc with its data in ``folder``; ``modalities`` are AE titles and ports on this host, by name."""
    found = Orthanc(free_port(), free_port())
    folder.mkdir(exist_ok=True)
    settings = {
        "Name": title, "DicomAet": title, "DicomPort": found.dicom_port, "HttpPort": found.http_port,
        "StorageDirectory": str(folder), "IndexDirectory": str(folder), "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomCheckCalledAet": False, "DicomAlwaysAllowStore": True,
        "DicomModalities": {name: [ae, "127.0.0.1", port] for name, (ae, port) in (modalities or {}).items()},
        "Plugins": [path for path in DICOM_WEB if Path(path).is_file()][:1],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(settings), "utf-8")
    with (
        (folder / "orthanc.log").open("wb") as log,
        running([tool("Orthanc"), str(configuration)], stderr=log, stdout=log),
    ):
        for _ in range(ENDS * 10):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                found.ask("/system")
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"Orthanc did not answer: {(folder / 'orthanc.log').read_text('utf-8', 'replace')[-2000:]}")
        yield found
