"""``dicomsort watch`` as a process: signals, kills, and what ends it before it has begun."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from building import make_dicom, make_files
from command import placed, rows, run
from test_lock import locked
from watching import HEADERS, age, end, runs_of, wait_until, watching

FILES = 400


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    content = make_dicom(folder / "one.dcm", study=1, instance=10_000).read_bytes()
    (folder / "one.dcm").unlink()
    for number in range(FILES):
        path = folder / f"{number}.dcm"
        path.write_bytes(content.replace(b".1.1.10000", b".1.1.%d" % (10_000 + number)) + os.urandom(1) * 20_000)
        age(path, 600)
    return folder


def digests(*roots: Path) -> set[str]:
    paths = (path for root in roots for path in root.rglob("*.dcm"))
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def is_done(outbox: Path, count: int) -> bool:
    summaries = (outbox / ".dicomsort" / "runs").glob("*/summary.json")
    return bool(list(summaries)) and len(list(placed(outbox))) == count and len(rows(outbox)) >= count


@pytest.mark.parametrize("mode", ["--move", "--copy"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_service_that_ends_in_the_middle_loses_nothing_and_the_next_goes_on(
    many: Path, outbox: Path, mode: str, number: int
) -> None:
    whole = digests(many)
    with watching(mode, many, outbox) as process:
        wait_until(process, (outbox / "CT").is_dir)
        code, said = end(process, number)
    assert (code, said) == (0 if number == signal.SIGTERM else -number, "")
    assert digests(many, outbox) == whole
    with watching(mode, many, outbox) as process:
        wait_until(process, lambda: is_done(outbox, FILES))
        assert end(process) == (0, "")
    assert digests(outbox) == whole
    assert digests(many) == (set() if mode == "--move" else whole)
    assert not list(outbox.rglob("*.part"))
    assert sorted(row["source"] for row in rows(outbox)) == sorted(f"{n}.dcm" for n in range(FILES))


def test_a_study_waits_until_it_is_whole(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    with watching("--move", "--settle", 3, inbox, outbox) as process:
        wait_until(process, (outbox / ".dicomsort").is_dir)
        make_dicom(inbox / "a" / "1.dcm", study=1, series=1)
        make_dicom(inbox / "b" / "2.dcm", study=1, series=2, modality="SR", has_pixels=False)
        wait_until(process, lambda: is_done(outbox, 2))
        assert end(process) == (0, "")
    assert len(runs_of(outbox)) == 1
    assert {row["status"] for row in rows(outbox)} == {"sorted"}


def test_ctrl_c_ends_with_130_and_a_round_without_news_leaves_no_trace(inbox: Path, outbox: Path) -> None:
    for path in inbox.rglob("*"):
        age(path, 600)
    with watching("--copy", "--json", inbox, outbox) as process:
        assert process.stdout is not None
        summary = json.loads(process.stdout.readline())
        assert summary["statuses"] == {"sorted": 4, "other": 1, "ignored": 1}
        make_dicom(inbox / "new.dcm", study=8)
        age(inbox / "new.dcm", 600)
        wait_until(process, lambda: len(rows(outbox)) == 7)  # the last that the round does
        code, said = end(process, signal.SIGINT)
    assert (code, said) == (130, "")
    assert len(runs_of(outbox)) == 2
    assert len(list(placed(outbox))) == 6


def test_an_outbox_held_at_the_start_ends_with_4(inbox: Path, outbox: Path) -> None:
    assert run("sort", *HEADERS, inbox, outbox).code == 0
    with locked(outbox, "{}"):
        ran = run("watch", *HEADERS, inbox, outbox)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (4, "", 1)


def toml(folder: Path, text: str) -> Path:
    file = folder / "dicomsort.toml"
    file.write_text(text)
    return file


def test_what_cannot_work_ends_with_2_before_anything_is_made(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[object], str]] = [
        (["--model", tmp_path / "no model", inbox, outbox], "no model"),
        ([tmp_path / "no inbox", outbox], "INBOX: expected a folder"),
        (["--every", -1, inbox, outbox], "--every: expected a number from 0 to 315360000"),
        (["--copy", "--move", inbox, outbox], "received --copy and --move"),
        (["--engine", "dask", inbox, outbox], "expected --scheduler ADDRESS"),
        (["--metrics", inbox / "m.prom", inbox, outbox], "outside the INBOX"),
        (["--metrics", inbox / "notes.txt", inbox, outbox], "outside the INBOX"),
        (["--metrics", tmp_path / "no folder" / "m", inbox, outbox], "a folder that can be written"),
        (["--log-file", inbox / "log", inbox, outbox], "--log-file: expected a file outside the INBOX"),
        (["--config", toml(tmp_path, "[routes]\nMR = 'ARCHIVE@host:104'"), inbox, outbox], "received 'MR'"),
        (["--dry-run", inbox, outbox], "No such option"),
    ]
    for words, message in cases:
        ran = run("watch", *([] if "--engine" in words else HEADERS), *words)
        assert (ran.code, ran.out) == (2, ""), words
        assert message in ran.err
        assert not outbox.exists()


@pytest.mark.parametrize(
    "route",
    ["CT = 'host:104'", "CT = 'ARCHIVE@host'", "CT = 'ARCHIVE@host:dicom'", "CT = 'ARCHIVE'", "CT = 5", "CT = ''"],
)
def test_a_route_that_is_none_ends_with_2(inbox: Path, outbox: Path, tmp_path: Path, route: str) -> None:
    ran = run("watch", *HEADERS, "--config", toml(tmp_path, f"[routes]\n{route}"), inbox, outbox)
    assert ran.code == 2
    assert "CT" in ran.err
    assert "AE@HOST:PORT" in ran.err


def test_figures_never_take_the_place_of_something_else(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    make_files(tmp_path, {"precious.dcm": "DICM"})
    ran = run("watch", *HEADERS, "--metrics", tmp_path / "precious.dcm", inbox, outbox)
    assert ran.code == 2
    assert (tmp_path / "precious.dcm").read_text() == "DICM"


def test_the_service_runs_without_terminal_environment_and_output(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "dicomsort", "watch", *HEADERS, "--every", "0.1", "--settle", "0", "--move"]
    process = subprocess.Popen(
        [*command, "--log-file", tmp_path / "log", "--log-format", "json", inbox, outbox],
        env={"PYTHONPATH": str(Path(__file__).parents[1])}, cwd="/", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(process, lambda: is_done(outbox, 5))
    finally:
        code, said = end(process)
    assert (code, said) == (0, "")
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert [*events[:2], events[-1]] == ["dicomsort log", "watch begins", "watch ends"]
    assert events.count("run ended") == 1
