"""What was measured, as records that outlive a run (JSON), and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown; every column but the first ``text`` ones is aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1
    title: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One group of rows: what a person reads, and ``data`` for the picture."""

    key: str
    title: str
    text: str
    tables: Sequence[Table]
    data: dict[str, Any] = field(default_factory=dict)
    measured: str = ""  # where and when, one line


def load(path: Path) -> dict[str, Section]:
    """The sections of earlier runs, by key; none where there is no file."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text("utf-8"))
    return {
        key: Section(**(value | {"tables": [Table(**t) for t in value["tables"]]})) for key, value in stored.items()
    }


def save(path: Path, sections: dict[str, Section]) -> None:
    """Keep the sections."""
    path.write_text(json.dumps({key: asdict(s) for key, s in sections.items()}, indent=1) + "\n", "utf-8")


def markdown(sections: dict[str, Section]) -> str:
    """All sections; what they were measured on stands once where it is the same."""
    return "\n".join(_lines([sections[key] for key in sorted(sections)])) + "\n"


def paste(document: Path, text: str) -> None:
    """Replace what stands between the marks of a document."""
    before, begin, rest = document.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected {BEGIN} and {END} in {document.name}, received none")
    document.write_text(f"{before}{begin}\n{text}{end}{after}", "utf-8")


def _lines(sections: Sequence[Section]) -> Iterator[str]:
    said = ""
    for section in sections:
        if section.measured != said:
            said = section.measured
            yield from (said, "")
        yield from (f"## {section.title}", section.text)
        for table in section.tables:
            yield from _table(table)
        yield ""


def _table(table: Table) -> Iterator[str]:
    yield ""
    if table.title:
        yield from (f"{table.title}:", "")
    marks = ["---" if place < table.text else "---:" for place in range(len(table.columns))]
    for row in (table.columns, marks, *table.rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
