"""What lies in ``deploy/`` does what it says: units that systemd accepts, lines that run with nothing around them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from building import make_dicom
from command import by_source, run

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
INSTALLED = "/opt/dicomsort/bin/dicomsort"
SERVICES = sorted(path.name for path in DEPLOY.glob("*.service"))


def commands() -> dict[str, list[str]]:
    """The command of each unit and of the crontab, in words."""
    found = {}
    for name in SERVICES:
        (line,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = shlex.split(line)
    night, week = [line for line in crontab() if not line.startswith("#")]
    found["crontab"], found["crontab, weekly"] = (
        shlex.split(night)[6:],
        shlex.split(week.removesuffix(" >/dev/null"))[6:],
    )
    return found


def crontab() -> list[str]:
    return (DEPLOY / "crontab").read_text(encoding="utf-8").splitlines()


def moved(words: list[str], root: Path) -> list[str]:
    """A command with its absolute paths below ``root``."""
    return [f"{root}{word}" if word.startswith("/") else word for word in words]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root with the folders that the units name, a program, and an inbox."""
    program = tmp_path / INSTALLED[1:]
    program.parent.mkdir(parents=True)
    # What pip makes, with this interpreter; no module is taken from the folder that it is started in.
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m dicomsort "$@"\n')
    program.chmod(0o755)
    for folder in ("srv/inbox", "srv/outbox", "var/lib/dicomsort", "var/log/dicomsort", "etc"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc" / "dicomsort.toml").write_text('[sort]\nengine = "serial"\nevidence = "header"\nsettle = 0\n')
    make_dicom(tmp_path / "srv" / "inbox" / "a.dcm")
    (tmp_path / "srv" / "inbox" / "b.dcm").write_bytes(b"")  # waits for a person
    return tmp_path


def started(words: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as cron and systemd do: no terminal, no input, an environment of a line or two."""
    return subprocess.run(
        moved(words, root),
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        start_new_session=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "name", [path.name for path in sorted(DEPLOY.glob("*.[st]*")) if path.suffix in {".service", ".timer"}]
)
def test_systemd_accepts_the_unit(host: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze (Debian's systemd) is not installed")
    for unit in DEPLOY.glob("dicomsort-*"):
        text = unit.read_text(encoding="utf-8").replace(INSTALLED, f"{host}{INSTALLED}")
        (host / unit.name).write_text(text, encoding="utf-8")
    told = subprocess.run(["systemd-analyze", "verify", host / name], capture_output=True, text=True, check=False)
    assert (told.returncode, [line for line in told.stderr.splitlines() if "dicomsort" in line]) == (0, [])


def test_every_option_in_a_unit_is_one_of_the_command() -> None:
    for name, words in commands().items():
        assert words[0] == INSTALLED
        told = run(words[1], "--help").out
        for option in (word for word in words if word.startswith("--")):
            assert option in told, (name, option)


@pytest.mark.parametrize("name", ["dicomsort-night.service", "crontab"])
def test_the_night_runs_without_anything_around_it(host: Path, name: str) -> None:
    words = commands()[name]
    if name == "crontab":  # which names no configuration
        words = [words[0], words[1], "--engine", "serial", "--evidence", "header", "--settle", "0", *words[2:]]
    ran = started(words, host)
    assert (ran.returncode, ran.stderr) == (0, "")
    placed = by_source(host / "srv" / "outbox")
    assert (placed["a.dcm"]["status"], placed["b.dcm"]["status"]) == ("sorted", "unreadable")
    assert 'status="sorted"' in (host / "var/lib/dicomsort/sort.prom").read_text(encoding="utf-8")
    assert (host / "var/log/dicomsort/sort.log").stat().st_size > 0


def test_what_the_container_file_copies_is_there_and_its_extra_exists() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert re.search(r"^FROM python:3\.\d+-slim( AS \w+)?$", text, re.MULTILINE)
    (listed,) = re.findall(r"-r (\S+)$", text, re.MULTILINE)
    assert re.search(rf"^COPY {re.escape(listed)} ", text, re.MULTILINE)
    for line in re.findall(r"^RUN (.*)$", text, re.MULTILINE):
        assert subprocess.run(["/bin/sh", "-n", "-c", line], check=False).returncode == 0, line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {*project["project"]["optional-dependencies"]["pacs"]} <= {*project["dependency-groups"]["sort"]}


@pytest.mark.parametrize("name", SERVICES)
def test_no_unit_calls_a_failure_a_success(name: str) -> None:
    assert "SuccessExitStatus" not in (DEPLOY / name).read_text(encoding="utf-8")
    assert ("--held-ok" in commands()[name]) == (name == "dicomsort-night.service")
