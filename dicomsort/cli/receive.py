"""``dicomsort receive``: an inbox that modalities and PACS send to, until it is told to end."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.options import option
from dicomsort.config import DAY, MOST_PORT, Option
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.signals import code_of, hear, restore

if TYPE_CHECKING:
    from types import FrameType

    from dicomsort.adapters.receiving.receiver import Receiver

_TITLE = 16  # characters (PS3.5 6.2, AE)

OPTIONS: dict[str, Option] = {
    "port": Option(int, 11112, "The TCP port to listen at; 0 takes a free one, which the log tells.", 0, MOST_PORT),
    "bind": Option(str, "0.0.0.0", "The address to listen at; one of this host's to be heard there only."),  # noqa: S104
    "ae_title": Option(str, "DICOMSORT", "The AE title of this receiver; it answers to every name it is called by."),
    "allow": Option(str, None, "An AE title that may send; give it again for each [default: everybody]."),
    "max_associations": Option(int, 20, "How many associations may be open; more are rejected.", 1, 1000),
    "max_pdu": Option(int, 131_072, "The longest PDU to be sent, in bytes.", 4096, 1 << 20),
    "max_object_size": Option(int, 4096, "The largest instance, in MiB; larger ones are refused.", 1, 1 << 20),
    "timeout": Option(float, 60.0, "Cut off a sender that was silent for SECONDS.", 1, DAY),
    "tls_cert": Option(Path, None, "Speak TLS (1.2 or newer) with this certificate (PEM)."),
    "tls_key": Option(Path, None, "The key of --tls-cert, where it is in a file of its own."),
    "tls_ca": Option(Path, None, "Hear only senders with a certificate that one of these (PEM) signed."),
    "log_file": Option(Path, None, "Append the log to this file [default: stderr]."),
    "log_format": Option(("text", "json"), "text", "The form of the log's lines."),
    "quiet": Option(bool, False, "Log warnings and errors only."),
}


def _option(name: str, metavar: str | None = None) -> Any:
    return option(OPTIONS, name, metavar)


def _default(name: str) -> Any:
    return OPTIONS[name].default


def receive(  # the parameters are what Typer makes options of; they are read from the context
    context: typer.Context,
    inbox: Annotated[str, typer.Argument(metavar="INBOX", help="The folder that instances go to; it must be there.")],
    *,
    port: Annotated[int, _option("port", "PORT")] = _default("port"),
    bind: Annotated[str, _option("bind", "ADDRESS")] = _default("bind"),
    ae_title: Annotated[str, _option("ae_title", "AE")] = _default("ae_title"),
    allow: Annotated[list[str] | None, _option("allow", "AE")] = None,
    max_associations: Annotated[int, _option("max_associations", "N")] = _default("max_associations"),
    max_pdu: Annotated[int, _option("max_pdu", "BYTES")] = _default("max_pdu"),
    max_object_size: Annotated[int, _option("max_object_size", "MIB")] = _default("max_object_size"),
    timeout: Annotated[float, _option("timeout", "SECONDS")] = _default("timeout"),
    tls_cert: Annotated[Path | None, _option("tls_cert", "FILE")] = None,
    tls_key: Annotated[Path | None, _option("tls_key", "FILE")] = None,
    tls_ca: Annotated[Path | None, _option("tls_ca", "FILE")] = None,
    log_file: Annotated[Path | None, _option("log_file", "FILE")] = None,
    log_format: Annotated[str, _option("log_format")] = _default("log_format"),
    quiet: Annotated[bool, _option("quiet")] = False,
) -> None:
    """Receive instances by C-STORE into INBOX, as INBOX/StudyUID/SeriesUID/SOPUID.dcm; answers C-ECHO too.

    An instance is acknowledged when it is durable. SIGTERM or SIGHUP end it with exit code 0: instances on their way
    have 30 seconds. Needs the extra pacs: pip install '.[pacs]' in the checkout.

    Example: dicomsort receive --ae-title SORTER --allow CT1 --allow ARCHIVE --log-file receive.log inbox/
    """
    from dicomsort.adapters.receiving import GRACE, ReceiveSettings, open_receiver
    from dicomsort.content import LOG
    from dicomsort.files import Files
    from dicomsort.outputs import Gate

    _check(context.params)
    if log_file is not None:
        Gate({"INBOX": inbox}).check_file("--log-file", log_file, LOG)
    chosen = {field.name: context.params[field.name] for field in fields(ReceiveSettings)}
    settings = ReceiveSettings(**(chosen | {"allow": tuple(title.strip() for title in allow or ())}))
    with _logging(log_file, log_format, quiet=quiet) as log:
        receiver = open_receiver(inbox, settings, Files(), log)
        raise typer.Exit(_serve(receiver, settings.ae_title, GRACE, log))


def _check(values: dict[str, Any]) -> None:
    """UsageError for a word that is none of the option's, and for an AE title that is none."""
    if values["log_format"] not in ("text", "json"):
        raise UsageError(f"--log-format: expected text|json, received {values['log_format']!r}")
    for flag, title in [("--ae-title", values["ae_title"]), *(("--allow", each) for each in values["allow"] or ())]:
        if not title.strip() or len(title) > _TITLE or "\\" in title or not (title.isascii() and title.isprintable()):
            raise UsageError(f"{flag}: expected an AE title (1 to 16 characters of ASCII), received {title!r}")


@contextmanager
def _logging(path: Path | None, log_format: str, *, quiet: bool) -> Iterator[logging.Logger]:
    """The program's logger, which speaks to stderr where no file is named: the journal of systemd keeps that."""
    from dicomsort.cli.logs import formatter, logging_to

    with logging_to(path, log_format) as log:
        log.setLevel(logging.WARNING if quiet else logging.INFO)
        handler = logging.NullHandler() if path else logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter(log_format))
        log.addHandler(handler)
        hook, threading.excepthook = threading.excepthook, _excepthook(log)
        try:
            yield log
        finally:
            threading.excepthook = hook
            log.removeHandler(handler)


def _excepthook(log: logging.Logger) -> Any:
    """Log that a thread died of an error, by its type: its message may hold what a peer sent."""

    def tell(died: threading.ExceptHookArgs) -> None:
        log.error("a connection's thread died", extra={"facts": {"error": died.exc_type.__name__}})

    return tell


def _serve(receiver: Receiver, title: str, grace: float, log: logging.Logger) -> int:
    """Receive until a signal says to end; the exit code. A second signal cuts off what the first waits for."""
    ending, signals = threading.Event(), list[int]()

    def end(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if ending.is_set():
            receiver.hurry()
        ending.set()

    before = hear(end)
    try:
        port = receiver.start()
        log.info("listening", extra={"facts": {"ae_title": title, "port": port}})
        while not ending.wait(1):
            if not receiver.is_alive:
                raise DicomsortError(
                    "expected to go on listening, received the end of it; start `dicomsort receive` anew"
                )
        log.info("ending", extra={"facts": {"signal": signal.Signals(signals[0]).name}})
    finally:
        receiver.stop(grace)
        restore(before)
    log.info("ended")
    return code_of(signals[0])
