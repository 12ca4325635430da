"""Prints tables: with Rich on a terminal, else as aligned columns."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dicomsort.training.cardtables import Table


def show(tables: Iterable[Table]) -> None:
    """Print tables, each after an empty line."""
    draw = _rich if sys.stdout.isatty() else _plain
    for table in tables:
        print()
        draw(table)


def _plain(table: Table) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    lines: list[Sequence[str]] = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    print(table.title)
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  " + "  ".join(cells).rstrip())


def _rich(table: Table) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    grid = Grid(title=escape(table.title), title_justify="left")
    for i, name in enumerate(table.head):
        grid.add_column(escape(name), justify="right" if i else "left")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    Console(soft_wrap=True).print(grid)
