"""SIGINT, SIGTERM and SIGHUP at any moment: one plain line, the exit code, and a way on."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import placed, run
from test_output import Shell

from dicomsort import signals
from dicomsort.errors import DicomsortError
from dicomsort.training.fit.checkpoint import deferred_signals

ROOT = Path(__file__).parents[1]
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
AGAIN = "run the same command again"
# Raises a signal when a module of that name is looked for, and writes down which are.
HOOK = """
import os, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if os.environ["PARENT"] == str(os.getppid()):
            if "RECORD" in os.environ:
                with open(os.environ["RECORD"], "a") as record:
                    print(name, file=record)
            if name == os.environ.get("AT"):
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
sys.meta_path.insert(0, Finder)
"""


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    return tmp_path / "inbox"


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    return tmp_path / "hook"


def unignored() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


def start(*words: object, **environment: object) -> subprocess.Popen[str]:
    """A command as a process of its own, in which no signal is ignored that is ignored here."""
    told = {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "dicomsort", *map(str, words)], env=os.environ | told, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=unignored,  # noqa: PLW1509 - it only sets handlers
    )  # fmt: skip


def hooked(hook: Path, *words: object, **environment: object) -> Shell:
    path = os.pathsep.join([str(hook), str(ROOT)])
    with start(*words, PYTHONPATH=path, PARENT=os.getpid(), **environment) as process:
        out, err = process.communicate()
    return Shell(process.returncode, out, err)


@pytest.mark.parametrize("command", ["sort", "resume", "undo", "runs", "verify", "predict", "receive"])
def test_a_signal_while_modules_are_imported(command: str, inbox: Path, hook: Path, tmp_path: Path) -> None:
    outbox, record = tmp_path / "outbox", tmp_path / "record"
    words: list[object] = [command, outbox]
    if command == "sort":
        words = ["sort", "--engine", "serial", "--evidence", "header", "--settle", 0, inbox, tmp_path / "other"]
    elif command in {"predict", "receive"}:
        words = [command, inbox / "1.dcm" if command == "predict" else tmp_path / "missing"]
    assert run("sort", "--engine", "serial", "--settle", 0, "--quiet", inbox, outbox).code == 0
    hooked(hook, *words, RECORD=record)
    met = list(dict.fromkeys(record.read_text().split()))
    own = [name for name in met[met.index("dicomsort.cli") :] if not name.startswith("_")]
    if command == "undo":
        assert run("sort", "--engine", "serial", "--settle", 0, "--quiet", inbox, outbox).code == 0
    before = read_tree(outbox)
    for index, name in enumerate([*own[:60:12], *own[60::40]]):
        number = ENDING[index % 3]
        ran = hooked(hook, *words, AT=name, SIGNAL=int(number))
        assert ran.code == (0 if command == "receive" and number != signal.SIGINT else 130), (name, ran.err)
        assert re.fullmatch(r"dicomsort: interrupted[^\n]*; [^\n]+\n", ran.err), (name, ran.err)
        assert read_tree(outbox) == before or command in {"sort", "resume", "undo"}  # these write the lock


def test_a_signal_behind_the_last_line_changes_no_exit_code(inbox: Path, hook: Path, tmp_path: Path) -> None:
    script = (
        "import atexit, os, signal, sys\n"
        "if os.environ['PARENT'] == str(os.getppid()):\n"
        "    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "        atexit.register(os.kill, os.getpid(), number)\n"
    )
    (hook / "sitecustomize.py").write_text(script)
    words = ["sort", "--engine", "serial", "--evidence", "header", "--settle", 0, "--quiet"]
    make_dicom(inbox / "2.dcm", instance=2)
    (inbox / "2.dcm").write_bytes((inbox / "2.dcm").read_bytes()[:200])
    assert hooked(hook, *words, inbox, tmp_path / "outbox") == (3, "", "")


@contextmanager
def placing(inbox: Path, outbox: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A command that is about to place hundreds of files."""
    content = (inbox / "1.dcm").read_bytes()
    for number in range(600):
        (inbox / f"x{number}.dcm").write_bytes(content.replace(b".1.1.1", b".1.%03d" % number))
    with start(*words, "--engine", "serial", "--evidence", "header", "--settle", 0, inbox, outbox) as process:
        while process.poll() is None and not any(outbox.glob(".dicomsort/runs/*/journal.jsonl")):
            pass
        yield process


@pytest.mark.parametrize("number", ENDING)
def test_a_run_that_has_begun_says_how_to_go_on(inbox: Path, tmp_path: Path, number: int) -> None:
    outbox = tmp_path / "out box"
    with placing(inbox, outbox, "sort", "--move") as process:
        process.send_signal(number)
        _, told = process.communicate()
    assert process.returncode in {130, 0}
    if process.returncode:
        assert told == f"dicomsort: interrupted; `dicomsort resume '{outbox}'` goes on from there\n"
    assert run("resume", "--quiet", outbox).code == 0
    assert len(list(placed(outbox))) == 601
    with start("undo", outbox) as process:
        while process.poll() is None and len(list(outbox.glob(".dicomsort/runs/*/journal.jsonl"))) < 2:
            pass
        process.send_signal(number)
        _, told = process.communicate()
    assert (process.returncode, told) in {
        (0, ""),
        (130, f"dicomsort: interrupted; `dicomsort resume '{outbox}'` goes on from there\n"),
    }
    assert run("resume", "--quiet", outbox).code == 0
    assert list(placed(outbox)) == []
    assert len(list(inbox.iterdir())) == 601


