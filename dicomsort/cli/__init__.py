"""The command line: parse, make settings, one call, exit code. Heavy modules are imported inside the commands."""

from __future__ import annotations

import io
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from dicomsort.cli import (
    doctor,
    evaluate,
    features,
    predict,
    receive,
    report,
    review,
    rules,
    screen,
    send,
    sort,
    state,
    train,
    tune,
    watch,
)
from dicomsort.errors import DicomsortError, UsageError

if TYPE_CHECKING:
    from types import FrameType

EXIT_INTERRUPTED = 130  # what Typer ends with on KeyboardInterrupt
_WrongUsage: Any = typer.BadParameter.__mro__[1]  # click's UsageError, wherever this version of Typer keeps it

app = typer.Typer(
    name="dicomsort",
    help="Sort DICOM, PNG and JPEG files into CT, MRI and X-ray, by header and by pixels, without losing one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: Rich would take longer to import than all else together
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("sort")(sort.sort)
app.command("watch")(watch.watch)
app.command("resume")(state.resume)
app.command("undo")(state.undo)
app.command("runs")(state.runs)
app.command("verify")(state.verify)
app.command("report")(report.report)
app.command("review")(review.review)
app.command("receive")(receive.receive)
app.command("send")(send.send)
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("screen")(screen.screen)
app.command("features")(features.features)
app.command("predict")(predict.predict)
app.command("rules")(rules.rules)
app.command("doctor")(doctor.doctor)


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not end the run of a terminal without UTF-8
    try:
        sys.exit(app(standalone_mode=False))
    except DicomsortError as error:
        _fail(str(error), error.exit_code)
    except _WrongUsage as error:
        received = error.format_message()  # nothing where no command was given: the help was printed instead
        _fail(received and f"expected what --help tells of, received: {received}", UsageError.exit_code)
    except OSError as error:
        _fail(f"expected success, received {error}; `dicomsort resume` finishes a sort that had begun", 1)


def _fail(message: str, code: int) -> NoReturn:
    if message:
        print(f"dicomsort: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
