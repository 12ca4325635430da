"""The command line: parse, make settings, one call, exit code. Heavy modules are imported inside the commands."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import typer
import typer.core

from dicomsort import signals, training
from dicomsort.cli import (
    console,
    doctor,
    evaluate,
    logs,
    predict,
    receive,
    report,
    review,
    rules,
    send,
    sort,
    state,
    train,
    watch,
)
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.memory import file_limit, refusal, shortage

# The purpose of these is not to print; `sort` decides for itself.
ACTING = frozenset({"watch", "resume", "undo", "receive", "send", "review", "train", "tune"})
PLACING = frozenset({"sort", "watch", "resume", "undo", "review"})
RESUME = "`dicomsort resume` finishes a sort that had begun"
_COMPLETION = "_DICOMSORT_COMPLETE"
_NO_TRAINING = (
    "expected the package {}, which commands of the model need, received none: this is an installation for sorting "
    "(requirements-sort.txt); `pip install .` in a checkout, without --no-deps, brings the rest"
)
WrongUsage: Any = typer.BadParameter.__mro__[1]  # click's UsageError, wherever this version of Typer keeps it


class _Interrupted(DicomsortError):
    """A signal ended the command; the message says what to do."""

    def __init__(self, stop: KeyboardInterrupt) -> None:
        super().__init__("; ".join(["interrupted", *getattr(stop, "__notes__", [signals.AGAIN])]))
        self.exit_code = signals.code_of(signals.number_of(stop))


class _Commands(typer.core.TyperGroup):
    """Hides signals from Typer, which would say nothing, or "Aborted!". ``help COMMAND`` is its ``--help``.

    The help lists the commands in ``GROUPS``.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - Typer calls it so
        room = formatter.width - 6 - max(map(len, self.commands))
        for heading, functions in GROUPS.items():
            with formatter.section(heading):
                names = [function.__name__ for function in functions]
                formatter.write_dl([(name, self.commands[name].get_short_help_str(room)) for name in names])

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args[:1] == ["help"]:
            args = [*args[1:2], "--help"]
        return super().parse_args(ctx, args)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _interruptible():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _interruptible():
            try:
                return super().invoke(ctx)
            except Exception as error:
                if ctx.invoked_subcommand in PLACING:
                    error.add_note(RESUME)
                raise


