"""``dicomsort doctor``: a line a finding, and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dicomsort.cli.options import number, require_room
from dicomsort.config import MOST_PORT, Option

FAILED = 1
_MARKS = {"fine": "✓", "note": "!", "wrong": "✗"}


def doctor(
    inbox: Annotated[str | None, typer.Argument(metavar="[INBOX]", help="An inbox to look at.")] = None,
    outbox: Annotated[str | None, typer.Argument(metavar="[OUTBOX]", help="An outbox to look at.")] = None,
    *,
    model: Annotated[Path | None, typer.Option("--model", help="A model bundle [default: the one that ships].")] = None,
    port: Annotated[int | None, number("--port", Option(int, None, "The port of `receive`.", 1, MOST_PORT))] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead.")] = False,
) -> None:
    """Check this installation, and the folders that it is to work on.

    Exit code 1 where something must be mended. Example: dicomsort doctor --port 11112 /srv/inbox /srv/outbox
    """
    from dataclasses import asdict

    from dicomsort.doctor import State, examine_folders, examine_machine
    from dicomsort.files import Files
    from dicomsort.report import visible

    require_room()
    found = []
    for finding in (*examine_machine(model, port), *examine_folders(inbox, outbox, Files())):
        found.append(finding)
        if not as_json:
            mend = f"; {finding.mend}" if finding.mend else ""
            typer.echo(f"{_MARKS[finding.state]} {finding.state:<5}  {finding.what}: {visible(finding.told)}{mend}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    raise typer.Exit(FAILED if any(finding.state is State.WRONG for finding in found) else 0)
