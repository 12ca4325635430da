"""The manifest and the summary of runs; derived from plan and journal, so they can be made again."""

from __future__ import annotations

from dicomsort.report.manifest import MANIFEST, has_rows, history
from dicomsort.report.manifest_reader import COLUMNS, Damages, read_rows
from dicomsort.report.summary import (
    NEEDS_PERSON,
    SUMMARY,
    Summary,
    describe_error,
    final_row,
    needs_person,
    read_summary,
    write_summary,
)
from dicomsort.report.text import cell, printable, visible

__all__ = [
    "COLUMNS",
    "MANIFEST",
    "NEEDS_PERSON",
    "SUMMARY",
    "Damages",
    "Summary",
    "cell",
    "describe_error",
    "final_row",
    "has_rows",
    "history",
    "needs_person",
    "printable",
    "read_rows",
    "read_summary",
    "visible",
    "write_summary",
]
