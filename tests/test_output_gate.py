"""No option that names something to be written can spoil a file: every command, every such option, every bad place."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from building import make_dicom, make_files
from command import Ran, run, sort
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dicomsort.bundle import check_target, staged
from dicomsort.cli import app
from dicomsort.cli.logs import logging_to
from dicomsort.errors import UsageError
from dicomsort.own_files import DEVICES
from dicomsort.training.data.rendered import open_cache
from dicomsort.training.evaluate.evaluation import foreign_in
from dicomsort.training.export.bundle import OUTPUTS
from dicomsort.training.pipeline import REPLACEABLE

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "default"
LOG = "2026-01-01T00:00:00Z INFO sort begins mode='move'\n"
JSON_LOG = '{"time": "2026-01-01T00:00:00Z", "level": "INFO", "event": "sort begins"}\n'
METRICS = "# HELP dicomsort_info The version that wrote this; always 1.\n"
PAGE = "<!DOCTYPE html>\n<!-- dicomsort report -->\n<html></html>\n"
JOURNAL = '{"format":1,"destination":"A@127.0.0.1:9"}\n'

FIGURES = b'{\n "held_out": "of no source", "by_source": true, "calibration": "its own"}\n'
COMPARISON = b'{"of": "own figures", "bundles": {}, "labels": [], "figures": {}}'


def png(mode: str = "RGB", **texts: str) -> bytes:
    info, stream = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8), "red").convert(mode).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


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
    "--log-file": (LOG, JSON_LOG, ""), "--metrics": (METRICS, ""), "--html": (PAGE, ""),
    "--journal": (JOURNAL, ""),
}  # fmt: skip
ONLY_READ = {
    "--config",
    "--model",
    "--from",
    "--weights",
    "--groups",
    "--subclasses",
    "--tls-ca",
    "--tls-cert",
    "--tls-key",
    "--auth",
}
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
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
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


@pytest.mark.parametrize(
    "files",
    [
        {"metrics.json": b'{"model": "my thesis", "accuracy": 0.9}'},
        {"metrics.json": b'{"held_out": 3, "by_source": [], "calibration": "x"}'},
        {"metrics.json": b'{"of": "mine", "bundles": {}, "figures": {}}'},
        {"metrics.json": b'{"held_out": "' + b"[" * 100_000},
        {"metrics.json": FIGURES, "confusion.png": png(Software="GIMP")},
        {"metrics.json": FIGURES, "confusion.png": png("P", Author="me")},
        {"metrics.json": FIGURES, "confusion.png": png(Software="Matplotlib version3.10.0")},
        {"metrics.json": FIGURES, "mistakes.png": png("P")},
        {"metrics.json": FIGURES, "card.md": b"my card"},
        {"metrics.json": b"", "card.md": b"# Model card: of my own"},
        {"confusion.png": png(Software="dicomsort")},
    ],
)
def test_files_that_only_begin_like_results_stay(world: Path, files: dict[str, bytes]) -> None:
    make_files(world / "figures", files)
    refused(world, FOLDERS["evaluate --out"][0], "figures")


@pytest.mark.parametrize(
    "files",
    [
        {"metrics.json": b""},
        {"metrics.json": FIGURES, "confusion.png": png(Software="dicomsort"), "card.md": b"# Model card: ours\n"},
        {"metrics.json": COMPARISON, "comparison.png": png("P")},
        {"metrics.json": FIGURES, "sources.png": png("P"), "mistakes.png": png(Software="Matplotlib version3.10.0")},
    ],
)
def test_earlier_results_are_ours(tmp_path: Path, files: dict[str, bytes]) -> None:
    make_files(tmp_path, files)
    assert not foreign_in(str(tmp_path))


@pytest.mark.parametrize("option", ["train --out", "tune --out"])
@pytest.mark.parametrize("beside", ["bundle-mistakes.png", "bundle.checkpoint/state.npz", "bundle.trials"])
def test_files_of_others_beside_a_bundle_stay(world: Path, option: str, beside: str) -> None:
    make_files(world, {beside: "something of mine"})
    refused(world, FOLDERS[option][0], "bundle")


@pytest.mark.parametrize("beside", ["bundle.refused", "bundle.refused-mistakes.png", "bundle-mistakes.png"])
def test_files_of_others_beside_a_bundle_that_is_gone_on_from_stay(world: Path, beside: str) -> None:
    make_files(world, {beside: "something of mine"})
    refused(world, ("train", "dataset", "--from", str(MODEL), "--out"), "bundle")


@pytest.mark.parametrize(
    "name", ["accuracy.png", "history.csv", "metrics.json", "card.md", "model.keras", "medical_image_classifier.h5",
             "model.tflite", "evaluation.npz", "bundle.json"],
)  # fmt: skip
def test_a_file_of_another_kind_in_a_bundle_stays(world: Path, name: str) -> None:
    shutil.copytree(MODEL, world / "bundle")
    assert check_target(world / "bundle", REPLACEABLE) is None
    make_files(world, {f"bundle/{name}": '{"format_version": 1, "note": "mine"}'})
    refused(world, FOLDERS["train --out"][0], "bundle")


def test_a_bundle_keeps_the_mode_of_the_one_before_and_takes_no_mount_point(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(MODEL, tmp_path / "bundle"))
    bundle.chmod(0o2750)
    with staged(bundle, REPLACEABLE) as part:
        shutil.copytree(MODEL, part, dirs_exist_ok=True)
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o2750
    if not os.path.ismount("/proc"):
        pytest.skip("no mount point at /proc")
    with pytest.raises(UsageError, match="received a mount point"):
        check_target(Path("/proc"), OUTPUTS)


@pytest.mark.parametrize("option", ["sort --log-file", "sort --metrics", "send --journal", "report --html"])
def test_an_output_that_has_other_names_is_refused(world: Path, option: str) -> None:
    make_files(world, {"earlier": EARLIER[option.split()[1]][0]})
    os.link(world / "earlier", world / "other name")
    assert "it has other names" in refused(world, FILES[option][0], "earlier").err


@pytest.mark.parametrize("option", ["evaluate --out", "evaluate --compare", "predict --explain"])
def test_no_folder_is_made_that_a_path_only_passes(world: Path, option: str) -> None:
    command = FOLDERS.get(option, (("evaluate", "--compare", str(MODEL), str(MODEL), "--out"), ""))[0]
    ran = run(*command, "out/CT/new/../../../pictures")
    assert ran.code == 0, ran
    assert not (world / "out/CT/new").exists()
    assert any((world / "pictures").iterdir())


def test_a_cache_changes_no_folder_that_was_there_and_follows_no_link(tmp_path: Path) -> None:
    name = open_cache(tmp_path / "new").name
    there, linked = tmp_path / "there" / name, tmp_path / "linked"
    there.mkdir(parents=True)
    there.chmod(0o755)
    open_cache(there.parent)
    assert stat.S_IMODE(there.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == 0o700
    linked.mkdir()
    (linked / name).symlink_to(tmp_path / "new")
    with pytest.raises(UsageError, match="which is a link or a file"):
        open_cache(linked)


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


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("option", ["sort --log-file", "sort --metrics", "report --html"])
def test_a_standard_stream_that_the_shell_appends_to_is_not_overwritten(world: Path, option: str, stream: str) -> None:
    (world / "n.log").write_text("mine\n" * 5000)
    number = {"stdout": 1, "stderr": 2}[stream]
    command = (sys.executable, "-P", "-m", "dicomsort", *FILES[option][0], f"/dev/{stream}")
    words = ["sh", "-c", f'"$@" {number}>> n.log', "sh", *command]
    subprocess.run(words, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    written = (world / "n.log").read_text("utf-8")
    assert written.startswith("mine\n" * 5000)
    assert {"--log-file": "sort ended", "--metrics": "# HELP", "--html": "<!DOCTYPE"}[option.split()[1]] in written


@pytest.mark.parametrize(
    "content",
    [
        "2026-11-29T06:05:27Z INFO other-app started\n", "2026-11-29T06:05:27Z INFO sent-mail queue=1\n", "2026-11-29",
        "2026-01", "1234-5678 my pin", "2026-11-29T06:05:27Z INFO ", '{"time": "2026-',
        '{"time": "2026-11-29T06:05:27Z", "level": "INFO", "event": "user logged in"}\n',
    ],
)  # fmt: skip
def test_a_log_of_another_program_is_refused(world: Path, content: str) -> None:
    make_files(world, {"theirs.log": content})
    refused(world, FILES["sort --log-file"][0], "theirs.log")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_begins_with_a_line_of_its_own(world: Path, log_format: str) -> None:
    for _ in range(2):
        assert run(*FILES["sort --log-file"][0], "new.log", "--log-format", log_format).code == 0
    lines = (world / "new.log").read_text("utf-8").splitlines()
    assert ["dicomsort log" in line for line in lines] == [True] + [False] * 4


@pytest.mark.parametrize("room", [0, 9])
def test_the_first_line_of_a_log_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:room])

    with logging_to(tmp_path / "first", "text"), monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with logging_to(tmp_path / "log", "text") as log:
            log.info("sort begins")
        assert not (tmp_path / "log").read_bytes()
    assert capsys.readouterr().err == "dicomsort: the log cannot be written: No space left on device\n"
    with logging_to(tmp_path / "log", "text") as log:
        log.info("sort begins")
    assert (tmp_path / "log").read_text("utf-8").count("\n") == 2


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
    assert len((tmp_path / "log").read_text("utf-8").splitlines()) == 101  # the first says what it is
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
    assert (tmp_path / "moved").read_text("utf-8").count("\n") == 4  # the first says what it is
    assert capsys.readouterr().err.count("cannot be begun anew") == 1


@pytest.mark.parametrize("now", ["file", "link"])
def test_rotation_puts_no_foreign_file_aside_that_has_the_name_now(tmp_path: Path, now: str) -> None:
    path, moved = tmp_path / "run.log", tmp_path / "moved.log"
    with logging_to(path, "text", 0.001, 3) as log:
        log.info("first")
        path.rename(moved)
        if now == "link":
            path.symlink_to(moved)
        else:
            path.write_text("thesis")
        for number in range(50):
            log.info("event %s %s", number, "x" * 100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["moved.log", "run.log"]
    assert path.is_symlink() or path.read_text() == "thesis"
    assert moved.read_text("utf-8").count("\n") == 52
