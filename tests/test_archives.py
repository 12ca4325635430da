"""Archives in an inbox, sorted as a user sorts them: what becomes of them and their members, a second night, undo."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from building import make_dicom, make_files, read_tree, uid
from command import by_source, placed, quiet, rows, run, sort
from packing import CT, OLD, dicom, make_inbox, opening, tarred, zipped

from dicomsort.engines.engine import SerialEngine
from dicomsort.errors import WorkerLost
from dicomsort.files import Files
from dicomsort.sorting import resume


def test_archives_are_left_unless_asked_for(export: Path, outbox: Path) -> None:
    ran = sort(export, outbox)
    assert (ran.code, [*placed(outbox)]) == (0, [])
    assert "1 archive was left unopened: export/study.zip; --archives open opens" in ran.out
    assert "`sort --archives open` opens it" in by_source(outbox)["export/study.zip"]["message"]


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_members_are_sorted_like_files(export: Path, outbox: Path, study: dict[str, bytes], mode: str) -> None:
    before = read_tree(export)
    assert "3 of the files lay in 1 archive" in opening(mode, export, outbox)
    found = by_source(outbox)
    member, archive = found["export/study.zip!/DICOM/IM1"], found["export/study.zip"]
    assert (member["destination"], member["action"], member["status"]) == (CT, "copied", "sorted")
    assert found["export/study.zip!/README.txt"]["status"] == "ignored"
    assert (outbox / CT).read_bytes() == study["DICOM/IM1"]
    assert (outbox / CT).stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert (archive["status"], archive["reason"], archive["kind"]) == ("ignored", "archive", "unknown")
    moved = (archive["action"], archive["destination"])
    assert moved == (("moved", "ARCHIVES/export/study.zip") if mode == "--move" else ("left", ""))
    assert read_tree(export) == ({} if mode == "--move" else before)
    assert not [*outbox.glob(".dicomsort/runs/*/staging")]
    assert run("verify", outbox).code == 0
    assert run("undo", "--dry-run", outbox).code == 0
    assert run("undo", outbox).code == 0
    assert read_tree(export) == before
    assert [*placed(outbox)] == []
    assert not (outbox / "ARCHIVES").exists()


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_link_leaves_archives_and_says_so(export: Path, outbox: Path) -> None:
    opening("--link", export, outbox)
    assert [row["message"] for row in rows(outbox)] == ["a run with --link opens no archive: use --copy or --move"]


def test_a_second_night_opens_nothing_again(export: Path, outbox: Path) -> None:
    opening(export, outbox)
    opening(export, outbox)
    assert [(row["source"], row["message"]) for row in rows(outbox)[4:]] == [
        ("export/study.zip", "an earlier run opened it")
    ]
    run("undo", outbox)
    opening(export, outbox)
    assert (outbox / CT).is_file()


def test_parts_of_a_study_in_an_archive_and_beside_it_are_one(tmp_path: Path, outbox: Path) -> None:
    inbox = make_inbox(tmp_path / "inbox", {
        "1.dcm": dicom(tmp_path, study=7, instance=1),
        "rest.zip": zipped({"2": dicom(tmp_path, study=7, series=2, modality="", instance=2)}),
    })  # fmt: skip
    opening(inbox, outbox)
    assert by_source(outbox)["rest.zip!/2"]["reason"] == "follows-study"


def test_what_lies_in_both_is_placed_once(tmp_path: Path, outbox: Path, study: dict[str, bytes]) -> None:
    inbox = make_inbox(
        tmp_path / "inbox", {"a/IM1": study["DICOM/IM1"], "study.zip": zipped(study), "z.zip": zipped(study)}
    )
    before = read_tree(inbox)
    opening("--move", "--duplicates", "remove", "--prune-empty", inbox, outbox)
    found = by_source(outbox)
    assert [found[name]["status"] for name in ("a/IM1", "study.zip!/DICOM/IM1", "z.zip!/DICOM/IM2")] == [
        "sorted", "duplicate", "duplicate"
    ]  # fmt: skip
    assert sorted(read_tree(outbox / "ARCHIVES")) == ["study.zip", "z.zip"]
    assert (run("undo", outbox).code, read_tree(inbox)) == (0, before)


def test_members_that_are_no_images_by_name_or_twice(tmp_path: Path, outbox: Path) -> None:
    """Names that differ in case, the same name twice, an archive within, an unsafe name: a row each, nothing lost."""
    one, two = dicom(tmp_path, study=7, StudyInstanceUID=""), dicom(tmp_path, study=8, StudyInstanceUID="x y")
    made = zipped({"a": one, "A": two, "b": two, "in.zip": zipped({"x": one}), "../up": one})
    twice = made[: made.index(b"PK\x01\x02")].replace(
        b"b" + two[:9], b"a" + two[:9]
    )  # the third is called as the first
    rest = made[len(twice) :]
    at = rest.index(b"b", rest.index(b"A", 46))
    inbox = make_inbox(tmp_path / "inbox", {"made.zip": twice + rest[:at] + b"a" + rest[at + 1 :]})
    out = opening("--move", inbox, outbox, code=3)
    assert "1 archive was left unopened: made.zip!/in.zip" in out
    found = [(row["source"], row["reason"], row["action"]) for row in rows(outbox)]
    assert found[3:] == [
        ("made.zip!/in.zip", "archive", "left"),
        ("made.zip!/..\N{DIVISION SLASH}up", "archive-unsafe-name", "left"),
        ("made.zip", "archive", "left"),
    ]
    assert "not everything in it was placed" in rows(outbox)[-1]["message"]
    assert len([*placed(outbox)]) == 3
    assert read_tree(inbox)
    opening("--move", inbox, outbox)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.zip", zipped({"a": b"x" * 5000}, zipfile.ZIP_STORED)[:3000], "archive-damaged"),
        ("cut.tar.gz", tarred({"a": os.urandom(5000)}, "w:gz")[:3000], "archive-damaged"),
        ("many.zip", zipped({str(n): b"" for n in range(9)}), "archive-limit"),
    ],
)
def test_one_that_cannot_be_opened_is_told_once(
    tmp_path: Path, outbox: Path, name: str, data: bytes, reason: str
) -> None:
    inbox = make_inbox(tmp_path / "inbox", {name: data})
    for code, status in ((3, "unreadable"), (0, "ignored")):
        opening("--move", "--archive-members", 8, inbox, outbox, code=code)
        row = rows(outbox)[-1]
        assert (row["source"], row["status"], row["reason"], row["action"]) == (name, status, reason, "left")
    assert read_tree(inbox) == {name: data}
    if reason == "archive-limit":  # whose bytes are not at fault
        opening("--move", inbox, outbox)
        assert rows(outbox)[-1]["action"] == "moved"


def test_an_archive_whose_disk_stands_still_failed_and_is_beyond_no_limit(
    export: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SerialEngine.submit

    def submit(self: SerialEngine, function: Callable[[Any], Any], task: Any, /, seconds: float | None = None) -> Any:
        if seconds is None:
            return real(self, function, task)
        lost: Future[Any] = Future()
        lost.set_exception(WorkerLost("the worker process ran past 300 s, most of them waiting", from_outside=True))
        return lost

    with monkeypatch.context() as patch:
        patch.setattr(SerialEngine, "submit", submit)
        opening("--move", "--engine", "serial", export, outbox, code=3)
    assert [(row["status"], row["action"]) for row in rows(outbox)] == [("failed", "left")]
    opening("--move", export, outbox)
    assert rows(outbox)[-1]["action"] == "moved"


def test_a_damaged_member_stays_with_its_archive(tmp_path: Path, outbox: Path, study: dict[str, bytes]) -> None:
    data = bytearray(zipped(study, zipfile.ZIP_STORED))
    data[data.index(study["DICOM/IM2"]) + 200] ^= 1
    inbox = make_inbox(tmp_path / "inbox", {"study.zip": bytes(data)})
    opening("--move", inbox, outbox, code=3)
    found = by_source(outbox)
    assert found["study.zip!/DICOM/IM2"]["reason"] == "archive-damaged"
    assert (found["study.zip"]["action"], [*placed(outbox)]) == ("left", [CT])


def test_a_fresh_archive_settles(export: Path, outbox: Path) -> None:
    os.utime(export / "export" / "study.zip")
    opening("--move", export, outbox)
    assert [(row["source"], row["status"]) for row in rows(outbox)] == [("export/study.zip", "settling")]
    assert read_tree(export)


def test_an_archive_waits_for_a_series_that_settles(export: Path, outbox: Path, study: dict[str, bytes]) -> None:
    make_dicom(export / "3.dcm", study=7, instance=3)
    opening("--move", export, outbox)
    found = by_source(outbox)
    assert {found[name]["status"] for name in ("3.dcm", "export/study.zip", "export/study.zip!/DICOM/IM1")} == {
        "settling"
    }
    os.utime(export / "3.dcm", (OLD, OLD))
    opening("--move", export, outbox)
    assert len([*placed(outbox)]) == 4


def test_dry_run_shows_members_and_changes_nothing(export: Path, outbox: Path) -> None:
    before = read_tree(export)
    out = opening("--dry-run", "--move", export, outbox)
    assert f"export/study.zip!/DICOM/IM1 -> {CT}" in out
    assert "export/study.zip -> ARCHIVES/export/study.zip" in out
    assert (read_tree(export), outbox.exists()) == (before, False)


def test_undo_keeps_what_no_archive_holds_any_more(export: Path, outbox: Path) -> None:
    opening(export, outbox)
    (export / "export" / "study.zip").unlink()
    assert run("undo", "--dry-run", outbox).code == 3
    assert run("undo", outbox).code == 3
    assert len([*placed(outbox)]) == 2


def test_undo_keeps_a_member_that_was_edited(export: Path, outbox: Path) -> None:
    opening("--move", export, outbox)
    with (outbox / CT).open("ab") as stream:
        stream.write(b"edited")
    assert run("undo", outbox).code == 3
    assert [*placed(outbox)] == [CT]
    assert (export / "export" / "study.zip").is_file()


def test_an_archive_of_which_a_member_cannot_be_placed_stays(export: Path, outbox: Path) -> None:
    (outbox / "CT").mkdir(parents=True)
    (outbox / "CT" / uid(7)).symlink_to("no folder")
    opening("--move", export, outbox, code=3)
    row = by_source(outbox)["export/study.zip"]
    assert (row["status"], row["action"], row["destination"]) == ("ignored", "left", "")
    (outbox / "CT" / uid(7)).unlink()
    opening("--move", export, outbox)
    assert (by_source(outbox)["export/study.zip"]["action"], len([*placed(outbox)])) == ("moved", 3)


def test_a_run_that_was_never_sealed_leaves_nothing_unpacked(
    export: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Files, "flush_system", killed)
        with pytest.raises(Killed):
            sort("--archives", "open", export, outbox)
    assert len([*outbox.glob(".dicomsort/runs/*/staging/*/*")]) == 3
    opening(export, outbox)
    assert not [*outbox.glob(".dicomsort/runs/*/staging")]


def test_errors_of_the_disk_are_heard_from_before_the_first_byte_is_unpacked(
    export: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    monkeypatch.setattr(
        Files,
        "flush_system",
        lambda self, path: heard.append(Path(path).stat().st_dev in self._error_descriptors) or False,
    )
    opening(export, outbox)
    assert heard
    assert all(heard)


def test_pruning_removes_what_a_dead_run_unpacked(export: Path, outbox: Path) -> None:
    opening(export, outbox)
    dead = outbox / ".dicomsort" / "runs" / "20200101T000000Z-000000"
    make_files(dead / "staging" / "1", {"0": "unpacked"})
    ran = run("runs", "--prune", 0, outbox)
    assert (ran.code, dead.exists()) == (0, False), ran


class Killed(BaseException):
    """The process dies; nothing may catch it."""


@pytest.fixture
def cut_short(export: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The staging folder of a run with ``--move`` that died after it placed one of two members."""
    links = iter([None])
    link = Files.link

    def once(self: Files, source: str, target: str) -> None:
        if next(links, Killed) is Killed:
            raise Killed
        link(self, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "link", once)
        with pytest.raises(Killed):
            sort("--archives", "open", "--move", export, outbox)
    (staging,) = outbox.glob(".dicomsort/runs/*/staging")
    return staging


