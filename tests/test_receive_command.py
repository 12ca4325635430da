"""The command: its options, exit codes and signals, as a process; what a killed one left; memory."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import manual
import pytest
from building import STORAGE, read_tree, uid
from command import run
from peers import environment, receiving
from rawscu import ABORT, LAST, Scu, pdata
from receiving import made

from dicomsort.config import RECEIVE as OPTIONS
from dicomsort.pacs.receive import GRACE
from dicomsort.pacs.receive.incoming import FAILURE, MISMATCH, NOT_UNDERSTOOD, OUT_OF_RESOURCES, SUCCESS

CT = STORAGE["CT"].encode()
SOP = uid(1, 1, 1).encode()
LARGE = 192 << 20  # bytes


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--port", 70000], "--port: expected a whole number from 0 to 65535, received 70000"),
        (["--port", -1], "--port: expected a whole number from 0 to 65535, received -1"),
        (["--port", "x"], "--port: expected a whole number from 0 to 65535, received 'x'"),
        (["--max-pdu", 100], "--max-pdu: expected a whole number from 4096 to 1048576"),
        (["--max-pdu", 1 << 24], "--max-pdu: expected a whole number from 4096 to 1048576"),
        (["--max-associations", 0], "--max-associations: expected a whole number from 1 to 1000"),
        (["--max-object-size", 0], "--max-object-size: expected a whole number from 1 to 1048576"),
        (["--timeout", "nan"], "--timeout: expected a number from 1 to 86400, received nan"),
        (["--ae-title", " "], "--ae-title: expected an AE title"),
        (["--allow", "A" * 17], "--allow: expected an AE title"),
        (["--allow", "CT1", "--allow", "A\\B"], "--allow: expected an AE title"),
        (["--ae-title", "Ä"], "--ae-title: expected an AE title"),
        (["--log-format", "xml"], "--log-format: expected text|json"),
        (["--log-file", "/nowhere/log"], "--log-file: expected a file in a folder that can be written"),
        (["--tls-key", "key.pem"], "expected --tls-cert beside"),
        *((["--bind", host], "--bind: expected ") for host in ("a..b", "\udcff", "a" * 70)),
    ],
)
def test_wrong_usage(inbox: Path, options: list[object], expected: str) -> None:
    ran = run("receive", *options, inbox)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err


def test_an_inbox_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    ran = run("receive", tmp_path / "missing")
    assert (ran.code, "expected INBOX to be a folder" in ran.err) == (2, True)


def test_without_the_extra_it_is_named(inbox: Path) -> None:
    with mock.patch.dict(sys.modules, {"pynetdicom": None}):
        sys.modules.pop("dicomsort.pacs.receive.receiver", None)
        ran = run("receive", inbox)
    assert ran.code == 2
    assert "expected the extra pacs, received: not installed" in ran.err


def test_help_has_an_example() -> None:
    ran = run("receive", "--help")
    assert (ran.code, "Example: dicomsort receive --ae-title" in ran.out) == (0, True)


def test_the_manual_tells_statuses_and_defaults_as_they_are() -> None:
    section = manual.section("pacs.md", "## Receive")
    statuses = {SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD, FAILURE}
    assert {int(code, 16) for code in re.findall(r"^\| `(0x\w{4})`", section, re.MULTILINE)} == statuses
    assert f"port {OPTIONS['port'].default} " in section
    assert f"`--max-associations` ({OPTIONS['max_associations'].default})" in section
    assert f"`--timeout` seconds ({OPTIONS['timeout'].default:.0f})" in section
    assert f"have {GRACE:.0f} seconds" in section
    assert f"have {GRACE:.0f}" in run("receive", "--help").out.replace("\n", " ")


def test_a_port_that_is_taken_is_told(inbox: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = run("receive", "--bind", "127.0.0.1", "--port", port, inbox)
    assert ran.code == 1
    assert f"expected to listen at 127.0.0.1 port {port}, received: Address already in use" in ran.err
    assert read_tree(inbox) == {}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_signals_end_it_behind_the_instance_on_its_way(inbox: Path, tmp_path: Path, number: int, code: int) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the signal is ignored here, so it is there")
    data = made(tmp_path)
    with receiving(inbox) as receiver, Scu(receiver.port) as scu:
        scu.associate()
        scu.send(scu.command(1, data_set=True, sop_class=CT, sop=SOP))
        scu.send(pdata(1, 0, data[:300]))
        while not read_tree(inbox):
            time.sleep(0.01)
        receiver.process.send_signal(number)
        while receiver.events()[-1]["event"] != "ending":
            time.sleep(0.01)
        scu.send(pdata(1, LAST, data[300:]))
        assert (scu.status(), scu.receive()[0]) == (0, ABORT)
        assert receiver.process.wait() == code
    assert [path.rpartition(".")[2] for path in read_tree(inbox)] == ["dcm"]
    assert [receiver.events()[1]["event"], receiver.events()[-1]["event"]] == ["listening", "ended"]


def test_the_log_goes_to_stderr_where_no_file_is_named(inbox: Path) -> None:
    command = [sys.executable, "-P", "-m", "dicomsort", "receive", "--bind", "127.0.0.1", "--port", "0", str(inbox)]
    with subprocess.Popen(
        command, env=environment(), cwd="/", stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        process.terminate()
        out, err = process.communicate()
    assert (process.returncode, out) == (0, b"")
    assert re.search(r"INFO listening ae_title=DICOMSORT port=[1-9]\d*\b", line)
    assert b"INFO ending signal=SIGTERM" in err


def test_a_start_removes_what_a_killed_one_left_and_not_what_is_in_use(inbox: Path) -> None:
    def begin(port: int) -> Scu:
        scu = Scu(port)
        scu.associate()
        scu.send(scu.command(1, data_set=True, sop_class=CT, sop=SOP))
        scu.send(pdata(1, 0, bytes(300)))
        return scu

    with receiving(inbox) as first, begin(first.port):
        while not read_tree(inbox):
            time.sleep(0.01)
        parts = [*read_tree(inbox)]
        with receiving(inbox, name="second") as second:
            assert [event["event"] for event in second.events()] == ["dicomsort log", "listening"]
            assert [*read_tree(inbox)] == parts
            first.process.kill()
            first.process.wait()
        with receiving(inbox, name="third") as third:
            assert [event["event"] for event in third.events()] == ["dicomsort log", "leftovers removed", "listening"]
            assert third.events()[1]["parts"] == 1
    assert read_tree(inbox) == {}


def test_memory_does_not_grow_with_the_instance(inbox: Path, tmp_path: Path) -> None:
    data, zeros = made(tmp_path), bytes(120_000)
    with receiving(inbox) as receiver, Scu(receiver.port) as scu:
        scu.associate()
        scu.socket.settimeout(240)  # the disk has 192 MiB to write
        assert scu.store(CT, SOP, data) == 0
        before = peak_of(receiver.process.pid)
        scu.send(scu.command(1, data_set=True, sop_class=CT, sop=SOP))
        scu.send(pdata(1, 0, data))
        for _ in range(LARGE // len(zeros)):
            scu.send(pdata(1, 0, zeros))
        scu.send(pdata(1, LAST, b"\0\0"))
        assert scu.status() == 0
        assert peak_of(receiver.process.pid) - before < LARGE // 8
    assert max(path.stat().st_size for path in inbox.rglob("*.dcm")) > LARGE - len(zeros)


def peak_of(process: int) -> int:
    """The most memory that a process ever held, in bytes."""
    status = Path(f"/proc/{process}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
