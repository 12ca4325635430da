"""From the operations of a run to those that undo it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

from dicomsort.records import ARCHIVED, Action, Found, Lost, Operation, Outcome, Result, Status, Verb

_COARSE = 2_000_000_000  # nanoseconds: some file systems keep times to two seconds
_EARLIEST = 315_532_800 * 10**9  # 1980, where the times of FAT begin, and
_LATEST = (2**31 - 1) * 10**9  # 2038, where those of 32 bits end: every file system keeps what lies between


class UndoContext(Protocol):
    """What an undo must know of the disk, and of later runs that were not undone."""

    def look_up(self, place: str) -> Found | None:
        """Return what lies at a place now."""

    def is_same(self, place: str, sha256: str) -> bool:
        """Whether a file with another inode or time is the one that was placed: restored from a backup.

        It has the SHA-256, and no other run placed it.
        """

    def is_back(self, operation: Operation) -> bool:
        """Whether an earlier undo of the run took back what the operation placed."""

    def filled_by(self, place: str) -> str:
        """Return the later run that placed a file there; else ""."""

    def needed_by(self, place: str, sha256: str) -> str:
        """Return the later run that removed a duplicate of the file there, and has not restored it; else ""."""

    def moved_by(self, place: str, sha256: str) -> str:
        """Return the decision that took a file of this content from there, and did not put it back; else ""."""

    def unmounted(self, place: str) -> str:
        """Return the mount point above a place where nothing is mounted any more since the run began; else ""."""


def reverse(
    done: Callable[[], Iterable[tuple[Operation, Result]]], made: Sequence[str], context: UndoContext
) -> Iterator[Operation]:
    """Yield the operations that undo a run, numbered from 0; what a later run placed, or needs for its undo, stays.

    ``done`` yields the run's operations that ended, each time it is called; ``made`` are the folders it made, parents
    first. Removed duplicates are restored first, while their kept copies are still there; then archives go back, then
    files; what came out of an archive is removed. Then pruned folders are made again; last, folders that the run made
    are removed.
    """
    unmade = (Operation(0, Verb.REMOVE_FOLDER, path) for path in reversed(made))
    waiting: dict[str, str] = {}  # kept copies of duplicates that cannot be restored yet, and why
    steps = chain(
        _restored(done, context, waiting),
        _returned((each for each in done() if _is_archived(each[0])), context, waiting),
        _returned((each for each in done() if not _is_archived(each[0])), context, waiting),
        _folders_again(done()),
        unmade,
    )
    for number, operation in enumerate(steps):
        yield replace(operation, number=number)


def _is_archived(o: Operation) -> bool:
    return o.target.startswith(ARCHIVED)


def _restored(
    done: Callable[[], Iterable[tuple[Operation, Result]]], context: UndoContext, waiting: dict[str, str]
) -> Iterator[Operation]:
    # An earlier undo may have put kept copies back where they came from, but not all that equals them.
    missing = (o for o, _ in done() if o.verb is Verb.REMOVE and context.look_up(o.source) is None)
    gone = {o.kept for o in missing if context.look_up(o.kept) is None}
    returned = {o.target: o.source for o, _ in done() if o.target in gone} if gone else {}
    for o, result in done():
        if o.verb is not Verb.REMOVE:
            continue
        kept = context.look_up(o.kept)
        if message := _not_mounted(o, o.kept, kept, context):
            waiting[o.kept] = message
            yield _left(o, message, Status.FAILED)
        elif kept is None and (moved_by := context.moved_by(o.kept, o.sha256)):
            yield _left(o, f"run {moved_by} moved its kept copy since: undo that run first")
        else:
            place = o.kept if kept else returned.get(o.kept, o.kept)
            kept = kept or context.look_up(place)
            device, inode, mtime_ns = (kept.device, kept.inode, kept.mtime_ns) if kept else (0, 0, 0)
            row = o.row and replace(o.row, action=Action.UNDONE, destination="")  # the kept file stays where it is
            yield replace(
                _with_metadata(replace(o, row=row), result.lost), verb=Verb.COPY, source=place, target=o.source,
                kept="", device=device, inode=inode, mtime_ns=mtime_ns, stamp_ns=o.mtime_ns,
            )  # fmt: skip


def _returned(
    done: Iterable[tuple[Operation, Result]], context: UndoContext, waiting: Mapping[str, str]
) -> Iterator[Operation]:
    for o, result in done:
        if o.verb not in {Verb.MOVE, Verb.COPY, Verb.LINK} or context.is_back(o):
            continue
        filled_by = context.filled_by(o.target)
        there, source = None if filled_by else context.look_up(o.target), context.look_up(o.source)
        if message := waiting.get(o.target) or _not_mounted(o, o.target, there, context):
            yield _left(o, message, Status.FAILED)
        elif there is None and (moved_by := context.moved_by(o.target, o.sha256)):
            yield _left(o, f"run {moved_by} moved it since: undo that run first")
        elif there is None and (source is not None or o.archive_sha256):
            continue  # undone already, or taken from the outbox by somebody
        elif filled_by:
            yield _left(o, f"it is gone; run {filled_by} placed another file there since")
        elif needed_by := context.needed_by(o.target, o.sha256):
            yield _left(o, f"run {needed_by} removed a duplicate of it: undo that run first")
        elif o.archive_sha256:
            yield replace(_back(o, result, there, context), verb=Verb.REMOVE, target="")
        elif source is None:  # for a copy, too, whose source is gone: the only one left goes back instead of away
            yield replace(_with_metadata(_back(o, result, there, context), result.lost), verb=Verb.MOVE)
        else:
            yield replace(_back(o, result, there, context), verb=Verb.REMOVE, target="", kept=o.source)


def _back(o: Operation, result: Result, there: Found | None, context: UndoContext) -> Operation:
    """Return the operation from target to source, for the file that lies at the target now."""
    row = o.row and replace(o.row, action=Action.UNDONE)
    back = replace(o, source=o.target, target=o.source, inode=result.inode, row=row)
    if there is None:
        return back
    is_kept = _is_kept(o.mtime_ns, there.mtime_ns)
    mtime_ns = there.mtime_ns if is_kept else o.mtime_ns
    back = replace(back, device=there.device, mtime_ns=mtime_ns, stamp_ns=o.mtime_ns)
    is_other = not is_kept or there.inode != result.inode
    if is_other and there.size == o.size and context.is_same(o.target, o.sha256):
        return replace(back, inode=there.inode, mtime_ns=there.mtime_ns)
    return back


def _not_mounted(o: Operation, place: str, there: Found | None, context: UndoContext) -> str:
    """Return why an operation must wait: where it placed a file, or its source, nothing is, nor what was mounted."""
    mounts = context.unmounted(place), context.unmounted(o.source)
    if not any(mounts):
        return ""
    mount = (mounts[0] if there is None else "") or (mounts[1] if context.look_up(o.source) is None else "")
    return mount and f"expected the file system that was mounted at {mount!r}, received none: mount it, then undo again"


def _left(o: Operation, message: str, status: Status = Status.CHANGED) -> Operation:
    """Return the operation that leaves a file, with the reason in its row."""
    row = o.row and replace(o.row, action=Action.LEFT, status=status, destination="", reason=status, message=message)
    return replace(o, verb=Verb.LEAVE, target="", row=row)


def _is_kept(given_ns: int, there_ns: int) -> bool:
    """Whether a file's mtime is the one that it was given, as its file system rounds it.

    A time out of a file system's range becomes the first or the last in it.
    """
    is_last, is_first = _LATEST <= there_ns < given_ns, given_ns < there_ns <= _EARLIEST
    return abs(there_ns - given_ns) < _COARSE or is_last or is_first


def _with_metadata(back: Operation, lost: Lost | None) -> Operation:
    """Return the operation with the metadata that the file could not keep where it was, without extended attributes."""
    if lost is None:
        return back
    row = back.row
    if row is not None and lost.attributes:
        notes = f"not restored: extended attributes ({lost.attributes:,})", row.message
        row = replace(row, message="; ".join(filter(None, notes)))
    return replace(back, owner=(lost.owner, lost.group), mode=lost.mode, row=row)


def _folders_again(done: Iterable[tuple[Operation, Result]]) -> Iterator[Operation]:
    for o, result in done:
        if o.verb is Verb.REMOVE_FOLDER and result.outcome is Outcome.DONE:
            yield replace(_with_metadata(o, result.lost), verb=Verb.MAKE_FOLDER)
