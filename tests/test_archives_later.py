"""Archives in a service, on a full disk, after an undo; and those whose words or names mislead."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest
from building import make_dicom, make_files, read_tree, uid
from command import by_source, placed, rows, run
from crashing import Crash
from packing import CT, dicom, make_inbox, opening, tarred, zipped
from test_races import fail
from watching import Watch, runs_of

from dicomsort.archives import unpack
from dicomsort.bundle.spec import label_problem
from dicomsort.engines.engine import SerialEngine
from dicomsort.errors import WorkerLost
from dicomsort.files import Files
from dicomsort.sorting import outbox as outbox_module


@pytest.mark.parametrize("mode", ["move", "copy"])
def test_watch_opens_an_archive_once_when_it_rests(
    tmp_path: Path, outbox: Path, study: dict[str, bytes], mode: str
) -> None:
    inbox = make_inbox(tmp_path / "inbox", {})
    inbox.mkdir()
    watch = Watch(inbox, outbox, mode=mode, settle=120.0, archives="open")
    assert watch.round() == []
    (inbox / "study.zip").write_bytes(zipped(study))
    assert watch.round() == []
    assert read_tree(outbox).keys() == {f".dicomsort/{name}" for name in ("README", "lock")}
    (summary,) = [each for _ in range(3) for each in watch.round()]
    assert (summary.statuses["sorted"], summary.archives_opened) == (2, 1)
    tree = read_tree(outbox)
    assert watch.round() == []
    again = Watch(inbox, outbox, mode=mode, archives="open")
    assert (again.round(), again.round()) == ([], [])
    assert read_tree(outbox).keys() == tree.keys()


def test_watch_opens_an_archive_again_where_a_member_was_not_placed(
    tmp_path: Path, outbox: Path, study: dict[str, bytes]
) -> None:
    inbox = make_inbox(tmp_path / "inbox", {"study.zip": zipped(study)})
    (outbox / "CT").mkdir(parents=True)
    (outbox / "CT" / uid(7)).symlink_to("no folder")
    watch = Watch(inbox, outbox, archives="open")
    assert watch.round()[0].statuses["failed"] == 2
    (outbox / "CT" / uid(7)).unlink()
    assert watch.round(after=3700.0) == []
    assert watch.round()[0].statuses["sorted"] == 2
    assert sorted(read_tree(outbox / "ARCHIVES")) == ["study.zip"]


def test_a_full_disk_while_unpacking_is_no_fault_of_the_archive(
    export: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Files.write

    def full(self: Files, descriptor: int, data: bytes | memoryview) -> None:
        if "staging" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "write", full)
        opening("--move", export, outbox, code=3)
    (row,) = rows(outbox)
    assert (row["status"], row["reason"], row["message"]) == ("failed", "failed", "No space left on device")
    assert (not [*outbox.glob(".dicomsort/runs/*/staging")], [*read_tree(export)]) == (True, ["export/study.zip"])
    opening("--move", export, outbox)
    assert by_source(outbox)["export/study.zip"]["action"] == "moved"


@pytest.mark.parametrize(("from_outside", "status"), [(True, "failed"), (False, "unreadable")])
def test_an_archive_that_costs_its_worker_costs_only_itself(
    export: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, *, from_outside: bool, status: str
) -> None:
    make_dicom(export / "mr.dcm", study=2, modality="MR")
    submit = SerialEngine.submit

    def lost(self: SerialEngine, function: object, task: object, /, seconds: float | None = None) -> Future[object]:
        if function is unpack:
            assert seconds == 600.0
            submit(self, unpack, task)
            future: Future[object] = Future()
            future.set_exception(WorkerLost("it ran past 600 s", from_outside=from_outside))
            return future
        return submit(self, function, task, seconds)  # type: ignore[arg-type]

    monkeypatch.setattr(SerialEngine, "submit", lost)
    opening(export, outbox, code=3)
    found = by_source(outbox)
    assert (found["mr.dcm"]["status"], found["export/study.zip"]["status"]) == ("sorted", status)
    assert "it ran past 600 s" in found["export/study.zip"]["message"]
    assert not [*outbox.glob(".dicomsort/runs/*/staging")]


def test_an_archive_that_lies_there_already_stays(export: Path, outbox: Path) -> None:
    make_files(outbox, {"ARCHIVES/export/study.zip": (export / "export" / "study.zip").read_bytes()})
    opening("--move", export, outbox)
    row = by_source(outbox)["export/study.zip"]
    assert (row["action"], "ARCHIVES/export/study.zip holds it" in row["message"]) == ("left", True)
    assert (len([*placed(outbox)]), [*read_tree(export)]) == (3, ["export/study.zip"])


def test_archives_is_no_name_of_a_class() -> None:
    assert label_problem("archives") == "the name is reserved"


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_an_archive_is_opened_again_after_an_undo(
    tmp_path: Path, outbox: Path, study: dict[str, bytes], mode: str
) -> None:
    """One of the same name came later; and one whose images an earlier run had placed."""
    inbox = make_inbox(tmp_path / "inbox", {"x.zip": zipped(study)})
    opening(mode, inbox, outbox)
    other = make_inbox(tmp_path / "other", {"x.zip": zipped({"mr": dicom(tmp_path, study=8, modality="MR")})})
    opening(mode, other, outbox)
    first = min(path.name for path in outbox.glob(".dicomsort/runs/*"))
    assert run("undo", outbox, first).code == 0
    opening(mode, inbox, outbox)
    assert (outbox / CT).is_file()


def test_an_archive_of_duplicates_is_opened_again_when_their_run_is_undone(
    tmp_path: Path, outbox: Path, study: dict[str, bytes]
) -> None:
    opening(make_inbox(tmp_path / "loose", study), outbox)
    inbox = make_inbox(tmp_path / "inbox", {"b.zip": zipped(study)})
    opening(inbox, outbox)
    first = min(path.name for path in outbox.glob(".dicomsort/runs/*"))
    assert run("undo", outbox, first).code == 0
    opening(inbox, outbox)
    assert (outbox / CT).is_file()


def test_an_archive_stays_while_what_its_member_equals_was_not_placed(
    tmp_path: Path, outbox: Path, study: dict[str, bytes]
) -> None:
    inbox = make_inbox(tmp_path / "inbox", {"a/IM1": study["DICOM/IM1"], "b.zip": zipped(study)})
    (outbox / "CT").mkdir(parents=True)
    (outbox / "CT" / uid(7)).symlink_to("no folder")
    opening("--move", inbox, outbox, code=3)
    assert [*read_tree(inbox)] == ["a/IM1", "b.zip"]
    (outbox / "CT" / uid(7)).unlink()
    opening("--move", inbox, outbox)
    assert by_source(outbox)["b.zip"]["action"] == "moved"


def test_the_words_of_a_damaged_archive_do_not_make_it_whole(tmp_path: Path, outbox: Path) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"GNU.sparse.map": "opened: 1,2"}
    inbox = make_inbox(tmp_path / "inbox", {"bad.tar": tarred({}, "w", tarfile.PAX_FORMAT, info)})
    opening("--move", inbox, outbox, code=3)
    row = by_source(outbox)["bad.tar"]
    assert (row["status"], row["reason"], row["action"]) == ("unreadable", "archive-damaged", "left")


def test_watch_sorts_a_folder_that_is_named_like_an_archive(tmp_path: Path, outbox: Path) -> None:
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "Urgent!" / "old.dcm", study=1)
    watch = Watch(inbox, outbox, mode="copy", settle=120.0)
    found = [each for _ in range(5) for each in watch.round()]
    assert [summary.statuses["sorted"] for summary in found] == [1]


def test_archives_in_a_folder_that_is_named_like_an_archive_are_opened_once(
    tmp_path: Path, outbox: Path, study: dict[str, bytes]
) -> None:
    archive = zipped(study)
    files = {"Urgent!/x.zip": archive, "Urgent!/bad.zip": archive[:-40], "Urgent!/1.dcm": dicom(tmp_path, study=9)}
    inbox = make_inbox(tmp_path / "inbox", files)
    assert "3 of the files lay in 1 archive" in " ".join(opening(inbox, outbox, code=3).split())
    out = opening(inbox, outbox)
    assert "lay in" not in out
    told = {row["source"]: row["message"] for row in rows(outbox)[6:]}
    assert (told["Urgent!/x.zip"], told["Urgent!/bad.zip"]) == ("an earlier run opened it", "an earlier run said so")
    assert run("undo", outbox, rows(outbox)[0]["run_id"]).code == 0
    assert not (outbox / CT).exists()
    opening(inbox, outbox)
    assert (outbox / CT).is_file()


def test_an_undo_that_cannot_bring_an_archive_back_leaves_its_files_to_a_resume(
    tmp_path: Path, outbox: Path, study: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = make_inbox(tmp_path / "inbox", {"x.zip": zipped(study)})
    before = read_tree(inbox)
    opening("--move", inbox, outbox)
    link = Files.link

    def full(self: Files, source: str, target: str) -> None:
        if target.endswith("x.zip"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(self, source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Files, "link", full)
        assert run("undo", outbox).code == 1
    assert (outbox / CT).is_file()
    assert run("resume", outbox).code == 0
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])


def test_what_was_unpacked_is_placed_though_the_inbox_is_lost(
    tmp_path: Path, outbox: Path, study: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The staging folder may hold the only copies."""
    inbox = make_inbox(tmp_path / "inbox", {"1.dcm": dicom(tmp_path, study=9), "x.zip": zipped(study)})
    with monkeypatch.context() as patched:
        patched.setattr(Files, "link", fail(errno.EIO))
        opening("--move", inbox, outbox, code=1)
    (name,) = runs_of(outbox)
    shutil.rmtree(inbox)
    with monkeypatch.context() as patched:
        patched.setattr(Files, "link", fail(errno.ENAMETOOLONG))
        ran = run("resume", "--give-up", outbox, name)
    assert f"what was unpacked and not placed stays in {outbox}/.dicomsort/runs/{name}/staging" in "".join(
        ran.out.split("\n")
    )