def test_resume_goes_on_from_what_was_unpacked(cut_short: Path, outbox: Path) -> None:
    summary = resume(quiet(outbox))
    assert (summary.statuses["sorted"], len([*placed(outbox)])) == (2, 3)
    assert not cut_short.exists()


def test_resume_unpacks_again_what_is_missing(cut_short: Path, export: Path, outbox: Path) -> None:
    shutil.rmtree(cut_short)
    before = read_tree(export)
    summary = resume(quiet(outbox))
    assert (summary.statuses["sorted"], len([*placed(outbox)])) == (2, 3)
    assert not cut_short.exists()
    assert run("verify", outbox).code == 0
    assert (run("undo", outbox).code, read_tree(export)) == (0, before)


def test_resume_unpacks_no_other_archive(cut_short: Path, export: Path, outbox: Path, study: dict[str, bytes]) -> None:
    shutil.rmtree(cut_short)
    (export / "export" / "study.zip").write_bytes(zipped(study | {"DICOM/IM2": b"something else"}))
    assert run("resume", outbox).code == 3
    assert [*placed(outbox)] == [CT]
    opening("--move", "--settle", 0, export, outbox)
    assert by_source(outbox)["export/study.zip"]["action"] == "moved"


def test_undo_of_a_run_that_was_cut_short(cut_short: Path, export: Path, outbox: Path) -> None:
    before = read_tree(export)
    assert run("undo", outbox).code == 0
    assert ([*placed(outbox)], read_tree(export), cut_short.exists()) == ([], before, False)
