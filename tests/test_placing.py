"""Single operations against what they may meet: nothing is ever replaced, and every refusal has its word."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from building import make_files, read_tree
from command import quiet
from crashing import CrashingFiles, NoLinks
from matrix import FILES, checked_again, head_of, operations, placer_again, step, world

from dicomsort.errors import PlacingFailed
from dicomsort.execute import Executor, Roots
from dicomsort.execute.outcomes import Fatal
from dicomsort.files import Files
from dicomsort.journal import Journal, Replay
from dicomsort.records import Operation, Outcome, Result, Verb
from dicomsort.sorting import locked, resume
from dicomsort.sorting.resume import carry_out as carry_out_plan
from dicomsort.sorting.runs import new_run, seal_plan


def carry_out(inbox: Path, outbox: Path, steps: list[Operation], files: Files) -> Replay:
    context = quiet(outbox, files)
    with locked(context, create=True):
        run = new_run(context)
        plan = seal_plan(context, run, head_of(inbox, outbox, Verb.COPY), steps)
        journal = Journal(files, str(plan.path.parent), plan.count)
        try:
            Executor(files, Roots(str(inbox), str(outbox)), journal, run, 2).run(plan, lambda _: None)
        finally:
            journal.close()
        return journal.known


def one(inbox: Path, outbox: Path, operation: Operation, files: Files | None = None) -> Result:
    result = carry_out(inbox, outbox, [operation], files or Files()).result(0)
    assert result is not None
    return result


@pytest.fixture(params=[Verb.MOVE, Verb.COPY, Verb.LINK])
def verb(request: pytest.FixtureRequest) -> Verb:
    return Verb(request.param)


def test_a_target_that_appeared_is_a_conflict_and_both_are_kept(tmp_path: Path, verb: Verb) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, verb, "a/1", target="outbox/CT/s/1")
    make_files(outbox, {"CT/s/1": b"two" * 50})
    assert one(inbox, outbox, operation).outcome is Outcome.CONFLICT
    assert (outbox / "CT/s/1").read_bytes() == b"two" * 50
    assert read_tree(inbox) == FILES


def test_the_same_content_there_is_a_duplicate_and_stays(tmp_path: Path, verb: Verb) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, verb, "a/1", target="outbox/CT/s/1")
    make_files(outbox, {"CT/s/1": FILES["a/1"]})
    assert one(inbox, outbox, operation).outcome is Outcome.DUPLICATE
    assert read_tree(inbox) == FILES


def test_a_source_that_changed_or_went_is_changed(tmp_path: Path, verb: Verb) -> None:
    inbox, outbox = world(tmp_path)
    grown, gone = (step(inbox, verb, path, target=f"outbox/CT/{path}") for path in ("a/1", "a/2"))
    with (inbox / "a/1").open("ab") as file:
        file.write(b"more")
    (inbox / "a/2").unlink()
    for operation in (grown, gone):
        assert one(inbox, outbox, operation).outcome is Outcome.CHANGED
    assert not (outbox / "CT/a").exists()


def test_bytes_that_changed_behind_an_equal_stat_are_found_by_the_copy(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/s/1")
    stamp = (inbox / "a/1").stat().st_mtime_ns
    (inbox / "a/1").write_bytes(b"ONE" * 50)
    os.utime(inbox / "a/1", ns=(stamp, stamp))
    assert one(inbox, outbox, operation).outcome is Outcome.CHANGED
    assert not [path for path in outbox.rglob("*") if path.name.endswith(".part") or path.name == "1"]


def test_a_file_or_link_where_a_folder_should_be_fails_that_file_only(tmp_path: Path, verb: Verb) -> None:
    inbox, outbox = world(tmp_path)
    make_files(outbox, {"OTHER": b"a file"})
    (outbox / "REVIEW").symlink_to(tmp_path)
    steps = [step(inbox, verb, "a/1", target="outbox/OTHER/US/1"), step(inbox, verb, "a/2", target="outbox/REVIEW/x/2")]
    steps[1] = Operation(**{name: getattr(steps[1], name) for name in steps[1].__slots__} | {"number": 1})
    known = carry_out(inbox, outbox, steps, Files())
    for number in (0, 1):
        result = known.result(number)
        assert result is not None
        assert result.outcome is Outcome.FAILED
        assert "expected a folder" in result.message
    assert read_tree(inbox) == FILES
    assert not (tmp_path / "x").exists()


def test_hard_links_refused_fail_with_the_reason(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    result = one(inbox, outbox, step(inbox, Verb.LINK, "a/1", target="outbox/CT/1"), NoLinks())
    assert (result.outcome, result.message) == (
        Outcome.FAILED, "hard link refused (Operation not permitted); use --copy or --move",
    )  # fmt: skip


class Full(Files):
    """No room left once some bytes are written."""

    room = 2000

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        super().write(descriptor, data)


@pytest.mark.parametrize("room", range(0, 4000, 150))
def test_a_full_disk_ends_the_run_with_a_message_and_resume_goes_on(tmp_path: Path, room: int) -> None:
    inbox, outbox = world(tmp_path)
    files = Full()
    files.room = 10**6
    context, unbounded = quiet(outbox, files), quiet(outbox)
    with locked(context, create=True):
        run = new_run(context)
        plan = seal_plan(context, run, head_of(inbox, outbox, Verb.COPY), operations(inbox, Verb.COPY))
    files.room = room
    with contextlib.suppress(PlacingFailed, OSError), locked(unbounded, create=False):
        carry_out_plan(context, run, plan)
    assert read_tree(inbox) == FILES
    assert resume(unbounded).actions["moved"] == 4
    assert (outbox / "CT/s/1").read_bytes() == FILES["a/1"]


class Unflushable(Files):
    """Writing back fails."""

    def flush_system(self, path: str) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_flush_error_leaves_every_source(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    with pytest.raises(PlacingFailed, match="sources are untouched"):
        carry_out(inbox, outbox, operations(inbox, Verb.MOVE), Unflushable())
    assert read_tree(inbox) == FILES


def test_a_copy_never_hands_on_setuid(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    (inbox / "a/1").chmod(0o4755)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/1")
    status = (inbox / "a/1").stat()
    values = {name: getattr(operation, name) for name in operation.__slots__} | {"mode": status.st_mode & 0o7777}
    assert one(inbox, outbox, Operation(**values)).outcome is Outcome.DONE
    assert (outbox / "CT/1").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("files", [Files, NoLinks])
@pytest.mark.parametrize("content", [b"", FILES["a/1"][:3], FILES["a/1"]])
def test_what_lies_beside_a_temporary_copy_is_somebody_elses(
    tmp_path: Path, files: Callable[[], Files], content: bytes
) -> None:
    """A scanner may be writing it. What we place has the inode of its temporary copy, or that is gone."""
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/s/1")
    names = (".dicomsort-run-0.part", ".dicomsort-run-0-2.part")
    make_files(outbox, {"CT/s/1": content, **{f"CT/s/{name}": FILES["a/1"] for name in names}})
    (outbox / "CT/s/1").chmod(0o600)
    result = checked_again(inbox, outbox, operation, files())
    assert result is not None
    assert result.outcome is (Outcome.DUPLICATE if content == FILES["a/1"] else Outcome.CONFLICT)
    assert (outbox / "CT/s/1").read_bytes() == content


@pytest.mark.parametrize("content", [b"ONE" * 50, FILES["a/1"]])
def test_the_inode_of_a_source_that_is_gone_proves_nothing(tmp_path: Path, content: bytes) -> None:
    """File systems give its number to the next new file."""
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/s/1")
    (inbox / "a/1").unlink()
    make_files(outbox, {"CT/s/1": content, "CT/s/.dicomsort-run-0.part": FILES["a/1"]})
    status = (outbox / "CT/s/1").stat()
    files = CrashingFiles(-1)
    placer = placer_again(inbox, outbox, files)
    result = placer.check(replace(operation, device=status.st_dev, inode=status.st_ino))
    assert result is not None
    is_same = content == FILES["a/1"]
    assert result.outcome is (Outcome.DUPLICATE if is_same else Outcome.CONFLICT)
    assert files.called == []
    assert (placer.parts.remove(operation) is None) == is_same
    assert (outbox / "CT/s/.dicomsort-run-0.part").exists() != is_same
    assert files.called[: 2 * is_same] == ["flush", "flush"][: 2 * is_same]  # it may be of a moment ago


def test_a_renaming_replaces_nothing(tmp_path: Path) -> None:
    make_files(tmp_path, {"a": "one", "b": "two"})
    files, (one, two, new) = Files(), (str(tmp_path / name) for name in ("a", "b", "new"))
    with pytest.raises(FileExistsError):
        files.rename(one, two)
    assert read_tree(tmp_path) == {"a": b"one", "b": b"two"}
    files.rename(one, new)
    assert read_tree(tmp_path) == {"new": b"one", "b": b"two"}
    files._renameat2 = None
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        files.rename(two, one)


class NoRenames(NoLinks):
    """A file system with neither links nor renaming that replaces nothing."""

    def rename(self, source: str, target: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), source, None, target)


@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_where_renaming_might_replace_a_name_is_created_first(tmp_path: Path, verb: Verb) -> None:
    inbox, outbox = world(tmp_path)
    steps = operations(inbox, verb)
    make_files(outbox, {"CT/s/2": "somebody's"})
    known = carry_out(inbox, outbox, steps, NoRenames())
    ends = {o.target: result.outcome for o in steps if (result := known.result(o.number))}
    assert ends["outbox/CT/s/1"] is Outcome.DONE
    assert ends["outbox/CT/s/2"] is Outcome.CONFLICT
    assert (outbox / "CT/s/1").read_bytes() == FILES["a/1"]
    assert (outbox / "CT/s/2").read_bytes() == b"somebody's"
    assert not list(outbox.rglob("*.part"))


@pytest.mark.parametrize(("base", "call"), [(NoLinks, "rename"), (NoRenames, "replace")])
@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_a_renaming_that_is_refused_leaves_nothing(
    tmp_path: Path, base: Callable[[], Files], call: str, verb: Verb
) -> None:
    inbox, outbox = world(tmp_path)
    files, refused = base(), list[str]()
    change = getattr(files, call)

    def refuse(source: str, target: str) -> None:
        if not target.endswith("CT/s/1"):
            return change(source, target)
        refused.append(target)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    setattr(files, call, refuse)
    result = one(inbox, outbox, step(inbox, verb, "a/1", target="outbox/CT/s/1"), files)
    assert (result.outcome, len(refused)) == (Outcome.FAILED, 1)
    assert list((outbox / "CT/s").iterdir()) == []
    assert read_tree(inbox) == FILES


def test_a_torn_name_is_removed_before_an_undo(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/s/1")
    make_files(outbox, {"CT/s/.dicomsort-run-0.part": FILES["a/1"][:3]})
    os.utime(outbox / "CT/s/.dicomsort-run-0.part", ns=(operation.mtime_ns, operation.mtime_ns))
    os.link(outbox / "CT/s/.dicomsort-run-0.part", outbox / "CT/s/1")
    assert placer_again(inbox, outbox, Files()).conclude(operation) is None  # it can be done
    assert not (outbox / "CT/s/1").exists()


def test_a_copy_that_its_mode_forbids_to_open_is_flushed_with_its_file_system(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    files = CrashingFiles(-1, NoLinks)
    with mock.patch("dicomsort.execute.part_files.flush_path", side_effect=PermissionError(errno.EACCES, "closed")):
        result = one(inbox, outbox, step(inbox, Verb.COPY, "a/1", target="outbox/CT/s/1"), files)
    assert result.outcome is Outcome.DONE
    assert "flush_system" in files.called[: files.called.index("rename")]


def test_a_renaming_that_took_place_and_was_told_as_refused_leaves_the_bytes(tmp_path: Path) -> None:
    class Lying(NoRenames):
        def replace(self, source: str, target: str) -> None:
            super().replace(source, target)
            if not target.endswith(".csv"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), source, None, target)

    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/CT/s/1")
    make_files(outbox, {"CT/s/.dicomsort-run-0.part": FILES["a/1"]})
    (inbox / "a/1").unlink()
    assert isinstance(placer_again(inbox, outbox, Lying()).apply(operation), Fatal)
    assert (outbox / "CT/s/1").read_bytes() == FILES["a/1"]
