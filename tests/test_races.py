"""What happens between a look and an act: single operations while somebody else is at work, and calls that fail."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import make_dicom, make_files, read_tree
from command import by_source, placed, quiet, run, sort
from crashing import NoLinks, OtherDevice
from matrix import FILES, checked_again, operations, step, world
from powercut import name_of, named
from test_placing import carry_out, one

from dicomsort import files as files_module
from dicomsort import signals
from dicomsort.errors import DicomsortError, PlacingFailed
from dicomsort.execute import executor
from dicomsort.files import Files, flush_path, is_network, same_bytes
from dicomsort.journal import Plan, PlanWriter
from dicomsort.records import Operation, Outcome, Verb
from dicomsort.sorting import resume


class Meddled(Files):
    """Something happens just before each call of one name; what it returns True for is not done."""

    def __init__(self, call: str, something: Callable[..., object]) -> None:
        super().__init__()
        change = getattr(super(), call)

        def meddled(*given: Any, **more: Any) -> Any:
            shown = (named(each) if isinstance(each, str) else each for each in given)
            return something(*shown) is True or change(*given, **more)

        setattr(self, call, meddled)


def fail(code: int, *, where: str = "") -> Callable[..., None]:
    def failing(*arguments: object) -> None:
        if where in str(arguments[0]):
            raise OSError(code, os.strerror(code))

    return failing


def test_a_source_that_cannot_be_removed_keeps_its_only_name(inbox: Path, outbox: Path) -> None:
    before = read_tree(inbox)
    shutil.copy2(inbox / "mr.dcm", inbox / "zz.dcm")
    with pytest.MonkeyPatch.context() as patch:
        stubborn = Meddled("unlink", fail(errno.EPERM, where="/inbox/"))
        patch.setattr(files_module, "Files", lambda: stubborn)
        assert sort("--move", "--settle", 0, "--duplicates", "remove", inbox, outbox).code == 3
    row = by_source(outbox)["mr.dcm"]
    assert (row["status"], row["action"], row["destination"]) == ("failed", "left", "")
    assert row["message"] == "the source cannot be removed: Operation not permitted"
    assert by_source(outbox)["zz.dcm"]["status"] in {"failed", "changed"}
    assert list(placed(outbox)) == []
    (inbox / "zz.dcm").unlink()
    assert read_tree(inbox) == before


def test_what_somebody_puts_in_the_place_of_a_new_name_is_theirs(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)

    class Replaced(Files):
        def link(self, source: str, target: str) -> None:
            super().link(source, target)
            if target.endswith("/CT/1"):
                (tmp_path / "theirs").write_bytes(b"theirs")
                (tmp_path / "theirs").replace(target)

    result = one(inbox, outbox, step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1"), Replaced())
    assert result.outcome is Outcome.CHANGED
    assert (outbox / "CT" / "1").read_bytes() == b"theirs"
    assert read_tree(inbox) == FILES


def test_a_folder_that_appears_is_as_good_as_one_made(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    quick = Meddled("make_folder", lambda path, *_: Path(path).mkdir() if path.endswith("/CT/s") else None)
    assert one(inbox, outbox, step(inbox, Verb.COPY, "a/1", target="outbox/CT/s/1"), quick).outcome is Outcome.DONE


def test_a_link_that_appears_where_a_folder_is_to_be_made_is_not_followed(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    quick = Meddled("make_folder", lambda path, *_: Path(path).symlink_to(elsewhere) if path.endswith("/new") else None)
    result = one(inbox, outbox, step(inbox, Verb.COPY, "a/1", target="outbox/new/1"), quick)
    assert result.outcome is Outcome.FAILED
    assert result.message == "making folder 'outbox/new': expected success, received File exists"
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_cannot_be_made_ends_the_run(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    full = Meddled("make_folder", fail(errno.ENOSPC, where="/CT/s"))
    with pytest.raises(PlacingFailed, match="making folder 'outbox/CT/s': expected success, received No space left"):
        carry_out(inbox, outbox, operations(inbox, Verb.MOVE), full)
    assert read_tree(inbox) == FILES


def test_a_source_behind_a_loop_of_links_is_failed(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    shutil.rmtree(inbox / "a")
    (inbox / "a").symlink_to("a")
    assert one(inbox, outbox, operation).outcome is Outcome.FAILED


def test_a_move_out_of_a_closed_folder_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, outbox = world(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    steps = [step(inbox, Verb.MOVE, path, target=f"outbox/CT/{path}") for path in ("a/1", "a/2")]
    known = carry_out(inbox, outbox, [replace(s, number=n) for n, s in enumerate(steps)], Files())
    for number in (0, 1):
        result = known.result(number)
        assert result is not None
        assert (result.outcome, result.message) == (
            Outcome.FAILED, "its folder may not be changed, so the file cannot leave it",
        )  # fmt: skip


LINK_RACES: list[tuple[Callable[[str, str], object], Outcome, str]] = [
    (lambda _, target: Path(target).write_bytes(b"x"), Outcome.CONFLICT, "both were kept"),
    (shutil.copy2, Outcome.DUPLICATE, "there already"),
    (fail(errno.EEXIST), Outcome.CONFLICT, "a race for the name"),
    (lambda source, _: Path(source).unlink(), Outcome.CHANGED, "vanished while it was placed"),
    (lambda _, target: shutil.rmtree(Path(target).parent), Outcome.FAILED, "the destination's folder vanished"),
    (fail(errno.EACCES), Outcome.FAILED, "Permission denied"),
]


@pytest.mark.parametrize(("race", "outcome", "message"), LINK_RACES)
def test_races_for_a_link(tmp_path: Path, race: Callable[..., object], outcome: Outcome, message: str) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/XRAY/1")

    def meddle(source: str, target: str) -> None:
        race(source, target)

    result = one(inbox, outbox, operation, Meddled("link", meddle))
    assert (result.outcome, message in result.message) == (outcome, True)
    assert (inbox / "a/1").exists() == (outcome is not Outcome.CHANGED)


@pytest.mark.parametrize("verb", [Verb.MOVE, Verb.COPY, Verb.LINK])
def test_a_link_that_was_made_though_the_server_says_that_it_exists(tmp_path: Path, verb: Verb) -> None:
    """NFS asked twice, as the first answer was lost."""
    inbox, outbox = world(tmp_path)

    class Asked(Files):
        def link(self, source: str, target: str) -> None:
            super().link(source, target)
            super().link(source, target)

    result = one(inbox, outbox, step(inbox, verb, "a/1", target="outbox/XRAY/1"), Asked())
    assert (result.outcome, result.message) == (Outcome.DONE, "")
    assert (read_tree(outbox / "XRAY"), (inbox / "a/1").exists()) == ({"1": FILES["a/1"]}, verb is not Verb.MOVE)


def test_a_copy_that_cannot_get_its_name_leaves_nothing(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.COPY, "a/1", target="outbox/XRAY/1")
    assert one(inbox, outbox, operation, Meddled("link", fail(errno.EACCES))).outcome is Outcome.FAILED
    assert list((outbox / "XRAY").iterdir()) == []


def test_a_duplicate_whose_kept_file_went_stays(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    result = one(inbox, outbox, step(inbox, Verb.REMOVE, "copy of 1", kept="outbox/CT/gone"))
    assert (result.outcome, result.message) == (
        Outcome.CHANGED, "the kept file does not hold the same bytes any more",
    )  # fmt: skip
    assert read_tree(inbox) == FILES


def test_a_file_whose_old_name_another_has_by_now_stays(tmp_path: Path) -> None:
    """As an undo of a move finds it."""
    inbox, outbox = world(tmp_path)
    result = one(inbox, outbox, step(inbox, Verb.REMOVE, "copy of 1", kept="inbox/a/2"))
    message = "the file that has its old name by now holds other bytes; this one stays"
    assert (result.outcome, result.message) == (Outcome.CHANGED, message)
    assert read_tree(inbox) == FILES


def test_a_duplicate_that_somebody_else_removed_is_changed_and_undo_does_not_bring_it_back(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.REMOVE, "copy of 1", kept="outbox/CT/s/1")
    (inbox / "copy of 1").unlink()
    result = checked_again(inbox, outbox, operation, Files())
    assert result is not None
    assert result.outcome is Outcome.CHANGED


def test_a_foreign_file_with_the_mode_of_ours_stays(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    make_files(outbox, {"CT/1": b"foreign", "CT/.dicomsort-run-0.part": FILES["a/1"]})
    (outbox / "CT/1").chmod(0o600)
    result = checked_again(inbox, outbox, operation, NoLinks())
    assert result is not None
    assert result.outcome is Outcome.CONFLICT
    assert (outbox / "CT/1").read_bytes() == b"foreign"


def test_a_duplicate_that_cannot_be_removed_stays_and_so_does_what_was_placed(inbox: Path, outbox: Path) -> None:
    shutil.copy2(inbox / "mr.dcm", inbox / "zz.dcm")
    with pytest.MonkeyPatch.context() as patch:
        stubborn = Meddled("unlink", fail(errno.EPERM, where="/inbox/zz"))
        patch.setattr(files_module, "Files", lambda: stubborn)
        assert sort("--move", "--settle", 0, "--duplicates", "remove", inbox, outbox).code == 3
    found = by_source(outbox)
    assert (found["mr.dcm"]["status"], found["zz.dcm"]["status"]) == ("sorted", "failed")
    assert set(read_tree(inbox)) == {"notes.txt", "zz.dcm"}


def test_a_foreign_file_that_came_while_a_run_was_down_stays(tmp_path: Path) -> None:
    inbox, outbox = world(tmp_path)
    operation = step(inbox, Verb.MOVE, "a/1", target="outbox/CT/1")
    make_files(outbox, {"CT/1": b"foreign"})
    result = checked_again(inbox, outbox, operation, Files())
    assert result is not None
    assert result.outcome is Outcome.CONFLICT


@pytest.mark.parametrize("whose", ["the outbox's", "both"])
def test_undo_after_somebody_took_files_away(inbox: Path, outbox: Path, whose: str) -> None:
    sort(inbox, outbox)
    (outbox / by_source(outbox)["mr.dcm"]["destination"]).unlink()
    if whose == "both":
        (inbox / "mr.dcm").unlink()
    assert run("undo", outbox).code == (3 if whose == "both" else 0)
    assert (by_source(outbox)["mr.dcm"]["status"] == "changed") == (whose == "both")
    assert list(placed(outbox)) == []


def test_a_name_that_a_foreign_file_has_is_a_collision_of_uids(inbox: Path, outbox: Path) -> None:
    sort("--dry-run", inbox, outbox)
    sort(inbox, outbox)
    destination = by_source(outbox)["mr.dcm"]["destination"]
    shutil.rmtree(outbox)
    make_files(outbox, {destination: "somebody's"})
    assert sort(inbox, outbox).code == 3
    assert by_source(outbox)["mr.dcm"]["destination"] == "REVIEW/uid-collision/mr.dcm"
    assert (outbox / destination).read_text() == "somebody's"


def test_files_of_other_sizes_are_not_the_same(tmp_path: Path) -> None:
    make_files(tmp_path, {"a": "one", "b": "longer"})
    assert not same_bytes(f"{tmp_path}/a", f"{tmp_path}/b")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EIO, 0])
def test_syncfs_is_believed(tmp_path: Path, code: int) -> None:
    files = Files()

    def syncfs(_: int) -> int:
        ctypes.set_errno(code)
        return -bool(code)

    files._syncfs = syncfs
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            files.flush_system(str(tmp_path))
    else:
        assert files.flush_system(str(tmp_path)) == (code == 0)


@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_errors_of_writing_that_another_process_hears_are_heard(tmp_path: Path, verb: Verb) -> None:
    """What is flushed is a descriptor that was open before the first byte."""
    inbox, outbox = world(tmp_path)
    open_then: list[dict[int, Path]] = []

    class Watched(OtherDevice):
        def write(self, descriptor: int, data: bytes | memoryview) -> None:
            if str(name_of(descriptor)).endswith(".part"):
                open_then.append(dict(descriptors()))
            super().write(descriptor, data)

    files, flushed = Watched(), list[int]()
    files._syncfs = lambda descriptor: flushed.append(descriptor) or 0
    carry_out(inbox, outbox, operations(inbox, verb)[:4], files)
    assert flushed
    assert all(then.get(flushed[0]) == outbox for then in open_then)
    assert len(open_then) == 3  # one of the four files is empty
    assert dict(descriptors()).get(flushed[0]) != outbox


def descriptors() -> Iterator[tuple[int, Path]]:
    """What is open now, by its number."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            yield int(path.name), path.readlink()


