"""A run is cut short, and the resume cannot see a folder of the inbox: whole copies are kept, nothing torn stays."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from building import make_dicom, make_files, read_tree
from command import by_source, rows, run, sort
from crashing import FixedModes, NoLinks, OtherDevice
from matrix import FILES, placer_again, step, world
from powercut import named
from test_interrupted_runs import dies, half_undone

from dicomsort.execute import Placer
from dicomsort.execute.outcomes import Fatal
from dicomsort.files import Files, look_up, sha256_of
from dicomsort.journal import Journal
from dicomsort.records import Operation, Outcome, Verb
from dicomsort.sorting.runs import all_runs


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    for number in range(2):
        make_dicom(tmp_path / f"inbox/a/{number}.dcm", instance=number)
    return tmp_path / "inbox"


@contextlib.contextmanager
def away(folder: Path, how: str) -> Iterator[None]:
    """Take a folder away by another name; ``how``: with nothing, or a link, in its place."""
    kept = folder.with_name("kept")
    folder.rename(kept)
    if how == "link":
        folder.symlink_to(kept)
    yield
    if how == "link":
        folder.unlink()
    kept.rename(folder)


def images(*folders: Path) -> set[bytes]:
    return {path.read_bytes() for folder in folders for path in folder.rglob("*.dcm")}


@pytest.mark.parametrize("how", ["gone", "link"])
@pytest.mark.parametrize(
    ("base", "mode"),
    [(NoLinks, "--copy"), (NoLinks, "--move"), (FixedModes, "--move"), (OtherDevice, "--move")],
)
def test_what_a_sort_had_copied_is_placed_though_its_source_is_not_seen(
    tmp_path: Path, inbox: Path, base: Callable[[], Files], mode: str, how: str
) -> None:
    before, placed = read_tree(inbox), 0
    for at in range(12, 200, 5):
        outbox = tmp_path / str(at) / "outbox"
        died = dies(at, lambda outbox=outbox: sort(mode, "--settle", 0, inbox, outbox), base, 40)  # type: ignore[misc]
        if not died.dead:
            break
        assert images(outbox, inbox) >= set(before.values())
        with mock.patch("dicomsort.files.Files", base):
            if all_runs(str(outbox)):
                with away(inbox / "a", how):
                    resumed = run("resume", outbox)
                    assert resumed.code in {0, 3} or "before its plan was sealed" in resumed.err
                    assert images(outbox) <= set(before.values())  # nothing torn
                    assert not list(outbox.rglob("*.part"))
                    told = by_source(outbox) if (outbox / "manifest.csv").exists() else {}
                    found = [row for row in told.values() if row["action"] != "left"]
                    assert sorted(row["destination"] for row in found) == sorted(
                        str(path.relative_to(outbox)) for path in outbox.rglob("*.dcm")
                    )
                    placed += len(found)
                assert run("undo", outbox).code == 0
        assert read_tree(inbox) == before
        assert not images(outbox)
    assert placed > 5


@pytest.mark.parametrize("how", ["gone", "link"])
@pytest.mark.parametrize("base", [NoLinks, OtherDevice])
def test_what_an_undo_left_where_its_resume_could_not_look_is_cleared_by_the_next(
    tmp_path: Path, inbox: Path, base: Callable[[], Files], how: str
) -> None:
    before, deaths = read_tree(inbox), 0
    for at in range(0, 120, 5):
        outbox = tmp_path / str(at) / "outbox"
        with mock.patch("dicomsort.files.Files", base):
            assert sort("--move", "--settle", 0, inbox, outbox).code == 0
            (name,) = all_runs(str(outbox))
        deaths += dies(at, lambda outbox=outbox: run("undo", outbox), base, 40).dead  # type: ignore[misc]
        with mock.patch("dicomsort.files.Files", base):
            if (inbox / "a").exists():
                with away(inbox / "a", how):
                    run("resume", outbox)
                    if how == "gone" and (inbox / "a").exists():  # what was placed in the new folder of that name
                        for path in (inbox / "a").iterdir():
                            path.replace(inbox / "kept" / path.name)
                        (inbox / "a").rmdir()
            assert run("undo", outbox, name).code == 0
            for part in list(inbox.rglob("*.part")):  # of an undo that had done all but that
                assert run("resume", outbox, "-".join(part.name.split("-")[1:3])).code in {0, 3}
        assert read_tree(inbox) == before
    assert deaths > 10


@pytest.fixture
def cut_short(tmp_path: Path, inbox: Path) -> Callable[[str], tuple[Path, str, Path]]:
    """A sort of one file that dies when the temporary copy is whole: its outbox, its id, and that copy."""

    def cut(mode: str) -> tuple[Path, str, Path]:
        (inbox / "a/1.dcm").unlink()
        outbox = tmp_path / "outbox"
        called = dies(-1, lambda: sort(mode, "--settle", 0, inbox, tmp_path / "trial"), OtherDevice).called
        run("undo", tmp_path / "trial")
        at = max(i for i, call in enumerate(called) if call == "link")  # of the temporary copy
        dies(at, lambda: sort(mode, "--settle", 0, inbox, outbox), OtherDevice)
        (name,) = all_runs(str(outbox))
        (part,) = outbox.rglob("*.part")
        return outbox, name, part

    return cut


class Full(NoLinks):
    """No room for an image under its own name, and no links."""

    def rename(self, source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)


def target_of(part: Path) -> Path:
    return part.with_name("1.2.826.0.1.3680043.10.999.1.1.0.dcm")


@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_a_whole_copy_is_kept_beside_a_file_of_somebody_else(
    inbox: Path, mode: str, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short(mode)
    before = read_tree(inbox)
    target_of(part).write_bytes(b"somebody's")
    with away(inbox / "a", "gone"):
        assert run("resume", outbox).code == 3
        (row,) = rows(outbox)
        assert "another file stands at the destination; both were kept; 'inbox/a/0.dcm' is not seen" in row["message"]
        assert "is not seen" in run("resume", outbox, name).out
        assert part.read_bytes() in before.values()
    assert run("resume", outbox, name).code == 3
    assert not part.exists()
    assert target_of(part).read_bytes() == b"somebody's"
    assert read_tree(inbox) == before


@pytest.mark.parametrize("door", [(), ("--give-up",)])
@pytest.mark.parametrize("mode", ["--copy", "--move"])
def test_another_file_in_the_place_of_the_source_is_not_the_source(
    inbox: Path, mode: str, door: tuple[str, ...], cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short(mode)
    content = part.read_bytes()
    make_dicom(inbox / "other.dcm", instance=8).replace(inbox / "a/0.dcm")
    assert run("resume", *door, outbox, name).code == 0
    assert (target_of(part).read_bytes(), part.exists()) == (content, False)
    assert (inbox / "a/0.dcm").is_file()


def test_a_copy_that_is_placed_as_its_run_is_given_up_is_flushed_before_the_journal_says_so(
    tmp_path: Path, inbox: Path, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")
    inbox.rename(tmp_path / "lost")
    traced = dies(-1, lambda: run("resume", "--give-up", outbox, name))
    linked = traced.called.index("link")
    told = next(i for i, (file, _) in enumerate(traced.writes) if i > linked and file == "journal.jsonl")
    assert "flush_system" in traced.called[linked:told]
    assert (target_of(part).is_file(), run("verify", outbox).code) == (True, 0)


def test_a_full_disk_ends_no_operation_whose_source_is_not_seen(
    inbox: Path, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")
    with away(inbox / "a", "gone"):
        with mock.patch("dicomsort.files.Files", Full):
            ran = run("resume", outbox)
        assert (ran.code, os.strerror(errno.ENOSPC) in ran.err, part.exists()) == (1, True, True)
        with mock.patch("dicomsort.files.Files", NoLinks):
            assert run("resume", outbox, name).code == 0
        assert (target_of(part).is_file(), part.exists()) == (True, False)


def test_a_run_is_given_up_though_a_source_cannot_be_looked_at(
    inbox: Path, monkeypatch: pytest.MonkeyPatch, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")

    def look(path: str) -> os.stat_result | None:
        if named(path) == str(inbox / "a/0.dcm"):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return look_up(path)

    for module in ("placing", "part_files", "removing"):
        monkeypatch.setattr(f"dicomsort.execute.{module}.look_up", look)
    ran = run("resume", outbox)
    assert (ran.code, "expected to look at it" in ran.err) == (1, True)
    assert run("resume", "--give-up", outbox, name).code == 0
    (row,) = rows(outbox)
    assert (row["action"], "may still be there" in row["message"]) == ("moved", True)
    assert (target_of(part).is_file(), part.exists()) == (True, False)


def test_an_undo_goes_on_though_its_mark_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    half_undone(inbox, outbox)
    real, refused = Journal.mark, list[str]()

    def mark(journal: Journal, name: str, value: object) -> None:
        if name == "begun":
            refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(journal, name, value)

    monkeypatch.setattr(Journal, "mark", mark)
    assert (run("resume", outbox).code, refused) == (0, ["begun"])
    assert len(list(inbox.iterdir())) == 3


def test_an_undo_is_closed_though_a_folder_of_the_outbox_cannot_be_looked_into(tmp_path: Path, inbox: Path) -> None:
    other, outbox, before = tmp_path / "other", tmp_path / "outbox", read_tree(inbox)
    for each in (tmp_path / "trial", outbox):
        assert sort("--move", "--settle", 0, inbox, each).code == 0
        if each != outbox:
            called = dies(-1, lambda each=each: run("undo", each)).called  # type: ignore[misc]
    dies(called.index("unlink", called.index("link")), lambda: run("undo", outbox))  # all is done but the removals
    name = all_runs(str(outbox))[0]
    make_dicom(other / "9.dcm", study=9)
    closed = mock.Mock(side_effect=PermissionError(errno.EACCES, "closed"))
    with away(inbox, "gone"), mock.patch("dicomsort.sorting.resume.look_up", closed):
        assert sort("--settle", 0, other, outbox).code in {0, 3}
    assert closed.called
    assert run("undo", outbox, name).code == 0
    assert read_tree(inbox) == before


@pytest.mark.parametrize("kind", ["folder", "link", "closed"])
@pytest.mark.parametrize("door", [(), ("--give-up",)])
def test_a_new_name_that_is_no_file_to_read_does_not_hold_the_bytes(
    inbox: Path, kind: str, door: tuple[str, ...], cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")
    content = part.read_bytes()
    if kind == "folder":
        target_of(part).mkdir()
    elif kind == "link":
        target_of(part).symlink_to("elsewhere")
    else:
        target_of(part).write_bytes(b"x" * len(content))
    refused = {str(target_of(part))} if kind == "closed" else set()

    def closed(path: str) -> str:
        if path in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return sha256_of(path)

    with (
        away(inbox / "a", "gone"),
        mock.patch("dicomsort.execute.placing.sha256_of", closed),
        mock.patch("dicomsort.execute.part_files.sha256_of", closed),
    ):
        assert run("resume", *door, outbox, name).code == 3
        (row,) = rows(outbox)
        assert "so the whole temporary copy" in row["message"]
        assert part.read_bytes() == content


@pytest.mark.parametrize("content", ["half", "same"])
@pytest.mark.parametrize("is_away", [True, False])
def test_a_run_that_is_given_up_takes_no_file_that_a_later_run_has_placed(
    tmp_path: Path, inbox: Path, content: str, *, is_away: bool, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")
    whole, other = part.read_bytes(), tmp_path / "other"
    (other / "a").mkdir(parents=True)
    (other / "a/0.dcm").write_bytes(whole if content == "same" else whole[:900])
    (other / "a/0.dcm").chmod(0o600)
    kept = read_tree(other)
    with away(inbox, "gone"):
        sort("--move", "--settle", 0, other, outbox)
    (theirs,) = (row["run_id"] for row in rows(outbox) if row["run_id"] != name)
    with contextlib.ExitStack() as stack:
        if is_away:
            stack.enter_context(away(inbox / "a", "gone"))
        stack.enter_context(mock.patch("dicomsort.files.Files", NoLinks))
        run("resume", "--give-up", outbox, name)
    assert run("verify", outbox).code == 0
    assert run("undo", outbox, theirs).code == 0
    assert read_tree(other) == kept


@pytest.mark.parametrize("door", ["undo", "give-up"])
def test_what_a_later_run_keeps_of_a_run_that_was_cut_short_stays(tmp_path: Path, inbox: Path, door: str) -> None:
    other, outbox = tmp_path / "other", tmp_path / "outbox"
    (inbox / "a/1.dcm").unlink()
    image = (inbox / "a/0.dcm").read_bytes()
    called = dies(-1, lambda: sort("--copy", "--settle", 0, inbox, tmp_path / "trial"), OtherDevice).called
    linked = called.index("link")
    dies(called.index("flush_system", linked), lambda: sort("--copy", "--settle", 0, inbox, outbox), OtherDevice)
    (name,) = all_runs(str(outbox))
    other.mkdir()
    (other / "0.dcm").write_bytes(image)
    with away(inbox, "gone"):
        sort("--move", "--settle", 0, "--duplicates", "remove", other, outbox)
    assert not list(other.iterdir())
    later = all_runs(str(outbox))[-1]
    run(*(("undo", outbox, name) if door == "undo" else ("resume", "--give-up", outbox, name)))
    assert run("undo", outbox, later).code == 0
    assert (other / "0.dcm").read_bytes() == image


def test_an_undo_that_was_cut_short_twice_says_undone_of_what_it_had_put_back(tmp_path: Path, inbox: Path) -> None:
    outbox, before = tmp_path / "outbox", read_tree(inbox)
    for each in (tmp_path / "trial", outbox):
        assert sort("--move", "--settle", 0, inbox, each).code == 0
        if each != outbox:
            called = dies(-1, lambda each=each: run("undo", each), OtherDevice).called  # type: ignore[misc]
    flush = called.index("flush_system", len(called) - called[::-1].index("link"))  # all names are there
    dies(flush, lambda: run("undo", outbox), OtherDevice)
    again = dies(-1, lambda: None).called
    assert not again
    dies(6, lambda: run("resume", outbox), OtherDevice)
    for path in list((outbox / "CT").rglob("*.dcm")):
        path.unlink()  # their owner has them elsewhere
    traced = dies(-1, lambda: run("resume", outbox), OtherDevice)
    assert "flush_system" in traced.called
    assert {row["action"] for row in rows(outbox)[-2:]} == {"undone"}
    assert read_tree(inbox) == before


def test_what_is_placed_beside_an_edited_source_has_a_row(
    inbox: Path, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")
    source = inbox / "a/0.dcm"
    stamp, content = source.stat(), source.read_bytes()
    with source.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"edit")
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert run("resume", outbox, name).code == 0
    (row,) = rows(outbox)
    assert (row["action"], outbox / row["destination"]) == ("moved", target_of(part))
    assert "it and its new name hold different bytes by now; it stays; it may still be there" in row["message"]
    assert (target_of(part).read_bytes(), source.read_bytes()[-4:]) == (content, b"edit")


def test_an_undo_names_what_only_a_temporary_copy_holds(
    inbox: Path, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")
    with away(inbox / "a", "gone"):
        assert "so the whole temporary copy" in run("undo", outbox, name).out
        told = [row["message"] for row in rows(outbox) if row["run_id"] == name]
        assert "so the whole temporary copy" in told[0]
        refused = run("resume", outbox, name)
        assert (refused.code, "so the whole temporary copy" in refused.err, part.exists()) == (2, True, True)


def test_a_full_disk_is_told_of_where_the_inbox_is_gone(
    inbox: Path, tmp_path: Path, cut_short: Callable[[str], tuple[Path, str, Path]]
) -> None:
    outbox, name, part = cut_short("--move")
    inbox.rename(tmp_path / "lost")
    with mock.patch("dicomsort.files.Files", Full):
        ran = run("resume", "--give-up", outbox, name)
    assert (ran.code, "bytes are to be written below" in ran.err, part.exists()) == (1, True, True)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Placer, Operation]:
    """What goes on with an operation that an undo had begun, and that operation."""
    there, outbox = world(tmp_path)
    operation = step(there, Verb.COPY, "a/1", target="outbox/CT/1")
    return placer_again(there, outbox, Files()), replace(operation, source="outbox/CT/1", target="inbox/a/1")


def test_where_nothing_can_be_looked_at_an_operation_is_failed(begun: tuple[Placer, Operation]) -> None:
    placer, operation = begun
    closed = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with (
        mock.patch("dicomsort.execute.placing.look_up", side_effect=closed),
        mock.patch("dicomsort.execute.part_files.look_up", side_effect=closed),
    ):
        settled = placer.conclude(operation)
        assert (settled is not None and settled.outcome, placer.is_under_way(operation)) == (Outcome.FAILED, False)


def test_a_part_file_that_cannot_be_read_may_be_the_last(begun: tuple[Placer, Operation]) -> None:
    placer, operation = begun
    operation = replace(operation, source="inbox/a/2", target="inbox/a/9")
    with placer.kept_open():
        part = Path(os.path.realpath(placer.parts.of(operation)))
        part.write_bytes(b"x" * operation.size)
    with mock.patch("dicomsort.execute.part_files.sha256_of", side_effect=OSError(errno.EIO, "unread")):
        assert placer.parts.is_last(operation)
        assert placer.parts.remove(operation)
    assert part.exists()
    assert placer.parts.remove(operation) is None  # it holds other bytes
    assert not part.exists()


def test_an_operation_with_a_new_name_of_its_own_is_under_way(tmp_path: Path) -> None:
    there, outbox = world(tmp_path)
    operation = step(there, Verb.COPY, "a/1", target="outbox/CT/s/1")
    make_files(outbox, {"CT/s/1": FILES["a/1"]})
    os.utime(outbox / "CT/s/1", ns=(operation.mtime_ns, operation.mtime_ns))
    placer = placer_again(there, outbox, NoLinks())
    assert not placer.is_under_way(operation)  # it may be somebody's
    make_files(outbox, {"CT/s/.dicomsort-run-0-2.part": b""})
    assert placer.is_under_way(operation)


def test_a_full_disk_refuses_the_name_of_a_whole_copy(tmp_path: Path) -> None:
    class Full(Files):
        def link(self, source: str, target: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)

    there, outbox = world(tmp_path)
    operation = step(there, Verb.COPY, "a/1", target="outbox/CT/s/1")
    make_files(outbox, {"CT/s/.dicomsort-run-0.part": FILES["a/1"]})
    (there / "a/1").unlink()
    assert isinstance(placer_again(there, outbox, Full()).apply(operation), Fatal)
    assert (outbox / "CT/s/.dicomsort-run-0.part").read_bytes() == FILES["a/1"]
