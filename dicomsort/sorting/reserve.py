"""Room that a run keeps on the disk for its undo: bytes, and inodes, which a disk may lack while it has bytes.

A file is ours only by its name and where it holds nothing: what somebody put in its place stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from dicomsort.files import closing, holds_only_zeros, look_up, opened_file
from dicomsort.journal import STATE
from dicomsort.sorting.outbox import RunContext

RESERVE, RESERVE_LIMIT = "reserve", 1 << 30  # bytes; 500,000 files need about as many
INODES = 8  # an undo makes a folder with four files; tmpfs takes an inode a link, too
_ROOM, _BLOCK = 256 << 10, 4 << 10  # bytes: for what does not grow with a run; for a folder that is made again


def room_for_undo(plan_bytes: int, folders: int = 0) -> int:
    """How many bytes an undo may write below the outbox: of a run whose plan has so many, and prunes so many folders.

    It has a plan, a journal, and its rows twice: 2.7 times the run's plan at most, as measured.
    """
    return _ROOM + 3 * plan_bytes + _BLOCK * folders


def make_reserve(context: RunContext, size: int) -> None:
    """Keep so many bytes of the disk for an undo, up to a limit, and a few inodes; go on where there are none."""
    files, outbox = context.files, context.outbox
    for empty in _empty_ones(outbox):
        with suppress(OSError), closing(files.create(empty, 0o600)):
            pass
    path, size = f"{outbox}/{STATE}/{RESERVE}", min(size, RESERVE_LIMIT)
    there = look_up(path)
    if there is not None and (there.st_blocks * 512 >= size or not _is_reserve(path)):
        return
    with suppress(OSError), closing(files.open_append(path, 0o600)) as descriptor:
        before = os.fstat(descriptor).st_size
        try:
            files.allocate(descriptor, size)
        except OSError:
            files.truncate(descriptor, before)  # what it got of the last room is needed more by the run
            raise


def free_reserve(context: RunContext) -> None:
    """Give back what ``make_reserve`` keeps."""
    for path in (f"{context.outbox}/{STATE}/{RESERVE}", *_empty_ones(context.outbox)):
        with suppress(OSError):
            if _is_reserve(path):
                context.files.unlink(path)


def _empty_ones(outbox: str) -> Iterator[str]:
    """Files that hold an inode each."""
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
