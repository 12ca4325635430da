"""The outbox: its lock, room on its disk, what lies in it; and what a command gives to the runs that it makes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from dicomsort.catalog import Ledger
from dicomsort.errors import DicomsortError, OutboxLocked, PlacingFailed, UsageError, counted
from dicomsort.execute import BATCH, Roots, is_stamped
from dicomsort.files import Files, closing_descriptor, look_up, missing_folders, mounts, opened, opened_file, sha256_of
from dicomsort.files.copying import holds_only_zeros, with_data
from dicomsort.journal import STATE
from dicomsort.jsonlines import parse
from dicomsort.plan.layout import with_folder_suffix
from dicomsort.progress import Progress
from dicomsort.records import REVIEW, Examined, Operation, Placement, Row, Verb
from dicomsort.report import MANIFEST, visible

_SPARSE = 1 << 20  # bytes of a file from which on its holes are counted
RESERVE, RESERVE_LIMIT = "reserve", 1 << 30  # bytes; 400,000 files need about as many
INODES = 8  # an undo makes a folder with four files; tmpfs takes an inode a link, too
_ROOM, _BLOCK = 256 << 10, 4 << 10  # bytes: for what does not grow with a run; for a folder that is made again
REVIEW_VERB = "review"  # of a plan that carries out a person's decision
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_HOLDER = b'{"pid": '  # how the lock's file begins
_README = """\
This folder is the memory of dicomsort for the outbox around it: do not delete it while a run is not finished.

lock                      held by a running dicomsort; the system frees it when that process ends
reserve, reserve-1, …     room on the disk that `dicomsort undo` needs where the disk is full; they hold nothing
runs/<run-id>/plan.jsonl  what the run decided to do, sealed before the first file was placed
             journal.jsonl  what it began and what it finished; `dicomsort resume` goes on from here
             manifest.csv   its rows of the manifest
             summary.json   its counts
             staging/       what it unpacked of archives, until it ends
sent/<destination>.jsonl  what a PACS acknowledged; `dicomsort send` sends the rest
corrections/              what persons decided, as images that `dicomsort train --from` learns from

`dicomsort runs OUTBOX` lists the runs, `dicomsort undo OUTBOX` takes the newest back.
"""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a command gives to all its runs; ``on_row`` is given each final row."""

    outbox: str
    files: Files
    progress: Progress
    on_row: Callable[[Row], None] = lambda _: None

    def located(self) -> Self:
        """Return the same with the outbox's real path; UsageError where ``sort`` has not written there."""
        return replace(self, outbox=absolute(self.outbox))


def absolute(outbox: str) -> str:
    """Return the outbox's real path; UsageError where it is no folder that ``sort`` has written to."""
    if not outbox or "\0" in outbox or not os.path.isdir(f"{outbox}/{STATE}"):
        raise UsageError(f"expected an outbox of dicomsort (with a folder {STATE}), received {outbox!r}")
    real = os.path.realpath(outbox)
    check_state(real)
    return real


def check_state(outbox: str) -> None:
    """DicomsortError where something else has the name of a file or folder of dicomsort, as a link or a FIFO."""
    state = f"{outbox}/{STATE}"
    folders, files = (state, f"{state}/runs"), (f"{state}/lock", f"{outbox}/{MANIFEST}")
    for paths, is_right, expected in ((folders, stat.S_ISDIR, "a folder"), (files, stat.S_ISREG, "a regular file")):
        for path in paths:
            status = look_up(path)
            if status is not None and not is_right(status.st_mode):
                received = "a link" if stat.S_ISLNK(status.st_mode) else "something else"
                raise DicomsortError(f"{path}: expected {expected}, received {received}; move that away")


@contextmanager
def locked(context: RunContext, *, create: bool) -> Iterator[None]:
    """Lock the outbox until the block ends; OutboxLocked where another run has locked it."""
    files, outbox = context.files, context.outbox
    check_state(outbox)
    if create:
        _make(files, outbox)
    try:
        descriptor = files.open_append(f"{outbox}/{STATE}/lock", 0o600)
    except OSError as error:
        raise DicomsortError(f"outbox {outbox!r}: expected write permission, received {error.strerror}") from error
    with closing_descriptor(descriptor):
        if not files.lock(descriptor):
            raise OutboxLocked(_holder(descriptor, outbox))
        try:
            _write_holder(files, descriptor)
        except OSError:
            if create:  # a sort needs room for more than this; what frees room must go on without
                raise
        yield


def held_by(outbox: str) -> str:
    """Return who has locked the outbox now, and what to do; empty where nobody has, or nobody can tell."""
    try:
        with opened(f"{outbox}/{STATE}/lock") as descriptor:
            return "" if Files().lock(descriptor, shared=True) else _holder(descriptor, outbox)
    except OSError:
        return ""


