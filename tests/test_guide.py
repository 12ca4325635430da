"""The guide from nothing to a nightly job, typed line by line on a host below a folder of the test.

What is typed as root is done as we are; what is typed as the user ``dicomsort``, by one without rights, if we are root.
Lines that change accounts, packages or services are checked and not run; what a timer or cron would start is started.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from building import make_dicom
from command import by_source, placed
from manual import page, section
from unprivileged import identity

ROOT = Path(__file__).resolve().parents[1]
GUIDE = section("operations.md", "## From nothing to a nightly job")
PLACES = ("/etc/", "/opt/", "/srv/", "/var/")
NOT_RUN = ("apt-get", "useradd", "python3", "systemctl", "/opt/dicomsort/bin/pip")


def blocks(kind: str, text: str) -> Iterator[str]:
    """The lines of the code blocks of a kind."""
    for block in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL):
        yield from filter(None, block.splitlines())


@dataclass
class Host:
    """A machine below a folder: its files, and who ``dicomsort`` is there."""

    root: Path
    user: dict[str, object] = field(default_factory=identity)
    nights: int = 0

    @property
    def name(self) -> str:
        """The user's name on the machine that the tests run on."""
        return pwd.getpwuid(int(str(self.user.get("user", os.geteuid())))).pw_name

    @property
    def checkout(self) -> Path:
        return self.root / "checkout"

    def here(self, text: str) -> str:
        """A line, or a file, with its paths and its user on this host."""
        text = re.sub(rf"(?<![\w./])({'|'.join(PLACES)})", rf"{self.root}\1", text)
        return re.sub(r"(?<=-[ug] )dicomsort\b|(?<=-o )dicomsort\b|(?<=\* \* [*0]  )dicomsort\b", self.name, text)

    def fill(self) -> None:
        """What arrives on a day: an image, and a file that a person must look at."""
        self.nights += 1
        inbox = self.root / "srv" / "inbox"
        for path in (
            make_dicom(inbox / f"{self.nights}" / "Zoë" / os.fsdecode(b"\xff") / "1.dcm", study=self.nights),
            inbox / f"{self.nights}" / "cut.dcm",
        ):
            path.write_bytes(path.read_bytes() if path.exists() else b"")
            os.utime(path, (1, 1))
        if self.user:
            for path in (inbox, *inbox.rglob("*")):
                os.chown(path, int(str(self.user["user"])), int(str(self.user["group"])))

    def run(self, line: str, *, as_user: bool) -> subprocess.CompletedProcess[str]:
        """Run a line as cron and systemd do: no terminal, no input, next to no environment."""
        user = self.user if as_user else {}
        command = ["/bin/sh", "-c", line]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            cwd="/" if as_user else self.checkout, start_new_session=True, **user,
        )  # type: ignore[call-overload,no-any-return]  # fmt: skip

    def succeed(self, line: str, *, as_user: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a line that must end well and complain of nothing."""
        ran = self.run(line, as_user=as_user)
        assert (ran.returncode, ran.stderr) == (0, ""), (line, ran.stdout, ran.stderr)
        return ran

    def unit(self, name: str) -> Path:
        """The file of a unit that was copied where systemd looks."""
        folder = self.root / "etc" / "systemd" / "system"
        return folder / (name if "." in name else f"{name}.service")


@pytest.fixture
def host() -> Iterator[Host]:
    """A host on which nothing of dicomsort is but the program that the guide installs, and the checkout."""
    root = Path(tempfile.mkdtemp(prefix="dicomsort-test-"))
    root.chmod(0o755)  # pytest's own folders are for one user only
    for folder in ("etc/cron.d", "etc/systemd/system", "srv", "var/lib", "var/log", "opt/dicomsort/bin", "checkout"):
        (root / folder).mkdir(parents=True)
    made = Host(root)
    program = root / "opt/dicomsort/bin/dicomsort"
    # What pip makes, with this interpreter; no module is taken from the folder that it is started in.
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m dicomsort "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    shutil.copytree(ROOT / "deploy", made.checkout / "deploy")
    for path in (made.checkout / "deploy").iterdir():
        path.write_text(made.here(path.read_text(encoding="utf-8")), encoding="utf-8")
    yield made
    shutil.rmtree(root)


def checked(host: Host, line: str) -> None:
    """A line that is not run: the shell can read it, and what it names is there."""
    assert subprocess.run(["/bin/sh", "-n", "-c", line], check=False).returncode == 0, line
    words = shlex.split(line, comments=True)
    if words[0].endswith("/pip"):
        named = [word for word in words[2:] if not word.startswith("-")]
        assert named
        assert all((ROOT / name).exists() for name in named), line
    elif words[0] == "systemctl":
        for name in (word for word in words[2:] if not word.startswith("-")):
            assert host.unit(name).is_file(), f"{line}: no earlier line copies it"


def night_of_systemd(host: Host) -> None:
    """What ``systemctl start dicomsort-night`` starts, and how systemd judges its end."""
    text = host.unit("dicomsort-night").read_text(encoding="utf-8")
    assert "SuccessExitStatus" not in text, "a night that failed would look like a success"
    for kind, folder in (("StateDirectory", "var/lib"), ("LogsDirectory", "var/log")):
        assert f"\n{kind}=dicomsort\n" in text
        assert (host.root / folder / "dicomsort").is_dir()
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    host.fill()
    host.succeed(command)


def night_of_cron(host: Host) -> None:
    """What cron runs of the file that was copied to it."""
    text = (host.root / "etc/cron.d/dicomsort").read_text(encoding="utf-8")
    assert text.endswith("\n"), "cron ignores a last line without a line feed"
    night, week = [line for line in text.splitlines() if not line.startswith("#")]
    assert "%" not in night + week, "a line feed, to cron"
    *times, user, command = night.split(None, 6)
    assert (times, user) == (["15", "2", "*", "*", "*"], host.name)
    host.fill()
    assert host.succeed(command).stdout == "", "cron mails what is printed"
    *times, user, command = week.removesuffix(" >/dev/null").split(None, 6)  # which cron's shell takes
    assert (times, user) == (["30", "3", "*", "*", "0"], host.name)
    host.succeed(command)


def type_line(host: Host, line: str) -> None:
    """Do what a line of the guide says."""
    words = shlex.split(line, comments=True)
    if words[0] in NOT_RUN:
        checked(host, line)
        if words[:3] == ["systemctl", "start", "dicomsort-night"]:
            night_of_systemd(host)
    elif words[0] == "runuser":
        assert words[:4] == ["runuser", "-u", "dicomsort", "--"]
        host.succeed(host.here(line).partition(" -- ")[2])
    else:
        assert words[0] in {"install", "printf", "cp"}, f"{line}: is it to be run, or to be checked?"
        line = host.here(line)
        host.succeed(line if host.user else re.sub(r" -[og] \S+", "", line), as_user=False)
        if words[-1] == "/etc/cron.d/dicomsort":
            night_of_cron(host)


def test_the_guide_works_as_typed(host: Host) -> None:
    lines = [*blocks("sh", GUIDE)]
    assert len(lines) > 10
    for line in lines:
        type_line(host, line)
    assert host.nights == 2
    (*_, undone) = lines
    assert " undo " in undone
    outbox = host.root / "srv" / "outbox"
    assert {row["action"] for row in by_source(outbox).values() if row["source"].startswith("2/")} == {"undone"}
    assert [path.partition("/")[0] for path in placed(outbox)] == ["CT", "UNREADABLE"]
    assert (host.root / "var/lib/dicomsort/sort.prom").is_file()
    assert "sort ended" in (host.root / "var/log/dicomsort/sort.log").read_text(encoding="utf-8")


def test_no_other_line_of_the_guide_goes_untested() -> None:
    """Each command in its prose is a block's, an option's, or has a section of its own."""
    for command in re.findall(r"`((?:cp|install|runuser|systemctl|/opt)[^`]*)`", GUIDE):
        pytest.fail(f"{command}: make it a line of a block, so that it is run")


def made_by_the_guide(host: Host) -> None:
    (line,) = [line for line in blocks("sh", GUIDE) if line.startswith("install -d ")]
    type_line(host, line)


def test_the_cron_lines_run_without_a_terminal_or_an_environment(host: Host) -> None:
    made_by_the_guide(host)
    host.fill()
    lines = [line.split(None, 5)[5] for line in blocks("cron", page("operations.md"))]
    assert [shlex.split(line)[1] for line in lines] == ["sort", "runs"]
    for line in lines:
        host.succeed(host.here(line))
    assert list(placed(host.root / "srv" / "outbox"))
    assert not (host.root / "srv" / "inbox" / "1").exists()
    assert "sort ended" in (host.root / "var/log/dicomsort/sort.log").read_text(encoding="utf-8")


def test_every_folder_that_a_command_writes_to_is_made_by_the_guide() -> None:
    (line,) = [line for line in blocks("sh", GUIDE) if line.startswith("install -d ")]
    made = {word for word in shlex.split(line) if word.startswith("/")}
    pages = [page(name) for name in ("README.md", "operations.md", "pacs.md")]
    texts = [*pages, *(path.read_text(encoding="utf-8") for path in (ROOT / "deploy").iterdir())]
    option = r"(?:--(?:log-file|metrics|journal|html)[ =]|^(?:log-file|metrics|journal) *= *\")(/[^\s\"]+)"
    named = {found for text in texts for found in re.findall(option, text, re.MULTILINE)}
    assert len(named) > 5
    assert {path for path in named if os.path.dirname(path) not in made} == set()  # noqa: PTH120 - text
