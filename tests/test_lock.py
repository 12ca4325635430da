"""One writer: who holds an outbox is told, a dead holder is explained, and the second run changes nothing."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from building import make_dicom, read_tree
from command import placed, rows, run, sort
from killing import SORT, start


@contextmanager
def locked(outbox: Path, told: object) -> Iterator[None]:
    """The lock is held, and its file says ``told``."""
    lock = outbox / ".dicomsort" / "lock"
    lock.write_text(told if isinstance(told, str) else json.dumps(told))
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def holder(pid: int, host: str) -> dict[str, object]:
    return {"pid": pid, "host": host, "since": "2026-01-02T03:04:05Z"}


HOLDERS = {
    "alive": (lambda: holder(os.getpid(), socket.gethostname()), "since 2026-01-02T03:04:05Z; wait for it to end ("),
    "somebody else's": (lambda: holder(1, socket.gethostname()), "process 1 on host"),
    "dead": (lambda: holder(dead(), socket.gethostname()), "that process is gone, so one that it started"),
    "impossible": (lambda: holder(1 << 80, socket.gethostname()), "that process is gone"),
    "other host": (lambda: holder(1, "reading-room-2"), "look on reading-room-2 whether it still runs"),
    "hostile": (
        lambda: holder(1, "\x1b[31mX") | {"since": "\x1b]0;pwn\a"},
        "process 1 on host \\x1b[31mX since \\x1b]0;pwn\\x07",
    ),
    "unreadable": (lambda: "{torn", "is held by another process; wait for it to end"),
}


@pytest.mark.parametrize("who", HOLDERS)
@pytest.mark.parametrize("command", ["sort", "resume", "undo"])
def test_a_held_outbox_is_explained_and_left_alone(inbox: Path, outbox: Path, command: str, who: str) -> None:
    sort(inbox, outbox)
    told, expected = HOLDERS[who]
    with locked(outbox, told()):
        before = read_tree(outbox), read_tree(inbox)
        ran = sort("--move", "--settle", 0, inbox, outbox) if command == "sort" else run(command, outbox)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (4, "", 1)
        assert expected in ran.err
        assert ran.err.rstrip("\n").isprintable()
        assert (read_tree(outbox), read_tree(inbox)) == before


def test_the_lock_of_a_dead_process_is_no_lock(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    (outbox / ".dicomsort" / "lock").write_text(json.dumps(holder(dead(), "reading-room-2")))
    assert sort(inbox, outbox).code == 0


def test_of_two_runs_at_once_the_second_ends_with_4(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    for number in range(30):
        make_dicom(inbox / f"{number}.dcm", instance=number + 1)
    runs = [start(*SORT, "--move", inbox, outbox) for _ in range(4)]
    for process in runs:
        process.join()
    codes = sorted(process.exitcode or 0 for process in runs)
    assert set(codes) <= {0, 4}  # one that came when all was over finds an empty inbox
    assert codes[0] == 0
    assert len(list(placed(outbox))) == 30
    assert [row["status"] for row in rows(outbox)] == ["sorted"] * 30
    assert read_tree(inbox) == {}
    assert run("undo", outbox).code == 0 or codes.count(0) > 1


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "\x1b[31mred\x07 it's \\ größe", "no utf-8 \udcff"])
def test_a_command_that_is_advised_can_be_pasted_and_drives_no_terminal(inbox: Path, tmp_path: Path, name: str) -> None:
    outbox = tmp_path / name
    ran = sort(inbox, outbox)
    assert ran.code == 0
    assert all(line.isprintable() for line in ran.out.splitlines())
    ran = run("undo", outbox, "none")
    assert ran.code == 2
    assert ran.err.rstrip("\n").isprintable()
    advised = ran.err.split("`")[1]
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {advised}"], stdout=subprocess.PIPE, check=True).stdout
    assert words.split(b"\0")[:-1] == [b"dicomsort", b"runs", os.fsencode(outbox)]
