"""A receiver's disk that refuses, and other processes at work in its inbox."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from building import read_tree
from crashing import NoLinks
from powercut import name_of
from test_faults import Broken
from test_receive_keeping import LIMIT, PLACE, REQUEST, data_set, receive, whole

from dicomsort.config import ReceiveSettings
from dicomsort.discover import Passed, walk
from dicomsort.errors import DicomsortError
from dicomsort.files import Files
from dicomsort.pacs.receive.incoming import OUT_OF_RESOURCES, Committed, IncomingDataset, PartFiles, Refused
from dicomsort.pacs.receive.receiver import Receiver


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def failure(files: Files, inbox: Path, data: bytes) -> str:
    """Why it was not stored; empty where it was."""
    try:
        receive(files, inbox, data)
    except (Refused, OSError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("create", errno.EDQUOT), ("write", errno.ENOSPC), ("flush", errno.EIO), ("make_folder", errno.ENOSPC),
        ("link", errno.EIO), ("make_folder", errno.EROFS),
    ],
)  # fmt: skip
def test_a_disk_that_fails_at_any_call_is_no_success_and_leaves_no_part(
    inbox: Path, tmp_path: Path, call: str, code: int
) -> None:
    data = data_set(tmp_path)
    for at in range(20):
        broken = Broken(call, at, code)
        reason = failure(broken, inbox, data)
        if broken.calls <= at:
            assert (reason, at > 0, list(read_tree(inbox))) == ("", True, [PLACE])
            return
        assert os.strerror(code) in reason
        assert set(read_tree(inbox).values()) <= {whole(data)}
        shutil.rmtree(inbox)
        inbox.mkdir()
    pytest.fail("20 calls were not enough")


def test_after_a_refusal_the_rest_is_dropped_and_memory_is_not_kept(inbox: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    broken = Broken("write", 2, errno.ENOSPC)
    arriving = IncomingDataset(lambda: REQUEST, PartFiles(broken, str(inbox)).begin, LIMIT)
    for piece in (data[:100], data[100:200], data[200:]):
        assert arriving.write(piece) == len(piece)
        assert arriving.is_open == (broken.calls <= 2)
    assert (arriving.getvalue(), read_tree(inbox)) == (b"", {})
    with pytest.raises(Refused, match="No space left") as refused:
        arriving.proven()
    assert (refused.value.status, refused.value.failed) == (OUT_OF_RESOURCES, True)


def test_an_instance_over_the_limit_is_refused_when_that_is_seen(inbox: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    arriving = IncomingDataset(lambda: REQUEST, PartFiles(Files(), str(inbox)).begin, len(data))
    arriving.write(data)
    assert arriving.is_open
    arriving.write(b"\0")
    assert (arriving.is_open, read_tree(inbox)) == (False, {})
    with pytest.raises(Refused, match="larger") as refused:
        arriving.proven()
    assert (refused.value.status, refused.value.failed) == (OUT_OF_RESOURCES, False)


class Pruning(Files):
    """A sort that moves and prunes takes away what is there, before the first ``times`` links."""

    def __init__(self, inbox: Path, times: int) -> None:
        super().__init__()
        self._inbox, self._times = inbox, times

    def link(self, source: str, target: str) -> None:
        if self._times:
            self._times -= 1
            shutil.rmtree(self._inbox / PLACE.partition("/")[0])
        super().link(source, target)


def test_folders_that_a_sort_prunes_meanwhile_are_made_again(inbox: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    assert receive(Pruning(inbox, 3), inbox, data) == (Committed.STORED, PLACE)
    assert read_tree(inbox) == {PLACE: whole(data)}
    with pytest.raises(OSError, match="came and went"):
        receive(Pruning(inbox, 1000), inbox, data)
    assert read_tree(inbox) == {}


class Taking(Files):
    """A sort that moves takes the file of that name, and prunes, whether a link was made or refused."""

    def __init__(self, inbox: Path) -> None:
        super().__init__()
        self._inbox = inbox

    def link(self, source: str, target: str) -> None:
        try:
            super().link(source, target)
        finally:
            shutil.rmtree(self._inbox / PLACE.partition("/")[0])


def test_a_file_that_a_sort_takes_while_it_is_compared_was_there(inbox: Path, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    receive(Files(), inbox, data)
    assert receive(Taking(inbox), inbox, data) == (Committed.STORED, PLACE)
    assert read_tree(inbox) == {}


def test_of_many_that_come_at_once_by_one_name_one_is_stored(inbox: Path, tmp_path: Path) -> None:
    data, other = data_set(tmp_path), data_set(tmp_path, StudyDescription="other")
    results: list[tuple[Committed, str]] = []
    barrier = threading.Barrier(8)

    def come(mine: bytes) -> None:
        barrier.wait()
        results.append(receive(Files(), inbox, mine))

    threads = [threading.Thread(target=come, args=(mine,)) for mine in [data, other] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kinds = [kept for kept, _ in results]
    assert {kept: kinds.count(kept) for kept in Committed} == {
        Committed.STORED: 1,
        Committed.BESIDE: 1,
        Committed.REPEATED: 6,
    }
    assert sorted(read_tree(inbox).values()) == sorted([whole(data), whole(other)])


def test_a_start_removes_what_the_dead_left_and_nothing_else(inbox: Path) -> None:
    parts = PartFiles(Files(), str(inbox))
    held = parts.begin()
    left = parts.begin()
    os.close(left._open())  # as its death does
    others = [".dicomsort-receive-x.part", ".dicomsort-20260101T000000Z-abc-1.part", "1.part", ".dicomsort-receive-"]
    for name in others:
        (inbox / name).touch()
    assert PartFiles(Files(), str(inbox)).clean_up() == 1
    assert {path.name for path in inbox.iterdir()} == {*others, Path(held.path).name}
    held.discard()
    held.discard()
    assert {path.name for path in inbox.iterdir()} == {*others}
    with pytest.raises(ValueError, match="discarded"):
        held.write(b"late")


class Tidied(Files):
    """Another receiver starts between the creation of a part and its lock."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 2

    def lock(self, descriptor: int) -> bool:
        if self.times:
            self.times -= 1
            name_of(descriptor).unlink()
        return super().lock(descriptor)


