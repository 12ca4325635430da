"""A manifest that somebody wrote or cut: no line hangs a command, leads out of the outbox, or hides the others."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from building import make_dicom, make_files
from command import by_source, placed, quiet, rows, run, sort
from killing import NOBODY
from reports import add_row
from test_faults import Broken
from test_full_disk import Full

from dicomsort.errors import DicomsortError
from dicomsort.files import Files
from dicomsort.records import Action, Row, Status
from dicomsort.report import MANIFEST, history
from dicomsort.report.manifest import line_of, rows_of
from dicomsort.report.manifest import repair as mend
from dicomsort.report.manifest_reader import HEAD, Record, read_records, read_rows
from dicomsort.report.review_queue import ReviewQueue
from dicomsort.sorting import repair

RUN = "20260101T000000Z-abcdef"
ROW = Row(
    "a/1.dcm", "CT/1.2/1.2.3/1.2.3.4.dcm", Action.COPIED, Status.SORTED, "CT", "header", study_uid="1.2", size=9,
    sha256="a" * 64,
)  # fmt: skip
OUTSIDE = [
    ".dicomsort/a/b.dcm", ".dicomsort/x", "../x", "CT/../../x", "REVIEW/../x", "/etc/x", "..", ".", "CT/", "CT//x",
    "CT/.", "CT/x/..", "manifest.csv", "CT",
]  # fmt: skip


@pytest.fixture
def sorted_once(tmp_path: Path, outbox: Path) -> tuple[Path, Path]:
    make_dicom(tmp_path / "inbox" / "1.dcm")
    assert sort(tmp_path / "inbox", outbox).code == 0
    return tmp_path / "inbox", outbox


@pytest.mark.parametrize("kind", ["blank lines behind a quote", "rows behind quotes"])
def test_a_quote_that_does_not_close_costs_no_time(tmp_path: Path, kind: str) -> None:
    line = line_of(RUN, ROW)
    lines = [line] * 20_000
    lines[::1000] = [line.replace(b",a/", b',"a/')] * 20
    content = b'"' + b"\n" * 1_000_000 if kind.startswith("blank") else b"".join(lines)
    path = tmp_path / MANIFEST
    path.write_bytes(HEAD + b"\n" + content)
    code = "import sys; from dicomsort.report import manifest_reader as m; print(len(list(m.read_rows(sys.argv[1]))))"
    command = [sys.executable, "-c", code, path]
    ran = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert int(ran.stdout) == (0 if kind.startswith("blank") else 20_000 - 20)


def test_a_path_of_many_line_feeds_is_read(tmp_path: Path) -> None:
    row = Row("\n" * 250 + "/" + "\n" * 250, message="\n" * 4000)
    (tmp_path / MANIFEST).write_bytes(HEAD + b"\n" + line_of(RUN, row) * 2)
    records = list(read_records(str(tmp_path / MANIFEST)))
    assert [(record.row and record.row.row, record.line) for record in records] == [(row, 2), (row, 2 + 4501)]


@pytest.mark.parametrize("column", ["study_uid", "status", "class", "reason", "sha256", "run_id"])
def test_bytes_that_are_no_text_are_damage_where_no_path_is(sorted_once: tuple[Path, Path], column: str) -> None:
    inbox, outbox = sorted_once
    manifest = outbox / MANIFEST
    cell = rows(outbox)[0][column].encode()
    head, _, row = manifest.read_bytes().partition(b"\n")
    cells = row.split(b",")
    cells[head.decode().split(",").index(column)] = b"\xff" + cell[1:]
    manifest.write_bytes(head + b"\n" + b",".join(cells))
    make_dicom(inbox / "2.dcm", instance=2)
    assert sort(inbox, outbox).code in {0, 3}
    ran = run("verify", outbox)
    assert (ran.code, "manifest.csv is damaged: line 2" in ran.out) == (3, True)


def test_names_that_are_no_text_are_none(tmp_path: Path) -> None:
    row = Row(os.fsdecode(b"\xff"), os.fsdecode(b"CT/\xff"), Action.COPIED, message=os.fsdecode(b"was \xff"))
    (tmp_path / MANIFEST).write_bytes(HEAD + b"\n" + line_of(RUN, row))
    assert [each.row for each in read_rows(str(tmp_path / MANIFEST))] == [row]
    (tmp_path / MANIFEST).write_bytes(HEAD + b"\n" + line_of(RUN, row).replace(b"\\xff", b"\xff"))
    assert [each.row for each in read_rows(str(tmp_path / MANIFEST))] == [row]


@pytest.mark.parametrize(
    "cells", [{"action": "burnt"}, {"sha256": "x"}, {"sha256": "A" * 64}, {"run_id": "x"}, {"status": "a\0b"}]
)
def test_a_row_that_dicomsort_does_not_write_is_not_believed(
    sorted_once: tuple[Path, Path], cells: dict[str, str]
) -> None:
    _, outbox = sorted_once
    add_row(outbox, **(rows(outbox)[0] | {"destination": "CT/x.dcm"} | cells))
    told: list[Record] = []
    assert [p.destination for _, p in history(str(outbox), told.append)] == [rows(outbox)[0]["destination"]]
    assert [record.line for record in told] == [3]
    assert run("verify", outbox).code == 3


@pytest.mark.parametrize("action", ["copied", "undone"])
@pytest.mark.parametrize("place", OUTSIDE)
def test_a_row_that_leads_elsewhere_is_not_believed(sorted_once: tuple[Path, Path], place: str, action: str) -> None:
    inbox, outbox = sorted_once
    (row,) = rows(outbox)
    (outbox / MANIFEST).write_bytes(HEAD + b"\n")  # the false rows are all that speaks of the series
    for cells in ({"reason": "header"}, {"reason": "reviewed", "message": "by A; was REVIEW/unsure/x"}):
        add_row(outbox, **(row | {"destination": place, "action": action} | cells))
    add_row(outbox, **(row | {"destination": place, "action": action, "status": "review"}))
    assert list(history(str(outbox))) == []
    assert list(read_rows(f"{outbox}/{MANIFEST}")) == []
    holdings = ReviewQueue(str(outbox))
    assert (holdings.refresh(), holdings.items) == (False, {})
    (outbox / ".dicomsort" / "runs" / row["run_id"] / MANIFEST).unlink()
    assert list(rows_of(str(outbox), row["run_id"])) == []  # of which send takes its files
    make_dicom(inbox / "2.dcm", instance=2)
    assert sort(inbox, outbox).code == 0
    assert all(path.startswith("CT/1.2.826") for path in placed(outbox))
    ran = run("verify", outbox)
    assert ran.code == 3
    assert "line 2: its destination is no path below a folder of an outbox" in ran.out
    ran = run("verify", "--repair", outbox)
    assert (ran.code, f"run {row['run_id']}, {MANIFEST}: expected 1 row that" in ran.out) == (
        3,
        True,
    )  # its own is gone
    assert {each.row.destination[:3] for each in read_rows(f"{outbox}/{MANIFEST}", doubtful=True)} == {"CT/"}


def test_a_source_that_leads_out_is_not_believed(sorted_once: tuple[Path, Path]) -> None:
    _, outbox = sorted_once
    for source in ("../x", "/x", "a/../../x", "", "a//b"):
        add_row(outbox, **(rows(outbox)[0] | {"source": source}))
    assert len(list(history(str(outbox)))) == 1


def test_review_shows_what_stands_behind_a_line_that_is_too_long(tmp_path: Path) -> None:
    held = Row("1.png", "REVIEW/unsure/1.png", Action.MOVED, Status.REVIEW, reason="unsure", size=9, sha256="b" * 64)
    other = Row("2.png", "REVIEW/unsure/2.png", Action.MOVED, Status.REVIEW, reason="unsure", size=9, sha256="c" * 64)
    manifest, holdings = tmp_path / MANIFEST, ReviewQueue(str(tmp_path))
    manifest.write_bytes(HEAD + b"\n" + b"x" * (3 << 20) + b"\n" + line_of(RUN, held) + line_of(RUN, other)[:-9])
    assert holdings.refresh()
    assert [item.row.source for item in holdings.items.values()] == ["1.png"]
    with manifest.open("ab") as stream:
        stream.write(line_of(RUN, other)[-9:])
    assert holdings.refresh()
    assert [item.row.source for item in holdings.items.values()] == ["1.png", "2.png"]


def test_review_orders_numbers_of_any_length(tmp_path: Path) -> None:
    names = ["2", "010", "9" * 100 + "1", "1" + "0" * 5000]
    held = [Row(n, f"REVIEW/unsure/{n}.png", Action.MOVED, Status.REVIEW, size=9, sha256="b" * 64) for n in names]
    (tmp_path / MANIFEST).write_bytes(HEAD + b"\n" + b"".join(line_of(RUN, row) for row in held[::-1]))
    holdings = ReviewQueue(str(tmp_path))
    assert holdings.refresh()
    assert sorted(item.row.source for item in holdings.items.values()) == sorted(names)
    assert [item.row.source for item in holdings.items.values()] == names


def test_review_reads_the_first_row_where_the_head_is_gone(tmp_path: Path) -> None:
    held = Row("1.png", "REVIEW/unsure/1.png", Action.MOVED, Status.REVIEW, reason="unsure", size=9, sha256="b" * 64)
    (tmp_path / MANIFEST).write_bytes(line_of(RUN, held))
    holdings = ReviewQueue(str(tmp_path))
    assert holdings.refresh()
    assert [item.row for item in holdings.items.values()] == [held]


def two_runs(inbox: Path, outbox: Path) -> list[str]:
    """The runs of an outbox to which a second one is added, oldest first."""
    make_dicom(inbox / "2.dcm", study=2)
    assert sort(inbox, outbox).code == 0
    return sorted({row["run_id"] for row in rows(outbox)})


@pytest.mark.parametrize("kind", ["garbage", "folder", "FIFO", "link"])
def test_a_run_whose_own_rows_cannot_be_read_is_skipped_and_named(
    sorted_once: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    _, outbox = sorted_once
    first, second = two_runs(*sorted_once)
    before = (outbox / MANIFEST).read_bytes()
    own = outbox / ".dicomsort" / "runs" / first / MANIFEST
    own.rename(tmp_path / "aside")
    if kind == "garbage":
        own.write_bytes(b"\x00\xff" * 5000)
    elif kind == "folder":
        own.mkdir()
    elif kind == "FIFO":
        os.mkfifo(own)
    else:
        own.symlink_to(tmp_path / "aside")
    (outbox / MANIFEST).write_bytes(before[:-30])
    ran = run("verify", "--repair", "--json", outbox)
    told = json.loads(ran.out)["repaired"]
    assert (ran.code, told["added"], len(told["skipped"])) == (3, 1, 1)
    assert told["skipped"][0].startswith(f"run {first}")
    assert (outbox / MANIFEST).read_bytes() == before
    assert f"skipped: run {first}" in run("verify", "--repair", outbox).out
    assert [row["run_id"] for row in rows(outbox)][-1] == second


def test_a_head_that_is_gone_is_named_and_written_again(sorted_once: tuple[Path, Path]) -> None:
    _, outbox = sorted_once
    run_id = rows(outbox)[0]["run_id"]
    before = (outbox / MANIFEST).read_bytes()
    (outbox / MANIFEST).write_bytes(before.partition(b"\n")[2])
    (outbox / ".dicomsort" / "runs" / run_id / MANIFEST).unlink()  # the row is nowhere else
    ran = run("verify", outbox)
    assert (ran.code, "line 1: the head is missing" in ran.out, "1 file holds" in ran.out) == (3, True, True)
    told = json.loads(run("verify", "--repair", "--json", outbox).out)["repaired"]
    assert (told["kept"], told["unreadable"]) == (1, 1)
    assert (outbox / MANIFEST).read_bytes() == before
    assert run("verify", outbox).code == 0


@pytest.mark.parametrize("tail", [b"x", b";;", b"\x00", b'"'])
def test_a_head_with_something_behind_it_is_written_again(sorted_once: tuple[Path, Path], tail: bytes) -> None:
    _, outbox = sorted_once
    before = (outbox / MANIFEST).read_bytes()
    (outbox / MANIFEST).write_bytes(before.replace(b",message\n", b",message" + tail + b"\n", 1))
    assert run("verify", outbox).code == 3
    assert run("verify", "--repair", outbox).code == 0
    assert (outbox / MANIFEST).read_bytes() == before


def test_a_repair_keeps_columns_that_somebody_added(sorted_once: tuple[Path, Path]) -> None:
    _, outbox = sorted_once
    lines = (outbox / MANIFEST).read_bytes().splitlines()
    wide = lines[0] + b",mine\n" + lines[1] + b",1\n"
    (outbox / MANIFEST).write_bytes(wide + b"cut,short\n")
    assert run("verify", "--repair", outbox).code == 0
    assert (outbox / MANIFEST).read_bytes() == wide


def test_a_repair_keeps_owner_mode_and_attributes(sorted_once: tuple[Path, Path]) -> None:
    _, outbox = sorted_once
    manifest = outbox / MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b"cut,short\n")
    manifest.chmod(0o664)
    has_attributes = True
    try:
        os.setxattr(manifest, "user.site", b"ward 7")
    except OSError:
        has_attributes = False
    if os.geteuid() == 0:
        os.chown(manifest, NOBODY, NOBODY)
    before = manifest.stat()
    told = json.loads(run("verify", "--repair", "--json", outbox).out)["repaired"]
    after = manifest.stat()
    assert (told["damaged_as"] != "", told["message"]) == (True, "")
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (before.st_uid, before.st_gid, 0o664)
    assert not has_attributes or os.getxattr(manifest, "user.site") == b"ward 7"


def test_a_repair_that_the_disk_refuses_leaves_the_manifest_as_it_was(sorted_once: tuple[Path, Path]) -> None:
    _, outbox = sorted_once
    manifest = outbox / MANIFEST
    manifest.write_bytes(damaged := manifest.read_bytes() + b"cut,short\n")
    before = manifest.stat()
    broken: list[Files] = [Full(room) for room in range(0, len(damaged) - 20, 97)]
    broken += [Broken(call, 0, errno.EIO) for call in ("replace", "flush")] + [Broken("create", 0, errno.EACCES)]
    for files in broken:
        with pytest.raises(DicomsortError, match=r"expected a disk that takes a new manifest, received .*as it was"):
            repair(quiet(outbox, files))
        assert (manifest.read_bytes(), manifest.stat().st_ino) == (damaged, before.st_ino)
        assert sorted(path.name for path in outbox.iterdir()) == [".dicomsort", "CT", MANIFEST]


def test_a_repair_where_the_state_is_a_mount_of_its_own(sorted_once: tuple[Path, Path]) -> None:
    class OwnMount(Files):
        def replace(self, source: str, target: str) -> None:
            if Path(source).parent != Path(target).parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            super().replace(source, target)

    _, outbox = sorted_once
    whole = (outbox / MANIFEST).read_bytes()
    (outbox / MANIFEST).write_bytes(whole + b"cut,short\n")
    repair(quiet(outbox, OwnMount()))
    assert (outbox / MANIFEST).read_bytes() == whole


def test_rows_of_many_runs_come_back_in_their_order(tmp_path: Path, outbox: Path) -> None:
    names = [f"20260101T0000{number:02}Z-abcdef" for number in range(40)]
    lines = {name: [line_of(name, Row(f"{name}/{n}")) for n in range(3)] for name in names}
    make_files(outbox, {f".dicomsort/runs/{name}/{MANIFEST}": HEAD + b"\n" + b"".join(lines[name]) for name in names})
    whole = HEAD + b"\n" + b"".join(line for name in names for line in lines[name])
    kept = [line for name in names[5:40:7] for line in lines[name][:2]]
    (outbox / MANIFEST).write_bytes(HEAD + b"\n" + b"".join(kept))
    assert mend(Files(), str(outbox), names).added == 120 - len(kept)
    assert (outbox / MANIFEST).read_bytes() == whole


def test_what_cannot_be_looked_at_does_not_stop_a_verify(sorted_once: tuple[Path, Path]) -> None:
    _, outbox = sorted_once
    two_runs(*sorted_once)
    first, second = (by_source(outbox)[name]["destination"] for name in ("1.dcm", "2.dcm"))
    folder = (outbox / first).parents[1]
    folder.rename(outbox / "aside")
    folder.symlink_to(folder.name)  # it loops
    ran = run("verify", outbox)
    assert (ran.code, f"unreadable: {first}" in ran.out, "1 file holds" in ran.out) == (3, True, True)
    told = json.loads(run("verify", "--json", outbox).out)
    assert (told["unreadable"], told["missing"], told["whole"]) == ([first], [], 1)
    assert (outbox / second).is_file()


def test_a_duplicate_of_what_cannot_be_looked_at_does_not_stop_a_sort(sorted_once: tuple[Path, Path]) -> None:
    inbox, outbox = sorted_once
    folder = (outbox / rows(outbox)[0]["destination"]).parents[1]
    folder.rename(outbox / "aside")
    folder.symlink_to(folder.name)
    make_dicom(inbox / "2.dcm", study=2)
    ran = sort("--move", "--settle", 0, "--duplicates", "remove", inbox, outbox)
    assert ran.code in {0, 3}, ran.err
    assert (inbox / "1.dcm").is_file()
    assert by_source(outbox)["2.dcm"]["status"] == "sorted"
