"""What a configuration file names, and what a command would refuse at its start.

The commands' own checks are asked: nothing is changed, and nobody is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from dicomsort.bundle import default_path, load
from dicomsort.config import (
    TABLES,
    Destination,
    ReceiveSettings,
    SendSettings,
    SortSettings,
    load_receive,
    load_send,
    load_sort,
    load_watch,
)
from dicomsort.config.fields import flag_of
from dicomsort.config.file import DESTINATIONS, ROUTES, TOP, Written, read
from dicomsort.config.routes import check_classes, check_routes
from dicomsort.config.settings import DESTINATION, STDOUT
from dicomsort.doctor.finding import Finding, State, fine, refused, wrong
from dicomsort.engines import check_engine
from dicomsort.errors import DicomsortError, UsageError, counted, quoted
from dicomsort.outputs import Gate
from dicomsort.own_files import DEVICES, JOURNAL, LOG, REPORT, FileKind
from dicomsort.pacs import receive, send
from dicomsort.pacs.send.selection import select
from dicomsort.report.metrics import FILE as METRICS
from dicomsort.sorting import check, check_settings
from dicomsort.sorting.inspection import reported_run
from dicomsort.sorting.outbox import absolute

_FILES: dict[str, FileKind] = {"log_file": LOG, "metrics": METRICS.kind, "journal": JOURNAL}
_FOLDERS = frozenset({"out", "explain", "cache"})  # which a command makes where they are missing


@dataclass(frozen=True, slots=True)
class Call:
    """A command, and the values of its arguments and options by name; ``flags`` go to the loaders of settings.

    ``made`` are the outboxes that other commands will have made by then.
    """

    command: str
    given: Mapping[str, Any]
    flags: Mapping[str, object] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    made: Collection[str] = ()

    @property
    def sources(self) -> tuple[Mapping[str, object], Mapping[str, str], Path | Written | None]:
        """What settings are loaded from: flags, environment, and the configuration file or what was read of it."""
        return self.flags, self.environ, self.given.get("config")

    def is_made(self, folder: str) -> bool:
        """Whether a folder is an outbox that will be there, or lies in one."""
        real = os.path.realpath(folder)
        return any(os.path.commonpath([real, outbox]) == outbox for outbox in self.made)


def examine_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check the variables that every command with settings reads."""
    return refused("set it right, or unset it", partial(load_sort, {}, environ, None), "environment")


def examine_call(what: str, call: Call, known: Collection[str]) -> Iterator[Finding]:
    """Check a command line: the paths that it names, its configuration file, and what the command would refuse.

    ``known`` are messages that were given before.
    """
    found = list(_examine_paths(what, call))
    yield from found
    message = "" if any(finding.state is State.WRONG for finding in found) else _refusal(call)
    if message and message not in known:
        yield wrong(message, "mend the line, or what it names", what)


def _examine_paths(what: str, call: Call) -> Iterator[Finding]:
    named = ("inbox", "outbox", "folder", "html")
    paths = {name: value for name, value in call.given.items() if isinstance(value, Path)}
    paths |= {name: Path(text) for name in named if (text := call.given.get(name)) is not None and text != STDOUT}
    for path in paths.values():
        if not path.is_absolute():
            yield wrong(f"expected an absolute path, received {str(path)!r}", "cron starts in the user's home", what)
    inbox = call.given.get("inbox")
    gate = Gate({} if inbox is None else {"INBOX": inbox}, call.given.get("outbox"))
    examined_elsewhere = {"config", "inbox", "outbox", "html"}
    if "folder" in paths and call.is_made(str(paths["folder"])):
        examined_elsewhere.add("folder")
    yield from _examine_values(what, {name: paths[name] for name in paths if name not in examined_elsewhere}, gate)
    if "config" in call.given and (config := call.given["config"] or call.environ.get("DICOMSORT_CONFIG")):
        file = Path(os.path.expanduser(config))
        yield from examine_config(file, gate, call.given.get("model"), is_alone=False)


