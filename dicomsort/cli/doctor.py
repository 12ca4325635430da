"""``dicomsort doctor``: a line a finding, and how to mend it."""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.options import gathered, option, require_room
from dicomsort.config import SORT, TABLES, Option
from dicomsort.config.settings import MOST_PORT
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from dicomsort.doctor import Call, Finding, Job

    Folders = tuple[str | None, str | None]  # an inbox and an outbox

FAILED = 1
MAKING = ("sort", "watch")  # commands that make an outbox
_MARKS = {"fine": "✓", "note": "!", "wrong": "✗"}
_CONFIG = "Check this configuration file: its keys, and the paths in it."
_CRONTAB = "Check this crontab: its lines that run dicomsort, and the paths in them."


def doctor(
    inbox: Annotated[str | None, typer.Argument(metavar="INBOX", help="An inbox to check.")] = None,
    outbox: Annotated[str | None, typer.Argument(metavar="OUTBOX", help="An outbox to check.")] = None,
    *,
    model: Annotated[Path | None, option("model", SORT["model"]._replace(metavar=""))] = None,
    port: Annotated[
        int | None, option("port", Option(int, None, "Check that `receive` can use this port.", 1, MOST_PORT))
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=_CONFIG, parser=Path)] = None,
    crontab: Annotated[Path | None, typer.Option("--crontab", metavar="FILE", help=_CRONTAB, parser=Path)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of text.")] = False,
) -> None:
    """Check this installation, and the folders that it will use.

    Run it as the user that will run dicomsort. The exit code is 1 if something must be mended.

    Example: dicomsort doctor --config /etc/dicomsort.toml --port 11112 /srv/inbox /srv/outbox
    """
    from dicomsort.doctor import State, examine_environment, examine_folders, examine_machine
    from dicomsort.files import Files
    from dicomsort.report import visible

    require_room()
    found = []
    for finding in chain(
        examine_machine(model, port),
        examine_environment(os.environ),
        examine_folders(inbox, outbox, Files()),
        _examine_files((inbox, outbox), model, config, crontab),
    ):
        found.append(finding)
        if not as_json:
            mend = f"; {finding.mend}" if finding.mend else ""
            typer.echo(f"{_MARKS[finding.state]} {finding.state:<5}  {finding.what}: {visible(finding.message)}{mend}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    raise typer.Exit(FAILED if any(finding.state is State.WRONG for finding in found) else 0)


def _examine_files(
    folders: Folders, model: Path | None, config: Path | None, crontab: Path | None
) -> Iterator[Finding]:
    """Check what a configuration and a crontab name; the folders of the crontab where they are not those given."""
    if config is None and crontab is None:
        return  # what follows needs packages, which doctor itself must not
    from dicomsort.doctor import examine_config
    from dicomsort.outputs import Gate

    if config is not None:
        inbox, outbox = folders
        yield from examine_config(config, Gate({} if inbox is None else {"INBOX": inbox}, outbox), model)
    if crontab is not None:
        yield from _examine_crontab(crontab, folders)


def _examine_crontab(file: Path, folders: Folders) -> Iterator[Finding]:
    """Check a crontab's lines: whether the commands take their arguments, and the paths among these."""
    from dicomsort.doctor import examine_call, examine_crontab, examine_folders, jobs_of, wrong
    from dicomsort.files import Files, read_bounded

    try:
        text = read_bounded(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        yield wrong(f"expected a crontab that can be read, received {file}: {error}", "mend that", "crontab")
        return
    jobs = list(jobs_of(text))
    found = list(examine_crontab(file, text, jobs))
    yield from found
    calls = [_parsed(job) for job in jobs]
    known, made, examined = {finding.message for finding in found}, _made_outboxes(calls), {folders}
    for job, call in zip(jobs, calls, strict=True):
        what = f"crontab line {job.number}"
        if job.problem:
            continue
        if isinstance(call, UsageError):
            yield wrong(str(call), "mend the line", what)
            continue
        yield from examine_call(what, replace(call, made=made), known)
        own = (call.given.get("inbox"), call.given.get("outbox"))
        if own not in examined:
            examined.add(own)
            yield from examine_folders(*own, Files())


def _made_outboxes(calls: Iterable[Call | UsageError]) -> set[str]:
    """Return the outboxes that commands make: others may use them, also where they are not there yet."""
    makers = [call.given for call in calls if not isinstance(call, UsageError) and call.command in MAKING]
    outboxes = [given.get("outbox") for given in makers if not given.get("dry_run")]
    return {os.path.realpath(outbox) for outbox in outboxes if outbox is not None}


def _parsed(job: Job) -> Call | UsageError:
    """Return the call of a crontab's line, or why the command does not take it."""
    from dicomsort.cli import WrongUsage, app
    from dicomsort.doctor import Call

    group: Any = typer.main.get_command(app)
    name = job.arguments[0] if job.arguments else ""
    if name not in group.commands:
        return UsageError(f"expected a command of dicomsort, received {name!r}")
    try:
        with redirect_stdout(io.StringIO()):  # what prints help does it here
            parent = group.make_context("dicomsort", [name])
            context = group.commands[name].make_context(name, job.arguments[1:], parent=parent)
        return Call(name, context.params, _flags(name, context.params), job.environ)
    except typer.Exit:
        line = shlex.join(job.arguments)
        return UsageError(f"this line prints help and does nothing else: `dicomsort {line}`")
    except WrongUsage as error:
        return UsageError(f"expected what `dicomsort {name} --help` shows, received: {error.format_message()}")
    except UsageError as error:
        return error


def _flags(name: str, params: dict[str, Any]) -> dict[str, object]:
    """Return what the loaders of settings take; an empty list is an option that was not given."""
    table = TABLES.get(name, {})
    given = gathered(table, dict(params))
    return {option: None if value in ((), []) else value for option, value in given.items() if option in table}
