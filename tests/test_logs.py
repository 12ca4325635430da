"""Logs that rotate, that others may rotate, and that never keep the program from working."""

from __future__ import annotations

import errno
import json
import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from command import run, sort

from dicomsort.cli.logs import MIB, Formatter, logging_to
from dicomsort.errors import UsageError

LINE = 200  # bytes, at least, of the lines that are written here


def settings(
    file: Path, size: int = 10_000, count: int = 3, log_format: str = "text"
) -> AbstractContextManager[logging.Logger]:
    return logging_to(file, log_format, size / MIB, count)


def write(opened: AbstractContextManager[logging.Logger], lines: int, first: int = 0) -> None:
    with opened as log:
        for number in range(first, first + lines):
            log.info("event", extra={"facts": {"number": number, "filling": "x" * LINE}})


def numbers(*files: Path) -> list[int]:
    """The numbers of the events, after the line with which each log begins."""
    logs = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert all(lines[0]["event"] == "dicomsort log" for lines in logs)
    return [line["number"] for lines in logs for line in lines[1:]]


def test_a_log_is_put_aside_before_it_grows_over_its_size(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(settings(log, log_format="json"), 400)
    files = [tmp_path / name for name in ("log.3", "log.2", "log.1", "log")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 10_000 for file in files)
    kept = numbers(*files)
    assert kept == list(range(400 - len(kept), 400))
    assert len(kept) > 90


def test_a_second_process_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    for first in range(0, 90, 10):
        write(settings(tmp_path / "log", log_format="json"), 10, first)
    assert numbers(*(tmp_path / name for name in ("log.2", "log.1", "log"))) == list(range(90))


def test_without_a_size_a_log_grows(tmp_path: Path) -> None:
    write(settings(tmp_path / "log", size=0), 400)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").stat().st_size > 400 * LINE


@pytest.mark.parametrize("size", [0, 10_000])
def test_a_log_that_somebody_moves_away_is_begun_anew(tmp_path: Path, size: int) -> None:
    with settings(tmp_path / "log", size=size, log_format="json") as log:
        for number in range(6):
            log.info("event", extra={"facts": {"number": number}})
            if number == 2:
                (tmp_path / "log").rename(tmp_path / "log-2026")
            if number == 4:
                (tmp_path / "log").unlink()
    assert numbers(tmp_path / "log-2026") == [0, 1, 2]
    assert numbers(tmp_path / "log") == [5]


def test_a_folder_that_may_not_be_changed_keeps_no_line_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refuse)
        write(settings(tmp_path / "log", log_format="json"), 200)
    assert numbers(tmp_path / "log") == list(range(200))
    assert capsys.readouterr().err == "dicomsort: the log cannot be put aside, and grows on: Permission denied\n"


def test_a_full_disk_loses_lines_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no device that is always full")
    write(settings(full, size=0), 5)
    assert capsys.readouterr().err == "dicomsort: the log cannot be written: No space left on device\n"


def test_a_log_that_cannot_be_opened_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--log-file: expected a file that can be written"):
        write(settings(tmp_path / "no folder" / "log"), 1)


def test_sort_and_watch_have_the_options(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    for _ in range(12):
        assert sort("--log-file", tmp_path / "log", "--log-size", 0.001, "--log-count", 2, inbox, outbox).code == 0
    assert sorted(path.name for path in tmp_path.glob("log*")) == ["log", "log.1", "log.2"]
    for command in ("sort", "watch"):
        assert "--log-size" in run(command, "--help").out
        assert run(command, "--log-count", 0, inbox, outbox).code == 2


def test_a_fact_is_one_word_or_quoted_and_nothing_that_a_terminal_obeys() -> None:
    odd = "a\x1b[31m\u202e\nb"
    facts = {"path": odd, "stages": {"reading headers": 0.5}, "names": ["x", "y z"], "none": "", "is": True}
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "event", "created": 0, "facts": facts})
    pairs = r'path="a\u001b[31m\u202e\nb" "stages.reading headers"=0.5 names="x, y z" is=true'
    assert Formatter("text").format(record) == f"1970-01-01T00:00:00Z INFO event {pairs}"