def examine_config(file: Path, gate: Gate, model: Path | None, *, is_alone: bool = True) -> Iterator[Finding]:
    """Check a configuration file: its values, and each path, destination and class that it names.

    Where it ``is_alone``, also what each command makes of it by itself. ``model`` is what a command line names.
    """
    try:
        written = read(file)  # once, for it may be a pipe
    except UsageError as error:
        yield wrong(str(error), "mend the file", "configuration")
        return
    found = list(_examine_tables(file, written, gate))
    found += _examine_routes(written, model)
    yield from found
    if is_alone:
        yield from _examine_uses(written, model, found)


def _examine_tables(file: Path, written: Written, gate: Gate) -> Iterator[Finding]:
    count = sum(len(values) for values in written.tables.values())
    yield fine(f"{file}: {counted(count, 'option')}", "configuration")
    for table, values, peer in _tables(written):
        what = f"configuration {table}" if table else "configuration"
        found = [*_examine_values(what, values, gate)]
        yield from found
        if peer is not None and all(finding.state is State.FINE for finding in found):
            yield from refused("mend the file, or what it names", partial(send.check, peer), what)


def _tables(written: Written) -> Iterator[tuple[str, Mapping[str, object], Destination | None]]:
    """Yield each table of a file, its values by option, and the peer that it declares; inline routes too."""
    for table, values in written.tables.items():
        peer = None
        if table == "send" and values.get("to", "") not in {"", *written.destinations}:
            peer = Destination(**{name: value for name, value in values.items() if name in DESTINATION})
        yield f"[{table}]" if table else TOP, values, peer
    for name, peer in written.destinations.items():
        yield f"[{DESTINATIONS}.{name}]", peer.values(), peer
    for class_, peers in written.routes.items():
        yield from ((f"[{ROUTES}] {class_}", {}, peer) for peer in peers if peer not in written.destinations.values())


def _examine_routes(written: Written, model: Path | None) -> Iterator[Finding]:
    if not written.routes:
        return
    named = {name: value for table in (TOP, "sort", "watch") for name, value in written.tables.get(table, {}).items()}
    what, mend = f"configuration [{ROUTES}]", "mend the file, or name another model"
    try:
        labels = load(model or named.get("model") or default_path()).labels
    except UsageError as error:
        yield wrong(str(error), mend, what)
        return
    for class_ in written.routes:
        yield from refused(mend, partial(check_classes, {class_: ()}, labels), what)


def _examine_uses(written: Written, model: Path | None, found: Iterable[Finding]) -> Iterator[Finding]:
    """Check what each command makes of a configuration file by itself: no other options, no environment.

    ``found`` is what was found of its tables and routes: a command that reads a table that is wrong is not asked.
    """
    written = written._replace(routes={})  # whose classes were checked before
    places = {finding.what for finding in found if finding.state is State.WRONG}
    tables = {} if "configuration" in places else written.tables
    known = set[str]()
    for command, read_too in (("sort", ()), ("watch", ("sort",)), ("receive", ())):
        names = [f"configuration [{name}]" for name in (command, *read_too)]
        if TOP not in tables or (command == "receive" and command not in tables) or places.intersection(names):
            continue
        flags = {"model": model} if "model" in TABLES[command] else {}
        message = _refusal(Call(command, {"config": written}, flags))
        if message and message not in known:
            yield wrong(message, "mend that, or what it names", f"configuration, as `{command}` reads it")
        known.add(message)


def _examine_values(what: str, values: Mapping[str, object], gate: Gate) -> Iterator[Finding]:
    """Check the paths among the values of options, by name."""
    rights = "give the user that runs dicomsort rights"
    for name, path in values.items():
        option = flag_of(name)
        if not isinstance(path, Path):
            continue
        if name in _FILES:
            yield _examine_file(what, option, path, _FILES[name], gate)
        elif name in _FOLDERS:
            yield from refused(f"make its folder, or {rights}", partial(gate.check_folder, option, path), what)
        elif not os.access(path, os.R_OK) or not (path.is_file() or path.is_dir()):
            yield wrong(f"{option}: expected what can be read, received {quoted(path)}", f"make it, or {rights}", what)


