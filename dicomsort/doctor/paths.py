"""What options name, in a configuration file or on a command line: can a path be read or written, a peer be sent to?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dicomsort.bundle import default_path, load
from dicomsort.config import Destination, Routes, quoted
from dicomsort.config.file import DESTINATIONS, ROUTES, TOP, Written, read
from dicomsort.config.settings import DESTINATION
from dicomsort.content import DEVICES, JOURNAL, LOG, Content
from dicomsort.doctor.finding import Finding, State, fine, wrong
from dicomsort.errors import UsageError
from dicomsort.outputs import Gate
from dicomsort.pacs.send import check
from dicomsort.records import RENDERING_VERSION
from dicomsort.report.metrics import FILE as METRICS

WRITTEN: dict[str, Content] = {"log_file": LOG, "metrics": METRICS.content, "journal": JOURNAL}
_MADE = frozenset({"out", "explain", "cache"})  # folders that a command makes where they are missing


def read_config(file: Path) -> Written | Finding:
    """What a configuration file says, or that it cannot be told; it is read once, for it may be a pipe."""
    try:
        return read(file)
    except UsageError as error:
        return wrong("configuration", str(error), "mend the file")


def examine_config(
    file: Path,
    written: Written,
    gate: Gate,
    model: Path | None,
    check_classes: Callable[[Routes, tuple[str, ...]], None],
) -> Iterator[Finding]:
    """Look at what a configuration file says: its values, and each path, destination and class that it names.

    ``model`` is what a command line names. ``check_classes`` raises UsageError for a class that the model has not.
    """
    what = "configuration"
    count = sum(len(values) for values in written.tables.values())
    yield fine(what, f"{file}: {count} {'option' if count == 1 else 'options'}")
    for table, values, peer in _tables(written):
        name = what if table == TOP else f"{what} {table}"
        found = [*examine_values(name, values, gate)]
        yield from found
        if peer is not None and all(finding.state is State.FINE for finding in found):
            try:
                check(peer)
            except UsageError as error:
                yield wrong(name, str(error), "mend the file, or what it names")
    yield from _classes(written, model, check_classes)


def _classes(
    written: Written, model: Path | None, check_classes: Callable[[Routes, tuple[str, ...]], None]
) -> Iterator[Finding]:
    named = {name: value for table in (TOP, "sort", "watch") for name, value in written.tables.get(table, {}).items()}
    what, mend = f"configuration [{ROUTES}]", "mend the file, or name another model"
    try:
        labels = load(model or named.get("model") or default_path(), RENDERING_VERSION).labels if written.routes else ()
    except UsageError as error:
        yield wrong(what, str(error), mend)
        return
    for class_ in written.routes:
        try:
            check_classes({class_: ()}, labels)
        except UsageError as error:
            yield wrong(what, str(error), mend)


def _tables(written: Written) -> Iterator[tuple[str, Mapping[str, object], Destination | None]]:
    """Each table of a file, with its values by option, and the peer that it tells of; inline routes too."""
    for table, values in written.tables.items():
        peer = None
        if table == "send" and values.get("to", "") not in {"", *written.destinations}:
            peer = Destination(**{name: value for name, value in values.items() if name in DESTINATION})
        yield f"[{table}]" if table else TOP, values, peer
    for name, peer in written.destinations.items():
        yield f"[{DESTINATIONS}.{name}]", peer.values(), peer
    for class_, peers in written.routes.items():
        yield from ((f"[{ROUTES}] {class_}", {}, peer) for peer in peers if peer not in written.destinations.values())


def examine_values(what: str, values: Mapping[str, object], gate: Gate) -> Iterator[Finding]:
    """Look at the paths among the values of options, by name."""
    for name, path in values.items():
        option = "--" + name.replace("_", "-")
        if not isinstance(path, Path):
            continue
        if name in WRITTEN:
            yield _written(what, option, path, WRITTEN[name], gate)
        elif name in _MADE:
            yield from _made(what, option, path, gate)
        elif not os.access(path, os.R_OK) or not (path.is_file() or path.is_dir()):
            told = f"{option}: expected what can be read, received {quoted(path)}"
            yield wrong(what, told, "make it, or give the user that runs dicomsort rights")


def _made(what: str, option: str, path: Path, gate: Gate) -> Iterator[Finding]:
    try:
        gate.check_folder(option, path)
    except UsageError as error:
        yield wrong(what, str(error), "make its folder, or give the user that runs dicomsort rights")


def _written(what: str, option: str, path: Path, content: Content, gate: Gate) -> Finding:
    try:
        target = gate.check_file(option, path, content)
    except UsageError as error:
        folder = os.path.dirname(os.path.abspath(path))
        return wrong(what, str(error), f"as root: install -d -o USER {folder}, with the user that runs dicomsort")
    if target not in DEVICES and os.path.exists(target) and not os.access(target, os.W_OK):
        return wrong(what, f"{option}: {path} cannot be written", f"as root: chown USER {path}")
    return fine(what, f"{option}: {path} can be written")
