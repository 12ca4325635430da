"""``report``: what it tells, and where the page may go."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from building import read_tree, uid
from command import run, sort
from crashing import Crash, CrashingFiles
from reports import holding, read, report
from test_faults import Broken
from watching import runs_of

from dicomsort.files import Files
from dicomsort.own_files import REPORT_BEGINS
from dicomsort.pages.report_page import FILE
from dicomsort.report import read_summary


def test_without_html_the_summary_is_told_again(inbox: Path, outbox: Path) -> None:
    told = sort(inbox, outbox)
    again = run("report", outbox)
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines()[:-1] == told.out.splitlines()[:-1]
    summary = json.loads(run("report", "--json", outbox).out)
    assert summary["run_id"] == runs_of(outbox)[0]
    assert (summary["found"], summary["classes"]) == (6, {"CT": 2, "MRI": 1, "XRAY": 1, "OTHER": 1})
    assert run("report", "--quiet", outbox).out == ""


def test_the_seconds_of_each_stage_are_told(inbox: Path, outbox: Path) -> None:
    sort("--evidence", "auto", inbox, outbox)
    stages = json.loads(run("report", "--json", outbox).out)["stages"]
    assert list(stages) == ["reading headers", "looking at pixels", "deciding", "placing files"]
    assert all(spent >= 0 for spent in stages.values())
    assert "looking at pixels" in report(outbox, "--pictures", 0).text


def test_a_summary_of_an_older_version_is_read(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    path = outbox / ".dicomsort" / "runs" / runs_of(outbox)[0] / "summary.json"
    told = json.loads(path.read_text())
    del told["stages"], told["archives_found"]
    path.write_text(json.dumps(told))
    summary = read_summary(str(outbox), runs_of(outbox)[0])
    assert summary is not None
    assert summary.stages == {}
    assert "Not measured by stage" in report(outbox, "--pictures", 0).text


def test_the_page_tells_what_the_manifest_does(tmp_path: Path, outbox: Path) -> None:
    run_id = holding(tmp_path / "inbox", outbox)
    page = report(outbox)
    assert page.source.encode().startswith(REPORT_BEGINS)
    assert f"Run {run_id}" in page.text
    assert "7 files: 2 sorted, 1 other, 3 need you." in page.text
    assert "uid-collision 2 files" in page.text
    assert "truncated-header 1 file" in page.text
    assert page.text.index("Header against pixels") < page.text.index("What needs a person")
    assert f"{uid(1)} Series {uid(1, 1)}" in page.text
    assert "CT · CT Image" in page.text
    assert "1 of 2" in page.text
    assert "waits in REVIEW/uid-collision/" in page.text
    assert len(page.pictures()) == 2 + 3  # the collision's, and one each of CT, MRI, OTHER
    assert str(tmp_path) not in page.source


def test_the_file_is_for_its_owner_and_replaced_as_a_whole(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    sort(inbox, outbox)
    before = read_tree(outbox)
    report(outbox)
    target = tmp_path / "report.html"
    assert target.stat().st_mode & 0o777 == 0o600
    target.write_bytes(REPORT_BEGINS + b"old")
    report(outbox)
    assert target.stat().st_size > 1000
    assert read_tree(outbox) == before
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == ["report.html"]


@pytest.mark.parametrize("content", ["DICM", "<!DOCTYPE html>\n<p>mine</p>"])
def test_another_file_is_never_replaced(inbox: Path, outbox: Path, tmp_path: Path, content: str) -> None:
    sort(inbox, outbox)
    (tmp_path / "mine.html").write_text(content)
    ran = run("report", "--html", tmp_path / "mine.html", outbox)
    assert (ran.code, ran.out) == (2, "")
    assert "--html: expected a new file or an earlier report, received" in ran.err
    assert "it holds something else" in ran.err
    assert (tmp_path / "mine.html").read_text() == content


def test_the_page_goes_neither_to_the_inbox_nor_into_the_state(inbox: Path, outbox: Path, tmp_path: Path) -> None:
    sort(inbox, outbox)
    before = read_tree(tmp_path)
    for folder in (inbox, outbox / ".dicomsort" / "runs", tmp_path / "nowhere"):
        ran = run("report", "--html", folder / "r.html", outbox)
        assert (ran.code, ran.out) == (2, "")
        assert "--html: expected a file" in ran.err
    assert run("report", "--html", outbox / "report.html", outbox).code == 0
    (outbox / "report.html").unlink()
    assert read_tree(tmp_path) == before


def test_a_page_on_stdout_is_the_page(inbox: Path, outbox: Path) -> None:
    sort(inbox, outbox)
    command = [sys.executable, "-m", "dicomsort", "report", "--pictures", "0", "--html", "-", str(outbox)]
    ran = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"LC_ALL": "C"})
    assert ran.stdout.startswith(REPORT_BEGINS)
    assert ran.stdout.endswith(b"</html>\n")
    assert ran.stderr == b""


def test_a_crash_at_any_change_leaves_the_old_page_or_the_new(tmp_path: Path) -> None:
    target, old, new = tmp_path / "r.html", REPORT_BEGINS + b"old", REPORT_BEGINS + b"new" * 100
    whole = CrashingFiles(-1)
    FILE.write(whole, target, old)
    for at in range(len(whole.called)):
        for torn in (0, 1, 30):
            FILE.write(Files(), target, old)
            with suppress(Crash):
                FILE.write(CrashingFiles(at, torn=torn), target, new)
            assert target.read_bytes() in {old, new}
            FILE.write(Files(), target, new)
            assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("call", ["create", "write", "flush", "replace"])
def test_a_full_disk_leaves_the_old_page_and_says_so(inbox: Path, outbox: Path, tmp_path: Path, call: str) -> None:
    sort(inbox, outbox)
    target = tmp_path / "report.html"
    target.write_bytes(REPORT_BEGINS + b"old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", lambda: Broken(call, 0, errno.ENOSPC))
        ran = run("report", "--pictures", 0, "--html", target, outbox)
    assert (ran.code, ran.out) == (1, "")
    assert "--html: expected a place for the page, received No space left on device" in ran.err
    assert "resume" not in ran.err
    assert target.read_bytes() == REPORT_BEGINS + b"old"
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == ["report.html"]


def test_an_interruption_leaves_no_half(tmp_path: Path) -> None:
    class Interrupted(Files):
        def flush(self, descriptor: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FILE.write(Interrupted(), tmp_path / "r.html", REPORT_BEGINS)
    assert list(tmp_path.iterdir()) == []


def test_another_model_than_the_one_that_sorted_is_told(tmp_path: Path, outbox: Path, root: Path) -> None:
    run_id = holding(tmp_path / "inbox", outbox)
    assert "is not the one" not in report(outbox).text
    plan = outbox / ".dicomsort" / "runs" / run_id / "plan.jsonl"
    head, rest = plan.read_text().split("\n", 1)
    plan.write_text(json.dumps(json.loads(head) | {"model": "0123456789abcdef" * 4}) + "\n" + rest)
    page = report(outbox, "--model", root / "models" / "default")
    assert "The model of this run (01234567) is not the one that was asked for this page (default," in page.text
    ran = run("report", "--model", tmp_path, "--html", tmp_path / "x.html", outbox)
    assert ran.code == 2
    assert "bundle.json: expected a file" in ran.err
    assert not (tmp_path / "x.html").exists()


def test_only_so_many_items_have_pictures(tmp_path: Path, outbox: Path) -> None:
    holding(tmp_path / "inbox", outbox)
    page = report(outbox, "--pictures", 1)
    assert len(page.named("article")) == 1
    assert "1 item without pictures" in page.text
    page = report(outbox, "--pictures", 0)
    assert (page.named("article"), page.pictures()) == ([], [])
    assert "cut.dcm" in page.text


def test_reading_a_page_again_gives_the_same_but_for_when(tmp_path: Path, outbox: Path) -> None:
    holding(tmp_path / "inbox", outbox)
    first, second = (report(outbox).source.partition("<footer>")[0] for _ in range(2))
    assert first == second
    assert read(tmp_path / "report.html").named("script") == []


def test_it_says_where_the_page_is(inbox: Path, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sort(inbox, outbox)
    monkeypatch.chdir(tmp_path)
    ran = run("report", "--pictures", 0, "--html", "page.html", "outbox")
    assert (ran.code, ran.out) == (0, "")
    assert re.fullmatch(rf"The page is {tmp_path}/page\.html \([\d.]+ KB\)\n", ran.err)
    assert run("report", "--pictures", 0, "--html", "page.html", "--quiet", "outbox") == (0, "", "")