def _examine_file(what: str, option: str, path: Path, kind: FileKind, gate: Gate) -> Finding:
    try:
        target = gate.check_file(option, path, kind)
    except UsageError as error:
        folder = os.path.dirname(os.path.abspath(path))
        return wrong(str(error), f"as root: install -d -o USER {folder}, with the user that runs dicomsort", what)
    if target not in DEVICES and os.path.exists(target) and not os.access(target, os.W_OK):
        return wrong(f"{option}: {path} cannot be written", f"as root: chown USER {path}", what)
    return fine(f"{option}: {path} can be written", what)


def _refusal(call: Call) -> str:
    """Return why the command would end before it begins; "" where it would not."""
    try:
        for check_command in _CHECKS.get(call.command, ()):
            check_command(call)
    except DicomsortError as error:
        return str(error)
    except (OSError, ImportError) as error:
        return f"expected to look, received {error}"
    return ""


def _sort(call: Call) -> None:
    settings, routes = load_sort(*call.sources)
    check_classes(routes, _check_sorting(call, settings))


def _watch(call: Call) -> None:
    settings = load_watch(*call.sources)
    check_routes(settings.routes, _check_sorting(call, settings.sort), send.check)


def _check_sorting(call: Call, settings: SortSettings) -> Collection[str]:
    """Return the labels of the model; a call of a configuration file alone has no folders."""
    check_engine(settings.engine, settings.scheduler)
    inbox, outbox = call.given.get("inbox"), call.given.get("outbox")
    if inbox is None:
        return check_settings(settings)[1].labels
    labels = check(inbox, outbox, settings).bundle.labels
    _check_files(Gate({"INBOX": inbox}, outbox, labels), settings)
    return labels


def _check_files(gate: Gate, settings: SortSettings | SendSettings | ReceiveSettings) -> None:
    for name, kind in _FILES.items():
        if (path := getattr(settings, name, None)) is not None:
            gate.check_file(flag_of(name), path, kind, devices=name != "journal")


def _send(call: Call) -> None:
    settings, folder = load_send(*call.sources), str(call.given["folder"])
    if not settings.to:
        raise UsageError("--to: expected AE@HOST:PORT or https://HOST/PATH, received none")
    _check_files(Gate({"FOLDER": folder}), settings)
    send.check(settings)
    if os.path.isdir(folder) or not call.is_made(folder):
        select(folder, settings.run or "")


def _receive(call: Call) -> None:
    settings, inbox = load_receive(*call.sources), call.given.get("inbox")
    receive.check(settings)
    if inbox is not None:
        _check_files(Gate({"INBOX": inbox}), settings)
        if os.path.isdir(inbox) and not os.access(inbox, os.W_OK | os.X_OK):
            raise UsageError(f"INBOX: expected a folder that can be written, received {inbox!r} (permission denied)")


def _report(call: Call) -> None:
    outbox, run, html = (call.given[name] for name in ("outbox", "run", "html"))
    if html is not None and call.given["json"]:
        raise UsageError("expected one of --html, --json, received both")
    reported = None
    with suppress(*([DicomsortError] if run is None and call.is_made(outbox) else [])):
        reported = reported_run(outbox, run)
    if html not in {None, STDOUT}:
        reads = {"inbox": reported.head["inbox"]} if reported and reported.head else {}
        Gate(reads, reported.outbox if reported else outbox).check_file("--html", Path(html), REPORT)
    if html is not None and call.given["pictures"]:
        _load_model(call)


def _load_model(call: Call) -> None:
    if call.given.get("compare") is None:
        load(call.given["model"] or default_path())


def _train(call: Call) -> None:
    from dicomsort.training.settings import Settings, checked  # imports what a host that sorts may not have

    checked(Settings(**{each.name: call.given[each.name] for each in fields(Settings) if each.name in call.given}))


def _check_outbox(call: Call) -> None:
    if not call.is_made(call.given["outbox"]):
        absolute(call.given["outbox"])


_CHECKS: dict[str, tuple[Callable[[Call], None], ...]] = {
    "sort": (_sort,),
    "watch": (_watch,),
    "send": (_send,),
    "receive": (_receive,),
    "report": (_report,),
    "review": (_check_outbox, _load_model),
    **dict.fromkeys(("predict", "evaluate"), (_load_model,)),
    **dict.fromkeys(("train", "tune"), (_train,)),
    **dict.fromkeys(("resume", "undo", "runs", "verify"), (_check_outbox,)),
}