@pytest.mark.parametrize("base", [Files, NoLinks])
def test_a_copy_on_a_network_file_system_is_flushed_by_who_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: type[Files]
) -> None:
    """Its mode may forbid to open it again."""
    inbox, outbox = world(tmp_path)
    monkeypatch.setattr(files_module, "is_network", lambda _: True)
    flushed: list[Path] = []

    class Told(base):  # type: ignore[misc, valid-type]
        def flush(self, descriptor: int) -> None:
            flushed.append(name_of(descriptor))
            super().flush(descriptor)

    def folders_only(files: Files, path: str) -> None:
        assert Path(path).is_dir()
        flush_path(files, path)

    monkeypatch.setattr(executor, "flush_path", folders_only)
    known = carry_out(inbox, outbox, operations(inbox, Verb.COPY), Told())
    assert all(known.is_done(number) for number in range(4))
    names = {path.name for path in flushed}
    assert f".dicomsort-{known_run(outbox)}-0.part" in names


def known_run(outbox: Path) -> str:
    (run,) = (outbox / ".dicomsort" / "runs").iterdir()
    return run.name


def test_a_copy_that_a_network_file_system_cannot_flush_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, outbox = world(tmp_path)
    monkeypatch.setattr(files_module, "is_network", lambda _: True)
    full = Meddled("flush", lambda descriptor: fail(errno.ENOSPC, where=".part")(name_of(descriptor)))
    with pytest.raises(PlacingFailed, match=r"placing 'inbox/a/1' at 'outbox/CT/s/1'.*No space left"):
        carry_out(inbox, outbox, operations(inbox, Verb.COPY), full)
    assert list((outbox / "CT" / "s").iterdir()) == []


