"""``dicomsort doctor``: a line a finding, and how to mend it."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomsort.cli.options import option, require_room
from dicomsort.config import MOST_PORT, SORT, Option

if TYPE_CHECKING:
    from dicomsort.doctor import Finding, Job
    from dicomsort.outputs import Gate

FAILED = 1
_MARKS = {"fine": "✓", "note": "!", "wrong": "✗"}
_CONFIG = "A configuration file: its keys are checked, and the paths that it names."
_CRONTAB = "A crontab: its lines that run dicomsort are checked, and the paths that they name."


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

    from dicomsort.doctor import State, examine_folders, examine_machine
    from dicomsort.files import Files
    from dicomsort.report import visible

    require_room()
    found = []
    looked = (
        examine_machine(model, port),
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
    from dicomsort.doctor import examine_config, examine_crontab, jobs_of, wrong
    from dicomsort.files import read_bounded
    from dicomsort.service.routes import check_classes

    if config is not None:
        yield from examine_config(config, _gate(inbox, outbox), model, check_classes)
    if crontab is None:
        return
    try:
        text = read_bounded(crontab).decode()
    except (OSError, UnicodeDecodeError) as error:
        yield wrong("crontab", f"expected a crontab that can be read, received {crontab}: {error}", "mend that")
        return
    jobs = list(jobs_of(text))
    yield from examine_crontab(crontab, text, jobs)
    looked_at = {(inbox, outbox)}
    for job in jobs:
        if not job.problem:
            yield from _job(job, looked_at)


def _job(job: Job, looked_at: set[tuple[str | None, str | None]]) -> Iterator[Finding]:
    """Look at a line's arguments: whether they are those of the command, and the paths among them."""
    from dicomsort.doctor import examine_config, examine_folders, examine_values, wrong
    from dicomsort.errors import UsageError
    from dicomsort.files import Files
    from dicomsort.service.routes import check_classes

    line = f"crontab line {job.number}"
    try:
        params = _parsed(job.arguments)
    except UsageError as error:
        yield wrong(line, str(error), "mend the line")
        return
    folders = (params.get("inbox"), params.get("outbox"))
    paths = {name: Path(value) if name == "folder" else value for name, value in params.items() if value is not None}
    places = [*filter(None, folders), *(value for value in paths.values() if isinstance(value, Path))]
    for place in places:
        if not Path(place).expanduser().is_absolute():
            yield wrong(line, f"expected an absolute path, received {str(place)!r}", "cron starts in the user's home")
    gate = _gate(*folders)
    yield from examine_values(line, {name: value for name, value in paths.items() if name != "config"}, gate)
    if config := params.get("config"):
        yield from examine_config(config, gate, params.get("model"), check_classes)
    if folders not in looked_at:
        looked_at.add(folders)
        yield from examine_folders(*folders, Files())


def _parsed(arguments: list[str]) -> dict[str, Any]:
    """The values of a command line's arguments and options, by name; UsageError where they are not the command's."""
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
    return dict(context.params)


def _gate(inbox: str | None, outbox: str | None) -> Gate:
    from dicomsort.outputs import Gate

    return Gate({} if inbox is None else {"INBOX": inbox}, outbox)
