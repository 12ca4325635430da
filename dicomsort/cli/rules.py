"""``dicomsort rules``: the tables that decide, as they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

_ASK = {"ASK": "says nothing: the pixels are asked", "FOLLOWS": "follows its series or study"}


def rules(*, as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False) -> None:
    """Print the rules in their order, and the tables of header values.

    The first rule that applies decides. Then come the tables of Modality (0008,0060) and SOP Class (0008,0016).

    Example: dicomsort rules --json
    """
    from dicomsort.classify import RULES
    from dicomsort.modalities import tables

    sop_classes, terms = tables()
    if as_json:
        ordered = [{"rule": rule.name, "when": rule.when, "then": rule.then} for rule in RULES]
        typer.echo(json.dumps({"rules": ordered, "modalities": terms, "sop_classes": sop_classes}, indent=1))
        return
    from pydicom.uid import UID
    from rich.console import Console
    from rich.table import Table

    console = Console()
    numbered = [(str(number), rule.name, rule.when, rule.then) for number, rule in enumerate(RULES, 1)]
    named = {UID(uid).name.removesuffix(" Storage"): category for uid, category in sop_classes.items()}
    first = "The first rule whose condition holds decides; its name is the reason in the manifest"
    for title, headings, rows in (
        (first, ("", "rule", "when", "then"), numbered),
        ("What Modality (0008,0060) says", ("says", "defined terms"), _by_category(terms)),
        ("What SOP Class (0008,0016) says", ("says", "storage classes"), _by_category(named)),
    ):
        table = Table(title=title, title_justify="left", show_lines=True)
        for heading in headings:
            table.add_column(heading, overflow="fold", min_width=14 if heading == "says" else None)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _by_category(entries: dict[str, str]) -> Sequence[tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, entry in entries.items():
        category, _, kind = entry.partition(":")
        shown = f"OTHER/{kind}" if category == "OTHER" else _ASK.get(category, category)
        found.setdefault(shown, []).append(name)
    return [(shown, ", ".join(names)) for shown, names in found.items()]
