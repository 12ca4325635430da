"""What tests of the report share: an outbox that holds back, and the page as a parser reads it."""

from __future__ import annotations

import base64
import csv
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from building import make_dicom, make_files
from command import by_source, run, sort

from dicomsort.report import COLUMNS


def holding(inbox: Path, outbox: Path) -> str:
    """An outbox whose one run held a collision (a series of two), a damaged file; the run's id."""
    make_dicom(inbox / "a" / "1.dcm", study=1, instance=1)
    make_dicom(inbox / "b" / "1.dcm", study=1, instance=1, pixels=np.full((24, 16), 9, np.uint16))
    make_dicom(inbox / "b" / "2.dcm", study=1, instance=1, pixels=np.full((24, 16), 8, np.uint16))
    make_dicom(inbox / "mr.dcm", study=2, modality="MR")
    make_dicom(inbox / "us.dcm", study=3, modality="US")
    (inbox / "cut.dcm").write_bytes((inbox / "mr.dcm").read_bytes()[:300])
    make_files(inbox, {"notes.txt": "hello"})
    assert sort(inbox, outbox).code == 3
    return by_source(outbox)["mr.dcm"]["run_id"]


def report(outbox: Path, *arguments: object) -> Page:
    """The page that ``report --html`` writes."""
    target = outbox.parent / "report.html"
    ran = run("report", "--html", target, outbox, *arguments)
    assert (ran.code, ran.out) == (0, ""), ran.err
    return read(target)


@dataclass
class Page(HTMLParser):
    """A page as a browser would take it apart: its tags, its text, what it would fetch."""

    source: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._hidden = ""
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._hidden = tag if tag == "style" else ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data + " "

    def handle_endtag(self, tag: str) -> None:
        self._hidden = ""

    def named(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each tag of that name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[bytes]:
        """The JPEG files that stand in the page."""
        return [base64.b64decode(found) for found in re.findall(r"data:image/jpeg;base64,([^\"]+)", self.source)]


def read(path: Path) -> Page:
    """Take a page apart."""
    return Page(path.read_text("utf-8"))


def add_row(outbox: Path, **cells: str) -> None:
    """Append a row to the outbox's manifest."""
    with (outbox / "manifest.csv").open("a", encoding="utf-8", newline="") as lines:
        csv.writer(lines, lineterminator="\n").writerow([cells.get(name, "") for name in COLUMNS])
