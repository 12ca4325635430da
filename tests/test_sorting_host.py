"""A host that sorts needs the packages of ``requirements-sort.txt`` and no other: TensorFlow and its kin stay away."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom
from command import run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dicomsort.doctor import State, machine
from dicomsort.training import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NEEDED = PROJECT["project"]["dependencies"]
SORT = PROJECT["dependency-groups"]["sort"]
# What an installation for sorting can do; each runs to its end, or until its signal, without any other package.
COMMANDS = [
    "sort --quiet inbox outbox", "sort --quiet --engine serial --dry-run inbox", "resume outbox", "runs outbox",
    "verify outbox", "report outbox", "report --html page.html outbox", "rules", "predict inbox/a.dcm",
    "send outbox/CT --to A@127.0.0.1:9 --retries 0", "send outbox/CT --to http://127.0.0.1:9/dicom-web --retries 0",
    "doctor inbox outbox", "undo outbox",
]  # fmt: skip
SERVING = [
    "watch --every 1 --settle 0 inbox watched", "receive --port 0 inbox", "review --port 0 kept",
]  # fmt: skip


def pins(name: str) -> dict[str, str]:
    """What a list pins: each package's release and marker -> its hashes."""
    text = (ROOT / name).read_text("utf-8").replace("\\\n", "")
    return {line.partition(" --hash")[0].strip(): line for line in text.splitlines() if not line.startswith("#")}


def names(name: str) -> set[str]:
    return {canonicalize_name(pin.partition("==")[0]) for pin in pins(name)}


def test_the_list_has_the_releases_and_the_hashes_of_the_lock() -> None:
    lock = pins("requirements.lock")
    for pin, line in pins("requirements-sort.txt").items():
        assert "==" in pin
        assert "--hash=sha256:" in line
        released = pin.partition(" ;")[0]
        twins = [other for other in lock if other.partition(" ;")[0] == released]
        assert twins, f"{pin}: the lock has another release; make lock"
        assert {*re.findall(r"sha256:\w+", line)} == {*re.findall(r"sha256:\w+", lock[twins[0]])}


def test_the_group_is_what_the_project_needs_less_training_with_its_extra_for_pacs() -> None:
    needed = {text for text in NEEDED if Requirement(text).name not in PACKAGES}
    extra = {*PROJECT["project"]["optional-dependencies"]["pacs"]}
    assert {*SORT} == needed | extra
    assert {Requirement(text).name for text in NEEDED} >= PACKAGES
    assert {canonicalize_name(Requirement(text).name) for text in SORT} <= names("requirements-sort.txt")
    assert not names("requirements-sort.txt") & {*PACKAGES, "distributed", "optuna", "torch"}


def test_what_the_listed_packages_need_is_listed() -> None:
    listed = names("requirements-sort.txt")
    for name in listed:
        try:
            needs = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:  # of another system
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in listed, f"{name} needs {need.name}"


# Refuses what belongs to no listed package, in this process and, by way of sitecustomize, in its workers.
GUARD = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH, with which only listed packages can be imported."""
    listed = names("requirements-sort.txt")
    refused = sorted(
        top
        for top, owners in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & {*listed, "dicomsort"}
    )
    assert {"tensorflow", "keras", "matplotlib", "scipy", "pytest"} & {*refused}
    folder = tmp_path_factory.mktemp("light")
    (folder / "sitecustomize.py").write_text(GUARD.replace("{refused}", repr(set(refused))), "utf-8")
    return folder


@pytest.fixture(scope="module")
def work(light: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: an inbox, and an outbox with something that waits for a person."""
    folder = tmp_path_factory.mktemp("work")
    make_dicom(folder / "inbox" / "a.dcm")
    make_dicom(folder / "inbox" / "odd.dcm", study=2, modality="CT", sop_class="1.2.840.10008.5.1.4.1.1.1")
    process = began(light, folder, "sort --quiet inbox kept")
    said, _ = process.communicate()
    assert process.returncode == 3, said
    return folder


def began(light: Path, work: Path, command: str) -> subprocess.Popen[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{light}:{ROOT}"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "dicomsort", *command.split()], cwd=work, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_each_command_of_a_sorting_host_works_with_the_listed_packages(light: Path, work: Path) -> None:
    codes = {}
    for command in COMMANDS:
        process = began(light, work, command)
        said, _ = process.communicate()
        assert "No module named" not in said, (command, said)
        assert "Traceback" not in said, (command, said)
        codes[command] = process.returncode
        if command.startswith("send"):
            assert "nothing was sent" in said
    assert {command for command, code in codes.items() if code not in {0, 1 if "send" in command else 3}} == set()
    assert (work / "page.html").read_text("utf-8").count("<img ")


@pytest.mark.parametrize("command", SERVING)
def test_each_service_of_a_sorting_host_works_with_the_listed_packages(light: Path, work: Path, command: str) -> None:
    process = began(light, work, command)
    assert process.stdout is not None
    said = process.stdout.readline()  # that it serves, or what a round did
    process.terminate()
    rest, _ = process.communicate()
    assert process.returncode in {0, 130}, said + rest
    assert "No module named" not in said + rest


@pytest.mark.parametrize("command", ["train", "tune", "evaluate"])
def test_a_command_of_the_model_says_what_is_missing(light: Path, work: Path, command: str) -> None:
    for label in ("CT", "MRI", "XRAY"):
        for number in range(6):
            make_dicom(work / "dataset" / label / f"{number}.dcm", study=number, modality="MR")
    process = began(light, work, f"{command} dataset --out out-{command}")
    said, _ = process.communicate()
    assert process.returncode in {1, 2}, said
    assert "Traceback" not in said, said
    assert re.search(r"received(: not installed| none)", said.splitlines()[-1]), said


def test_doctor_calls_such_an_installation_one_for_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine._installed
    monkeypatch.setattr(machine, "_installed", lambda name: None if name in PACKAGES else real(name))
    with mock.patch.object(machine, "_model", return_value=()):
        ran = run("doctor", "--json")
    assert ran.code == 0, ran.out
    told = {finding["what"]: finding for finding in json.loads(ran.out)}
    assert told["versions"]["state"] == State.FINE
    assert told["training"]["state"] == State.NOTE
    assert "keras, matplotlib, tensorflow: not installed" in told["training"]["message"]
