"""``dicomsort receive``: an inbox that modalities and PACS send to, until it is told to end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomsort.cli.logs import LAST_LINES, log_ending, logging_to
from dicomsort.cli.options import CONFIG, with_options
from dicomsort.config import RECEIVE, load_receive
from dicomsort.errors import DicomsortError
from dicomsort.signals import ServiceStop, code_of

if TYPE_CHECKING:
    from dicomsort.pacs.receive.receiver import Receiver


@with_options(RECEIVE, is_resolved=True, shows_defaults=True)
def receive(
    inbox: Annotated[str, typer.Argument(metavar="INBOX", help="The folder for the instances; it must exist.")],
    config: Annotated[Path | None, CONFIG] = None,
    **flags: object,
) -> None:
    """Receive DICOM instances from modalities and PACS into INBOX.

    It answers C-STORE and C-ECHO, and writes INBOX/StudyUID/SeriesUID/SOPUID.dcm. It acknowledges an instance when it
    is safely on disk. SIGTERM and SIGHUP stop it with exit code 0; instances on their way have 30 seconds. It needs
    the extra pacs: pip install '.[pacs]' in the checkout.

    Example: dicomsort receive --ae-title SORTER --allow CT1 --allow ARCHIVE --log-file receive.log inbox/
    """
    from dicomsort.files import Files
    from dicomsort.outputs import Gate
    from dicomsort.own_files import LOG
    from dicomsort.pacs.receive import GRACE, check_titles, open_receiver

    given = {**flags, "allow": flags["allow"] or None}
    settings = check_titles(load_receive(given, os.environ, config))
    with suppress(ModuleNotFoundError):  # a signal meanwhile gives one line, and none of the log
        import dicomsort.pacs.receive.receiver  # noqa: F401
    if settings.log_file is not None:
        Gate({"INBOX": inbox}).check_file("--log-file", settings.log_file, LOG)
    with (
        _logging(settings.log_file, settings.log_format, quiet=settings.quiet) as log,
        log_ending(log, LAST_LINES["receive"]) as end,
    ):
        receiver = open_receiver(inbox, settings, Files(), log)
        end.exit_code = _serve(receiver, settings.ae_title, GRACE, log)
    raise typer.Exit(end.exit_code)


@contextmanager
def _logging(path: Path | None, log_format: str, *, quiet: bool) -> Iterator[logging.Logger]:
    """Yield the program's logger, which writes to stderr where no file is named: the journal of systemd keeps that."""
    with logging_to(path, log_format, to_stderr=True) as log:
        log.setLevel(logging.WARNING if quiet and path is None else logging.INFO)
        hook, threading.excepthook = threading.excepthook, partial(_log_death, log)
        try:
            yield log
        finally:
            threading.excepthook = hook


def _log_death(log: logging.Logger, died: threading.ExceptHookArgs) -> None:
    """Log that a thread died of an error, by its type: its message may hold what a peer sent."""
    log.error("a connection's thread died", extra={"facts": {"error": died.exc_type.__name__}})


def _serve(receiver: Receiver, title: str, grace: float, log: logging.Logger) -> int:
    """Receive until a signal; return the exit code. A second signal cuts off what the first waits for."""
    stop = _Stop(receiver)
    with stop.listening():
        try:
            port = receiver.start()
            log.info("listening", extra={"facts": {"ae_title": title, "port": port}})
            while not stop.is_made:
                stop.wait(1)
                if not stop.is_made and not receiver.is_alive:
                    raise DicomsortError(
                        "expected to go on listening, received the end of it; start `dicomsort receive` anew"
                    )
            log.info("ending", extra={"facts": {"signal": signal.Signals(stop.signal).name}})
        finally:
            receiver.stop(grace)
    return code_of(stop.signal)


class _Stop(ServiceStop):
    """The request to end the receiver; a second signal cuts off what the first waits for."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self._receiver = receiver

    def repeat(self, _number: int) -> None:
        """Let the receiver wait for instances no longer."""
        self._receiver.hurry()
