"""What is said of a night is true: the exit code, the metric, the last line of the log, one line on stderr."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from building import make_dicom, read_tree
from command import Ran, by_source, placed, quiet, rows, run, sort
from killing import run_unprivileged
from test_faults import SORT, Broken, hand_over, ours

from dicomsort.config.settings import LOG_MIB
from dicomsort.engines.engine import SerialEngine
from dicomsort.errors import WorkerLost
from dicomsort.sorting.outbox import locked
from dicomsort.sorting.runs import all_runs

__all__ = ["ours"]  # a fixture

SUCCESS = "dicomsort_last_success_timestamp_seconds"


def night(inbox: Path, outbox: Path, *options: object) -> Ran:
    """A quiet sort from cron, with its log and its figures beside the outbox."""
    beside = outbox.parent
    return sort(
        "--quiet", "--held-ok", "--metrics", beside / "m.prom", "--log-file", beside / "log", *options, inbox, outbox
    )


def last_line(beside: Path) -> str:
    return (beside / "log").read_text("utf-8").splitlines()[-1]


def cut_short(inbox: Path, outbox: Path, *options: object) -> str:
    """A run that the disk ended in the middle of placing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("flush_system", 0, errno.EIO))
        assert sort("--settle", 0, *options, inbox, outbox).code == 1
    return all_runs(str(outbox))[-1]


def test_a_night_in_which_files_cannot_leave_their_folder_is_no_success(ours: Path) -> None:
    inbox, outbox = ours / "inbox", ours / "outbox"
    for number in (1, 2, 3):
        make_dicom(inbox / "study" / f"{number}.dcm", instance=number)
    make_dicom(inbox / "other.dcm", study=2)
    hand_over(ours)
    (inbox / "study").chmod(0o555)
    command = (
        *SORT,
        "--move",
        "--held-ok",
        "--quiet",
        "--metrics",
        ours / "m.prom",
        "--log-file",
        ours / "log",
        inbox,
        outbox,
    )
    dry = run_unprivileged(*SORT, "--move", "--held-ok", "--dry-run", inbox, outbox)
    ran = run_unprivileged(*command)
    assert (ran.code, dry.code) == (3, 3)
    cause = "its folder may not be changed, so the file cannot leave it"
    told = f"files: 3 failed: {cause} (3): study/1.dcm, study/2.dcm, study/3.dcm"
    assert f"dicomsort: {told}\n" in ran.err
    assert ran.out == ""
    assert told in dry.err
    assert SUCCESS + " " not in (ours / "m.prom").read_text("utf-8")
    assert f' exit_code=3 cause="{told}"' in last_line(ours)
    (inbox / "study").chmod(0o755)
    assert run_unprivileged(*command).code == 0
    assert SUCCESS + " " in (ours / "m.prom").read_text("utf-8")


