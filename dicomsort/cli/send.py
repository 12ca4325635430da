"""``dicomsort send``: options to settings, settings to one call, its result to rows, a summary and an exit code."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomsort.cli.console import EXIT_NEEDS_PERSON, one_line
from dicomsort.cli.logs import LAST_LINES, log_ending, logging_to
from dicomsort.cli.options import CONFIG, with_options
from dicomsort.config import SEND, SendSettings, load_send
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.progress import progress_bars

if TYPE_CHECKING:
    from dicomsort.pacs.send import SendResult, Sent

COLUMNS = ("path", "sop_uid", "status", "attempts", "message")
SHOWN = 10  # reasons that the summary names


@with_options(SEND, is_resolved=True, shows_defaults=True)
def send(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A class folder of an outbox, or any folder.")],
    config: Annotated[Path | None, CONFIG] = None,
    **flags: object,
) -> None:
    """Send the DICOM instances of FOLDER to a PACS.

    It prints one row per file: path, sop_uid, status, attempts, message. Run it again, and it sends only what was not
    acknowledged. It needs the extra pacs: pip install '.[pacs]' in the checkout.

    Example: dicomsort send outbox/CT --to ARCHIVE@pacs.example:104

    Example: dicomsort send outbox --run 20240229T021500Z-1a2b3c --to https://pacs.example/dicom-web
    """
    settings = load_send(flags, os.environ, config)
    if not settings.to:
        raise UsageError("--to: expected AE@HOST:PORT or https://HOST/PATH, received none")
    raise typer.Exit(_send(folder, settings))


def _send(folder: str, settings: SendSettings) -> int:
    from dicomsort.files import Files
    from dicomsort.outputs import Gate
    from dicomsort.own_files import JOURNAL, LOG
    from dicomsort.pacs.send import send as deliver

    gate = Gate({"FOLDER": folder})
    if settings.log_file:
        gate.check_file("--log-file", settings.log_file, LOG)
    rows = _Rows(as_json=settings.json, quiet=settings.quiet)
    with logging_to(settings.log_file, settings.log_format) as log, log_ending(log, LAST_LINES["send"]) as end:
        if settings.journal:
            gate.check_file("--journal", settings.journal, JOURNAL, devices=False)
        with progress_bars(quiet=settings.quiet or sys.stdout.isatty()) as progress:
            sent = deliver(folder, settings, Files(), progress, rows.add)
            rows.end()
        facts = {name: value for name, value in vars(sent).items() if name != "reasons"}
        end.facts = facts | {"seconds": round(sent.seconds, 3)}
        problems = _problems(sent)
        if sent.problem and not sent.acknowledged:
            raise DicomsortError(f"nothing was sent: {sent.problem}")
        end.exit_code, end.cause = EXIT_NEEDS_PERSON if problems else 0, "; ".join(problems)
    if not settings.quiet:
        _summarise(sent)
    for problem in problems:  # with --quiet, too: cron mails what stands on stderr
        print(one_line(problem), file=sys.stderr)
    return end.exit_code


class _Rows:
    """Prints a row a file; the head of a CSV once it is certain that there will be a result."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._out = sys.stdout  # before a bar takes it over
        self._table = csv.writer(self._out, lineterminator="\n")
        self._as_json, self._quiet = as_json, quiet
        self._is_begun = as_json

    def _begin(self) -> None:
        if not self._is_begun:
            self._table.writerow(COLUMNS)
            self._is_begun = True

    def end(self) -> None:
        if not self._quiet:
            self._begin()

    def add(self, result: SendResult) -> None:
        from dicomsort.pacs.send import SendStatus
        from dicomsort.report import printable
        from dicomsort.report.text import cell

        if self._quiet and result.status is not SendStatus.FAILED:
            return
        self._begin()
        row = {name: getattr(result, name) for name in COLUMNS}
        if self._as_json:
            self._out.write(json.dumps(row | {"path": printable(result.path)}) + "\n")
        else:
            self._table.writerow([cell(str(value)) for value in row.values()])
        self._out.flush()


def _summarise(sent: Sent) -> None:
    rate = f", {sent.acknowledged / sent.seconds:.0f} a second" if sent.acknowledged and sent.seconds else ""
    counts = [f"{sent.acknowledged:,} acknowledged"]
    counts += [f"{sent.skipped:,} skipped, acknowledged before"] if sent.skipped else []
    counts += [f"{sent.failed:,} failed"] if sent.failed else []
    counts += [f"{sent.ignored:,} ignored, no DICOM instances"] if sent.ignored else []
    print(f"{sent.destination}: {'; '.join(counts)} ({sent.seconds:.1f} s{rate})", file=sys.stderr)


def _problems(sent: Sent) -> list[str]:
    """Return what failed, by its reason, and why sending ended early."""
    failed = [f"failed, {count:,}: {reason}" for reason, count in sent.reasons.most_common(SHOWN)]
    return [*failed, *([f"sending ended early: {sent.problem}"] if sent.problem else [])]
