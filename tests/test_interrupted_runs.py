"""Several runs that were cut short, in one outbox: none takes rows, files or temporary copies from another."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, read_tree
from command import placed, quiet, rows, run, sort
from crashing import Crash, CrashingFiles, NoLinks, OtherDevice
from test_meanwhile import crash
from watching import Watch

import dicomsort.outputs  # not while ``Files`` is patched: it would keep the double  # noqa: F401
from dicomsort.errors import DicomsortError
from dicomsort.files import Files
from dicomsort.sorting.incremental import read_new_runs
from dicomsort.sorting.runs import all_runs, new_run

SILENT = ("--quiet",)


def dies(at: int, command: Callable[[], object], base: Callable[[], Files] = Files, torn: int = 0) -> CrashingFiles:
    """Run a command that dies before its ``at``-th change, or after ``torn`` bytes of a write; -1: never."""
    files = CrashingFiles(at, base, torn=torn)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr("dicomsort.files.Files", lambda: files)
        command()
    return files


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two inboxes, of two files each, and an outbox to be."""
    for number, name in enumerate(("one", "other"), 1):
        for instance in (1, 2):
            make_dicom(tmp_path / name / f"{instance}.dcm", study=number, instance=instance)
    return tmp_path / "one", tmp_path / "other", tmp_path / "outbox"


def sources(outbox: Path) -> dict[str, list[str]]:
    """The sources of the manifest's rows, by run."""
    found: dict[str, list[str]] = {}
    for row in rows(outbox):
        found.setdefault(row["run_id"], []).append(row["source"])
    return found