class _Command(typer.core.TyperCommand):
    """Refuses an empty name of a file or folder, as an unset variable of a script gives it."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        given, _, _ = self.make_parser(ctx).parse_args(args=[*args])
        rest = super().parse_args(ctx, args)
        for param in self.params:
            name, is_argument = param.name or "", param.param_type_name == "argument"
            value = ctx.params.get(name)
            is_path = Path() in _each(value) or param.nargs > 1  # two values are two folders
            if (is_path or (is_argument and value == "")) and "" in _each(given.get(name)):
                what = param.metavar if is_argument else param.opts[0]
                raise UsageError(f"{what}: expected a name, received an empty one")
        return rest


def _each(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value,)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise _Interrupted(stop) from None
    except ImportError as error:  # a signal that came while a module of C++ was imported
        for cause in (error.__cause__, error.__context__):
            if isinstance(cause, KeyboardInterrupt):
                raise _Interrupted(cause) from None
        raise


app = typer.Typer(
    name="dicomsort",
    cls=_Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: Rich would take longer to import than all else together
    context_settings={"help_option_names": ["-h", "--help"]},
)
GROUPS = {  # in the order of a first day
    "Sort": (sort.sort, state.runs, state.undo, state.resume, state.verify, watch.watch),
    "Look and review": (report.report, review.review),
    "PACS": (receive.receive, send.send),
    "Model": (predict.predict, evaluate.evaluate, train.train, train.tune),
    "Check": (doctor.doctor, rules.rules),
}
for command in chain.from_iterable(GROUPS.values()):
    app.command(cls=_Command)(command)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    *,
    version: bool = typer.Option(False, "--version", help="Print the version and end."),
) -> None:
    """Sort DICOM, PNG and JPEG files into CT, MRI and X-ray, by header and by pixels, without losing one."""
    if version:
        from dicomsort import __version__

        typer.echo(f"dicomsort {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(UsageError.exit_code)
    if context.invoked_subcommand in ACTING:
        console.optional()


def _clean_environment() -> None:
    """Remove variables that would make Rich or Typer fail, or do something else than the command says."""
    for name in ("COLUMNS", "LINES"):
        if (given := os.environ.get(name)) is not None and not re.fullmatch(r"[1-9][0-9]{0,4}", given):
            del os.environ[name]
    wanted = os.environ.get(_COMPLETION, "")
    has_words = "COMP_WORDS" in os.environ or "_TYPER_COMPLETE_ARGS" in os.environ
    if len(sys.argv) > 1 or (wanted.startswith("complete_") and not has_words):  # a shell completes without arguments
        os.environ.pop(_COMPLETION, None)


def main() -> None:
    """Run the command line; every known error is one line on stderr and its own exit code."""
    console.guard()
    logs.begin()
    _clean_environment()
    logging.getLogger("dicomsort").addHandler(logging.NullHandler())
    with signals.raising():
        try:
            code = _run()
            sys.stdout.flush()
        except KeyboardInterrupt as stop:  # before the command begins, or a second one
            code = _fail(f"interrupted; {signals.AGAIN}", signals.code_of(signals.number_of(stop)))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        signals.over(code)
    sys.exit(code)


def _run() -> int:
    """Run the command, print and log its error, and return the exit code."""
    try:
        return int(app(standalone_mode=False) or 0)
    except DicomsortError as error:
        return _fail(str(error), error.exit_code)
    except WrongUsage as error:
        return _refuse(error)
    except RecursionError:
        return _fail("expected data that is nested less deeply, received data nested too deeply to be read", 1)
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in training.PACKAGES:
            return _fail(_NO_TRAINING.format(error.name), 1)
        if not (message := _shortage(error)):
            raise
        return _fail(*message)


def _refuse(error: Any) -> int:
    """Print what is wrong with the usage; a command that was given nothing prints its whole help first."""
    wrong, context = error.format_message(), error.ctx
    if context is None or len(sys.argv) > (1 if context.parent is None else 2):
        return _fail(f"expected what --help shows, received: {wrong}", UsageError.exit_code)
    typer.echo(context.get_help(), err=True)
    if wrong == context.get_help():  # the message of some versions of Typer
        return UsageError.exit_code
    return _fail(f"expected arguments, received none: {wrong}", UsageError.exit_code)


def _shortage(error: Exception) -> tuple[str, int] | None:
    """Return a message and the exit code where the system refused something; None for errors of another kind."""
    advice = getattr(error, "__notes__", ())
    words = ("allocate memory", "failed to map segment")  # of the loader, and of the interpreter
    if isinstance(error, FileNotFoundError) and not _has_working_folder():
        expected = "expected a working folder that is there, received one that was removed"
        return f"{expected}; change to another, or give absolute paths", UsageError.exit_code
    if "start new thread" in str(error) or (isinstance(error, OSError) and error.errno == errno.EAGAIN):
        parts = [refusal()]
    elif isinstance(error, OSError) and error.errno != errno.ENOMEM:
        parts = [f"expected success, received {error}", file_limit() if error.errno == errno.EFBIG else ""]
    elif isinstance(error, OSError | MemoryError) or any(word in str(error) for word in words):
        parts = [shortage()]
    else:
        return None
    return "; ".join(filter(None, [*parts, *advice])), 1


def _has_working_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _fail(message: str, code: int) -> int:
    console.optional()  # what was printed before may be lost: the exit code stands for the failure
    print(f"dicomsort: {console.one_line(message)}", file=sys.stderr)
    logs.log_refusal(sys.argv[1:], os.environ, code, message)
    return code
