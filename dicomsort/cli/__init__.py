"""The command line: parse, make settings, one call, exit code. Heavy modules are imported inside the commands."""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING

import typer

from dicomsort.cli import rules, sort, state, train
from dicomsort.errors import DicomsortError

if TYPE_CHECKING:
    from types import FrameType

EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="dicomsort",
    help="Sort DICOM, PNG and JPEG files into CT, MRI and X-ray, by header and by pixels, without losing one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("sort")(sort.sort)
app.command("resume")(state.resume)
app.command("undo")(state.undo)
app.command("runs")(state.runs)
app.command("verify")(state.verify)
app.command("train")(train.train)
app.command("predict")(train.predict)
app.command("rules")(rules.rules)


@app.callback(invoke_without_command=True)
def options(*, version: bool = typer.Option(False, "--version", help="Print the version and end.")) -> None:
    """Sort DICOM, PNG and JPEG files into CT, MRI and X-ray, by header and by pixels, without losing one."""
    if version:
        from dicomsort import __version__

        typer.echo(f"dicomsort {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every known error is one line on stderr and its own exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    logging.getLogger("dicomsort").addHandler(logging.NullHandler())
    try:
        app()
    except DicomsortError as error:
        print(f"dicomsort: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"dicomsort: expected success, received {error}; `dicomsort resume` goes on from there", file=sys.stderr)
        sys.exit(DicomsortError.exit_code)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
