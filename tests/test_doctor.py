"""``doctor`` says in a line what is fine and how to mend what is not, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import imagecodecs
import pytest
from building import read_tree
from command import run

from dicomsort.doctor import Finding, State, examine_folders, folders, machine
from dicomsort.files import Files
from dicomsort.pixels import decoders


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
    assert "0 runs kept" in [finding.message for finding in found]
    assert not states(found, "clock")


def test_json_and_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        ran = run("doctor", "--json", "--port", port)
    (told,) = [finding for finding in json.loads(ran.out) if finding["what"] == "port"]
    assert (told["state"], told["message"]) == ("note", f"{port} is in use")
    assert f"sport = :{port}" in told["mend"]
    assert ran.code == 0


def test_what_must_be_mended_ends_with_1(tmp_path: Path) -> None:
    ran = run("doctor", "--model", tmp_path, tmp_path / "nothing")
    assert ran.code == 1
    assert "✗ wrong  model: " in ran.out
    assert "✗ wrong  inbox: expected a folder, received nothing" in ran.out


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = machine._installed
    monkeypatch.setattr(machine, "_installed", lambda name: "0.1" if name == "pydicom" else installed(name))
    (told,) = [finding for finding in machine.examine_machine(None, None) if finding.state is State.WRONG]
    assert "expected pydicom>=" in told.message
    assert "received 0.1" in told.message


def test_a_decoder_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such codec")

    monkeypatch.setattr(imagecodecs, "jpegls_decode", broken)
    assert dict(decoders.decoder_failures()) == {"JPEG-LS": "RuntimeError: no such codec"}


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

    def rename(self, source: str, target: str) -> None:
        if "renames" in self.missing:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if "reserve" in self.missing:
            Path(source).replace(target)
        else:
            super().rename(source, target)

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
        ("links", State.FINE, "renaming never replaces"),
        ("links renames", State.NOTE, "refuses to rename without replacing"),
        ("links reserve", State.WRONG, "renaming replaced a file"),
        ("care", State.WRONG, "a hard link replaced a file"),
        ("locks", State.WRONG, "expected a lock (flock), received No locks available"),
        ("exclusion", State.WRONG, "a lock that is held was given out again"),
        ("syncfs", State.NOTE, "flushes file by file"),
        ("room", State.WRONG, "received No space left on device"),
    ],
)
def test_what_a_file_system_does_not_promise(tmp_path: Path, missing: str, state: State, words: str) -> None:
    found = look(None, tmp_path, Without(*missing.split()))
    assert [finding.state for finding in found if words in finding.message] == [state]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", [".", ".dicomsort/lock", ".dicomsort/runs", "manifest.csv"])
def test_something_else_in_the_place_of_a_state_is_found(tmp_path: Path, name: str) -> None:
    outbox = tmp_path / "outbox"
    path = (outbox / name).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if path.suffix or path.name == "lock" else path.write_text("x")
    found = look(None, outbox)
    assert any(finding.state is State.WRONG and ": expected a" in finding.message for finding in found)


class Served(Files):
    """A file server that takes half a second to flush; its clock goes ahead of ours, or behind."""

    def __init__(self, ahead: float | None) -> None:
        super().__init__()
        self._ahead = ahead

    def flush(self, descriptor: int) -> None:
        if self._ahead is not None:
            os.utime(descriptor, (0, time.time() + self._ahead))
        time.sleep(0.5)


@pytest.mark.parametrize(("ahead", "told"), [(None, ""), (60, "clock is +"), (-60, "clock is -")])
def test_a_file_server_with_another_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float | None, told: str
) -> None:
    monkeypatch.setattr(folders, "SKEW", 0.25)
    found = [finding.message for finding in look(None, tmp_path, Served(ahead)) if "clock" in finding.message]
    assert len(found) == bool(told)
    assert all(told in message for message in found)


def test_a_clock_that_went_backwards_and_a_state_that_others_read(tmp_path: Path) -> None:
    (tmp_path / ".dicomsort" / "runs" / "29990101T000000Z-abcdef").mkdir(parents=True)
    found = look(None, tmp_path)
    assert states(found, "clock") == {State.WRONG}
    assert any("others may read its state" in finding.message for finding in found)


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    found = look(tmp_path, tmp_path)
    assert states(found, "inbox") == {State.NOTE}
    assert State.WRONG in states(found, "outbox")


def test_small_sizes_are_told_in_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_400_000, total=64_000_000))
    found = look(None, tmp_path)
    assert any("3.4 MB free of 64.0 MB" in finding.message for finding in found)


def named(*arguments: object) -> list[str]:
    """What doctor finds wrong about what a configuration or a crontab names."""
    with mock.patch("dicomsort.doctor.examine_machine", return_value=()):
        ran = run("doctor", "--json", *arguments)
    wrong = [finding for finding in json.loads(ran.out) if finding["state"] == State.WRONG]
    assert ran.code == bool(wrong)
    return [f"{finding['what']}: {finding['message']}; {finding['mend']}" for finding in wrong]


def test_a_configuration_whose_folders_are_missing(tmp_path: Path, root: Path) -> None:
    file = tmp_path / "dicomsort.toml"
    file.write_text('metrics = "figures/x.prom"\n[sort]\nmodel = "ours"\n[watch]\nlog-file = "/missing/x.log"\n')
    told = named("--config", file)
    assert len(told) == 3
    assert (
        f"--metrics: expected a file in a folder that can be written, received '{tmp_path}/figures/x.prom'" in told[0]
    )
    assert f"('figures/x.prom' in '{file}': a relative path starts at the folder of that file)" in told[0]
    assert f"install -d -o USER {tmp_path}/figures" in told[0]
    assert told[1].startswith(f"configuration [sort]: --model: expected what can be read, received '{tmp_path}/ours'")
    assert told[2].startswith("configuration [watch]: --log-file: expected a file in a folder")
    (tmp_path / "figures").mkdir()
    shutil.copytree(root / "models/default", tmp_path / "ours")
    file.write_text(file.read_text().replace("/missing/", ""))
    assert named("--config", file) == []
    (tmp_path / "x.log").write_text("somebody's\n")
    assert "it holds something else" in named("--config", file)[0]
    file.write_text('[destinations.PACS]\nto = "PACS@pacs.example:104"\ntls-ca = "ca.pem"\n')
    (missing,) = named("--config", file)
    assert missing.startswith("configuration [destinations.PACS]: --tls-ca: expected what can be read, received")
    assert f"('ca.pem' in '{file}': a relative path starts at the folder of that file)" in missing
    file.write_text("settel = 3\n")
    assert "did you mean settle?" in named("--config", file)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[routes]\nNOPE = "A@h:1"',
            "configuration [routes]: [routes]: expected a class of the model (CT, MRI, OTHER, XRAY)",
        ),
        ('[routes]\nCT = "A@h h:1"', "configuration [routes] CT: --to: expected AE@HOST:PORT"),
        ('[routes]\nCT = "P"\n[destinations.P]\nto = "A@h:0"', "configuration [destinations.P]: --to: expected a port"),
        ('[send]\nto = "PACS"', "configuration [send]: --to: expected AE@HOST:PORT"),
        ('[send]\nto = "P"\n[routes]\nOTHER = "P"\n[destinations.P]\nto = "A@h:1"', ""),
        ('[send]\nto = "A@h:1"\ntls-ca = "fifo"', "configuration [send]: --tls-ca: expected what can be read"),
        ('[send]\nto = "A@h:1"\ntls-ca = "empty"', "configuration [send]: --tls-ca: expected a PEM file"),
    ],
)
def test_routes_and_destinations_of_a_configuration(tmp_path: Path, text: str, expected: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "dicomsort.toml").write_text(text)
    told = named("--config", tmp_path / "dicomsort.toml")
    assert len(told) == bool(expected), told
    assert expected in "".join(told)


def test_a_model_that_the_configuration_names_has_its_own_classes(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "models/default", tmp_path / "ours")
    spec = json.loads((tmp_path / "ours/bundle.json").read_text())
    spec |= {"labels": ["CT", "MRI", "OTHER", "RADIOGRAPH"], "header_classes": {"XRAY": "RADIOGRAPH"}}
    spec["thresholds"]["decide"] = 0.95
    (tmp_path / "ours/bundle.json").write_text(json.dumps(spec))
    reader, writer = os.pipe()  # as <(…) of a shell, which can be read once
    os.write(writer, f'model = "{tmp_path}/ours"\n[routes]\nXRAY = "A@h:1"\nRADIOGRAPH = "A@h:1"\n'.encode())
    os.close(writer)
    (told,) = named("--config", f"/dev/fd/{reader}")
    os.close(reader)
    assert "expected a class of the model (CT, MRI, OTHER, RADIOGRAPH), received 'XRAY'" in told


def test_a_destination_without_what_speaks_to_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    (tmp_path / "dicomsort.toml").write_text('[routes]\nCT = "A@h:1"')
    (told,) = named("--config", tmp_path / "dicomsort.toml")
    assert "expected the extra pacs, received: not installed" in told


CRON = "15 2 * * *  {user}  {program} sort {options} {inbox} {outbox}\n"


def cron_line(root: Path, options: str = "--move", user: str = "") -> str:
    program = root / "bin" / "dicomsort"
    program.parent.mkdir(exist_ok=True)
    program.touch(0o755)
    (root / "inbox").mkdir(exist_ok=True)
    return CRON.format(user=user, program=program, options=options, inbox=root / "inbox", outbox=root / "outbox")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: line, ""),
        (lambda line: f"MAILTO=me\n# dicomsort\n0 1 * * * root true\n{line.strip()} >>/dev/null 2>&1\n", ""),
        (lambda line: line.replace("15 2 * * *", "@daily"), ""),
        (lambda line: line.strip(), "expected a line feed at its end, received none; cron ignores the last line"),
        (lambda line: line.replace("sort --move", "sort --moove"), "No such option: --moove"),
        (lambda line: line.replace("sort --move", "srot --move"), "expected a command of dicomsort, received 'srot'"),
        (lambda line: line.replace("--move", "--settle never"), "expected a number from 0"),
        (lambda line: line.replace("--move", "--log-file /missing/x.log"), "'/missing/x.log'; as root: install -d"),
        (lambda line: line.replace("--move", "--log-file $(date +%F)"), "expected no % (a line feed, to cron)"),
        (lambda line: line.replace("--move", r"--settle '$(date +\%s)'"), "received '$(date +%s)'"),
        (lambda line: line.replace("--move", "--config /missing.toml"), "expected a readable TOML file"),
        (lambda line: line.replace("/inbox ", "/nowhere "), "inbox: expected a folder, received nothing at"),
        (lambda line: line.replace("sort --move", "sort --help"), "this line prints help and does nothing else"),
        (lambda line: line.replace("sort --move", "sort -h"), "this line prints help and does nothing else"),
        (lambda line: line.replace("sort --move", "sort --version"), "No such option: --version"),
        (lambda line: line.replace("sort --move", "--version"), "a command of dicomsort, received '--version'"),
        (lambda line: line.replace("--move", "--layout a\0b"), "received the character NUL"),
        (lambda line: line.replace("15", f"*/{'9' * 5000}"), "expected as the minute numbers from 0 to 59"),
        (lambda line: f"{line.partition('--move')[0]} '' ''\n", "INBOX: expected a name, received an empty one"),
        (lambda line: line.replace("--move", "--log-file x.log"), "expected an absolute path, received 'x.log'"),
        (lambda line: line.replace("/bin/", "/no/"), "expected the absolute path of a program"),
        (lambda line: line.replace("--move", "--layout 'x"), "expected a command of the shell"),
        (lambda line: "", "expected a line that runs dicomsort, received none"),
    ],
)  # fmt: skip
def test_a_crontab(tmp_path: Path, change: Callable[[str], str], expected: str) -> None:
    file = tmp_path / "crontab"
    file.write_text(change(cron_line(tmp_path)))
    told = named("--crontab", file)
    assert bool(told) == bool(expected), told
    assert expected in " ".join(told)


def test_a_crontab_that_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for file in (tmp_path / "fifo", Path("/dev/zero")):
        (told,) = named("--crontab", file)
        assert f"expected a crontab that can be read, received {file}: [Errno 22] it is no regular file" in told


def test_the_user_of_a_crontab_of_the_system(tmp_path: Path) -> None:
    file = tmp_path / "crontab"
    file.write_text(cron_line(tmp_path, user="no-such-user"))
    assert "expected a user of this machine, received 'no-such-user'" in named("--crontab", file)[0]
    file.write_text(cron_line(tmp_path, user=pwd.getpwuid(os.geteuid()).pw_name))
    assert named("--crontab", file) == []


def test_the_shipped_crontab_names_folders_that_are_looked_at(root: Path) -> None:
    told = named("--crontab", root / "deploy" / "crontab")
    for place in ("/var/lib/dicomsort/sort.prom", "/var/log/dicomsort/sort.log"):
        if not os.access(os.path.dirname(place), os.W_OK):  # noqa: PTH120 - text
            assert any(place in line for line in told)


def test_a_package_of_other_commands_that_is_missing_ends_no_check() -> None:
    code = "import runpy, sys; sys.modules['tornado'] = None; sys.argv[1:] = ['doctor', '--json']; "
    code += "runpy.run_module('dicomsort', run_name='__main__')"
    command = [sys.executable, "-X", "utf8", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)
