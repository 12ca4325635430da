"""Show the first rows of a manifest as a table: ``python sample_data/show_manifest.py outbox/manifest.csv``."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

COLUMNS = ("source", "status", "class", "reason", "decided_by", "destination")
ROWS = 14
WIDTH = 170  # of a log, where no terminal says how wide it is


def show(manifest: Path) -> None:
    """Print the first rows of ``manifest``, the columns that tell most, and how many rows there are."""
    with manifest.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = Table(*COLUMNS, title=f"{manifest}: the first {min(ROWS, len(rows))} of {len(rows)} rows")
    for row in rows[:ROWS]:
        table.add_row(*(_shortened(row[column]) for column in COLUMNS))
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)


def _shortened(cell: str, limit: int = 44) -> str:
    """The cell, its middle left out where it is longer than ``limit`` characters."""
    return cell if len(cell) <= limit else f"{cell[: limit // 2]}…{cell[-limit // 2 + 1 :]}"


if __name__ == "__main__":
    show(Path(sys.argv[1]))
