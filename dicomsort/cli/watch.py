"""``dicomsort watch``: the sorter as a service. Settings to one ``Service``, its end to an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomsort.cli.options import CONFIG, check_outputs, engine_for, logged, require_room, with_options
from dicomsort.config import WATCH, Destination, SendSettings, WatchSettings, load_watch
from dicomsort.errors import counted
from dicomsort.progress import Progress, Reporter, Silent, Stages
from dicomsort.signals import code_of

if TYPE_CHECKING:
    from dicomsort.report import Summary
    from dicomsort.service.forwarding import ForwardResult
    from dicomsort.service.watch import Service, Stop
    from dicomsort.sorting import SortRequest

RETRIES = 1  # of an instance that may be accepted later: the next round retries it


@with_options(WATCH, is_resolved=True)
def watch(
    inbox: Annotated[str, typer.Argument(metavar="INBOX", help="The folder to look into, with all folders below it.")],
    outbox: Annotated[str, typer.Argument(metavar="OUTBOX", help="The folder for classes, manifest and state.")],
    config: Annotated[Path | None, CONFIG] = None,
    **flags: object,
) -> None:
    """Run as a service that sorts what arrives in INBOX.

    SIGTERM and SIGHUP stop it with exit code 0, Ctrl-C with 130.

    Example: dicomsort watch --move --every 60 --config dicomsort.toml inbox/ outbox/
    """
    settings = load_watch(flags, os.environ, config)
    from dicomsort.service.watch import Stop

    stop = Stop()
    check = partial(_check, inbox, outbox, settings)
    with stop.listening(), logged("watch", settings.sort, inbox, outbox, check) as (_, end, request):
        service = _service(request, settings, stop)
        number = service.run()
        end.exit_code, end.cause, end.facts = code_of(number), service.trouble, {"signal": number}
    raise typer.Exit(end.exit_code)


def _check(inbox: str, outbox: str, settings: WatchSettings) -> SortRequest:
    """Return the request, once workers could be started and the outbox be locked."""
    from dicomsort.files import Files
    from dicomsort.sorting import RunContext, locked

    require_room(settings.sort.engine)
    request = _request(inbox, outbox, settings)
    with engine_for(settings.sort), locked(RunContext(request.outbox or "", Files(), Silent()), create=True):
        return request


def _request(inbox: str, outbox: str | None, settings: WatchSettings) -> SortRequest:
    """Return the request, by the model that is there now; UsageError or BundleError where it cannot be carried out."""
    from dicomsort.config.routes import check_routes
    from dicomsort.pacs.send import check as check_destination
    from dicomsort.sorting import check

    request = check(inbox, outbox, settings.sort)
    check_routes(settings.routes, request.bundle.labels, check_destination)
    check_outputs(settings.sort, request.inbox, request.outbox, request.bundle.labels)
    return request


def _service(request: SortRequest, settings: WatchSettings, stop: Stop) -> Service:
    from dicomsort.service.forwarding import Forwarder
    from dicomsort.service.watch import Rounds, Service, StoppableFiles, StoppableProgress, steady_clock
    from dicomsort.sorting import RunContext

    sort, clock, outbox = settings.sort, steady_clock(), request.outbox or ""
    settle = sort.settle or 0.0
    lines = Stages(Reporter("dicomsort: "))  # not entered, it shows no bars: a service has no terminal
    progress: Progress = Silent() if sort.quiet or sort.json else lines
    context = RunContext(outbox, StoppableFiles(stop.check), StoppableProgress(progress, stop.check))
    again = settings.every / 2  # rounds are never quite as far apart as asked for
    check = partial(_request, request.inbox, request.outbox, settings)
    rounds = Rounds(request, context, int(settle * 1e9), int(again * 1e9), partial(engine_for, sort), clock, check)
    show = partial(_show, as_json=sort.json, quiet=sort.quiet)
    forwarder = Forwarder(outbox, settings.routes, partial(_send, stop)) if settings.routes else None
    return Service(rounds, stop, settings.every, settle, clock, show, _complain, forwarder, sort.metrics)


def _send(stop: Stop, folder: str, destination: Destination, run: str | None) -> ForwardResult:
    """Send what lies in a class's folder, until the service is asked to end; a ``service.forwarding.Sender``."""
    from dicomsort.files import Files
    from dicomsort.pacs.send import send
    from dicomsort.service.forwarding import ForwardResult
    from dicomsort.service.watch import StoppableProgress, Stopped

    statuses = Counter[str]()
    settings = SendSettings(**destination.values(), run=run, retries=RETRIES)
    progress = StoppableProgress(Silent(), stop.check)
    try:
        sent = send(folder, settings, Files(), progress, lambda result: statuses.update([result.status]))
    except Stopped:  # what is left is sent after the next start
        return ForwardResult(statuses["acknowledged"], 0)
    message = sent.problem or next(iter(sent.reasons), "")
    return ForwardResult(sent.acknowledged, sent.failed, message, sent.is_down, sent.takes_nothing, sent.is_asked)


def _show(summary: Summary, *, as_json: bool, quiet: bool) -> None:
    """Print the result of a run on one line."""
    if as_json:
        print(json.dumps(summary.as_json()), flush=True)
    elif not quiet:
        counts = ", ".join(f"{count:,} {status}" for status, count in summary.statuses.most_common())
        print(f"{summary.run_id}: {counted(summary.found, 'file')} in {summary.seconds:.1f} s: {counts}", flush=True)


def _complain(message: str) -> None:
    print(f"dicomsort: {message}", file=sys.stderr, flush=True)
