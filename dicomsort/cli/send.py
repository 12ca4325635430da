"""``dicomsort send``: flags to a request, the request to one call, its result to rows, a summary and an exit code."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.console import watching
from dicomsort.cli.options import option
from dicomsort.config import DAY, Option
from dicomsort.errors import DicomsortError, UsageError

if TYPE_CHECKING:
    from dicomsort.adapters.sending import Delivery, Request, Sent

COLUMNS = ("path", "sop_uid", "status", "attempts", "message")
NEEDS_PERSON = 3
SHOWN = 10  # reasons that the summary names
OPTIONS: dict[str, Option] = {
    "to": Option(str, None, "Where to: AE@HOST:PORT (C-STORE), or the address of a DICOMweb server (STOW-RS)."),
    "run": Option(str, None, "Only what this run placed, of those that `dicomsort runs` lists."),
    "ae_title": Option(str, "DICOMSORT", "The AE title that we call ourselves."),
    "associations": Option(int, 1, "Associations, or connections, at a time.", 1, 256),
    "retries": Option(
        int, 5, "How often to try again what may pass: no connection, out of resources, HTTP 503.", 0, 100
    ),
    "retry_wait": Option(
        float, 1.0, "Seconds before the first retry; doubled for each further one, up to 60.", 0, 3600
    ),
    "timeout": Option(float, 60.0, "Seconds to wait for the peer, each time.", 0.001, DAY),
    "decompress": Option(bool, False, "Send uncompressed what the peer refuses as it is, where no value changes."),
    "again": Option(bool, False, "Send also what was acknowledged before."),
    "journal": Option(Path, None, "Where to keep what was acknowledged [default: in the outbox's state]."),
    "tls": Option(bool, False, "Use TLS to AE@HOST:PORT; the other --tls options imply it."),
    "tls_ca": Option(Path, None, "The certificates to trust (PEM) [default: the system's]."),
    "tls_cert": Option(Path, None, "The certificate that we show (PEM)."),
    "tls_key": Option(Path, None, "Its key (PEM, without a password)."),
    "auth": Option(Path, None, "A file that holds user:password, or the value of the HTTP header Authorization."),
    "json": Option(bool, False, "Print a JSON object a file instead of CSV."),
    "quiet": Option(bool, False, "Print only what failed."),
    "log_file": Option(Path, None, "Append the log to this file."),
    "log_format": Option(("text", "json"), "text", "The form of the log's lines."),
}
_OURS = ("json", "quiet", "log_file", "log_format")  # of OPTIONS: those of this module


def _option(name: str, metavar: str | None = None) -> Any:
    return option(OPTIONS, name, metavar, show_default=bool(OPTIONS[name].default))


def send(  # the parameters are what Typer makes options of; they are read from the context
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A class folder of an outbox, or any folder.")],
    *,
    to: Annotated[str, _option("to", "AE@HOST:PORT|https://HOST/PATH")],
    run: Annotated[str, _option("run", "RUN")] = "",
    ae_title: Annotated[str, _option("ae_title", "AE")] = str(OPTIONS["ae_title"].default),
    associations: Annotated[int, _option("associations", "N")] = 1,
    retries: Annotated[int, _option("retries", "N")] = 5,
    retry_wait: Annotated[float, _option("retry_wait", "SECONDS")] = 1.0,
    timeout: Annotated[float, _option("timeout", "SECONDS")] = 60.0,
    decompress: Annotated[bool, _option("decompress")] = False,
    again: Annotated[bool, _option("again")] = False,
    journal: Annotated[Path | None, _option("journal", "FILE")] = None,
    tls: Annotated[bool, _option("tls")] = False,
    tls_ca: Annotated[Path | None, _option("tls_ca", "FILE")] = None,
    tls_cert: Annotated[Path | None, _option("tls_cert", "FILE")] = None,
    tls_key: Annotated[Path | None, _option("tls_key", "FILE")] = None,
    auth: Annotated[Path | None, _option("auth", "FILE")] = None,
    as_json: Annotated[bool, _option("json")] = False,
    quiet: Annotated[bool, _option("quiet")] = False,
    log_file: Annotated[Path | None, _option("log_file", "FILE")] = None,
    log_format: Annotated[str, _option("log_format")] = "text",
) -> None:
    """Send the DICOM instances of FOLDER to a PACS.

    A row a file: path, sop_uid, status, attempts, message. Sending again sends only what was not acknowledged.

    Examples: dicomsort send outbox/CT --to ARCHIVE@pacs.example:104;
    dicomsort send outbox --run 20240229T021500Z-1a2b3c --to https://pacs.example/dicom-web
    """
    if log_format not in ("text", "json"):
        raise UsageError(f"--log-format: expected text|json, received {log_format!r}")
    raise typer.Exit(_send(_request(context.params), context.params))


def _request(values: dict[str, Any]) -> Request:
    from dicomsort.adapters.sending import Request

    names = {name: name for name in OPTIONS if name not in _OURS} | {"auth": "authorization", "folder": "folder"}
    given = {field: "" if values[name] is None else values[name] for name, field in names.items()}
    fields: dict[str, Any] = {field: str(v) if isinstance(v, Path) else v for field, v in given.items()}
    return Request(**fields)


def _send(request: Request, values: dict[str, Any]) -> int:
    from dicomsort.adapters.sending import send as deliver
    from dicomsort.cli.logs import logging_to
    from dicomsort.content import JOURNAL, LOG
    from dicomsort.files import Files
    from dicomsort.outputs import Gate

    gate = Gate({"FOLDER": request.folder})
    if values["log_file"]:
        gate.check_file("--log-file", values["log_file"], LOG)
    if request.journal:
        gate.check_file("--journal", Path(request.journal), JOURNAL, devices=False)

    quiet = values["quiet"]
    rows = _Rows(as_json=values["as_json"], quiet=quiet)
    with (
        logging_to(values["log_file"], values["log_format"]) as log,
        watching(quiet=quiet or sys.stdout.isatty()) as progress,
    ):
        sent = deliver(request, Files(), progress, rows.add)
        rows.end()
        counts = {name: value for name, value in vars(sent).items() if name != "reasons"}
        log.info("send ended", extra={"facts": counts})
    if not quiet:
        _summarise(sent)
    if sent.problem and not sent.acknowledged:
        raise DicomsortError(f"nothing was sent: {sent.problem}")
    return NEEDS_PERSON if sent.failed or sent.problem else 0


class _Rows:
    """Prints a row a file; the head of a CSV when it is sure that there will be a result."""

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

    def add(self, delivery: Delivery) -> None:
        from dicomsort.adapters.sending import Fate
        from dicomsort.report import printable
        from dicomsort.report.text import cell

        if self._quiet and delivery.status is not Fate.FAILED:
            return
        self._begin()
        cells = [getattr(delivery, name) for name in COLUMNS]
        if self._as_json:
            told = dict(zip(COLUMNS, [printable(cells[0]), *cells[1:]], strict=True))
            self._out.write(json.dumps(told) + "\n")
        else:
            self._table.writerow([cell(str(value)) for value in cells])
        self._out.flush()


def _summarise(sent: Sent) -> None:
    rate = f", {sent.acknowledged / sent.seconds:.0f} a second" if sent.acknowledged and sent.seconds else ""
    counts = [f"{sent.acknowledged:,} acknowledged"]
    counts += [f"{sent.skipped:,} skipped, acknowledged before"] if sent.skipped else []
    counts += [f"{sent.failed:,} failed"] if sent.failed else []
    counts += [f"{sent.ignored:,} ignored, no DICOM instances"] if sent.ignored else []
    print(f"{sent.destination}: {'; '.join(counts)} ({sent.seconds:.1f} s{rate})", file=sys.stderr)
    for reason, count in sent.reasons.most_common(SHOWN):
        print(f"failed, {count:,}: {reason}", file=sys.stderr)
    if sent.problem and sent.acknowledged:
        print(f"sending ended early: {sent.problem}", file=sys.stderr)
