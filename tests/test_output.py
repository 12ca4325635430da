"""stdout and stderr that are full, closed, or read by nobody, and a working folder that was removed."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from building import make_dicom, read_tree
from command import placed, rows, run

from dicomsort.cli.console import EXIT_UNREAD

FULL, CLOSED, GONE = ">/dev/full", ">&-", "a pipe that nobody reads"
LOST = "dicomsort: expected stdout to take what is printed, received: "
GOES_ON = "; the command goes on without it"
REASONS = {FULL: "No space left on device", CLOSED: "Bad file descriptor", GONE: "Broken pipe"}
# Reads a line and goes; what was printed before it went is more than a pipe holds.
HEAD = "| head -n 1 >/dev/null"

PROGRAM = Path(sys.executable).with_name("dicomsort")  # a shell completes by the program's name


class Shell(NamedTuple):
    code: int
    out: str
    err: str


def shell(command: str, after: str) -> Shell:
    """``dicomsort COMMAND AFTER`` in a shell; the exit code is that of ``dicomsort``."""
    reader, writer = os.pipe()
    os.close(reader)
    line = f"{shlex.quote(sys.executable)} -m dicomsort {command} "
    line += f">&{writer}" if after == GONE else f"{after}; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(
        ["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, pass_fds=[writer]
    )
    os.close(writer)
    return Shell(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    return tmp_path / "inbox"


@pytest.fixture
def outbox(inbox: Path, tmp_path: Path) -> Path:
    assert run("sort", "--engine", "serial", "--settle", 0, inbox, tmp_path / "outbox").code == 0
    return tmp_path / "outbox"


@pytest.mark.parametrize("after", [FULL, CLOSED, GONE])
@pytest.mark.parametrize(
    "command",
    [
        "--version", "--help", "sort --help", "runs {outbox}", "runs --json {outbox}", "verify {outbox}",
        "report {outbox}", "report --json {outbox}", "report --html - --pictures 0 {outbox}", "rules", "rules --json",
        "predict {inbox}/1.dcm", "predict --json {inbox}/1.dcm", "doctor", "sort --settle 0 --dry-run {inbox}",
    ],
)  # fmt: skip
def test_what_only_prints_ends_with_141(inbox: Path, outbox: Path, command: str, after: str) -> None:
    if after == FULL and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    ran = shell(command.format(inbox=inbox, outbox=outbox), after)
    assert ran == (EXIT_UNREAD, "", "" if after == GONE else f"{LOST}{REASONS[after]}\n")


@pytest.mark.parametrize("command", ["rules", "rules --json"])
def test_head_ends_it_in_silence(command: str) -> None:
    assert shell(command, HEAD) in {(EXIT_UNREAD, "", ""), (0, "", "")}  # 0: it was faster than head


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("after", [FULL, CLOSED, GONE])
def test_what_places_files_goes_on(
    inbox: Path, tmp_path: Path, after: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    told, outbox = f"{LOST}{REASONS[after]}{GOES_ON}\n", tmp_path / "outbox"
    (inbox / "2.dcm").write_bytes((inbox / "1.dcm").read_bytes()[:200])  # for a person to look at: 3
    before = read_tree(inbox)
    assert shell(f"sort --engine serial --evidence header --settle 0 --move {inbox} {outbox}", after) == (3, "", told)
    assert len(list(placed(outbox))) == len(rows(outbox)) == 2
    assert shell(f"resume {outbox}", after) == (0, "", told)  # there is nothing to resume
    assert shell(f"undo {outbox}", after) == (0, "", told)
    assert read_tree(inbox) == before
    assert shell(f"runs --keep 1 {outbox}", after) == (0, "", told)
    assert shell(f"sort --json --engine serial --evidence header --settle 0 {inbox} {outbox}", after) == (3, "", told)
    assert shell(f"undo --json {outbox}", after) == (0, "", told)
    ran = shell(f"sort --quiet --engine serial --evidence header --settle 0 {inbox} {outbox}", after)
    assert ran == (3, "", "")  # nothing was to be printed, so nothing was lost


def test_a_sending_goes_on(inbox: Path) -> None:
    pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
    from peers_send import Scp

    for number in range(2, 40):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    with Scp().running() as scp:
        ran = shell(f"send {inbox} --to {scp.to}", CLOSED)
        assert (ran.code, scp.came.total()) == (0, 39)
    assert ran.err.startswith(f"{LOST}{REASONS[CLOSED]}{GOES_ON}\n{scp.to}: 39 acknowledged")


def test_a_service_goes_on(inbox: Path, tmp_path: Path) -> None:
    outbox = tmp_path / "outbox"
    command = [sys.executable, "-m", "dicomsort", "watch", "--engine", "serial", "--evidence", "header", "--every"]
    command += ["0.1", "--settle", "0", str(inbox), str(outbox)]
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        for number in range(1, 4):  # each is a run, whose line nobody reads
            make_dicom(inbox / f"{number}.dcm", instance=number)
            while not outbox.is_dir() or len(list(placed(outbox))) < number:
                assert process.poll() is None
        process.terminate()
        _, told = process.communicate()
    assert (process.returncode, told) == (0, f"{LOST}{REASONS[GONE]}{GOES_ON}\n")


@pytest.mark.parametrize("after", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_stderr_that_cannot_be_written_changes_nothing(inbox: Path, tmp_path: Path, after: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (inbox / "2.dcm").write_bytes((inbox / "1.dcm").read_bytes()[:200])
    outbox = tmp_path / "outbox"
    ran = shell(f"sort --engine serial --evidence header --settle 0 {inbox} {outbox}", after)
    assert (ran.code, ran.err) == (3, "")
    assert len(list(placed(outbox))) == len(rows(outbox)) == 2
    assert shell(f"runs {tmp_path}/missing", after) == (2, "", "")


def test_what_libraries_print_goes_into_no_file_that_takes_the_number_of_a_closed_stdout(tmp_path: Path) -> None:
    script = (
        "import os; from dicomsort.cli import console; console.guard()\n"
        "taken = os.open(f'{os.environ[\"FOLDER\"]}/journal', os.O_CREAT | os.O_WRONLY); os.system('echo noise')\n"
        "os.write(taken, b'whole'); print('lost'); console.optional(); print(taken > 2, flush=True)"
    )
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} >&-"
    ran = subprocess.run(
        ["bash", "-c", line], env=os.environ | {"FOLDER": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, f"{LOST}{REASONS[CLOSED]}{GOES_ON}\n")
    assert (tmp_path / "journal").read_bytes() == b"whole"


def test_a_stdout_that_is_slow_to_take_gets_everything(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # of the open file, so for the command too
    command = [sys.executable, "-m", "dicomsort", "rules", "--json"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE) as process:
        theirs.close()
        received = b""
        while piece := ours.recv(100):
            received += piece
        assert process.stderr is not None
        assert process.stderr.read() == b""
    ours.close()
    assert process.returncode == 0
    assert received.decode() == run("rules", "--json").out


@pytest.mark.parametrize("command", ["sort in out", "sort {inbox} out", "watch in out", "predict 1.dcm", "train data"])
def test_a_working_folder_that_was_removed_is_one_line(inbox: Path, tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"rmdir {gone}; {shlex.quote(sys.executable)} -m dicomsort {command.format(inbox=inbox)}"
    ran = subprocess.run(
        ["bash", "-c", line], cwd=gone, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = "dicomsort: expected a working folder that is there, received one that was removed; change to another, or "
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"{told}give absolute paths\n")


def test_absolute_paths_need_no_working_folder(inbox: Path, tmp_path: Path) -> None:
    gone, outbox, python = tmp_path / "gone", tmp_path / "outbox", f"{shlex.quote(sys.executable)} -m dicomsort"
    gone.mkdir()
    commands = [
        f"sort --settle 0 {inbox} {outbox}", f"verify {outbox}", f"runs {outbox}", f"predict {inbox}/1.dcm",
        f"report --html {tmp_path}/report.html {outbox}", f"report {outbox}", f"undo {outbox}", f"resume {outbox}",
        f"doctor {inbox} {outbox}",
    ]  # fmt: skip
    line = f"rmdir {gone}; " + " && ".join(f"{python} {command} >/dev/null" for command in commands)
    ran = subprocess.run(
        ["bash", "-c", line], cwd=gone, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, len(ran.stderr.splitlines())) == (0, 1), ran.stderr
    assert ran.stderr.startswith(f"The page is {tmp_path}/report.html (")
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    "environment",
    [{"COLUMNS": "\u00b2"}, {"LINES": "\u00b2"}, {"COLUMNS": "9" * 5000}, {"COLUMNS": "0"},
     {"_DICOMSORT_COMPLETE": "complete_bash"}, {"_DICOMSORT_COMPLETE": "source_bash"}],
    ids=str,
)  # fmt: skip
def test_no_variable_of_a_library_changes_what_a_sort_does(
    inbox: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [PROGRAM, "sort", "--engine", "serial", "--evidence", "header"]
    ran = subprocess.run(
        [*command, inbox, tmp_path / "out"], env=os.environ | environment, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


def test_a_shell_still_completes(tmp_path: Path) -> None:
    environment = os.environ | {
        "_DICOMSORT_COMPLETE": "complete_bash",
        "COMP_WORDS": "dicomsort so",
        "COMP_CWORD": "1",
    }
    ran = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ran.stdout.split() == ["sort"]


OTHER_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("before", "received"),
    [
        ("sys.executable = ''", "no path of Python"),
        ("sys.executable += '-none'", "No such file or directory"),
        ("sys.orig_argv.append(200_000 * 'x')", "Argument list too long"),
    ],
)
def test_a_start_in_another_locale_that_cannot_begin_anew(before: str, received: str) -> None:
    program = f"import sys; {before}; from dicomsort.__main__ import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env=os.environ | OTHER_LOCALE, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    told = f"dicomsort: expected to start anew in UTF-8 mode, received {received}; set PYTHONUTF8=1\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", told)


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_names_are_the_same_in_every_locale(tmp_path: Path, locale: str) -> None:
    """One cron job and one shell of another locale read the same plan, journal and manifest."""
    make_dicom(tmp_path / "in" / "\u20ac\u00e9.dcm")
    other = OTHER_LOCALE | {"LC_ALL": locale}
    sort = ("sort", "--move", "--settle", "0", "--layout", "keep", "--evidence", "header", "in", "out")
    for command, environment in ((sort, other), (("verify", "out"), {}), (("undo", "out"), other), (sort, {}),
                                 (("verify", "out"), other), (("undo", "out"), other)):  # fmt: skip
        ran = subprocess.run(
            [sys.executable, "-m", "dicomsort", *command],
            cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["\u20ac\u00e9.dcm"]
