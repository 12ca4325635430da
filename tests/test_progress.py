"""One display for sorting, sending and training: bars on a terminal, plain lines without one; both tell the same."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from dicomsort import progress
from dicomsort.progress import Reporter, Silent, Stages, Timed, progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_every_half_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bars(quiet=False) as told:
        told.stage("reading headers", None)
        told.advance(1234)
        assert capsys.readouterr().err == ""
        clock[0] += 30
        told.advance()
        assert capsys.readouterr().err == "dicomsort: reading headers: 1,235\n"
        told.stage("placing files", 2000)
        clock[0] += 30
        told.advance(500)
    assert capsys.readouterr().err == "dicomsort: placing files: 500 of 2,000, 0:01:30 left\n"


def test_a_step_says_its_words_and_at_its_end_its_count(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter() as reporter, reporter.step("Training", 4, done=1) as step:
        step.advance(text="loss 0.5")
        clock[0] += 60
        step.advance()
        reporter.note("a sentence [in] between :x:")
        step.advance(5)
        assert step.done == 4
    assert capsys.readouterr() == (
        "",
        "Training: 3 of 4, 0:00:30 left loss 0.5\na sentence [in] between :x:\nTraining: 4 of 4 done loss 0.5\n",
    )


def test_quiet_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(quiet=True) as told:
        told.stage("reading headers", 1)
        clock[0] += 3600
        told.advance()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    with Reporter() as reporter:
        stages = Stages(reporter)
        stages.stage("sending to A@[fe80::1]:104", None)
        stages.advance(3)
        stages.stage("placing files", 7)
        stages.advance(2)
        reporter.note("a sentence [in] between")
        with reporter.step("Training", 5) as step:
            step.advance(5, "loss 0.25")
    shown = terminal.getvalue()
    for words in (
        "sending to A@[fe80::1]:104",
        "3/3",
        "2/7",
        "a sentence [in] between",
        "Training",
        "5/5",
        "loss 0.25",
    ):
        assert words in shown
    assert "dicomsort:" not in shown


def test_seconds_are_added_up_by_stage(clock: list[float]) -> None:
    timed = Timed(Silent())
    for name, seconds in (("a", 2), ("b", 3), ("a", 4)):
        timed.stage(name, None)
        clock[0] += seconds
    assert timed.seconds() == {"a": 6.0, "b": 3.0}


def test_without_a_terminal_rich_is_not_loaded() -> None:
    code = (
        "import sys; from dicomsort.progress import progress_bars\n"
        "with progress_bars(quiet=False) as told: told.stage('a', 1); told.advance()\n"
        "print('rich' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("False\n", "")