@pytest.mark.parametrize("mode", [0o755, 0o1777])  # of a folder that we may not write; of one, sticky, of others' files
def test_doctor_names_folders_that_files_cannot_leave(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    (inbox / "ct").chmod(mode)
    owner, access = os.geteuid(), os.access
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    monkeypatch.setattr(os, "access", lambda path, how: (mode > 0o777 or path != f"{inbox}/ct") and access(path, how))
    ran = run("doctor", inbox, outbox)
    assert (ran.code, "files cannot leave 1 of its folders: ct; give the user" in ran.out) == (1, True)


def test_a_failed_night_keeps_the_time_of_the_last_success(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    assert night(inbox, outbox).code == 0
    before = [line for line in (tmp_path / "m.prom").read_text("utf-8").splitlines() if line.startswith(SUCCESS)]
    text = (tmp_path / "m.prom").read_text("utf-8").replace(before[0], f"{SUCCESS} 1000")
    (tmp_path / "m.prom").write_text(text)
    other = tmp_path / "another inbox"
    make_dicom(other / "1.dcm", study=9)
    cut_short(other, outbox)
    assert night(inbox, outbox).code == 3
    assert f"{SUCCESS} 1000\n" in (tmp_path / "m.prom").read_text("utf-8")


def test_a_sort_finishes_a_run_of_its_inbox_that_was_cut_short(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    cut = cut_short(inbox, outbox, "--move", "--layout", "keep")
    assert "finish it first" in sort("--dry-run", inbox, outbox).out
    make_dicom(inbox / "new.dcm", study=12)
    ran = night(inbox, outbox)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    states = {each["run_id"]: each["state"] for each in json.loads(run("runs", "--json", outbox).out)}
    assert (states[cut], len(states)) == ("finished", 2)
    assert "CT/ct/1.dcm" in placed(outbox)  # by the layout of the run that was cut short
    assert [path for path in read_tree(inbox) if path != "notes.txt"] == ["new.dcm"]  # and by its mode
    assert {row["status"] for row in rows(outbox)} == {"sorted", "other", "ignored"}  # nothing is a duplicate
    assert f"finished.{cut}.statuses.sorted=" in last_line(tmp_path)
    assert SUCCESS + " " in (tmp_path / "m.prom").read_text("utf-8")


def test_a_run_of_another_inbox_that_was_cut_short_is_named(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    other = tmp_path / "another inbox"
    make_dicom(other / "1.dcm", study=9)
    cut = cut_short(other, outbox)
    dry, ran = sort("--dry-run", "--held-ok", inbox, outbox), night(inbox, outbox)
    told = f"run {cut} was cut short and is not finished: `dicomsort resume {outbox} {cut}` finishes it"
    for each in (dry, ran):
        assert each.code == 3
        assert each.err == f"dicomsort: {told}\n"
    assert ran.out == ""
    assert told in last_line(tmp_path)
    assert "exit_code=3" in last_line(tmp_path)
    assert SUCCESS + " " not in (tmp_path / "m.prom").read_text("utf-8")
    assert by_source(outbox)["ct/1.dcm"]["status"] == "sorted"
    verified = run("verify", outbox)
    assert (verified.code, f"run {cut} was cut short" in verified.out) == (3, True)
    assert run("resume", outbox).code == 0
    assert night(inbox, outbox).code == 0


def test_a_run_that_another_process_is_at_was_not_cut_short(inbox: Path, outbox: Path) -> None:
    cut = cut_short(inbox, outbox)
    with (outbox / ".dicomsort/lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        verified, reported = run("verify", outbox), run("report", outbox)
        assert run("resume", outbox).code == 4
    held = f"outbox {str(outbox)!r} is held by process {os.getpid()}"
    assert (verified.code, reported.code) == (3, 1)
    assert f"run {cut} has not ended, and files that it moves may be listed as missing: {held}" in verified.out
    assert f"received {cut}, which has not ended: {held}" in reported.err
    assert "cut short" not in verified.out + reported.err
    assert f"run {cut} was cut short" in run("verify", outbox).out


def test_a_run_that_cannot_be_finished_is_named(inbox: Path, outbox: Path) -> None:
    cut = cut_short(inbox, outbox)
    plan = outbox / ".dicomsort/runs" / cut / "plan.jsonl"
    plan.write_bytes(plan.read_bytes().replace(b"outbox/CT", b"outbox/XX", 1))
    ran = sort("--quiet", "--held-ok", inbox, outbox)
    assert (ran.code, f"run {cut}" in ran.err) == (3, True)  # damaged: it is left alone
    assert f"run {cut}" in sort(inbox, outbox).out


def test_a_run_whose_finishing_fails_is_named_and_the_rest_is_sorted(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    cut = cut_short(inbox, outbox)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("flush_system", 0, errno.EIO))
        make_dicom(inbox / "new.dcm", study=9)
        ran = night(inbox, outbox)
    told = f"dicomsort: run {cut} was cut short and is not finished: `dicomsort resume {outbox} {cut}` finishes it\n"
    assert (ran.code, ran.err) == (3, told)
    assert f"run {cut} was cut short and could not be finished" in last_line(tmp_path)
    assert SUCCESS + " " not in (tmp_path / "m.prom").read_text("utf-8")
    assert by_source(outbox)["new.dcm"]["status"] == "sorted"
    assert run("resume", outbox).code == 0


def test_a_run_that_was_never_sealed_is_no_matter(inbox: Path, outbox: Path) -> None:
    assert sort(inbox, outbox).code == 0
    (outbox / ".dicomsort/runs/20200101T000000Z-abcdef").mkdir()
    (outbox / ".dicomsort/runs/20200101T000000Z-abcdef/plan.jsonl").write_bytes(b'{"format":1')
    ran = night(inbox, outbox)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_fatal_error_is_the_last_line_of_the_log(inbox: Path, outbox: Path, tmp_path: Path, form: str) -> None:
    shutil.move(inbox, tmp_path / "unmounted")
    ran = night(inbox, outbox, "--log-format", form)
    assert ran.code == 2
    assert "INBOX: expected a folder" in last_line(tmp_path)
    assert ("exit_code=2" if form == "text" else '"exit_code": 2') in last_line(tmp_path)
    shutil.move(tmp_path / "unmounted", inbox)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken("flush_system", 0, errno.ENOSPC))
        ran = night(inbox, outbox, "--log-format", form)
    assert (ran.code, "resume" in ran.err) == (1, True)
    assert "resume" in last_line(tmp_path)
    assert ("exit_code=1" if form == "text" else '"exit_code": 1') in last_line(tmp_path)
    assert "Counter(" not in (tmp_path / "log").read_text("utf-8")
    assert night(inbox, outbox, "--log-format", form).code == 0
    assert ("exit_code=0" if form == "text" else '"exit_code": 0') in last_line(tmp_path)


@pytest.mark.parametrize("mode", ["--copy", "--dry-run"])
def test_room_is_asked_for_before_the_first_file(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    usage = shutil.disk_usage(inbox)
    monkeypatch.setattr("dicomsort.sorting.outbox.shutil.disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr("dicomsort.files.Files.shares_blocks", lambda *_: False)
    ran = sort(mode, inbox, outbox)
    assert ran.code == 1
    assert "bytes that are to be copied, received 1,000 free" in ran.err
    assert "are missing; nothing was placed: make room" in ran.err
    assert not outbox.exists() or list(placed(outbox)) == []
    if mode == "--copy":
        assert json.loads(run("runs", "--json", outbox).out) == []
        assert sort("--move", "--settle", 0, inbox, outbox).code == 0  # on one file system nothing is copied


def test_runs_tells_what_is_undone_and_by_what(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    (sorted_,) = all_runs(str(outbox))
    assert sort(inbox, outbox).code == 0  # places nothing
    dry = run("undo", "--dry-run", outbox)
    assert (dry.code, f"of run {sorted_}" in dry.out) == (0, True)
    assert dry.out.count("remove ") == 5
    before = read_tree(outbox)
    assert run("undo", "--dry-run", "--json", outbox).code == 0
    assert read_tree(outbox) == before
    ran = run("undo", outbox)  # the newest run that changed anything, not the newest
    assert (ran.code, f"undo of run {sorted_}" in ran.out) == (0, True)
    listed = {each["run_id"]: each for each in json.loads(run("runs", "--json", outbox).out)}
    undo = max(listed)
    assert (listed[sorted_]["state"], listed[sorted_]["undone_by"]) == ("undone", undo)
    assert listed[undo]["undoes"] == sorted_
    table = run("runs", outbox).out  # 80 columns wide: an id is never cut, for it is typed after `undo`
    assert all(name in table for name in listed)
    assert {"undo", "of", f"…{sorted_[-6:]}"} <= set(table.split())
    again = run("undo", outbox)
    assert (again.code, "no run that changed anything is left to undo" in again.out) == (0, True)
    resumed = run("resume", outbox)
    assert (resumed.code, "there is nothing to resume" in resumed.out) == (0, True)
    assert len(all_runs(str(outbox))) == 3


def test_an_undo_dry_run_says_what_would_stay(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    (outbox / by_source(outbox)["cr.dcm"]["destination"]).write_bytes(b"changed")
    dry = run("undo", "--dry-run", outbox)
    assert dry.code == 3
    assert "[the file changed after it was judged]" in dry.out
    assert run("undo", outbox).code == 3


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_an_outbox_that_was_restored_from_a_backup_can_be_undone(
    inbox: Path, outbox: Path, tmp_path: Path, mode: str
) -> None:
    before = read_tree(inbox)
    sort(mode, "--settle", 0, inbox, outbox)
    shutil.copytree(outbox, tmp_path / "backup", copy_function=shutil.copyfile)  # as cp -r: other times and inodes
    shutil.rmtree(outbox)
    (tmp_path / "backup").rename(outbox)
    assert run("verify", outbox).code == 0
    assert run("undo", outbox).code == 0
    assert read_tree(inbox) == before
    assert list(placed(outbox)) == []


def test_an_inbox_without_files_says_so(tmp_path: Path, outbox: Path) -> None:
    (tmp_path / "inbox").mkdir()
    ran = sort(tmp_path / "inbox", outbox)
    assert (ran.code, "INBOX holds no files" in ran.out) == (0, True)


def test_a_text_log_has_words_and_no_reprs(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    make_dicom(inbox / "two words.dcm", study=5, modality="CT", sop_class="1.2.840.10008.5.1.4.1.1.1")
    assert night(inbox, outbox).code == 0
    log = (tmp_path / "log").read_text("utf-8")
    assert 'source="two words.dcm" status=review' in log
    assert "statuses.sorted=" in log
    assert " dry_run=false" in log
    assert not {"{", "'", "None", "True"} & set(log.replace('"', " ").split())
    assert os.linesep not in log.rstrip().splitlines()[0]


def test_a_file_whose_worker_something_else_killed_stays_and_the_night_is_no_success(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_tree(inbox)

    class Killed(SerialEngine):
        def submit(self, function: Callable[[Any], Any], task: Any, /) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(WorkerLost("the worker process was killed by signal 9 (Killed)", from_outside=True))
            return future

    monkeypatch.setattr("dicomsort.cli.sort.engine_for", lambda _: Killed())
    ran = night(inbox, outbox, "--move", "--settle", 0)
    assert ran.code == 3
    assert "killed by signal 9" in ran.err
    assert {row["status"] for row in rows(outbox) if row["status"] != "ignored"} == {"failed"}
    assert read_tree(inbox) == before
    assert SUCCESS not in (outbox.parent / "m.prom").read_text()


@pytest.mark.parametrize(
    ("command", "what"), [("sort", "sort ended"), ("watch", "watch ends"), ("send", "send ended"), ("receive", "ended")]
)
def test_what_is_refused_at_the_start_is_the_last_line_of_the_log(
    inbox: Path, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, what: str
) -> None:
    arguments = [inbox, outbox] if command in {"sort", "watch"} else [inbox]
    log = tmp_path / "log"
    assert night(inbox, outbox).code == 0
    there = log.read_text()
    (tmp_path / "bad.toml").write_text(f"log-file = 'log'\ncolour = 1\n[{command}]\n")
    before = [
        ("--config", tmp_path / "bad.toml"),
        ("--log-file", log, "--bogus"),
        (f"--log-file={log}", "--log-size", "x"),
    ]
    for options in before:
        assert run(command, *options, *arguments).code == 2
        assert f"ERROR {what} exit_code=2 cause=" in last_line(tmp_path)
    monkeypatch.setenv(
        "DICOMSORT_LOG_FILE" if command in {"sort", "watch"} else f"DICOMSORT_{command.upper()}_LOG_FILE", str(log)
    )
    monkeypatch.setenv("DICOMSORT_SETTL", "3")
    assert run(command, *arguments).code == 2
    assert "did you mean" in last_line(tmp_path)
    assert len(log.read_text().splitlines()) == len(there.splitlines()) + len(before) + 1
    image = next(path for path in inbox.rglob("*") if path.is_file())
    content = image.read_bytes()
    assert run(command, "--log-file", image, *arguments).code == 2
    assert image.read_bytes() == content


def test_a_refused_command_writes_the_log_that_counts_and_rotates_none(
    inbox: Path, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert night(inbox, outbox).code == 0
    log, first = tmp_path / "log", tmp_path / "first"
    with log.open("ab") as stream:
        stream.write(b"x" * (int(LOG_MIB) << 20) + b"\n")
    shutil.copy(log, first)
    before = first.read_bytes()
    assert run("sort", "--log-file", first, f"--log-file={log}", "--log-size", 0, "--bogus", inbox, outbox).code == 2
    assert "exit_code=2" in last_line(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DICOMSORT_LOG_FILE", "~/log")
    assert run("sort", "--bogus", inbox, outbox).code == 2
    assert len(log.read_bytes()) > len(before) + 200  # two lines
    assert first.read_bytes() == before
    assert not [*tmp_path.glob("log.*"), *tmp_path.glob("first.*")]


@pytest.mark.parametrize("command", ["send", "receive"])
def test_a_refused_command_leaves_the_log_of_another_alone(
    inbox: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    assert night(inbox, outbox).code == 0
    log = outbox.parent / "log"
    before = log.read_bytes()
    monkeypatch.setenv("DICOMSORT_LOG_FILE", str(log))
    assert run(command, "--bogus", inbox).code == 2
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("command", "content"),
    [
        ("sort", "\ufefflog_file = 'log'\ncolour = 1\n"),
        ("watch", "[sort]\nlog_file = 'log'\n[watch]\nevery = 'x'\n"),
    ],
)
def test_a_refused_configuration_of_any_form_names_the_log(
    inbox: Path, outbox: Path, tmp_path: Path, command: str, content: str
) -> None:
    assert night(inbox, outbox).code == 0
    (tmp_path / "bad.toml").write_text(content)
    assert run(command, "--config", tmp_path / "bad.toml", inbox, outbox).code == 2
    assert "exit_code=2 cause=" in last_line(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "closed/c.toml"])
def test_a_configuration_that_cannot_be_looked_at_is_one_line(
    inbox: Path, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    monkeypatch.setenv("DICOMSORT_CONFIG", str(tmp_path / name))
    for command in ("sort", "watch"):
        ran = run(command, inbox, outbox)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    "content", ["sort = 1", f"a = {'[' * 5000}{']' * 5000}", f"a{'.a' * 50_000} = 1"], ids=["number", "nested", "dots"]
)
def test_a_refused_configuration_that_cannot_be_parsed_ends_with_one_line(
    inbox: Path, outbox: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "bad.toml").write_text(content)
    ran = run("sort", "--config", tmp_path / "bad.toml", inbox, outbox)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)


def test_a_metrics_file_that_cannot_be_is_in_the_log_too(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    assert night(inbox, outbox).code == 0
    for command in ("sort", "watch"):
        gone = ("--metrics", tmp_path / "gone" / "m", "--log-file", tmp_path / "log")
        assert run(command, *gone, "--engine", "serial", inbox, outbox).code == 2
        assert "exit_code=2 cause=" in last_line(tmp_path)


def test_a_service_that_cannot_begin_says_so_in_its_log(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    assert run("watch", "--model", tmp_path, "--log-file", tmp_path / "log", inbox, outbox).code == 2
    assert "ERROR watch ends exit_code=2 cause=" in last_line(tmp_path)
    with locked(quiet(outbox), create=True):
        assert run("watch", "--engine", "serial", "--log-file", tmp_path / "log", inbox, outbox).code == 4
    assert "ERROR watch ends exit_code=4 cause=" in last_line(tmp_path)


def test_a_sending_that_fails_says_so_on_stderr_and_in_its_log(inbox: Path, tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    nowhere = ("--to", "A@127.0.0.1:1", "--retries", 0, "--quiet", "--log-file", tmp_path / "log")
    ran = run("send", *nowhere, inbox)
    assert ran.code == 1
    assert "cannot be reached" in ran.err
    assert "ERROR send ended exit_code=1 cause=" in last_line(tmp_path)
    assert run("send", *nowhere, tmp_path / "missing").code == 2
    assert "ERROR send ended exit_code=2 cause=" in last_line(tmp_path)


def test_a_run_that_was_cut_short_and_cannot_be_read_is_no_success(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    name = cut_short(inbox, outbox, "--move")
    journal = outbox / ".dicomsort" / "runs" / name / "journal.jsonl"
    content = bytearray(journal.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 10] = bytes(10)
    journal.write_bytes(content)
    for _ in range(2):  # every night, until a person has looked
        ran = night(inbox, outbox, "--move", "--settle", 0)
        assert ran.code == 3
        assert f"run {name}" in ran.err
        assert "is neither finished nor undone: look at what it placed, then move" in ran.err
        assert "ERROR sort ended exit_code=3" in last_line(tmp_path)
        assert SUCCESS + " " not in (tmp_path / "m.prom").read_text()
    assert sort("--dry-run", inbox, outbox).code == 3
    ran = run("resume", outbox)
    assert (ran.code, "may have been cut short" in ran.err) == (1, True)
    shutil.move(journal.parent, tmp_path / "away")
    assert night(inbox, outbox, "--move", "--settle", 0).code == 0


def test_an_inbox_that_is_not_mounted_any_more_is_no_success(
    inbox: Path, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        is_mount = os.path.ismount
        patch.setattr(os.path, "ismount", lambda path: str(path) == str(inbox) or is_mount(path))
        assert night(inbox, outbox).code == 0
    (tmp_path / "m.prom").unlink()
    shutil.rmtree(inbox)
    inbox.mkdir()
    for options in ((), ("--dry-run",)):
        ran = night(inbox, outbox, *options)
        assert (ran.code, "received an empty folder, and nothing is mounted at" in ran.err) == (1, True)
    assert not (tmp_path / "m.prom").exists()
    assert "ERROR sort ended exit_code=1" in last_line(tmp_path)
    (inbox / ".keep").touch()
    assert night(inbox, outbox).code == 1
    make_dicom(inbox / "new.dcm")
    assert night(inbox, outbox).code == 0  # files are there: it has become a plain folder


def test_what_is_refused_writes_no_log_into_a_folder_that_the_command_names(inbox: Path, outbox: Path) -> None:
    assert night(inbox, outbox).code == 0
    log = inbox / "log"
    shutil.copy2(outbox.parent / "log", log)
    there = log.read_bytes()
    for options in (("--bogus",), ("--log-size", "x"), ("--copy", "--move"), ()):
        assert run("sort", "--log-file", log, *options, inbox, outbox).code == 2
    os.link(outbox.parent / "log", outbox.parent / "other name")
    assert run("sort", "--log-file", outbox.parent / "log", "--bogus", inbox, outbox).code == 2
    assert (log.read_bytes(), (outbox.parent / "log").read_bytes()) == (there, there)