def test_a_part_that_a_starting_receiver_took_for_a_leftover_is_made_anew(inbox: Path, tmp_path: Path) -> None:
    files = Tidied()
    assert receive(files, inbox, data_set(tmp_path)) == (Committed.STORED, PLACE)
    assert files.times == 0
    files.times = 1000
    with pytest.raises(Refused, match="storing failed"):
        receive(files, inbox, data_set(tmp_path))


def test_an_inbox_without_links_or_writing_is_refused_at_the_start(inbox: Path) -> None:
    with pytest.raises(DicomsortError, match=r"expected hard links .* to work, received Operation not permitted"):
        PartFiles(NoLinks(), str(inbox)).check()
    with pytest.raises(DicomsortError, match="expected writing and locking a file to work, received Read-only"):
        PartFiles(Broken("create", 0, errno.EROFS), str(inbox)).check()
    with pytest.raises(DicomsortError, match="expected flushing it to work"):
        PartFiles(Broken("flush", 0, errno.EIO), str(inbox)).check()
    assert PartFiles(Files(), str(inbox)).check() == ""
    assert read_tree(inbox) == {}


@pytest.mark.parametrize("call", ["create", "flush"])
def test_a_full_disk_does_not_keep_a_receiver_from_its_start(inbox: Path, call: str) -> None:
    """What a dead one left may fill it, and goes; else senders get a refusal that they try again after."""
    os.close(PartFiles(Files(), str(inbox)).begin()._open())
    log = logging.getLogger("test")
    receiver = Receiver(str(inbox), ReceiveSettings(port=0, allow=("A",)), Broken(call, 0, errno.ENOSPC), log)
    receiver.start()
    receiver.stop(0)
    assert read_tree(inbox) == {}


def test_a_sort_passes_over_what_is_being_received(inbox: Path) -> None:
    part = PartFiles(Files(), str(inbox)).begin()
    (entry,) = walk(str(inbox), lambda _: False)
    assert isinstance(entry, Passed)
    assert (entry.reason, "is being received" in entry.message, entry.failed) == ("part-file", True, False)
    part.discard()


def test_a_full_file_system_refuses_and_room_lets_it_go_on(inbox: Path, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", inbox]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system may not be mounted here; every call fails in the test above")
    try:
        small, large = data_set(tmp_path), data_set(tmp_path, StudyDescription="x" * 64)
        large += large[-2:] * (40 << 10)
        receive(Files(), inbox, small)
        with pytest.raises(Refused, match="No space left"):
            receive(Files(), inbox, large)
        assert read_tree(inbox) == {PLACE: whole(small)}
        subprocess.run(["mount", "-o", "remount,size=4m", inbox], check=True)
        assert receive(Files(), inbox, large)[0] is Committed.BESIDE
    finally:
        subprocess.run(["umount", inbox], check=True)
