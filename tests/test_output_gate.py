"""No option that names something to be written can spoil a file: every command, every such option, every bad place."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from building import make_dicom, make_files
from command import Ran, run, sort
from PIL import Image

from dicomsort.cli import app
from dicomsort.cli.logs import logging_to
from dicomsort.content import DEVICES

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "default"
LOG = "2026-01-01T00:00:00Z INFO sort begins mode='move'\n"
JSON_LOG = '{"time": "2026-01-01T00:00:00Z", "level": "INFO", "event": "sort begins"}\n'
METRICS = "# HELP dicomsort_info The version that wrote this; always 1.\n"
PAGE = "<!DOCTYPE html>\n<!-- dicomsort report -->\n<html></html>\n"
JOURNAL = '{"format":1,"destination":"A@127.0.0.1:9"}\n'

# Each option that names what a command writes: the command line, with {} for the path, and what it reads.
FILES: dict[str, tuple[tuple[str, ...], str]] = {
    "sort --log-file": (("sort", "--engine", "serial", "--evidence", "header", "inbox", "out", "--log-file"), "inbox"),
    "sort --metrics": (("sort", "--engine", "serial", "--evidence", "header", "inbox", "out", "--metrics"), "inbox"),
    "watch --log-file": (("watch", "--engine", "serial", "inbox", "out", "--log-file"), "inbox"),
    "watch --metrics": (("watch", "--engine", "serial", "inbox", "out", "--metrics"), "inbox"),
    "receive --log-file": (("receive", "--port", "0", "inbox", "--log-file"), "inbox"),
    "send --log-file": (("send", "out/CT", "--retries", "0", "--to", "A@127.0.0.1:9", "--log-file"), "out/CT"),
    "send --journal": (("send", "out/CT", "--retries", "0", "--to", "A@127.0.0.1:9", "--journal"), "out/CT"),
    "report --html": (("report", "--pictures", "0", "out", "--html"), "inbox"),
}
FOLDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "review --corrections": (("review", "out", "--corrections"), "inbox"),
    "train --out": (("train", "dataset", "--out"), "dataset"),
    "train --cache": (("train", "dataset", "--out", "new bundle", "--cache"), "dataset"),
    "tune --out": (("tune", "dataset", "--out"), "dataset"),
    "tune --cache": (("tune", "dataset", "--out", "new bundle", "--cache"), "dataset"),
    "evaluate --out": (("evaluate", "dataset", "--out"), "dataset"),
    "predict --explain": (("predict", "dataset/CT/1.png", "--explain"), "dataset/CT/1.png"),
}
EARLIER = {
    "--log-file": (LOG, JSON_LOG, "2026-01", ""), "--metrics": (METRICS, ""), "--html": (PAGE, ""),
    "--journal": (JOURNAL, ""),
}  # fmt: skip
ONLY_READ = {"--config", "--model", "--from", "--weights", "--groups", "--tls-ca", "--tls-cert", "--tls-key", "--auth"}
ONLY_READ |= {"--compare", "--crontab"}
ENDLESS = ("watch", "receive", "review")  # an accepted path would let them serve


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An inbox that was sorted once, a data set, files of somebody else; the working folder is the one around them."""
    make_dicom(tmp_path / "inbox" / "ct.dcm")
    make_dicom(tmp_path / "inbox" / "a" / "mr.dcm", study=2, modality="MR")
    assert sort(tmp_path / "inbox", tmp_path / "out").code == 0
    for label in ("CT", "MRI", "XRAY"):
        (tmp_path / "dataset" / label).mkdir(parents=True)
        Image.new("L", (8, 8), 9).save(tmp_path / "dataset" / label / "1.png")
    make_files(tmp_path / "mine", {"image.dcm": (tmp_path / "inbox/ct.dcm").read_bytes(), "note.txt": "no line feed"})
    make_files(tmp_path / "folder", {"metrics.json": "{}", "state.npz": "x", "accuracy.png": "x", "confusion.png": "x"})
    (tmp_path / "link").symlink_to(tmp_path / "inbox" / "ct.dcm")
    (tmp_path / "into").symlink_to(tmp_path / "inbox")
    os.link(tmp_path / "inbox" / "ct.dcm", tmp_path / "second name")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
        monkeypatch.chdir(tmp_path)
        yield tmp_path


