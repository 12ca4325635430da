"""Where nobody says what to do the help is printed, whole; the exit code says whether it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import run


def test_help_lists_the_commands() -> None:
    asked = run("--help")
    assert (asked.code, asked.err) == (0, "")
    headings = [line for line in asked.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Sort:", "Look and review:", "PACS:", "Model:", "Check:"]
    assert "Sort:\n  sort " in asked.out
    assert "..." not in asked.out.partition("Sort:")[2]  # no sentence is cut off
    assert run("help") == asked
    bare = run()
    assert (bare.code, bare.out, bare.err) == (2, "", asked.out)


@pytest.mark.parametrize("command", ["sort", "undo", "send", "train", "predict"])
def test_a_command_without_arguments_prints_its_help(command: str) -> None:
    asked = run(command, "--help")
    assert asked.code == 0
    assert run("help", command) == asked
    bare = run(command)
    assert (bare.code, bare.out) == (2, "")
    assert bare.err.startswith(asked.out)
    last = bare.err.removeprefix(asked.out)
    assert last.startswith("dicomsort: expected arguments, received none: Missing ")
    assert last.count("\n") == 1


def test_wrong_usage_with_arguments_is_one_line() -> None:
    for arguments in (["sort", "--move"], ["sort", "--moove", "inbox"], ["help", "srot"], ["srot"]):
        ran = run(*arguments)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), arguments
        assert "expected what --help shows" in ran.err


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["sort", "", "out"], "INBOX"),
        (["sort", "in", ""], "OUTBOX"),
        (["sort", "in", "--log-file", ""], "--log-file"),
        (["sort", "in", "out", "--model="], "--model"),
        (["watch", "in", ""], "OUTBOX"),
        (["doctor", "", ""], "INBOX"),
        (["doctor", "in", ""], "OUTBOX"),
        (["doctor", "--crontab", ""], "--crontab"),
        *(([command, ""], "OUTBOX") for command in ("resume", "undo", "runs", "verify", "report", "review")),
        (["undo", "out", ""], "RUN"),
        (["receive", ""], "INBOX"),
        (["send", "", "--to", "A@h:1"], "FOLDER"),
        (["evaluate", "", "--model", "in"], "DATASET"),
        *(([command, ""], "DATASET") for command in ("train", "tune")),
        (["train", "in", "--out", ""], "--out"),
        (["evaluate", "--compare", "in", ""], "--compare"),
    ],
)
def test_an_empty_name_is_wrong_usage_and_never_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    ran = run(*command)
    assert (ran.code, ran.out, ran.err) == (2, "", f"dicomsort: {what}: expected a name, received an empty one\n")
    assert [each.name for each in tmp_path.rglob("*")] == ["in"]
