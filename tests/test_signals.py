"""The real process, killed and interrupted: nothing lost, ``resume`` and ``undo`` complete."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from building import make_dicom
from command import placed, rows, run

from dicomsort.signals import ServiceStop

FILES = 600


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dicom(tmp_path_factory.mktemp("template") / "1.dcm", study=1, instance=10_000)


@pytest.fixture
def inbox(tmp_path: Path, template: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    content = template.read_bytes()
    for number in range(FILES):
        (folder / f"{number}.dcm").write_bytes(content.replace(b".1.1.10000", b".1.1.%d" % (10_000 + number)))
    return folder


def start(inbox: Path, outbox: Path, mode: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dicomsort", "sort", "--evidence", "header", "--engine", "serial", "--settle", "0"]
    return subprocess.Popen([*command, mode, "--quiet", inbox, outbox], stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[bytes], outbox: Path, pattern: str, pause: float) -> None:
    """Until the run has come so far, and a little longer."""
    while process.poll() is None and not any(outbox.glob(pattern)):
        time.sleep(0.005)
    time.sleep(pause)


def digests(*roots: Path) -> set[str]:
    paths = (path for root in roots for path in root.rglob("*.dcm"))
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("mode", ["--move", "--copy"])
@pytest.mark.parametrize(
    ("pattern", "pause"),
    [
        (".dicomsort/lock", 0.0),
        (".dicomsort/runs/*/plan.jsonl", 0.0),
        (".dicomsort/runs/*/plan.jsonl", 0.2),
        (".dicomsort/runs/*/journal.jsonl", 0.0),
        (".dicomsort/runs/*/journal.jsonl", 0.05),
        ("CT/*", 0.0),
        ("CT/*", 0.02),
    ],
)
def test_kill_9(inbox: Path, tmp_path: Path, mode: str, pattern: str, pause: float) -> None:
    outbox = tmp_path / "outbox"
    whole = digests(inbox)
    process = start(inbox, outbox, mode)
    wait_for(process, outbox, pattern, pause)
    process.kill()
    process.communicate()
    assert digests(inbox, outbox) == whole
    ran = run("resume", "--quiet", outbox)
    if ran.code:
        assert ran.code in {1, 2}
        assert "sealed" in ran.err or "none to resume" in ran.err
    else:
        assert len(list(placed(outbox))) == len(rows(outbox)) == FILES
        assert run("undo", "--quiet", outbox).code == 0
    assert digests(inbox) == whole
    assert list(placed(outbox)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_can_be_resumed(inbox: Path, tmp_path: Path, number: int) -> None:
    outbox = tmp_path / "outbox"
    process = start(inbox, outbox, "--move")
    wait_for(process, outbox, ".dicomsort/runs/*/journal.jsonl", 0.0)
    process.send_signal(number)
    _, complaint = process.communicate()
    assert process.returncode in {130, 0}, complaint
    assert b"Traceback" not in complaint
    assert run("resume", "--quiet", outbox).code == 0
    assert len(list(placed(outbox))) == FILES


def test_a_request_to_stop_ends_a_wait_of_any_length_whatever_its_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 2048:
        pytest.skip("fewer than 2,048 descriptors are allowed")
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1024):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        stop = stack.enter_context(closing(ServiceStop()))
        waiting = threading.Thread(target=stop.wait, args=(315_360_000.0,), daemon=True)
        waiting.start()
        stop.make(signal.SIGTERM)
        waiting.join(60)
        assert (waiting.is_alive(), stop.signal) == (False, signal.SIGTERM)