def test_rows_are_appended_once_wherever_a_run_and_its_resume_die(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, other, _ = two
    trial = tmp_path / "trial"
    whole = dies(-1, lambda: sort(one, trial))
    marked = max(at for at, (name, _) in enumerate(whole.writes) if name == "journal.jsonl")  # before `reported`
    for again in range(0, 60, 3):
        outbox = tmp_path / f"outbox {again}"
        dies(marked, lambda outbox=outbox: sort(one, outbox))  # type: ignore[misc]
        dies(again, lambda outbox=outbox: run("resume", outbox))  # type: ignore[misc]
        assert sort(other, outbox).code in {0, 3}
        assert run("resume", outbox).code == 0
        told = sources(outbox)
        assert sorted(map(sorted, told.values())) == [["1.dcm", "2.dcm"]] * 2, again
        assert run("verify", outbox).code == 0


def test_a_move_whose_new_name_is_gone_at_its_resume_is_no_success(two: tuple[Path, Path, Path]) -> None:
    """It died before it removed the sources; then the class's folder was not mounted, or somebody took a file away."""
    one, other, outbox = two
    before = read_tree(one)
    whole = dies(-1, lambda: sort("--move", "--settle", 0, other, outbox.with_name("trial")), OtherDevice)
    removal = whole.called.index("unlink", whole.called.index("flush_system"))
    dies(removal, lambda: sort("--move", "--settle", 0, one, outbox), OtherDevice)
    for name in [*placed(outbox)]:
        (outbox / name).unlink()
    assert run("resume", outbox).code == 3
    found = {(row["action"], row["status"], row["message"]) for row in rows(outbox)[-2:]}
    assert found == {("left", "changed", "its new name is gone; it stays")}
    assert read_tree(one) == before
    assert run("verify", outbox).code == 0


def test_a_torn_append_is_gone_on_with_before_another_run_appends(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, other, outbox = two
    whole = dies(-1, lambda: sort(other, tmp_path / "trial"))
    append = max(at for at, (name, _) in enumerate(whole.writes) if name == "manifest.csv")
    first = whole.called.index("link")
    dies(first, lambda: sort(one, outbox))
    files = CrashingFiles(append, torn=100)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr("dicomsort.files.Files", lambda: files)
        sort(other, outbox)
    for name in all_runs(str(outbox)):
        assert run("resume", outbox, name).code == 0
    assert sorted(map(sorted, sources(outbox).values())) == [["1.dcm", "2.dcm"]] * 2
    assert run("verify", outbox).code == 0


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_a_run_never_takes_back_what_another_placed(tmp_path: Path, mode: str) -> None:
    base = OtherDevice if mode == "--move" else Files
    inbox = tmp_path / "inbox"
    make_dicom(inbox / "1.dcm")
    whole = dies(-1, lambda: sort(mode, "--settle", 0, inbox, tmp_path / "trial"), base)
    run("undo", tmp_path / "trial")
    content = (inbox / "1.dcm").read_bytes()
    linked = [at for at, name in enumerate(whole.called) if name == "link"]
    for at in range(linked[-1] - 3, linked[-1] + 3):
        outbox = tmp_path / f"outbox {at}"
        (inbox / "1.dcm").write_bytes(content)
        dies(at, lambda outbox=outbox: sort(mode, "--settle", 0, inbox, outbox), base)  # type: ignore[misc]
        first = all_runs(str(outbox))[0]
        dies(-1, lambda outbox=outbox: sort("--copy", inbox, outbox), base)  # type: ignore[misc]
        second = all_runs(str(outbox))[-1]
        by_second = {row["source"] for row in rows(outbox) if row["run_id"] == second and row["action"] == "copied"}
        assert run("resume", outbox, first).code in {0, 3}
        assert not [path for path in placed(outbox) if path.endswith(".part")], at
        assert run("undo", outbox, first).code in {0, 3}
        if by_second:
            assert list(placed(outbox)), at
        assert run("verify", outbox).code == 0 or not by_second


def test_a_service_resumes_its_own_run_whoever_was_cut_short_later(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    one, other, outbox = two
    first = dies(-1, lambda: sort(one, tmp_path / "trial")).called.index("link")
    dies(first, lambda: sort(one, outbox))
    dies(first, lambda: sort(other, outbox))
    ours, others = all_runs(str(outbox))
    standing = read_new_runs(quiet(outbox), str(one), "")
    assert (standing.cut_short, standing.of_another) == (ours, ())
    assert run("resume", outbox, ours).code == 0
    standing = read_new_runs(quiet(outbox), str(one), "")
    assert (standing.cut_short, standing.of_another) == ("", (others,))


@pytest.mark.parametrize("damage", ["gone", "empty", "half"])
def test_a_journal_that_does_not_tell_of_all_is_damaged(two: tuple[Path, Path, Path], damage: str) -> None:
    one, _, outbox = two
    sort(one, outbox)
    journal = next((outbox / ".dicomsort/runs").glob("*/journal.jsonl"))
    lines = journal.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        journal.unlink()
    else:
        journal.write_bytes(b"" if damage == "empty" else b"".join(line for line in lines if b'"end",1' not in line))
    (listed,) = json.loads(run("runs", "--json", outbox).out)
    assert (listed["state"], "expected 2 files" in listed["damage"]) == ("damaged", True)
    assert run("verify", outbox).code == 3
    before = read_tree(outbox)
    ran = run("undo", outbox)
    assert (ran.code, "journal.jsonl: expected 2 files that were placed" in ran.err) == (1, True)
    assert {path: content for path, content in read_tree(outbox).items() if "CT/" in path} == {
        path: content for path, content in before.items() if "CT/" in path
    }


def test_an_undone_run_is_not_resumed_though_its_undo_cannot_be_read(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    one, _, outbox = two
    first = dies(-1, lambda: sort(one, tmp_path / "trial")).called.index("link")
    dies(first + 1, lambda: sort(one, outbox))
    (cut,) = all_runs(str(outbox))
    assert run("undo", outbox, cut).code == 0
    undo = all_runs(str(outbox))[-1]
    (outbox / ".dicomsort/runs" / undo / "plan.jsonl").write_text("garbage\n")
    rows_before = len(rows(outbox))
    assert run("resume", outbox).code in {0, 1, 2}
    assert len(rows(outbox)) == rows_before
    assert list(placed(outbox)) == []


def test_undo_without_a_name_never_takes_back_an_older_run_than_meant(two: tuple[Path, Path, Path]) -> None:
    one, other, outbox = two
    sort(one, outbox)
    sort(other, outbox)
    first, second = all_runs(str(outbox))
    (outbox / ".dicomsort/runs" / second / "summary.json").write_text("{}")
    ran = run("undo", outbox)
    assert (ran.code, f"run {second}" in ran.err, "name it" in ran.err) == (1, True, True)
    assert len(list(placed(outbox))) == 4
    assert run("undo", outbox, first).code == 0


def test_pruning_goes_on_past_a_run_that_cannot_be_removed(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, other, outbox = two
    sort(one, outbox)
    first = all_runs(str(outbox))[0]
    assert run("undo", outbox).code == 0
    for number in range(3, 6):
        make_dicom(other / f"{number}.dcm", study=number)
        sort(other, outbox)
    folder = outbox / ".dicomsort/runs" / first
    (folder / "journal.jsonl").unlink()
    (folder / "journal.jsonl").mkdir()
    ran = run("runs", "--prune", 0, outbox)
    assert (ran.code, "removed the state of 2 runs" in ran.out) == (0, True)
    assert f"kept {first}" in ran.out
    assert (folder / "plan.jsonl").exists()
    assert tmp_path.is_dir()


def test_a_reserve_is_only_what_we_made(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, other, outbox = two
    sort(one, outbox)
    reserve = outbox / ".dicomsort" / "reserve"
    reserve.unlink()
    (tmp_path / "mine").write_bytes(b"mine")
    os.link(tmp_path / "mine", reserve)
    sort(other, outbox)
    assert run("undo", outbox).code == 0
    assert ((tmp_path / "mine").read_bytes(), reserve.read_bytes()) == (b"mine", b"mine")


def test_ids_do_not_grow_where_a_run_of_the_future_is_there(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox"
    (outbox / ".dicomsort/runs/20991231T235959Z-ffffff").mkdir(parents=True)
    names = [new_run(quiet(outbox)) for _ in range(300)]
    assert names == sorted(set(names))
    assert max(map(len, names)) == len("20991231T235959Z-ffffff")


@pytest.mark.parametrize("token", ["f" * 64, "f" * 6])
def test_a_folder_named_after_the_end_of_the_calendar_ends_no_run(two: tuple[Path, Path, Path], token: str) -> None:
    one, _, outbox = two
    last = f"99991231T235959Z-{token}"
    (outbox / ".dicomsort/runs" / f"{last:+<255}").mkdir(parents=True)  # a name that cannot be made longer
    assert sort(one, outbox).code == 0
    (outbox / ".dicomsort/runs" / f"{last}+").mkdir()
    assert new_run(quiet(outbox)) == f"{last}++"
    (outbox / ".dicomsort/runs" / (last + 64 * "+")).mkdir()
    ran = sort(one, outbox)
    assert (ran.code, "the last that there can be; move that folder away" in ran.err) == (1, True)
    (outbox / ".dicomsort/runs" / (last + 64 * "+")).rmdir()
    assert run("undo", outbox).code == 0


def test_a_mark_out_of_its_range_is_damage(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, other, outbox = two
    whole = dies(-1, lambda: sort(one, tmp_path / "trial"))
    marked = max(at for at, (name, _) in enumerate(whole.writes) if name == "journal.jsonl")
    dies(marked, lambda: sort(one, outbox))
    journal = next((outbox / ".dicomsort/runs").glob("*/journal.jsonl"))
    for value in (b"18446744073709551615", b"9223372036854775807", b"-1", b"1e300", b'"x"'):
        text = journal.read_bytes()
        start = text.index(b'["mark","manifest",')
        journal.write_bytes(text[:start] + b'["mark","manifest",' + value + b"]\n")
        ran = sort(other, outbox)
        assert ran.code == 3, ran  # it was cut short, and cannot be finished
        assert "is damaged" in ran.err
        journal.write_bytes(text)
    with contextlib.suppress(DicomsortError):
        assert run("resume", outbox).code == 0


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_a_run_whose_inbox_is_lost_can_be_given_up(tmp_path: Path, mode: str) -> None:
    lost, other, outbox = tmp_path / "stick", tmp_path / "other", tmp_path / "outbox"
    for number in range(3):
        make_dicom(lost / f"{number}.dcm", instance=number)
    before = read_tree(lost)
    crash(lost / "0.dcm", outbox, mode, call="link", nth=1)
    (name,) = all_runs(str(outbox))
    lost.rename(tmp_path / "gone")
    make_dicom(other / "9.dcm", study=9)
    assert sort("--settle", 0, other, outbox).code == 3
    assert "--give-up" in run("resume", outbox, name).err
    assert run("resume", "--give-up", outbox).code == 2
    code = run("resume", "--give-up", outbox, name).code
    told = [(row["status"], row["message"]) for row in rows(outbox) if row["run_id"] == name]
    assert len(told) == 3
    assert code == (0 if set(told) == {("sorted", "")} else 3)
    assert set(told) <= {("changed", "the file is gone"), ("sorted", "")}  # of which how many: threads copy at once
    assert [sort("--settle", 0, other, outbox).code, run("verify", outbox).code] == [0, 0]
    (tmp_path / "gone").rename(lost)
    assert run("undo", outbox, name).code == 0
    assert read_tree(lost) == before


def half_undone(inbox: Path, outbox: Path) -> list[str]:
    """A sort, and an undo of it that died at its second file; their ids."""
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    linked = list[str]()

    class Dying(Files):
        def link(self, source: str, target: str) -> None:
            linked.append(target)
            if len(linked) > 1:
                raise Crash
            super().link(source, target)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr("dicomsort.files.Files", Dying)
        run("undo", outbox)
    return all_runs(str(outbox))


def test_an_undo_that_had_begun_is_closed_and_the_next_looks_at_what_it_left(tmp_path: Path) -> None:
    inbox, other, outbox = tmp_path / "inbox", tmp_path / "other", tmp_path / "outbox"
    name, undo = half_undone(inbox, outbox)
    inbox.rename(tmp_path / "gone")
    make_dicom(other / "9.dcm", study=9)
    assert sort("--settle", 0, other, outbox).code == 3
    (tmp_path / "gone").rename(inbox)
    assert f"run {undo} had ended" in run("resume", outbox, undo).out
    assert run("undo", outbox, name).code == 0
    assert [path.name for path in sorted(inbox.iterdir())] == ["0.dcm", "1.dcm", "2.dcm"]


def left_half_done(root: Path, at: int, again: int = -1) -> tuple[bool, bool]:
    """An undo to a disk without links dies at a change, is closed without its inbox, and the inbox is undone then.

    ``again``: the sort that closes it dies, too, at that change. Return whether they died.
    """
    inbox, other, outbox = (root / str(at) / str(again) / name for name in ("inbox", "other", "outbox"))
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    make_dicom(other / "9.dcm", study=9)
    before = read_tree(inbox)
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    (name,) = all_runs(str(outbox))
    first = dies(at, lambda: run("undo", outbox, name), NoLinks, 40)
    inbox.rename(root / "gone")
    second = dies(again, lambda: sort("--settle", 0, other, outbox))
    assert sort("--settle", 0, other, outbox).code in {0, 3}
    (root / "gone").rename(inbox)
    with mock.patch("dicomsort.files.Files", NoLinks):
        ran = run("undo", outbox, name)
    assert ran.code == 0
    if "is undone already" in ran.out:  # but for the last file's temporary copy, beside the file itself
        for part in inbox.glob("*.part"):
            part.unlink()
    assert read_tree(inbox) == before
    assert run("verify", outbox).code == 0
    return bool(first.dead), bool(second.dead)


def test_what_a_closed_undo_left_torn_is_removed_by_the_next(tmp_path: Path) -> None:
    assert sum(left_half_done(tmp_path, at)[0] for at in range(0, 80, 2)) > 20


def test_closing_an_undo_may_die_too(tmp_path: Path) -> None:
    """The undo has torn a copy of its first file."""
    assert sum(left_half_done(tmp_path, 39, again)[1] for again in range(30)) > 20


@pytest.mark.parametrize("is_closed", [False, True])
def test_an_undo_gives_no_old_time_to_a_file_that_was_edited_since(tmp_path: Path, *, is_closed: bool) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    name, undo = half_undone(inbox, outbox)
    if is_closed:
        inbox.rename(tmp_path / "gone")
        assert run("resume", "--give-up", outbox, undo).code == 3
        (tmp_path / "gone").rename(inbox)
    (edited,) = inbox.iterdir()
    edited.write_bytes(before := edited.read_bytes() + b"a note")
    os.utime(edited, (10**9, 10**9))
    assert run("undo", outbox, name).code == 3 if is_closed else run("resume", outbox, undo).code in {0, 3}
    assert (edited.read_bytes(), edited.stat().st_mtime) == (before, 10**9)


def test_an_earlier_undo_that_is_damaged_does_not_keep_another_from_going_on(tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    edited = outbox / min(placed(outbox))
    content = edited.read_bytes()
    edited.write_bytes(content + b"a note")
    assert run("undo", outbox).code == 3
    first, undo = all_runs(str(outbox))
    journal = outbox / ".dicomsort/runs" / undo / "journal.jsonl"
    journal.write_bytes(b'["end"]\n' + journal.read_bytes())
    edited.write_bytes(content)
    assert run("undo", outbox, first).code == 0
    assert len(read_tree(inbox)) == 3


@pytest.mark.parametrize("links", [False, True])
def test_a_file_that_another_run_placed_meanwhile_is_not_taken_for_an_own_copy(tmp_path: Path, *, links: bool) -> None:
    """The copy was whole, and its name still free, when the first run died."""
    one, other, outbox = tmp_path / "one/inbox", tmp_path / "other/inbox", tmp_path / "outbox"
    make_dicom(one / "1.dcm")
    make_dicom(other / "1.dcm")
    before = read_tree(one), read_tree(other)
    disk = OtherDevice if links else NoLinks

    class Dying(disk):  # type: ignore[misc, valid-type]
        def link(self, source: str, target: str) -> None:
            if source.endswith(".part"):
                raise Crash
            super().link(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomsort.files.Files", Dying)
        with contextlib.suppress(Crash):
            sort("--move", "--settle", 0, one, outbox)
        patch.setattr("dicomsort.files.Files", disk)
        assert sort("--move", "--settle", 0, other, outbox).code == 3
        first, second = all_runs(str(outbox))
        assert run("resume", outbox, first).code == 0
        assert [run("undo", outbox, name).code for name in (second, first)] == [0, 0]
    assert (read_tree(one), read_tree(other)) == before


def test_a_sort_does_not_go_on_beside_an_undo_that_cannot_be_closed(tmp_path: Path) -> None:
    inbox, other, outbox = tmp_path / "inbox", tmp_path / "other", tmp_path / "outbox"
    _, undo = half_undone(inbox, outbox)
    make_dicom(other / "9.dcm", study=9)
    with mock.patch("dicomsort.sorting.resume.require_mounts", side_effect=DicomsortError("MRI is not mounted")):
        ran = sort("--move", "--settle", 0, other, outbox)
    assert (ran.code, "MRI is not mounted" in ran.err, list(read_tree(other))) == (1, True, ["9.dcm"])
    assert sort("--move", "--settle", 0, other, outbox).code == 0
    assert f"run {undo} had ended" in run("resume", outbox, undo).out


def test_rows_that_changed_since_half_a_row_was_written_begin_on_a_new_line(tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    write = Files.write

    def half(self: Files, descriptor: int, data: bytes | memoryview) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == outbox / "manifest.csv":
            write(self, descriptor, memoryview(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, descriptor, data)

    with mock.patch.object(Files, "write", half):
        assert sort("--copy", "--settle", 0, inbox, outbox).code == 1
    (outbox / min(name for name in placed(outbox) if name.endswith(".dcm"))).unlink()
    assert run("resume", outbox).code == 3
    assert [row["source"] for row in rows(outbox)][-3:] == ["0.dcm", "1.dcm", "2.dcm"]


def test_what_is_taken_away_after_its_row_was_written_keeps_that_row(tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    for number in range(3):
        make_dicom(inbox / f"{number}.dcm", instance=number)
    before, create = read_tree(inbox), Files.create

    def full(self: Files, path: str, mode: int = 0o600) -> int:
        if path.endswith("/summary.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(self, path, mode)

    with mock.patch.object(Files, "create", full):
        assert sort("--move", "--settle", 0, inbox, outbox).code == 1
    told, name = rows(outbox), min(name for name in placed(outbox) if name.endswith(".dcm"))
    (outbox / name).rename(tmp_path / "taken")
    assert run("resume", outbox).code == 0
    assert rows(outbox) == told
    checked = run("verify", outbox)
    assert (checked.code, "lacks" in checked.out + checked.err) == (3, False)
    (tmp_path / "taken").rename(outbox / name)
    assert run("undo", outbox).code == 0
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])


def test_an_undo_is_given_up_without_its_inbox(tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    name, undo = half_undone(inbox, outbox)
    inbox.rename(tmp_path / "gone")
    assert run("resume", "--give-up", outbox, undo).code == 3
    assert run("verify", outbox).code == 0
    (tmp_path / "gone").rename(inbox)
    assert run("undo", outbox, name).code == 0
    assert [path.name for path in sorted(inbox.iterdir())] == ["0.dcm", "1.dcm", "2.dcm"]


def test_a_service_finishes_the_undo_of_another_inbox_first(tmp_path: Path) -> None:
    inbox, other, outbox = tmp_path / "inbox", tmp_path / "other", tmp_path / "outbox"
    make_dicom(inbox / "1.dcm")
    before = read_tree(inbox)
    assert sort("--move", "--settle", 0, inbox, outbox).code == 0
    with mock.patch.object(Files, "link", side_effect=Crash), contextlib.suppress(Crash):
        run("undo", outbox)
    make_dicom(other / "9.dcm", study=9)
    (undone, placed_) = Watch(other, outbox).round()
    assert (undone.verb, placed_.statuses["sorted"], read_tree(inbox)) == ("undo", 1, before)
