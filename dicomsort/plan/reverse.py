"""From what a run did to the operations that undo it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

from dicomsort.records import Action, Found, Lost, Operation, Outcome, Result, Row, Status, Verb

_COARSE = 2_000_000_000  # nanoseconds: some file systems keep times to two seconds
_EARLIEST = 315_532_800 * 10**9  # 1980, where the times of FAT begin, and
_LATEST = (2**31 - 1) * 10**9  # 2038, where those of 32 bits end: every file system keeps what lies between


class UndoContext(Protocol):
    """What an undo asks of the disk, and of the later runs that stand."""

    def look_up(self, place: str) -> Found | None:
        """What lies at a place now."""

    def is_same(self, place: str, sha256: str) -> bool:
        """Whether the file at a place, whose inode or time is another, is the one placed there: a backup was restored.

        It has the SHA-256, and no other run placed it.
        """

    def filled_by(self, place: str) -> str:
        """The later run that placed a file there; else ""."""

    def needed_by(self, place: str) -> str:
        """The later run that removed a duplicate of the file there; else ""."""


def reverse(
    done: Callable[[], Iterable[tuple[Operation, Result]]], made: Sequence[str], around: UndoContext
) -> Iterator[Operation]:
    """Yield the operations that undo a run, numbered from 0.

    What a later run filled, or needs for its own undo, stays.

    ``done`` gives the run's operations that ended, each time it is called; ``made`` are the folders it made, parents
    first. What was removed is restored first, while its kept copy is still
    where it was; then files go back; then folders that the run pruned, and last those that it made.
    """
    unmade = (Operation(0, Verb.REMOVE_FOLDER, path) for path in reversed(made))
    steps = chain(_restored(done(), around.look_up), _returned(done(), around), _folders_again(done()), unmade)
    for number, operation in enumerate(steps):
        yield replace(operation, number=number)


def _restored(done: Iterable[tuple[Operation, Result]], look_up: Callable[[str], Found | None]) -> Iterator[Operation]:
    for o, _ in done:
        if o.verb is Verb.REMOVE:
            kept = look_up(o.kept)
            device, inode, mtime_ns = (kept.device, kept.inode, kept.mtime_ns) if kept else (0, 0, 0)
            row = o.row and replace(o.row, action=Action.UNDONE, destination="")  # the kept file stays where it is
            yield replace(
                o, verb=Verb.COPY, source=o.kept, target=o.source, kept="", device=device, inode=inode,
                mtime_ns=mtime_ns, stamp_ns=o.mtime_ns, row=row,
            )  # fmt: skip


def _returned(done: Iterable[tuple[Operation, Result]], around: UndoContext) -> Iterator[Operation]:
    for o, result in done:
        if o.verb not in {Verb.MOVE, Verb.COPY, Verb.LINK}:
            continue
        filled_by = around.filled_by(o.target)
        there, source = None if filled_by else around.look_up(o.target), around.look_up(o.source)
        if there is None and source is not None:
            continue  # undone already, or taken from the outbox by somebody
        if filled_by:
            yield _left(o, f"it is gone; run {filled_by} placed another file there since")
        elif needed_by := around.needed_by(o.target):
            yield _left(o, f"run {needed_by} removed a duplicate of it: undo that run first")
        elif source is None:  # for a copy, too, whose source is gone: the only one left goes back instead of away
            yield replace(_with_metadata(_back(o, result, there, around), result.lost), verb=Verb.MOVE)
        else:
            yield replace(_back(o, result, there, around), verb=Verb.REMOVE, target="", kept=o.source)


def _back(o: Operation, result: Result, there: Found | None, around: UndoContext) -> Operation:
    """From the target to the source, by what is known of the file that lies at the target."""
    back = replace(o, source=o.target, target=o.source, inode=result.inode, row=_undone(o.row))
    if there is None:
        return back
    is_kept = _is_kept(o.mtime_ns, there.mtime_ns)
    mtime_ns = there.mtime_ns if is_kept else o.mtime_ns
    back = replace(back, device=there.device, mtime_ns=mtime_ns, stamp_ns=o.mtime_ns)
    is_other = not is_kept or there.inode != result.inode
    if is_other and there.size == o.size and around.is_same(o.target, o.sha256):
        return replace(back, inode=there.inode, mtime_ns=there.mtime_ns)
    return back


def _undone(row: Row | None) -> Row | None:
    return row and replace(row, action=Action.UNDONE)


def _left(o: Operation, message: str) -> Operation:
    """Nothing is done with a file, and its row says why."""
    row = o.row and replace(
        o.row, action=Action.LEFT, status=Status.CHANGED, destination="", reason=Status.CHANGED, message=message
    )
    return replace(o, verb=Verb.LEAVE, target="", row=row)


def _is_kept(given_ns: int, there_ns: int) -> bool:
    """Whether a file's mtime is the one that it was given, as its file system keeps that.

    A time beyond those that a file system knows becomes the first or the last of these.
    """
    is_last, is_first = _LATEST <= there_ns < given_ns, given_ns < there_ns <= _EARLIEST
    return abs(there_ns - given_ns) < _COARSE or is_last or is_first


def _with_metadata(back: Operation, lost: Lost | None) -> Operation:
    """A file that goes back gets what the place where it was could not keep, but for extended attributes."""
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
            yield replace(o, verb=Verb.MAKE_FOLDER)