def _write_holder(files: Files, descriptor: int) -> None:
    """Write into the lock's file who holds it; what somebody else wrote there stays as it is."""
    if not _HOLDER.startswith(os.pread(descriptor, len(_HOLDER), 0)):
        return
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
    files.truncate(descriptor, 0)
    files.write(descriptor, json.dumps(mine).encode())


def _holder(descriptor: int, outbox: str) -> str:
    """Return who holds the lock, as its file says, and what to do: the lock itself is the system's."""
    advice = "wait for it to end"
    try:
        holder = parse(os.pread(descriptor, 4096, 0))
        pid, host, shown = int(holder["pid"]), str(holder["host"]), visible(str(holder["host"]))
        who = f"process {pid} on host {shown} since {visible(str(holder['since']))}"
        if host != socket.gethostname():
            advice += f", or look on {shown} whether it still runs; the file server frees a dead one's lock"
        elif not _is_alive(pid):
            advice = (
                "that process is gone, so one that it started, or the file server, holds the lock: `fuser` names it"
            )
    except (ValueError, KeyError, TypeError, OverflowError):
        who = "another process"
    return f"outbox {outbox!r} is held by {who}; {advice} (the lock of a dead process frees itself)"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _make(files: Files, outbox: str) -> None:
    state = f"{outbox}/{STATE}"
    try:
        new = [(path, 0o777) for path in missing_folders(outbox)]
        for path, mode in [*new, (state, 0o700), (f"{state}/runs", 0o700)]:
            with suppress(FileExistsError):  # perhaps just now: the lock decides which run goes first
                files.make_folder(path, mode)
        with suppress(FileExistsError), closing_descriptor(files.create(f"{state}/README", 0o600)) as descriptor:
            files.write(descriptor, _README.encode())
    except OSError as error:
        message = f"outbox {outbox!r}: expected a folder that can be written, received {error.strerror}"
        raise DicomsortError(message) from error


def nearest_folder(path: str) -> str:
    """Return a folder, or the nearest above it that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def with_room(context: RunContext, inbox: str, operations: Iterable[Operation]) -> Iterator[Operation]:
    """Yield operations; PlacingFailed at their end where a file system has no room for the bytes that they copy to it.

    A class's folder may be a mount. This costs one system call a class, and one a large file that is moved to another
    file system, which writes all of it but its holes.
    """
    outbox = context.outbox
    inbox_device, outbox_device = os.stat(inbox).st_dev, os.stat(nearest_folder(outbox)).st_dev
    devices: dict[str, int] = {}  # of the folders of classes
    folders: dict[int, str] = {}  # of each file system the first that was found
    copied = Counter[int]()  # bytes by file system
    for operation in operations:
        if operation.verb is Verb.COPY or operation.verb is Verb.MOVE:
            class_ = operation.target.split("/", 2)[1]
            device = devices.get(class_)
            if device is None:
                folder = f"{outbox}/{class_}"
                device = devices[class_] = os.stat(nearest_folder(folder)).st_dev
                folders.setdefault(device, outbox if device == outbox_device else folder)
            size = operation.size
            if device == (outbox_device if operation.archive_sha256 else inbox_device) and operation.verb is Verb.MOVE:
                size = 0
            elif operation.verb is Verb.MOVE and size >= _SPARSE:
                with suppress(OSError):
                    size = data_size(f"{inbox}/{operation.source.partition('/')[2]}")
            copied[device] += size
        yield operation
    require_free(context.files, folders, copied, inbox_device)


def require_free(files: Files, folders: Mapping[int, str], copied: Mapping[int, int], inbox_device: int) -> None:
    """PlacingFailed where a file system, by its device and a folder of it, has no room for the bytes copied to it.

    Copies within the inbox's may share blocks.
    """
    lacking = []
    for device, folder in folders.items():
        size, there = copied[device], nearest_folder(folder)
        free = shutil.disk_usage(there).free
        if size > free and not (device == inbox_device and files.shares_blocks(there)):
            lacking.append(
                f"outbox {folder!r}: expected room for {size:,} bytes that are to be copied, received {free:,} free: "
                f"{size - free:,} are missing"
            )
    if lacking:
        raise PlacingFailed(f"{'; '.join(lacking)}; nothing was placed: make room, then sort again")


def inbox_of(head: Mapping[str, Any], outbox: str) -> str:
    """Return the inbox of a run; that of a decision is the outbox itself, by whatever path it is reached now."""
    return outbox if head["inbox"] == head["outbox"] else str(head["inbox"])


def mount_of(path: str) -> str:
    """Return the mount point of the file system that a path lies on."""
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def waiting_in(outbox: str, top: str = REVIEW) -> Iterator[str]:
    """Yield the files that wait below REVIEW, or below UNREADABLE, for a person, as paths in the outbox."""
    for folder, _, names in os.walk(f"{outbox}/{top}"):
        yield from (f"{folder}/{name}".removeprefix(f"{outbox}/") for name in names)


def count_waiting(outbox: str, top: str = REVIEW) -> int:
    """Count the files of ``waiting_in``."""
    return sum(1 for _ in waiting_in(outbox, top))


def mounts_below(inbox: str, outbox: str) -> list[str]:
    """Return the places below inbox and outbox where a file system is mounted, such as ``outbox/CT``."""
    paths = {path for _, path, _ in mounts()}
    roots = (("inbox", inbox), ("outbox", outbox))
    return sorted(f"{root}{path.removeprefix(at)}" for root, at in roots for path in paths if path.startswith(f"{at}/"))


@contextmanager
def explaining_full_disk(needed: Callable[[], tuple[str, int]], advice: str) -> Iterator[None]:
    """Add to the error of a full disk what is needed in a folder, bytes or files, and what to do when there is room."""
    try:
        yield
    except (OSError, PlacingFailed) as error:
        if not any(reason in str(error) for reason in _FULL):
            raise
        raise PlacingFailed(f"{error}; {_lacking(*needed())}, then {advice}") from error


def _lacking(folder: str, size: int) -> str:
    """Return what a full disk lacks for so many bytes below a folder, and what to do."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_files and disk.f_favail < BATCH and size <= free:  # one that counts no inodes has 0 of 0
        return f"{counted(disk.f_favail, 'file')} more (inodes) can be made below {folder!r}: remove some files there"
    return f"about {size:,} bytes are to be written below {folder!r}, and {free:,} are free: make room"