def test_members_are_placed_by_a_run_that_is_given_up(
    tmp_path: Path, outbox: Path, study: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = make_inbox(tmp_path / "inbox", {"x.zip": zipped(study)})
    with monkeypatch.context() as patched:
        patched.setattr(Files, "link", fail(errno.EIO))
        opening("--move", inbox, outbox, code=1)
    (name,) = runs_of(outbox)
    shutil.rmtree(inbox)
    assert run("resume", "--give-up", outbox, name).code == 3
    assert (outbox / CT).is_file()
    assert not list((outbox / ".dicomsort/runs" / name).glob("staging*"))


def test_a_member_whose_name_is_a_folder_of_another_is_placed_the_next_night(tmp_path: Path, outbox: Path) -> None:
    files = {
        "q/w": dicom(tmp_path, instance=1, StudyInstanceUID=""),
        "q": dicom(tmp_path, instance=2, StudyInstanceUID=""),
    }
    inbox = make_inbox(tmp_path / "inbox", {"x.zip": zipped(files)})
    assert "conflict" in opening(inbox, outbox, code=3)
    opening(inbox, outbox)
    assert len(list(placed(outbox))) == 2


def half_opened(inbox: Path, outbox: Path, study: dict[str, bytes], *options: object) -> str:
    """A run that opened an archive of ``study`` and died before it placed its second member; its id."""
    make_inbox(inbox, {"x.zip": zipped(study)})
    with pytest.MonkeyPatch.context() as patch, suppress(Crash):
        links = iter([None])
        link = Files.link
        patch.setattr(Files, "link", lambda *arguments: link(*arguments) if next(links, Crash) is None else dies())
        opening(*options, inbox, outbox)
    return runs_of(outbox)[-1]


def dies() -> None:
    raise Crash


@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_only_the_staging_folder_holds_is_neither_undone_nor_pruned(
    tmp_path: Path, outbox: Path, study: dict[str, bytes], *, is_replaced: bool
) -> None:
    inbox = tmp_path / "inbox"
    name = half_opened(inbox, outbox, study, "--copy")
    (inbox / "x.zip").unlink()
    if is_replaced:
        make_inbox(inbox, {"x.zip": zipped({"other.dcm": dicom(tmp_path, study=9)})})
    assert run("undo", outbox).code == 3
    held = read_tree(outbox / ".dicomsort/runs" / name / "staging")
    assert set(held.values()) & set(study.values())
    opening("--copy", inbox, outbox)
    assert f"kept {name}: it holds, in staging, what was unpacked" in run("runs", outbox, "--prune", 0).out
    assert read_tree(outbox / ".dicomsort/runs" / name / "staging") == held


def test_what_was_unpacked_goes_where_others_placed_the_same(
    tmp_path: Path, outbox: Path, study: dict[str, bytes]
) -> None:
    name = half_opened(tmp_path / "inbox", outbox, study, "--move")
    make_inbox(tmp_path / "other", study)
    opening("--copy", tmp_path / "other", outbox, code=3)
    ran = run("resume", outbox, name)
    assert (ran.code, "stays in" in ran.out) == (0, False)
    assert not list(outbox.glob(".dicomsort/runs/*/staging"))


def test_nothing_is_given_up_where_the_disk_of_a_class_is_away(
    tmp_path: Path, outbox: Path, study: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (outbox / "CT").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(outbox_module, "mounts", lambda: iter([(b"", f"{outbox}/CT", b"")]))
        name = half_opened(tmp_path / "inbox", outbox, study, "--move")
    shutil.rmtree(outbox / "CT")
    (outbox / "CT").mkdir()
    shutil.rmtree(tmp_path / "inbox")
    ran = run("resume", "--give-up", outbox, name)
    assert (ran.code, "expected the file system that was mounted at 'outbox/CT'" in ran.err) == (1, True)
    assert list(placed(outbox)) == []
