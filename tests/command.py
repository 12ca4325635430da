"""Run the command line in this process, as a user runs it in a shell."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import typer.main

from dicomsort.cli import main
from dicomsort.config import SortSettings, load_sort
from dicomsort.files import Files
from dicomsort.progress import Silent
from dicomsort.sorting import RunContext


class Ran(NamedTuple):
    code: int
    out: str
    err: str


# Typer makes all commands and their options anew for each call: 30 ms, of a command that often takes 5.
_built = functools.cache(typer.main.get_command)


def run(*arguments: object) -> Ran:
    """Exit code, stdout and stderr of ``dicomsort ARGUMENTS``."""
    out, err = io.StringIO(), io.StringIO()
    command = ["dicomsort", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.object(typer.main, "get_command", _built),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        else:
            code = 0
    return Ran(code, out.getvalue(), err.getvalue())


def load(cli: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> SortSettings:
    """The settings of ``sort``, without the routes of the file."""
    return load_sort(cli, environ, file)[0]


def quiet(outbox: Path, files: Files | None = None) -> RunContext:
    """What a command gives to what it runs, without progress."""
    return RunContext(str(outbox), files or Files(), Silent())


def sort(*arguments: object) -> Ran:
    """``dicomsort sort`` by headers alone in this process, unless the arguments say otherwise."""
    defaults = [] if "--engine" in arguments else ["--engine", "serial"]
    if "--evidence" not in arguments:
        defaults += ["--evidence", "header"]
    return run("sort", *defaults, *arguments)


def rows(outbox: Path) -> list[dict[str, str]]:
    """The manifest's rows, oldest first."""
    with (outbox / "manifest.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def by_source(outbox: Path) -> dict[str, dict[str, str]]:
    """The newest row of each file."""
    return {row["source"]: row for row in rows(outbox)}


def placed(outbox: Path) -> Iterator[str]:
    """Every file in the outbox but the tool's own."""
    for path in sorted(outbox.rglob("*")):
        relative = path.relative_to(outbox).as_posix()
        if path.is_file() and not relative.startswith(".dicomsort/") and relative != "manifest.csv":
            yield relative
