"""From what a run did to the operations that undo it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from dicomsort.records import Action, Found, Lost, Operation, Outcome, Result, Verb

_COARSE = 2_000_000_000  # nanoseconds: some file systems keep times to two seconds
_EARLIEST = 315_532_800 * 10**9  # 1980, where the times of FAT begin, and
_LATEST = (2**31 - 1) * 10**9  # 2038, where those of 32 bits end: every file system keeps what lies between


def reverse(
    done: Callable[[], Iterable[tuple[Operation, Result]]],
    made: Sequence[str],
    look_up: Callable[[str], Found | None],
    holds: Callable[[str, str], bool] = lambda _place, _sha256: False,
) -> Iterator[Operation]:
    """Yield the operations that undo a run, numbered from 0.

    ``holds`` says whether the file at a place has a SHA-256: one that was restored from a backup, with another inode
    or time, is then the one that was placed.

    ``done`` gives the run's operations that ended, each time it is called; ``made`` are the folders it made, parents
    first; ``look_up`` tells what lies at a place now. What was removed is restored first, while its kept copy is still
    where it was; then files go back; then folders that the run pruned, and last those that it made.
    """
    unmade = (Operation(0, Verb.REMOVE_FOLDER, path) for path in reversed(made))
    returned = _returned(done(), look_up, holds)
    steps = chain(_restored(done(), look_up), returned, _folders_again(done()), unmade)
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


def _returned(
    done: Iterable[tuple[Operation, Result]],
    look_up: Callable[[str], Found | None],
    holds: Callable[[str, str], bool],
) -> Iterator[Operation]:
    for o, result in done:
        if o.verb not in {Verb.MOVE, Verb.COPY, Verb.LINK}:
            continue
        there, source = look_up(o.target), look_up(o.source)
        if there is None and source is not None:
            continue  # undone already, or taken from the outbox by somebody
        row = o.row and replace(o.row, action=Action.UNDONE)
        back = replace(o, source=o.target, target=o.source, inode=result.inode, row=row)
        if there is not None:
            is_kept = _is_kept(o.mtime_ns, there.mtime_ns)
            mtime_ns = there.mtime_ns if is_kept else o.mtime_ns
            back = replace(back, device=there.device, mtime_ns=mtime_ns, stamp_ns=o.mtime_ns)
            is_other = not is_kept or there.inode != result.inode
            if is_other and there.size == o.size and holds(o.target, o.sha256):
                back = replace(back, inode=there.inode, mtime_ns=there.mtime_ns)
        if source is None:  # for a copy, too, whose source is gone: the only one left goes back instead of away
            yield replace(_with_metadata(back, result.lost), verb=Verb.MOVE)
        else:
            yield replace(back, verb=Verb.REMOVE, target="", kept=o.source)


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