def room_for_undo(plan_bytes: int, folders: int = 0) -> int:
    """Return how many bytes an undo may write below the outbox, by the run's plan and the folders that it prunes.

    It has a plan, a journal, and its rows twice, and so has a run that was cut short: 4 times the run's plan at most,
    as measured.
    """
    return _ROOM + 9 * plan_bytes // 2 + _BLOCK * folders


def make_reserve(context: RunContext, size: int) -> None:
    """Reserve so many bytes of the disk for an undo, up to a limit, and a few inodes; go on where there are none."""
    files, outbox = context.files, context.outbox
    for empty in _empty_files(outbox):
        with suppress(OSError), closing_descriptor(files.create(empty, 0o600)):
            pass
    path, size = f"{outbox}/{STATE}/{RESERVE}", min(size, RESERVE_LIMIT)
    status = look_up(path)
    if status is not None and (status.st_blocks * 512 >= size or not _is_reserve(path)):
        return
    with suppress(OSError), closing_descriptor(files.open_append(path, 0o600)) as descriptor:
        before = os.fstat(descriptor).st_size
        try:
            files.allocate(descriptor, size)
        except OSError:
            files.truncate(descriptor, before)  # what it got of the last room is needed more by the run
            raise


def free_reserve(context: RunContext) -> None:
    """Give back what ``make_reserve`` reserved."""
    for path in (f"{context.outbox}/{STATE}/{RESERVE}", *_empty_files(context.outbox)):
        with suppress(OSError):
            if _is_reserve(path):
                context.files.unlink(path)


def _empty_files(outbox: str) -> Iterator[str]:
    """The paths of files that hold an inode each."""
    return (f"{outbox}/{STATE}/{RESERVE}-{number}" for number in range(1, INODES + 1))


def _is_reserve(path: str) -> bool:
    """Whether a file is a reserve of ours, and not somebody's: it has one name and holds nothing but zeros."""
    limit = RESERVE_LIMIT if os.path.basename(path) == RESERVE else 0
    try:
        with opened_file(path) as stream:
            status = os.fstat(stream.fileno())
            is_possible = status.st_nlink == 1 and status.st_size <= limit
            return is_possible and holds_only_zeros(stream.fileno(), status.st_size)
    except OSError:
        return False


def require_mounts(head: Mapping[str, Any], outbox: str, below: str = "") -> None:
    """DicomsortError where a place that a plan's head names as a mount, below a root, is an empty folder now.

    One that was removed, or holds files, is meant to be a folder from now on.
    """
    inbox, named = inbox_of(head, outbox), (mount for mount in head.get("mounts", ()) if mount.startswith(below))
    empty = [mount for mount in named if _is_bare(Roots(inbox, outbox).absolute(mount))]  # looking makes autofs mount
    if gone := sorted({*empty}.difference(mounts_below(inbox, outbox) if empty else ())):
        received = "an empty folder: mount it, or remove that folder if the file system is gone for good"
        raise DicomsortError(f"expected the file system that was mounted at {gone[0]!r}, received {received}")


