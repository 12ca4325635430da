"""``dicomsort doctor``: a line a finding, and how to mend it."""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Collection, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dicomsort.cli.options import gathered, option, require_room
from dicomsort.config import MOST_PORT, SORT, TABLES, Option

if TYPE_CHECKING:
    from dicomsort.doctor import Call, Finding, Job, Outside
    from dicomsort.outputs import Gate

FAILED = 1
STDOUT = "-"
MAKING = ("sort", "watch")  # commands that make an outbox
_MARKS = {"fine": "✓", "note": "!", "wrong": "✗"}
_CONFIG = "A configuration file: its keys are checked, and the paths that it names."
_CRONTAB = "A crontab: its lines that run dicomsort are checked, as the commands would, and the paths that they name."


def doctor(
    inbox: Annotated[str | None, typer.Argument(metavar="INBOX", help="An inbox to look at.")] = None,
    outbox: Annotated[str | None, typer.Argument(metavar="OUTBOX", help="An outbox to look at.")] = None,
    *,
    model: Annotated[Path | None, option("model", SORT["model"]._replace(metavar=""))] = None,
    port: Annotated[int | None, option("port", Option(int, None, "The port of `receive`.", 1, MOST_PORT))] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=_CONFIG)] = None,
    crontab: Annotated[Path | None, typer.Option("--crontab", metavar="FILE", help=_CRONTAB)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead.")] = False,
) -> None:
    """Check this installation, and the folders and files that it is to work with.

    Run it as the user that will run dicomsort. Exit code 1 where something must be mended.

    Example: dicomsort doctor --config /etc/dicomsort.toml --port 11112 /srv/inbox /srv/outbox
    """
    from dataclasses import asdict

    from dicomsort.doctor import State, examine_environment, examine_folders, examine_machine
    from dicomsort.files import Files
    from dicomsort.report import visible

    require_room()
    found = []
    looked = (
        examine_machine(model, port),
        examine_environment(os.environ),
        examine_folders(inbox, outbox, Files()),
        _named(inbox, outbox, model, config, crontab),
    )
    for finding in (finding for findings in looked for finding in findings):
        found.append(finding)
        if not as_json:
            mend = f"; {finding.mend}" if finding.mend else ""
            typer.echo(f"{_MARKS[finding.state]} {finding.state:<5}  {finding.what}: {visible(finding.told)}{mend}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    raise typer.Exit(FAILED if any(finding.state is State.WRONG for finding in found) else 0)


def _named(
    inbox: str | None, outbox: str | None, model: Path | None, config: Path | None, crontab: Path | None
) -> Iterator[Finding]:
    """What a configuration and a crontab name; the folders of the crontab where they are not those given."""
    from dicomsort.doctor import examine_crontab, jobs_of, wrong
    from dicomsort.files import read_bounded

    if config is None and crontab is None:
        return
    outside = _outside()
    if config is not None:
        yield from _config(config, _gate(inbox, outbox), model, outside)
    if crontab is None:
        return
    try:
        text = read_bounded(crontab).decode()
    except (OSError, UnicodeDecodeError) as error:
        yield wrong("crontab", f"expected a crontab that can be read, received {crontab}: {error}", "mend that")
        return
    jobs = list(jobs_of(text))
    found = list(examine_crontab(crontab, text, jobs))
    yield from found
    looked_at, told, made = {(inbox, outbox)}, {finding.told for finding in found}, _made_by(jobs)
    for job in jobs:
        if not job.problem:
            yield from _job(job, looked_at, told, made, outside)


def _config(file: Path, gate: Gate, model: Path | None, outside: Outside) -> Iterator[Finding]:
    """What a configuration names, and what each command makes of it."""
    from dicomsort.doctor import Finding, examine_config, examine_settings, read_config

    written = read_config(file)
    if isinstance(written, Finding):
        yield written
        return
    found = list(examine_config(file, written, gate, model, outside.check_classes))
    yield from found
    yield from examine_settings(written, model, found, outside)


def _outside() -> Outside:
    from dicomsort.doctor import Outside
    from dicomsort.pages.report_page import FILE
    from dicomsort.service.forwarding import check_classes, check_routes

    return Outside(check_classes, check_routes, FILE.content)


def _made_by(jobs: list[Job]) -> set[str]:
    """The outboxes that lines of a crontab make: other lines may use them, also where they are not there yet."""
    from dicomsort.errors import UsageError

    made = set()
    for job in jobs:
        with suppress(UsageError):
            line = _parsed(job.arguments)
            outbox = line.params.get("outbox")
            if line.command in MAKING and outbox is not None and not line.params.get("dry_run"):
                made.add(os.path.realpath(outbox))
    return made


def _job(
    job: Job, looked_at: set[tuple[str | None, str | None]], told: Collection[str], made: set[str], outside: Outside
) -> Iterator[Finding]:
    """Look at a line's arguments: whether the command takes them, and the paths among them.

    ``told`` is what was found of the crontab's variables.
    """
    from dicomsort.doctor import Call, State, examine_folders, refusal, wrong
    from dicomsort.errors import UsageError
    from dicomsort.files import Files

    what = f"crontab line {job.number}"
    try:
        line = _parsed(job.arguments)
    except UsageError as error:
        yield wrong(what, str(error), "mend the line")
        return
    call = Call(line.command, line.params, line.flags, job.environ, made)
    found = list(_paths(what, call, outside))
    yield from found
    message = "" if any(finding.state is State.WRONG for finding in found) else refusal(call, outside)
    if message and message not in told:
        yield wrong(what, message, "mend the line, or what it names")
    folders = (line.params.get("inbox"), line.params.get("outbox"))
    if folders not in looked_at:
        looked_at.add(folders)
        yield from examine_folders(*folders, Files())


def _paths(what: str, call: Call, outside: Outside) -> Iterator[Finding]:
    """Look at the paths among the values of a line, and at its configuration file."""
    from dicomsort.doctor import Finding, examine_config, examine_values, read_config, wrong

    named = ("inbox", "outbox", "folder", "html")
    paths = {name: value for name, value in call.given.items() if isinstance(value, Path)}
    paths |= {name: Path(text) for name in named if (text := call.given.get(name)) is not None and text != STDOUT}
    for path in paths.values():
        if not path.is_absolute():
            yield wrong(what, f"expected an absolute path, received {str(path)!r}", "cron starts in the user's home")
    gate = _gate(call.given.get("inbox"), call.given.get("outbox"))
    told_elsewhere = {"config", "inbox", "outbox", "html"}
    if "folder" in paths and call.is_made(str(paths["folder"])):
        told_elsewhere.add("folder")
    yield from examine_values(what, {name: path for name, path in paths.items() if name not in told_elsewhere}, gate)
    if "config" in call.given and (config := call.given["config"] or call.environ.get("DICOMSORT_CONFIG")):
        file = Path(os.path.expanduser(config))
        written = read_config(file)
        if isinstance(written, Finding):
            yield written
        else:
            yield from examine_config(file, written, gate, call.given.get("model"), outside.check_classes)


class _Line(NamedTuple):
    """The command of a line; the values of its arguments and options, by name; those that settings are loaded from."""

    command: str
    params: dict[str, Any]
    flags: dict[str, object]


def _parsed(arguments: list[str]) -> _Line:
    """Take a command line apart; UsageError where it is not the command's."""
    from dicomsort.cli import WrongUsage, app
    from dicomsort.errors import UsageError

    group: Any = typer.main.get_command(app)
    name = arguments[0] if arguments else ""
    if name not in group.commands:
        raise UsageError(f"expected a command of dicomsort, received {name!r}")
    try:
        with redirect_stdout(io.StringIO()):  # what prints help does it here
            parent = group.make_context("dicomsort", [name])
            context = group.commands[name].make_context(name, arguments[1:], parent=parent)
    except typer.Exit:
        raise UsageError(f"this line prints help and does nothing else: `dicomsort {shlex.join(arguments)}`") from None
    except WrongUsage as error:
        raise UsageError(
            f"expected what `dicomsort {name} --help` tells of, received: {error.format_message()}"
        ) from None
    return _Line(name, dict(context.params), _flags(name, context))


def _flags(name: str, context: Any) -> dict[str, object]:
    """What the loaders of settings take; an empty list is an option that was not given."""
    table = TABLES.get(name, {})
    given = gathered(table, dict(context.params))
    return {option: None if value in ((), []) else value for option, value in given.items() if option in table}


def _gate(inbox: str | None, outbox: str | None) -> Gate:
    from dicomsort.outputs import Gate

    return Gate({} if inbox is None else {"INBOX": inbox}, outbox)