def state(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder but the lock and what an empty run of ``verify`` may touch."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[path.relative_to(root).as_posix()] = (status.st_mode, status.st_mtime_ns, content)
    return {path: facts for path, facts in found.items() if not path.endswith((".dicomsort/lock", "/README"))}


def refused(world: Path, command: tuple[str, ...], place: str) -> Ran:
    before = state(world)
    ran = run(*command, place)
    assert ran.code == 2, (place, ran)
    assert "expected" in ran.err
    assert "Traceback" not in ran.err
    assert state(world) == before, place
    return ran


@pytest.mark.parametrize("option", FILES)
def test_a_file_is_refused_wherever_it_would_spoil_one(world: Path, option: str) -> None:
    command, reads = FILES[option]
    run_id = next((world / "out/.dicomsort/runs").iterdir()).name
    places = [
        f"{reads}/new.txt", "out/manifest.csv", "out/CT/new.txt", "out/MRI", "out/REVIEW/x", "out/OTHER",
        "out/UNREADABLE/x", "out/.dicomsort/new", "out/.dicomsort/lock", f"out/.dicomsort/runs/{run_id}/plan.jsonl",
        f"out/.dicomsort/runs/{run_id}/journal.jsonl", "out/manifest.csv.damaged-1", "mine/image.dcm", "mine/note.txt",
        "link", "second name", "mine", "fifo", "socket", "missing/x", "mine/note.txt/x", "x" * 300, "/proc/self/mem",
    ]  # fmt: skip
    places += ["inbox/ct.dcm", "inbox/a/new", "into/new", "into/a/../new"] if reads == "inbox" else []
    for place in places:
        refused(world, command, place)


@pytest.mark.parametrize("option", FOLDERS)
def test_a_folder_is_refused_wherever_it_would_spoil_a_file(world: Path, option: str) -> None:
    command, reads = FOLDERS[option]
    places = ["out/CT", "out/CT/new", "out/manifest.csv", "out/REVIEW", "out/.dicomsort/runs", "out", "mine/note.txt"]
    places += ["fifo", "link", "mine/note.txt/x", reads]
    places += [f"{reads}/new", f"{reads}/CT"] if Path(reads).is_dir() else []
    for place in places:
        refused(world, command, place)


@pytest.mark.parametrize("option", ["train --out", "tune --out", "evaluate --out"])
def test_files_of_others_with_names_of_results_stay(world: Path, option: str) -> None:
    command, _ = FOLDERS[option]
    refused(world, command, "folder")
    for name in ("metrics.json", "accuracy.png", "confusion.png", "card.md"):
        make_files(world, {f"only {name}/{name}": "mine"})
        if not (option == "evaluate --out" and name == "accuracy.png"):  # which an evaluation does not write
            refused(world, command, f"only {name}")


@pytest.mark.parametrize("option", ["train --out", "tune --out"])
@pytest.mark.parametrize(
    "beside", ["bundle-mistakes.png", "bundle.checkpoint/state.npz", "bundle.trials", "bundle.trials.lock"]
)
def test_files_of_others_beside_a_bundle_stay(world: Path, option: str, beside: str) -> None:
    make_files(world, {beside: "something of mine"})
    refused(world, FOLDERS[option][0], "bundle")


def test_a_folder_in_the_place_of_a_bundles_file_stays(world: Path) -> None:
    shutil.copytree(MODEL, world / "bundle")
    (world / "bundle" / "history.csv").unlink(missing_ok=True)
    make_files(world, {"bundle/history.csv/mine.txt": "mine"})
    refused(world, FOLDERS["train --out"][0], "bundle")


@pytest.mark.parametrize("option", FILES)
def test_new_empty_and_earlier_files_are_accepted(world: Path, option: str) -> None:
    command, _ = FILES[option]
    if command[0] in ENDLESS:
        pytest.skip(f"{command[0]} would serve: its gate is that of the other commands")
    name = option.split()[1]
    places = [
        "new.txt",
        "out/beside.txt",
        "out/logs/new.txt",
        *(DEVICES - {"/dev/full", "/dev/tty"} if name != "--journal" else ()),
    ]
    (world / "out/logs").mkdir()
    for number, content in enumerate(EARLIER[name]):
        make_files(world, {f"earlier {number}": content})
        places.append(f"earlier {number}")
    for place in places:
        ran = run(*command, place)
        assert ran.code in {0, 1}, (place, ran)  # 1: nobody listens where `send` sends to
        assert ("cannot be reached" in ran.err) == (ran.code == 1)
        assert Path(place).exists()
    assert run("verify", "out").code == 0


def test_a_class_of_another_model_is_the_outboxes_own(world: Path) -> None:
    manifest = world / "out" / "manifest.csv"
    manifest.write_bytes(manifest.read_bytes().replace(b",CT/", b",CHEST/"))
    (world / "out/CT").rename(world / "out/CHEST")
    refused(world, FILES["report --html"][0], "out/CHEST/report.html")
    assert run(*FILES["report --html"][0], "out/report.html").code == 0


def test_variables_and_files_go_through_the_gate_too(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(world, {"c.toml": 'log_file = "mine/image.dcm"\n', "d.toml": '[watch]\nmetrics = "mine/note.txt"\n'})
    command = ("sort", "--engine", "serial", "--evidence", "header", "inbox", "out")
    refused(world, (*command, "--config"), "c.toml")
    refused(world, ("watch", "--engine", "serial", "inbox", "out", "--config"), "d.toml")
    monkeypatch.setenv("DICOMSORT_METRICS", str(world / "inbox/ct.dcm"))
    refused(world, command, "--quiet")


def test_every_option_that_names_a_file_or_a_folder_is_in_a_table() -> None:
    commands: Any = typer.main.get_command(app)
    named = set()
    for command in commands.commands.values():
        for parameter in command.params:
            if parameter.param_type_name != "option":
                continue
            takes_path = (parameter.metavar or "") in {"FILE", "DIR", "PATH", "BUNDLE", "A B"}
            if takes_path and not {*parameter.opts} & ONLY_READ:
                named |= {f"{command.name} {option}" for option in parameter.opts}
    assert named == {*FILES, *FOLDERS}


def filled(path: Path, messages: int, **options: Any) -> None:
    with logging_to(path, "text", **options) as log:
        for number in range(messages):
            log.info("event %s %s", number, "x" * 100)


@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda p: p.write_bytes(b"an image"), lambda p: p.symlink_to("elsewhere")]
)
def test_rotation_replaces_no_file_of_somebody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object]
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    make(older := tmp_path / "log.2")
    before = state(tmp_path)
    filled(tmp_path / "log", 100, size=0.001, count=3)
    assert {name: facts for name, facts in state(tmp_path).items() if name in before} == before
    assert older.is_dir() or before
    assert len((tmp_path / "log").read_text("utf-8").splitlines()) == 100
    assert not (tmp_path / "log.1").exists()
    told = capsys.readouterr().err
    assert told == "dicomsort: the log cannot be put aside, and grows on: log.2 is no log of dicomsort\n"


def test_older_logs_of_ours_are_put_aside(tmp_path: Path) -> None:
    filled(tmp_path / "log", 100, size=0.001, count=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2", "log.3"]


def test_a_foreign_file_in_the_place_of_a_log_that_was_moved_away_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    with logging_to(path, "text") as log:
        log.info("first")
        path.rename(tmp_path / "moved")
        path.write_bytes(b"an image")
        log.info("second")
        log.info("third")
    assert path.read_bytes() == b"an image"
    assert (tmp_path / "moved").read_text("utf-8").count("\n") == 3
    assert capsys.readouterr().err.count("cannot be begun anew") == 1
