"""``dicomsort rules``: the table that decides, as it runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def rules(*, as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False) -> None:
    """Print the ordered table of rules; the first whose condition holds decides, and its name is the reason."""
    from rich.console import Console
    from rich.table import Table

    from dicomsort.classify import RULES

    if as_json:
        typer.echo(json.dumps([{"rule": r.name, "when": r.when, "then": r.then} for r in RULES], indent=1))
        return
    table = Table(title="The first rule whose condition holds decides; its name is the reason in the manifest")
    for heading in ("", "rule", "when", "then"):
        table.add_column(heading, overflow="fold")
    for number, rule in enumerate(RULES, 1):
        table.add_row(str(number), rule.name, rule.when, rule.then)
    Console().print(table)
