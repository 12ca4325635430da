"""``dicomsort watch``: the sorter as a service. Settings to one ``Service``, its end to an exit code."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomsort.cli.console import Lines, Silent, Watcher
from dicomsort.cli.options import CONFIG, check_outputs, engine_for, flags_of, log_of, mode_flag, option, require_room
from dicomsort.config import WATCH, Destination, SendSettings, WatchSettings, load_watch
from dicomsort.signals import code_of

if TYPE_CHECKING:
    from dicomsort.report import Summary
    from dicomsort.service import Courier, Sent, Service, Stop
    from dicomsort.sorting import Request

RETRIES = 1  # of an instance that may pass later: the next round tries again


def watch(  # the parameters are what Typer makes options of; they are read from the context
    context: typer.Context,
    inbox: Annotated[str, typer.Argument(metavar="INBOX", help="The folder to look into, with all folders below it.")],
    outbox: Annotated[str, typer.Argument(metavar="OUTBOX", help="Where classes, manifest and state go.")],
    *,
    every: Annotated[float | None, option(WATCH, "every", "SECONDS")] = None,
    settle: Annotated[float | None, option(WATCH, "settle", "SECONDS")] = None,
    copy: Annotated[bool, mode_flag("copy", "Copy the files (the default).")] = False,
    move: Annotated[bool, mode_flag("move", "Move the files.")] = False,
    link: Annotated[bool, mode_flag("link", "Make hard links to the files.")] = False,
    duplicates: Annotated[str | None, option(WATCH, "duplicates")] = None,
    prune_empty: Annotated[bool | None, option(WATCH, "prune_empty")] = None,
    model: Annotated[Path | None, option(WATCH, "model", "PATH")] = None,
    evidence: Annotated[str | None, option(WATCH, "evidence")] = None,
    layout: Annotated[str | None, option(WATCH, "layout", "uid|keep|readable|TEMPLATE")] = None,
    workers: Annotated[int | None, option(WATCH, "workers", "N")] = None,
    engine: Annotated[str | None, option(WATCH, "engine")] = None,
    scheduler: Annotated[str | None, option(WATCH, "scheduler", "ADDRESS")] = None,
    config: Annotated[Path | None, CONFIG] = None,
    json: Annotated[bool | None, option(WATCH, "json")] = None,
    quiet: Annotated[bool | None, option(WATCH, "quiet")] = None,
    metrics: Annotated[Path | None, option(WATCH, "metrics", "FILE")] = None,
    log_file: Annotated[Path | None, option(WATCH, "log_file", "FILE")] = None,
    log_format: Annotated[str | None, option(WATCH, "log_format")] = None,
    log_size: Annotated[float | None, option(WATCH, "log_size", "MIB")] = None,
    log_count: Annotated[int | None, option(WATCH, "log_count", "N")] = None,
    held_ok: Annotated[bool | None, option(WATCH, "held_ok")] = None,
) -> None:
    """Sort what comes into INBOX, again and again, until SIGTERM or SIGHUP (exit code 0) or Ctrl-C (130).

    Example: dicomsort watch --move --every 60 --config dicomsort.toml inbox/ outbox/
    """
    raise typer.Exit(_watch(inbox, outbox, load_watch(flags_of(context, WATCH), os.environ, config)))


def _watch(inbox: str, outbox: str, settings: WatchSettings) -> int:
    from dicomsort.service import Stop

    stop = Stop()
    with stop.listening():
        request = _checked(inbox, outbox, settings)
        with log_of(settings.sort):
            number = _service(request, settings, stop).run()
    return code_of(number)


def _checked(inbox: str, outbox: str, settings: WatchSettings) -> Request:
    """The request, once it is proved that it can be carried out; what cannot work at all ends the service here."""
    from dicomsort.adapters.sending import check as check_destination
    from dicomsort.files import Files
    from dicomsort.service import check_routes
    from dicomsort.sorting import RunContext, check, held

    sort = settings.sort
    require_room(sort.engine)
    request = check(inbox, outbox, sort)
    check_routes(settings.routes, request.bundle.labels, check_destination)
    check_outputs(sort, request.inbox, request.outbox, request.bundle.labels)
    with engine_for(sort), held(RunContext(request.outbox or "", Files(), Silent()), create=True):
        return request


def _service(request: Request, settings: WatchSettings, stop: Stop) -> Service:
    from dicomsort.service import Rounds, Service, StoppableFiles, StoppableProgress, steady_clock
    from dicomsort.sorting import RunContext

    sort, clock = settings.sort, steady_clock()
    settle = sort.settle or 0.0
    watcher: Watcher = Silent() if sort.quiet or sort.json else Lines()
    files, progress = StoppableFiles(stop.check), StoppableProgress(watcher, stop.check)
    context = RunContext(request.outbox or "", files, progress)
    again = settings.every / 2  # rounds are never quite as far apart as asked for
    times = (int(settle * 1e9), int(again * 1e9))
    rounds = Rounds(request, context, *times, partial(engine_for, sort), clock)
    show = partial(_show, as_json=sort.json, quiet=sort.quiet)
    courier = _courier(request, settings, stop) if settings.routes else None
    return Service(rounds, stop, settings.every, settle, clock, show, _complain, courier, sort.metrics)


def _courier(request: Request, settings: WatchSettings, stop: Stop) -> Courier:
    from dicomsort.service import Courier

    return Courier(request.outbox or "", settings.routes, partial(_send, stop))


def _send(stop: Stop, folder: str, destination: Destination, run: str | None) -> Sent:
    """Send what lies in a class's folder on, until the service is asked to end; see ``service.Sender``."""
    from dicomsort.adapters.sending import send
    from dicomsort.files import Files
    from dicomsort.service import Sent, StoppableProgress, Stopped

    counted = Counter[str]()
    settings = SendSettings(**destination.values(), run=run, retries=RETRIES)
    progress = StoppableProgress(Silent(), stop.check)
    try:
        sent = send(folder, settings, Files(), progress, lambda delivery: counted.update([delivery.status]))
    except Stopped:  # what is left is sent after the next start
        return Sent(counted["acknowledged"], 0)
    message = sent.problem or next(iter(sent.reasons), "")
    return Sent(sent.acknowledged, sent.failed, message, sent.is_down, sent.takes_nothing)


def _show(summary: Summary, *, as_json: bool, quiet: bool) -> None:
    """Print what a run did, on one line."""
    if as_json:
        print(jsonlib.dumps(summary.as_json()), flush=True)
    elif not quiet:
        counts = ", ".join(f"{count:,} {status}" for status, count in summary.statuses.most_common())
        print(f"{summary.run_id}: {summary.found:,} files in {summary.seconds:.1f} s: {counts}", flush=True)


def _complain(message: str) -> None:
    print(f"dicomsort: {message}; the next round tries again", file=sys.stderr, flush=True)