def test_a_hangup_ends_the_service_as_sigterm_does_and_not_under_nohup(inbox: Path, tmp_path: Path) -> None:
    words = ["watch", "--engine", "serial", "--evidence", "header", "--every", 0.1, "--settle", 0, inbox]
    with start(*words, tmp_path / "outbox") as process:
        while not list(tmp_path.glob("outbox/.dicomsort/runs/*/summary.json")):
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        _, told = process.communicate()
    assert (process.returncode, told) == (0, "")
    command = [sys.executable, "-m", "dicomsort", *map(str, words), str(tmp_path / "second")]
    script = "import os, signal, sys; signal.signal(1, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    nohup = [sys.executable, "-c", script]
    with subprocess.Popen([*nohup, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("second/.dicomsort/runs/*/summary.json")):
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        make_dicom(inbox / "2.dcm", instance=2)
        while len(list(placed(tmp_path / "second"))) < 2:
            assert process.poll() is None
        process.terminate()
        assert (process.communicate()[1], process.returncode) == (b"", 0)


@pytest.mark.parametrize("number", ENDING)
def test_a_review_ends_with_130_and_says_what_is_kept(inbox: Path, tmp_path: Path, number: int) -> None:
    outbox = tmp_path / "outbox"
    assert run("sort", "--engine", "serial", "--settle", 0, "--quiet", inbox, outbox).code == 0
    with start("review", outbox) as process:
        assert process.stderr is not None
        assert "wait for a decision" in process.stderr.readline()
        process.send_signal(number)
        _, told = process.communicate()
    assert process.returncode == 130
    assert told.endswith(
        "dicomsort: interrupted; what was decided is kept, and the same command shows what still waits\n"
    )
    assert len(told.splitlines()) == 1


def test_a_signal_that_is_lost_in_a_callback_is_raised_again() -> None:
    script = """
import os, signal, sys, time
from dicomsort import signals
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
with signals.raising():
    try:
        Dropped()
        for _ in range(6000):
            time.sleep(0.01)
        print("lost")
    except KeyboardInterrupt as stop:
        print(signals.number_of(stop) == signal.SIGTERM)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("True\n", "", 0)


def test_a_module_of_cpp_that_turns_an_interruption_into_an_import_error() -> None:
    def interrupted(*_: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    with mock.patch("dicomsort.sorting.list_runs", interrupted):
        assert run("runs", "outbox") == (130, "", f"dicomsort: interrupted; {AGAIN}\n")
    with mock.patch("dicomsort.sorting.list_runs", side_effect=ImportError("of its own")), pytest.raises(ImportError):
        run("runs", "outbox")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (MemoryError(), 1, "dicomsort: expected enough memory, received none"),
        (OSError(12, "Cannot allocate memory"), 1, "dicomsort: expected enough memory, received none"),
        (RuntimeError("can't start new thread"), 1, "dicomsort: expected another thread or process to start, received"),
        (BlockingIOError(11, "Resource temporarily unavailable"), 1, "dicomsort: expected another thread or process"),
        (OSError(27, "File too large"), 1, "dicomsort: expected success, received [Errno 27] File too large\n"),
        (ImportError("x.so: failed to map segment from shared object"), 1, "dicomsort: expected enough memory"),
        (RecursionError("maximum recursion depth exceeded"), 1, "dicomsort: expected data that is nested less deeply"),
        (OSError(5, "Input/output error"), 1, "dicomsort: expected success, received [Errno 5] Input/output error"),
        (KeyboardInterrupt(), 130, f"dicomsort: interrupted; {AGAIN}\n"),
        (DicomsortError("expected that, received this"), 1, "dicomsort: expected that, received this\n"),
    ],
    ids=repr,
)
def test_what_ends_a_command_is_one_line(error: BaseException, code: int, told: str) -> None:
    with (
        mock.patch(
            "dicomsort.memory.resource.getrlimit", return_value=(resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        ),
        mock.patch("dicomsort.sorting.list_runs", side_effect=error),
    ):
        ran = run("runs", "outbox")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (code, "", 1)
    assert ran.err.startswith(told)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(12, "Cannot allocate memory")])
def test_only_where_files_are_placed_a_resume_is_advised(tmp_path: Path, error: OSError) -> None:
    commands = {
        "list_runs": ["runs"], "prune": ["runs", "--prune", 0], "verify": ["verify"], "repair": ["verify", "--repair"],
        "resume": ["resume"], "undo": ["undo"],
    }  # fmt: skip
    (tmp_path / ".dicomsort").mkdir()
    for name, command in commands.items():
        with mock.patch(f"dicomsort.sorting.{name}", side_effect=type(error)(*error.args)):
            ran = run(*command, tmp_path)
        assert ran.code == 1
        assert ("`dicomsort resume` finishes" in ran.err) == (name in {"resume", "undo"}), ran.err


def test_a_training_is_asked_to_end_by_a_hangup() -> None:
    told: list[str] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with deferred_signals(lambda: told.append("finishing")) as asked:
            signal.raise_signal(signal.SIGHUP)
        assert (asked.yes, told, signal.getsignal(signal.SIGHUP)) == (True, ["finishing"], signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_this_process_all_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in ENDING], sys.unraisablehook
    with suppress(KeyboardInterrupt), signals.raising():
        assert signal.getsignal(signal.SIGTERM) not in before[0]
        signal.raise_signal(signal.SIGTERM)
    assert ([signal.getsignal(number) for number in ENDING], sys.unraisablehook) == before