def _is_bare(folder: str) -> bool:
    """Whether a folder is there and holds nothing but hidden names, which mark one to mount on."""
    try:
        with os.scandir(folder) as entries:
            return all(entry.name.startswith(".") for entry in entries)
    except OSError:
        return False


def require_inbox(head: Mapping[str, Any], outbox: str, run: str, what: str) -> str:
    """Return the inbox of a run; DicomsortError where it is not there, or its mount point is not mounted now."""
    inbox, mount = inbox_of(head, outbox), str(head.get("mount") or "/")
    if not os.path.isdir(inbox):
        advice = f"mount it, or make it, then {what}" + ("; if it is lost: --give-up" if what == "resume" else "")
        raise DicomsortError(f"run {run}: expected its inbox {inbox!r}, received nothing there; {advice}")
    if inbox != outbox and not os.path.ismount(mount):
        received = f"a folder where {mount!r} was mounted"
        raise DicomsortError(f"run {run}: expected its inbox {inbox!r}, received {received}; mount it, then {what}")
    return inbox


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def data_size(path: str) -> int:
    """Return how many bytes of a file lie in no hole; extents are asked for only if it has fewer blocks than bytes."""
    status = os.lstat(path)
    if status.st_blocks * 512 >= status.st_size:
        return status.st_size
    with opened(path) as descriptor:
        return sum(end - start for start, end in with_data(descriptor, status.st_size))


class OutboxState:
    """The ``plan.layout.PlanContext`` of a ledger and an outbox, which a dry run may do without."""

    def __init__(self, ledger: Ledger, outbox: str | None) -> None:
        """Without an outbox every name is free."""
        self._ledger = ledger
        self._outbox = outbox
        self._remembers = ledger.remembers()
        self.claim, self.is_repeated = ledger.claim, ledger.is_repeated
        self.give, self.given = ledger.give, ledger.given
        self.defer, self.deferred = ledger.defer, ledger.deferred

    def placed_instance(self, sop: str, content: Examined | None) -> str | None:
        """Return where an earlier run put a file with this SOP Instance UID, and content if given; None if it left."""
        sha256 = content.sha256 if content else None
        placed = self._ledger.placed_instances(sop, sha256) if self._remembers else ()
        return next((p.destination for p in placed if self._is_there(p, content)), None)

    def _is_there(self, placed: Placement, content: Examined | None) -> bool:
        """Whether it is there as it was placed, or anything if no content is given.

        It may be: a folder that cannot be entered hides what it holds.
        """
        try:
            status = look_up(path := f"{self._outbox}/{placed.destination}") if self._outbox else None
        except OSError:
            return True
        return status is not None and (content is None or _has_content(path, status, content, placed.sha256))

    def holds(self, destination: str, content: Examined) -> bool | None:
        """Whether the file at a destination has this content, by its row of an earlier run if it has one."""
        if not self._outbox:
            return None
        return holds(f"{self._outbox}/{destination}", content, lambda: self._known_sha256(destination))

    def passable(self, path: str) -> str:
        """Return the path with a suffix for each of its folders whose name a file has."""
        return passable(self._outbox, path) if self._outbox else path

    def _known_sha256(self, destination: str) -> str:
        placed = self._ledger.placed_at(destination) if self._remembers else None
        return placed.sha256 if placed else ""


def passable(outbox: str, path: str) -> str:
    """Return a path below an outbox with suffixes for each folder, below the first, whose name a regular file has."""
    made, *folders, last = path.split("/")
    for name in folders:
        while _is_file(f"{outbox}/{made}/{name}"):  # each suffix is of another name: nobody makes files for all of them
            name = with_folder_suffix(name)  # noqa: PLW2901
        made = f"{made}/{name}"
    return f"{made}/{last}"


def _is_file(path: str) -> bool:
    try:
        there = look_up(path)
    except OSError:
        return False
    return there is not None and stat.S_ISREG(there.st_mode)


def holds(path: str, content: Examined, known_sha256: Callable[[], str] = str) -> bool | None:
    """Whether the file at an absolute path has this content; None where nothing is there, but a file can be.

    Where ``known_sha256`` gives nothing, or the file does not have the mtime of ``content``, it is read.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError:  # a folder that is a file, a name that is too long, or one that cannot be looked at
        return False
    return _has_content(path, status, content, known_sha256())


def _has_content(path: str, status: os.stat_result, content: Examined, known_sha256: str) -> bool:
    """Whether a file has this content; an earlier run's word counts where it has the size and mtime of ``content``.

    That is the mtime that a placed file got. What cannot be read is not believed.
    """
    if not stat.S_ISREG(status.st_mode) or status.st_size != content.found.size:
        return False
    known = known_sha256 if is_stamped(status, content.found.mtime_ns) else ""
    try:
        return (known or sha256_of(path)) == content.sha256
    except OSError:
        return False
