"""What a person sees on stdout: the summary of a run, tables; and standard streams that cannot be written.

What is printed to a stdout or stderr that cannot be written is lost, and no command fails in its midst. A command that
only prints ends with 141, as if SIGPIPE had ended it (128 + 13). A command that places, sends or trains goes on
(``optional``), with its own exit code.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dicomsort.errors import command, counted, escaped

if TYPE_CHECKING:
    from dicomsort.report import Summary
    from dicomsort.training.evaluate.tables import Table

SHOWN = 10
EXIT_NEEDS_PERSON, EXIT_UNREAD = 3, 141  # exit codes
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_is_optional = False


@contextmanager
def resumable(outbox: str | None) -> Iterator[None]:
    """Add to an interruption how to go on: by `resume` where a run has begun, else by the same command."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if outbox is not None and _has_unfinished(outbox):
            stop.add_note(f"{command('resume', outbox)} goes on from there")
        raise


def _has_unfinished(outbox: str) -> bool:
    try:
        from dicomsort.sorting.outbox import absolute
        from dicomsort.sorting.runs import load_runs

        return bool(load_runs(absolute(outbox)).unfinished())
    except Exception:  # noqa: BLE001 - modules may be imported by half, and what is there by half
        return False


def show_summary(summary: Summary, *, as_json: bool, quiet: bool, outbox: str | None) -> None:
    """Print what a run did, for a person or as one JSON object; what failed is one line on stderr in any case."""
    troubles = [each.trouble for each in (summary, *summary.finished) if each.has_failed and each.trouble]
    for line in (*summary.unfinished_notes(outbox or ""), *troubles):
        print(f"dicomsort: {escaped(line)}", file=sys.stderr)
    if as_json:
        print(json.dumps(summary.as_json()))
        return
    if quiet:
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console(soft_wrap=True)
    verb = summary.verb + (f" of run {summary.undoes}" if summary.undoes else "")
    if summary.dry_run:
        verb += ", planned (dry run, nothing was changed)"
    title = f"{verb}: {counted(summary.found, 'file')} in {summary.seconds:.1f} s"
    if not summary.statuses:
        console.print(title)
    else:
        table = Table("status", Column("files", justify="right"), "which", title=title, title_justify="left")
        counts = sorted(summary.classes.items())
        classes = ", ".join(f"{name} {count:,}" for name, count in counts if name != "OTHER")
        for status, count in sorted(summary.statuses.items(), key=lambda item: -item[1]):
            table.add_row(status, f"{count:,}", classes if status == "sorted" else "")
        console.print(table)
    for line in _remarks(summary, outbox):
        console.print(escape(escaped(line)))


def _remarks(summary: Summary, outbox: str | None) -> Iterator[str]:
    from dicomsort.report import visible

    if not summary.found and summary.verb == "sort":
        yield "INBOX holds no files"
    if summary.causes and not summary.has_failed:  # else it stands on stderr
        yield summary.trouble
    if summary.held:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.held.most_common())
        yield f"for a person to look at: {reasons}"
    if settling := summary.statuses.get("settling"):
        files = counted(settling, "file was left: its", "files were left: their")
        yield f"{files} series changed within the last --settle seconds; --settle 0 takes such files now"
    if duplicates := summary.statuses.get("duplicate"):
        files = counted(duplicates, "file is a duplicate", "files are duplicates")
        of = "of what the outbox holds" if outbox else "of others"
        yield f"{files} {of}; nothing {'is' if summary.dry_run else 'was'} placed twice"
    if summary.archives:
        names = ", ".join(visible(name) for name in summary.archives[:SHOWN])
        left = summary.archives_found - SHOWN
        more = f" and {left:,} more" if left > 0 else ""
        advice = "; --archives open opens ZIP and TAR files" if summary.openable else ""
        left_out = counted(summary.archives_found, "archive was", "archives were")
        yield f"{left_out} left unopened: {names}{more}{advice}"
    if summary.archives_opened:
        yield f"{summary.members:,} of the files lay in {counted(summary.archives_opened, 'archive')}"
    yield from summary.notes
    if outbox and summary.waiting:
        yield f"{summary.waiting_words}: {command('review', outbox)} shows and decides"
    if outbox and summary.unreadable:
        yield summary.unreadable_words
    if outbox and summary.run_id:
        yield f"run {summary.run_id}; every file has a row in {visible(outbox.rstrip('/') or '/')}/manifest.csv"


def show_tables(tables: Iterable[Table]) -> None:
    """Print tables, each after an empty line."""
    draw = _rich_table if sys.stdout.isatty() else _plain_table
    for table in tables:
        print()
        draw(table)


def _plain_table(table: Table) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    lines: list[Sequence[str]] = [table.head, *table.rows]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    print(table.title)
    for name, *cells in lines:
        others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print("  " + "  ".join([name.ljust(first), *others]).rstrip())


def _rich_table(table: Table) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    grid = Grid(title=escape(table.title), title_justify="left")
    for i, name in enumerate(table.head):
        grid.add_column(escape(name), justify="right" if i else "left")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    Console(soft_wrap=True).print(grid)


class _Unfailing(io.RawIOBase):
    """The bytes of a standard stream: ``on_lost`` gets the first failure, and all later bytes are dropped."""

    def __init__(self, descriptor: int, on_lost: Callable[[OSError], None], *, is_closed: bool) -> None:
        super().__init__()
        self._descriptor, self._on_lost = descriptor, on_lost
        self._is_closed, self._is_lost = is_closed, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left and not self._is_lost:
            try:
                if self._is_closed:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # noqa: TRY301 - as ``os.write`` does
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._is_lost = True
                self._on_lost(error)
        return size


def one_line(message: str) -> str:
    """Return a message as one line for a terminal: characters that could drive it are escaped."""
    return escaped(" ".join(message.split()))


def guard() -> None:
    """Guard stdout and stderr where they are the process's own, and replace those that are closed.

    A file that is opened later must not get the number of a closed one: what libraries print would go into it.
    """
    optional(is_optional=False)
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _guarded(sys.__stdout__, _STDOUT, _unread)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(sys.__stderr__, _STDERR, lambda _: None)


def optional(*, is_optional: bool = True) -> None:
    """Say whether the command goes on where stdout cannot be written."""
    global _is_optional  # noqa: PLW0603 - there is one stdout
    _is_optional = is_optional


def _guarded(stream: Any, descriptor: int, on_lost: Callable[[OSError], None]) -> io.TextIOWrapper:
    raw = _Unfailing(descriptor, on_lost, is_closed=stream is None)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    unbuffered = getattr(stream, "write_through", False)  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding,
        "backslashreplace",  # a name must not end the run of a terminal without UTF-8
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=unbuffered,
    )


def _unread(error: OSError) -> None:
    if _is_optional or error.errno != errno.EPIPE:  # `| head` has read all that it wants
        rest = "; the command goes on without it" if _is_optional else ""
        line = f"dicomsort: expected stdout to take what is printed, received: {error.strerror}{rest}\n"
        with suppress(OSError):
            os.write(_STDERR, line.encode())
    if not _is_optional:
        raise SystemExit(EXIT_UNREAD)