@pytest.mark.parametrize("system", ["nfs4", "virtiofs", "vboxsf", "beegfs", "ecryptfs"])
def test_network_file_systems_are_flushed_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    device = tmp_path.stat().st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw - {system} server:/export rw\n"
    before = "1 1 0:0 / /x rw - ext4 x rw\n2 1 0:1 / /m\x0cx\x85\u2028 rw - ext4 x rw\n3\n"  # names may hold such
    for text, expected in ((f"{before}{line}", True), ("", False), (None, False)):

        def read(*_: object, text: str | None = text, **__: object) -> bytes:
            if text is None:
                raise FileNotFoundError
            return text.encode()

        monkeypatch.setattr(Path, "read_bytes", read)
        assert is_network(str(tmp_path)) == expected
        assert Files().flush_system(str(tmp_path)) != expected


def test_a_plan_larger_than_its_buffer(tmp_path: Path) -> None:
    places = {"inbox": "/i", "outbox": "/o"}
    head = {"verb": "sort", **places, "started": "now", "mode": "copy", "model": "ab" * 32}
    writer = PlanWriter(Files(), str(tmp_path), head)
    for number in range(1200):
        writer.add(Operation(number, Verb.LEAVE, f"inbox/{number}" + "x" * 1000))
    writer.seal()
    writer.close()
    assert sum(1 for _ in Plan.open(str(tmp_path)).operations()) == 1200


