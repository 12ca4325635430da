"""``doctor`` says in a line what is fine and how to mend what is not, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import imagecodecs
import pytest
from building import read_tree
from command import run

from dicomsort.doctor import Finding, State, examine_folders, machine
from dicomsort.files import Files
from dicomsort.pixels import selftest


def states(findings: list[Finding], what: str) -> set[State]:
    return {finding.state for finding in findings if finding.what == what}


def look(inbox: Path | None, outbox: Path | None, files: Files | None = None) -> list[Finding]:
    names = (None if folder is None else str(folder) for folder in (inbox, outbox))
    return list(examine_folders(*names, files or Files()))


def test_a_sound_installation(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "mine").write_bytes(b"1")
    ran = run("doctor", inbox, tmp_path / "outbox")
    assert ran.code == 0, ran.out
    assert "✗" not in ran.out
    assert "JPEG 2000" in ran.out
    assert "as bundle.json says" in ran.out
    assert "second name on one file system" in ran.out
    assert read_tree(tmp_path) == {"inbox/mine": b"1"}
    assert not (tmp_path / "outbox").exists()


def test_a_folder_of_somebody_else_among_the_runs_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".dicomsort" / "runs" / "zzz-mine").mkdir(parents=True)
    found = look(None, tmp_path)
    assert "0 runs kept" in [finding.told for finding in found]
    assert not states(found, "clock")


def test_json_and_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        ran = run("doctor", "--json", "--port", port)
    (told,) = [finding for finding in json.loads(ran.out) if finding["what"] == "port"]
    assert (told["state"], told["told"]) == ("note", f"{port} is in use")
    assert f"sport = :{port}" in told["mend"]
    assert ran.code == 0


def test_what_must_be_mended_ends_with_1(tmp_path: Path) -> None:
    ran = run("doctor", "--model", tmp_path, tmp_path / "nothing")
    assert ran.code == 1
    assert "✗ wrong  model: " in ran.out
    assert "✗ wrong  inbox: expected a folder, received nothing" in ran.out


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda name: "0.1" if name == "pydicom" else "9999")
    (told,) = [finding for finding in machine.examine_machine(None, None) if finding.state is State.WRONG]
    assert "expected pydicom>=" in told.told
    assert "received 0.1" in told.told


def test_a_decoder_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such codec")

    monkeypatch.setattr(imagecodecs, "jpegls_decode", broken)
    assert dict(selftest.failures()) == {"JPEG-LS": "RuntimeError: no such codec"}


class Without(Files):
    """A file system that refuses or forgets some promises."""

    def __init__(self, *missing: str) -> None:
        super().__init__()
        self.missing = missing

    def link(self, source: str, target: str) -> None:
        if "links" in self.missing:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if "care" in self.missing:
            Path(target).unlink(missing_ok=True)
        super().link(source, target)

    def lock(self, descriptor: int) -> bool:
        if "locks" in self.missing:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return "exclusion" in self.missing or super().lock(descriptor)

    def flush_system(self, path: str) -> bool:
        return "syncfs" not in self.missing and super().flush_system(path)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        if "room" in self.missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(descriptor, data)


@pytest.mark.parametrize(
    ("missing", "state", "words"),
    [
        ("links", State.NOTE, "refuses hard links"),
        ("care", State.WRONG, "a hard link replaced a file"),
        ("locks", State.WRONG, "expected a lock (flock), received No locks available"),
        ("exclusion", State.WRONG, "a lock that is held was given out again"),
        ("syncfs", State.NOTE, "flushes file by file"),
        ("room", State.WRONG, "received No space left on device"),
    ],
)
def test_what_a_file_system_does_not_promise(tmp_path: Path, missing: str, state: State, words: str) -> None:
    found = look(None, tmp_path, Without(missing))
    assert [finding.state for finding in found if words in finding.told] == [state]
    assert not [*tmp_path.iterdir()]


def test_a_clock_that_went_backwards_and_a_state_that_others_read(tmp_path: Path) -> None:
    (tmp_path / ".dicomsort" / "runs" / "29990101T000000Z-abcdef").mkdir(parents=True)
    found = look(None, tmp_path)
    assert states(found, "clock") == {State.WRONG}
    assert any("others may read its state" in finding.told for finding in found)


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    found = look(tmp_path, tmp_path)
    assert states(found, "inbox") == {State.NOTE}
    assert State.WRONG in states(found, "outbox")
