"""What a command would refuse at its start, asked of its own checks: nothing is changed, and nobody is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dicomsort.bundle import default_path, load
from dicomsort.config import (
    TABLES,
    Destination,
    ReceiveSettings,
    Routes,
    SendSettings,
    SortSettings,
    load_receive,
    load_send,
    load_sort,
    load_watch,
)
from dicomsort.config.file import TOP, Written
from dicomsort.content import Content
from dicomsort.doctor.finding import Finding, State, wrong
from dicomsort.doctor.paths import WRITTEN
from dicomsort.engines import check_engine
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.outputs import Gate
from dicomsort.pacs import receive, send
from dicomsort.pacs.send.selection import select
from dicomsort.records import RENDERING_VERSION
from dicomsort.sorting import check, check_settings
from dicomsort.sorting.outbox import absolute
from dicomsort.sorting.runs import reported_run

MEND = "mend that, or what it names"
STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Outside:
    """What the checks need of parts of the program that do not know ``doctor``, nor are known to it.

    ``check_classes`` and ``check_routes`` raise UsageError as those of ``service``; ``page`` is what ``--html`` writes.
    """

    check_classes: Callable[[Routes, Collection[str]], None]
    check_routes: Callable[[Routes, Collection[str], Callable[[Destination], object]], None]
    page: Content


@dataclass(frozen=True, slots=True)
class Call:
    """A command and the values of its arguments and options; ``flags`` are those that the loaders of settings take.

    ``made`` are the outboxes that other commands will have made by then.
    """

    command: str
    given: Mapping[str, Any]
    flags: Mapping[str, object] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    made: Collection[str] = ()

    @property
    def config(self) -> Path | Written | None:
        """The file that ``--config`` names, or what was read of it."""
        return self.given.get("config")

    def is_made(self, folder: str) -> bool:
        """Whether a folder is an outbox that will be there, or lies in one."""
        real = os.path.realpath(folder)
        return any(os.path.commonpath([real, outbox]) == outbox for outbox in self.made)


def refusal(call: Call, outside: Outside) -> str:
    """Why the command would end before it begins; "" where it would not."""
    checked = _CHECKS.get(call.command)
    try:
        if checked is not None:
            checked(call, outside)
    except DicomsortError as error:
        return str(error)
    except (OSError, ImportError) as error:
        return f"expected to look, received {error}"
    return ""


def examine_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the variables that every command with settings reads."""
    try:
        load_sort({}, environ, None)
    except UsageError as error:
        yield wrong("environment", str(error), "set it right, or unset it")


def examine_settings(
    written: Written, model: Path | None, found: Iterable[Finding], outside: Outside
) -> Iterator[Finding]:
    """Look at what each command makes of a configuration file by itself: no other options, no environment.

    ``found`` is what ``examine_config`` told of it, which looks at each route too: a command that reads a table that is
    wrong is not asked.
    """
    outside = replace(outside, check_classes=lambda *_: None, check_routes=lambda *_: None)
    places = {finding.what for finding in found if finding.state is State.WRONG}
    tables = {} if "configuration" in places else written.tables
    told = set[str]()
    for command, read_too in (("sort", ()), ("watch", ("sort",)), ("receive", ())):
        names = [f"configuration [{name}]" for name in (command, *read_too)]
        if TOP not in tables or (command == "receive" and command not in tables) or places.intersection(names):
            continue
        flags = {"model": model} if "model" in TABLES[command] else {}
        message = refusal(Call(command, {"config": written}, flags), outside)
        if message and message not in told:
            yield wrong(f"configuration, as `{command}` reads it", message, MEND)
        told.add(message)


def _sort(call: Call, outside: Outside) -> None:
    settings, routes = load_sort(call.flags, call.environ, call.config)
    outside.check_classes(routes, _sorting(call, settings))


def _watch(call: Call, outside: Outside) -> None:
    settings = load_watch(call.flags, call.environ, call.config)
    labels = _sorting(call, settings.sort)
    outside.check_routes(settings.routes, labels, send.check)


def _sorting(call: Call, settings: SortSettings) -> Collection[str]:
    """The labels of the model; a call of a file alone has no folders."""
    check_engine(settings.engine, settings.scheduler)
    inbox, outbox = call.given.get("inbox"), call.given.get("outbox")
    if inbox is None:
        return check_settings(settings)[1].labels
    labels = check(inbox, outbox, settings).bundle.labels
    _check_outputs(Gate({"INBOX": inbox}, outbox, labels), settings)
    return labels


def _check_outputs(gate: Gate, settings: SortSettings | SendSettings | ReceiveSettings) -> None:
    for name, content in WRITTEN.items():
        path = getattr(settings, name, None)
        if path is not None:
            gate.check_file("--" + name.replace("_", "-"), path, content, devices=name != "journal")


def _send(call: Call, _: Outside) -> None:
    settings, folder = load_send(call.flags, call.environ, call.config), str(call.given["folder"])
    if not settings.to:
        raise UsageError("--to: expected AE@HOST:PORT or https://HOST/PATH, received none")
    _check_outputs(Gate({"FOLDER": folder}), settings)
    send.check(settings)
    if os.path.isdir(folder) or not call.is_made(folder):
        select(folder, settings.run or "")


def _receive(call: Call, _: Outside) -> None:
    settings, inbox = load_receive(call.flags, call.environ, call.config), call.given.get("inbox")
    receive.check(settings)
    if inbox is not None:
        _check_outputs(Gate({"INBOX": inbox}), settings)
        if os.path.isdir(inbox) and not os.access(inbox, os.W_OK | os.X_OK):
            raise UsageError(f"INBOX: expected a folder that can be written, received {inbox!r} (permission denied)")


def _report(call: Call, outside: Outside) -> None:
    outbox, run, html = (call.given[name] for name in ("outbox", "run", "html"))
    if html is not None and call.given["json"]:
        raise UsageError("expected one of --html, --json, received both")
    told = None
    with suppress(*([DicomsortError] if run is None and call.is_made(outbox) else [])):
        told = reported_run(outbox, run)
    if html not in {None, STDOUT}:
        reads = {"inbox": told.head["inbox"]} if told and told.head else {}
        Gate(reads, told.outbox if told else outbox).check_file("--html", Path(html), outside.page)
    if html is not None and call.given["pictures"]:
        _model(call, outside)


def _review(call: Call, outside: Outside) -> None:
    _outbox(call, outside)
    _model(call, outside)


def _model(call: Call, _: Outside) -> None:
    load(call.given["model"] or default_path(), RENDERING_VERSION)


def _evaluate(call: Call, outside: Outside) -> None:
    if call.given["compare"] is None:
        _model(call, outside)


def _train(call: Call, _: Outside) -> None:
    from dicomsort.training.settings import Settings, checked  # imports what a host that sorts may not have

    checked(Settings(**{each.name: call.given[each.name] for each in fields(Settings) if each.name in call.given}))


def _outbox(call: Call, _: Outside) -> None:
    if not call.is_made(call.given["outbox"]):
        absolute(call.given["outbox"])


_CHECKS: dict[str, Callable[[Call, Outside], None]] = {
    "sort": _sort,
    "watch": _watch,
    "send": _send,
    "receive": _receive,
    "report": _report,
    "review": _review,
    "predict": _model,
    "evaluate": _evaluate,
    "train": _train,
    "tune": _train,
    **dict.fromkeys(("resume", "undo", "runs", "verify"), _outbox),
}