def test_a_journal_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.jsonl").write_text('{"format":99}\n{"sealed":0,"sha256":"x"}\n')
    with pytest.raises(DicomsortError, match="expected format 1, received 99"):
        Plan.open(str(tmp_path))


def test_an_undo_of_pruned_folders_that_are_there_again(tmp_path: Path, outbox: Path) -> None:
    make_dicom(tmp_path / "inbox" / "a" / "b" / "1.dcm")
    sort("--move", "--settle", 0, "--prune-empty", tmp_path / "inbox", outbox)
    assert list((tmp_path / "inbox").iterdir()) == []
    (tmp_path / "inbox" / "a").mkdir()
    assert run("undo", outbox).code == 0
    assert list(read_tree(tmp_path / "inbox")) == ["a/b/1.dcm"]


def test_an_interruption_ends_each_thread_with_the_file_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, outbox = world(tmp_path)
    first = step(inbox, Verb.COPY, "a/1", target="outbox/CT/1")
    steps = [replace(first, number=number, target=f"outbox/CT/{number}") for number in range(64)]
    both, is_over, begun = threading.Barrier(2, timeout=60), threading.Event(), list[str]()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
            is_over.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    def interrupt(path: str, *_: object) -> None:
        if not path.endswith(".part"):
            return
        begun.append(path)
        if not is_over.is_set() and both.wait() == 0:  # a file in each of two threads
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        is_over.wait(60)

    monkeypatch.setattr(executor, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt), signals.raising():
        carry_out(inbox, outbox, steps, Meddled("create", interrupt))
    assert len(begun) == 2
    assert resume(quiet(outbox)).actions["moved"] == 64
    assert len([*(outbox / "CT").iterdir()]) == 64 + 1  # and somebody's own


class CopyUp(Files):
    """An overlay of two disks: what is linked is copied up first, and gets another inode number."""

    def link(self, source: str, target: str) -> None:
        shutil.copy2(source, target)


@pytest.mark.parametrize("mode", ["--move", "--link"])
def test_what_a_file_system_gives_another_inode_number_is_not_left_at_its_new_name(
    inbox: Path, outbox: Path, mode: str
) -> None:
    before = read_tree(inbox)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "Files", CopyUp)
        assert sort(mode, "--settle", 0, inbox, outbox).code == 3
    message = "its file system gives another inode number to a linked file: use --copy"
    assert by_source(outbox)["mr.dcm"]["message"] == message
    assert (read_tree(inbox), list(placed(outbox))) == (before, [])
