"""What a report is made of: counts, tables, bars, and how it stays small."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomsort.errors import command, counted
from dicomsort.pages import report_page, run_statistics
from dicomsort.pages.report import LISTED, make, spread
from dicomsort.pages.report_page import Part, _without_folders, page, seconds
from dicomsort.pages.run_statistics import SAMPLES, RunStatistics, allotted
from dicomsort.pages.templating import sop_class, title, why
from dicomsort.progress import Silent, Timed
from dicomsort.records import Action, DecidedBy, Row, Status
from dicomsort.report.manifest import rows_of, since
from dicomsort.report.text import size
from dicomsort.sorting.inspection import ReportedRun

RUN = "20260102T030405Z-abcdef"
CT = Row(
    "a/1.dcm", "CT/1/1/1.dcm", Action.COPIED, Status.SORTED, "CT", "header-and-pixels", DecidedBy.BOTH, "0.99", "CT",
    "CT", "0.99", "CT", "1.2.840.10008.5.1.4.1.1.2", "1", "1.1", "1.1.1", "dicom", 500,
)  # fmt: skip
HELD = replace(CT, source="b/1.dcm", destination="REVIEW/unsure/b/1.dcm", status=Status.REVIEW, class_="",
               reason="unsure", header_class="", pixel_class="MRI", study_uid="2", series_uid="2.1")  # fmt: skip


def test_counts_add_up_and_series_are_counted_once() -> None:
    rows = [replace(CT, source=f"{n}", series_uid=f"1.{n % 3}") for n in range(9)]
    rows += [HELD, replace(HELD, source="c", series_uid="", study_uid=""), replace(HELD, action=Action.UNDONE)]
    rows += [
        Row("t.txt", reason="not-an-image"),
        replace(CT, destination="OTHER/US/x", status=Status.OTHER, class_="OTHER"),
    ]
    tale = RunStatistics.of(RUN, rows)
    assert tale.summary.found == sum(tale.summary.statuses.values()) == len(rows)
    cell = tale.cells["CT", "CT"]
    assert (cell.count, cell.files) == (3, 10)
    assert (tale.cells["", "MRI"].count, tale.cells["", "MRI"].files) == (2, 3)
    assert (tale.needing, len(tale.held)) == (2, 2)
    assert (dict(tale.kinds), dict(tale.ignored)) == ({"US": 1}, {"not-an-image": 1})


def test_files_without_uids_that_were_not_placed_are_items_of_their_own() -> None:
    failed = replace(HELD, destination="", status=Status.FAILED, reason="failed", study_uid="", series_uid="")
    tale = RunStatistics.of(RUN, [replace(failed, source=name) for name in "abc"] + [HELD, replace(HELD, source="z")])
    items = tale.by_reason()
    assert {reason: [len(item.files) for item in found] for reason, found in items.items()} == {
        "unsure": [2], "failed": [1, 1, 1],
    }  # fmt: skip


def test_samples_are_of_different_series_and_the_same_each_time() -> None:
    rows = [replace(CT, source=f"{n}", series_uid=f"1.{n % 40}") for n in range(400)]
    chosen = RunStatistics.of(RUN, rows).samples()["CT"]
    assert len({row.series_uid for row in chosen}) == len(chosen) == SAMPLES
    assert {row.series_uid for row in RunStatistics.of(RUN, rows[::-1]).samples()["CT"]} == {
        row.series_uid for row in chosen
    }
    assert len(RunStatistics.of(RUN, rows[:2]).samples()["CT"]) == 2


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 120))
def test_room_is_shared_as_evenly_as_can_be(wanted: list[int], room: int) -> None:
    given_ = allotted(wanted, room)
    assert all(got <= want for got, want in zip(given_, wanted, strict=True))
    assert sum(given_) == min(room, sum(wanted))
    short = [got for got, want in zip(given_, wanted, strict=True) if got < want]
    assert max(short, default=0) - min(short, default=0) <= 1
    assert all(got <= min(short, default=50) + 1 for got in given_)


@given(st.integers(0, 10_000), st.integers(1, 9))
def test_places_are_spread_over_all(count: int, wanted: int) -> None:
    places = spread(count, wanted)
    assert len(places) == len({*places}) == min(count, wanted)
    assert all(0 <= place < count for place in places)


def test_a_bar_is_well_formed_and_says_what_it_shows() -> None:
    evil = "<b>\"'&"
    for drawn in (
        report_page.bar_chart(0.25, "var(--hue-1)", evil, 0.95),
        report_page.stacked_chart([Part(evil, 3, "red"), Part("b", 0, "red"), Part("c", 1, "red")], evil),
        report_page.stacked_chart([], evil),
    ):
        svg = ET.fromstring(drawn)  # noqa: S314 - our own
        assert (svg.get("role"), svg.get("aria-label"), svg.findtext("title")) == ("img", evil, evil)
    widths = [rect.get("width") for rect in ET.fromstring(report_page.bar_chart(7, "red", ""))]  # noqa: S314
    assert widths == [None, "1000", "1000"]
    parts = ET.fromstring(report_page.stacked_chart([Part("a", 3, "red"), Part("b", 1, "red")], ""))  # noqa: S314
    assert [(part.get("x"), part.get("width")) for part in parts.iter("rect")] == [("0", "750"), ("750", "250")]


def test_other_is_grey_and_classes_have_their_own_colours() -> None:
    found = report_page.colours(["CT", "MRI", "OTHER", "XRAY"])
    assert found["OTHER"] == "var(--hue-4)"
    assert len({*found.values()}) == 4
    assert found == report_page.colours(["CT", "MRI", "OTHER", "XRAY"])


@pytest.mark.parametrize(
    ("spent", "told"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min 00 s"), (60, "1 min 00 s"), (7384, "2 h 03 min")],
)
def test_times_are_told_for_people(spent: float, told: str) -> None:
    assert seconds(spent) == told


def test_sizes_and_names_are_told_for_people() -> None:
    assert [counted(n, "file") for n in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
    assert [counted(n, "file is", "files are") for n in (1, 2)] == ["1 file is", "2 files are"]
    assert [size(n) for n in (0, 999, 1000, 132_000, 5 * 10**12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 KB",
        "132 KB",
        "5,000 GB",
    ]
    assert sop_class("1.2.840.10008.5.1.4.1.1.2") == "CT Image"
    assert sop_class("1.2.3") == "1.2.3"
    assert (title(CT), title(Row("x", kind="png")), title(Row("x"))) == (
        "CT Image",
        "PNG image",
        "file of unknown kind",
    )


def test_every_reason_has_a_sentence() -> None:
    assert why("header-against-pixels", Status.REVIEW) == "The header names a class, confident pixels another."
    assert why("truncated-header", Status.UNREADABLE).startswith("The header cannot be trusted")
    assert why("uid-collision", Status.CONFLICT).startswith("Another file has the same")
    assert why("made-up", Status.REVIEW) == ""


def test_ten_thousand_held_items_make_a_small_page(tmp_path: Path) -> None:
    names = ("run_id", *(name.rstrip("_") for name in Row.__slots__))
    lines = [",".join(names)]
    for number in range(10_000):
        row = replace(HELD, source=f"day/{number:05}.dcm", series_uid=f"2.{number}", study_uid=f"3.{number}")
        lines.append(",".join((RUN, *(str(getattr(row, name)) for name in Row.__slots__))))
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    report = make(ReportedRun(str(tmp_path), RUN), None, None, 200, Silent())
    made = page(report)
    assert b"10,000 files: 0 sorted, 10,000 need you." in made
    assert made.count(b'<tr role="row"><td') == LISTED
    assert f"And {10_000 - LISTED:,} more".encode() in made
    assert len(made) < 1_000_000


def test_more_than_can_be_kept_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_statistics, "MAX_ROWS", 3)
    tale = RunStatistics.of(RUN, [replace(HELD, source=str(number)) for number in range(9)])
    assert (tale.needing, len(tale.held)) == (9, 3)


@pytest.mark.parametrize("outbox", ["/srv/Jane Doe/out", "/srv/Jane's Doe/out", "/srv/Jane\tDoe/out"])
def test_notes_name_no_folder_of_this_machine(outbox: str) -> None:
    told = ReportedRun(outbox, RUN, {"inbox": "/srv/Jane Doe/in"})
    note = "run {} was cut short: {} finishes it; see {}, {} and ./y"
    received = note.format(RUN, command("resume", outbox, RUN), outbox, "/etc/x")
    expected = note.format(RUN, f"`dicomsort resume OUTBOX {RUN}`", "OUTBOX", "…")
    assert _without_folders(received, told) == expected


def test_a_row_that_is_being_appended_is_passed_over(tmp_path: Path) -> None:
    assert list(rows_of(str(tmp_path), RUN)) == []
    assert since(str(tmp_path), RUN).undone == {}
    names = ("run_id", *(name.rstrip("_") for name in Row.__slots__))
    whole = ",".join((RUN, *(str(getattr(CT, name)) for name in Row.__slots__)))
    (tmp_path / "manifest.csv").write_text("\n".join((",".join(names), whole, whole[:60])))
    assert list(rows_of(str(tmp_path), RUN)) == [CT]


def test_stages_pass_on_and_add_up() -> None:
    told: list[object] = []

    class Watching:
        def stage(self, name: str, total: int | None) -> None:
            told.append((name, total))

        def advance(self, steps: int = 1) -> None:
            told.append(steps)

    timed = Timed(Watching())
    assert timed.seconds() == {}
    for name in ("a", "b", "a"):
        timed.stage(name, 3)
        timed.advance(2)
    assert list(timed.seconds()) == ["a", "b"]
    assert told == [("a", 3), 2, ("b", 3), 2, ("a", 3), 2]
