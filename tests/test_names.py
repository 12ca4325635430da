"""Names that differ in little, are odd or long, and files that want one place: all are kept, by names of their own."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree, uid
from command import by_source, placed, rows, run, sort
from hypothesis import example, given
from hypothesis import strategies as st

from dicomsort.files import Files
from dicomsort.records import Row
from dicomsort.report.manifest import RunManifest
from dicomsort.report.text import cell

LONG = "x" * 251 + ".dcm"  # 255 bytes, the most that Linux takes


def whole_way(inbox: Path, outbox: Path, *options: object) -> None:
    """Sort, sort again (nothing is placed twice), verify, undo: all as it was."""
    before = read_tree(inbox)
    first = sort("--held-ok", *options, inbox, outbox)
    assert first.code == 0
    names = list(placed(outbox))
    assert sorted((outbox / name).read_bytes() for name in names) == sorted(before.values())
    assert sort(*options, inbox, outbox).code == 0
    assert list(placed(outbox)) == names
    nothing = {"missing": [], "different": [], "unreadable": [], "damaged": [], "runs": [], "unfinished": []}
    assert json.loads(run("verify", "--json", outbox).out) == {"whole": len(names), **nothing}
    for _ in range(2):
        assert run("undo", outbox).code == 0
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])


@pytest.mark.parametrize("mode", ["--copy", "--link"])
@pytest.mark.parametrize(
    "names",
    [
        ("Scan.dcm", "scan.dcm", "SCAN.DCM"),
        ("e\u0301.dcm", "\u00e9.dcm"),
        ("\u212b.dcm", "\u00c5.dcm", "\u00e5.dcm"),
        ("stra\u00dfe.dcm", "STRASSE.dcm"),
        ("A/1.dcm", "a/1.dcm"),
        (LONG, LONG.upper()),
        ("\u00e9" * 127, "e\u0301" * 85),
        (os.fsdecode(b"\xe9.dcm"), os.fsdecode(b"\xc9.dcm")),
        ("line\nfeed.dcm", "line\rfeed.dcm", "tab\t.dcm", "\x7f.dcm"),
        ("CON.dcm", "nul", "trailing dot.", "trailing space .dcm ", "-rf", "~", "$(x).dcm", "a\\b.dcm", '"q".dcm'),
    ],
    ids=lambda names: repr(names[0][:12]),
)
def test_names_of_little_difference(tmp_path: Path, outbox: Path, names: tuple[str, ...], mode: str) -> None:
    inbox = tmp_path / "inbox"
    for number, name in enumerate(names):
        make_dicom(inbox / name, study=number, modality="MR")
    whole_way(inbox, outbox, "--layout", "keep", mode)
    folded = [row["destination"].casefold() for row in rows(outbox)[: len(names)]]
    assert len(set(folded)) == len(names)


def test_paths_near_the_limit(tmp_path: Path) -> None:
    """A path of 4,095 bytes is the most that Linux takes; beyond it a file stays, and its row says why.

    Up to it all is placed: tests/test_long_names.py.
    """
    base = tmp_path / "inbox"
    deep = base
    while len(os.fsencode(deep)) + 256 < 3_900:
        deep = deep / ("d" * 250)
    deep.mkdir(parents=True)
    make_files(deep, {"1.dcm": "one", "2.dcm": "two"})
    before = read_tree(base)
    assert sort("--held-ok", base, tmp_path / "o").code == 0
    assert {row["status"] for row in rows(tmp_path / "o")} == {"unreadable"}
    too_deep = tmp_path / ("o" * 250) / ("o" * 100)
    ran = sort(base, too_deep)
    assert ran.code == 3
    assert {row["status"] for row in rows(too_deep)} <= {"failed", "conflict"}
    assert read_tree(base) == before


@pytest.mark.parametrize("layout", ["{class}/{study_date}.dcm", "{class}/{patient_id}/{instance_number}.dcm"])
def test_two_files_that_a_template_gives_one_name(tmp_path: Path, outbox: Path, layout: str) -> None:
    inbox = tmp_path / "inbox"
    for study in (1, 2):
        make_dicom(inbox / f"{study}.dcm", study=study, StudyDate="20260102", PatientID="P")
    whole_way(inbox, outbox, "--layout", layout)
    first, second = (by_source(outbox)[f"{study}.dcm"] for study in (1, 2))
    assert first["destination"] != second["destination"]


def test_the_second_night_with_copy_has_the_same_names_places_nothing_and_says_so(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    tree = {path: (outbox / path).stat().st_ino for path in placed(outbox)}
    first = {row["source"]: row["destination"] for row in rows(outbox)}
    ran = sort(inbox, outbox)
    assert ran.code == 0
    assert "duplicates of what the outbox holds; nothing was placed twice" in ran.out
    assert {path: (outbox / path).stat().st_ino for path in placed(outbox)} == tree
    second = rows(outbox)[len(first) :]
    assert {row["source"]: row["destination"] for row in second} == first
    assert {row["action"] for row in second} == {"left"}


CELLS = st.text(st.characters(codec="utf-8") | st.sampled_from('=+-@,"\\\t\r\n \udce9ab'), max_size=6)


@given(st.tuples(CELLS, CELLS, CELLS))
@example(("a", "b", "c"))
@example(("a,b", "=1", '"'))
def test_rows_are_written_as_the_csv_module_writes_them(texts: tuple[str, str, str]) -> None:
    source, destination, message = texts
    written = io.StringIO(newline="")
    cells = (
        cell(str(value)) for value in (getattr(Row(source, destination, message=message), n) for n in Row.__slots__)
    )
    csv.writer(written, lineterminator="\n").writerow(("run", *cells))
    with tempfile.TemporaryDirectory() as outbox:
        (runs := Path(outbox, ".dicomsort", "runs", "run")).mkdir(parents=True)
        manifest = RunManifest(Files(), outbox, "run")
        manifest.add(Row(source, destination, message=message))
        manifest.flush()
        manifest.close()
        _, _, line = (runs / "manifest.csv").read_bytes().partition(b"\n")
    assert line.decode() == written.getvalue()


def test_a_file_with_the_name_of_a_folder_blocks_nothing(tmp_path: Path, outbox: Path) -> None:
    """A picture may be called like a study, or a folder of the inbox like a file of the night before."""
    first, second = tmp_path / "first", tmp_path / "second"
    make_dicom(first / "scan", StudyInstanceUID="", SeriesInstanceUID="")
    assert sort("--move", "--settle", 0, first, outbox).code == 0
    (blocking,) = placed(outbox)
    for taken in (uid(7), f"{uid(7)}.{key(uid(7))}"):
        (outbox / "CT" / taken).write_text("a file of somebody")
    make_dicom(second / "scan/1.dcm", instance=2, StudyInstanceUID="", SeriesInstanceUID="")
    make_dicom(second / "2.dcm", study=7, series=8)
    before = read_tree(second)
    assert sort("--move", "--settle", 0, second, outbox).code == 0
    folders = [row["destination"].rpartition("/")[0] for row in rows(outbox)[1:]]
    once = f"{uid(7)}.{key(uid(7))}"
    assert folders == [f"CT/{once}.{key(once)}/{uid(7, 8)}", f"{blocking}.{key('scan')}"]
    make_dicom(second / "3.dcm", study=7, series=8, instance=2)
    assert sort("--settle", 0, second, outbox).code == 0
    assert rows(outbox)[-1]["destination"].startswith(folders[0])
    assert [run("undo", outbox).code for _ in range(2)] == [0, 0]
    (second / "3.dcm").unlink()
    assert read_tree(second) == before


def test_names_of_our_own_files_are_changed(tmp_path: Path, outbox: Path) -> None:
    """Below an outbox they would be taken for its state, or for a copy that was cut short."""
    inbox = tmp_path / "inbox"
    for number, place in enumerate((".dicomsort/a.dcm", "b/.DICOMSORT-sent/c.dcm", ".dicomsort-x.dcm")):
        make_dicom(inbox / place, instance=number)
    before = read_tree(inbox)
    assert sort("--move", "--settle", 0, "--layout", "keep", inbox, outbox).code == 0
    assert sorted(placed(outbox)) == ["CT/_.dicomsort-x.dcm", "CT/_.dicomsort/a.dcm", "CT/b/_.DICOMSORT-sent/c.dcm"]
    assert run("undo", outbox).code == 0
    assert read_tree(inbox) == before


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
