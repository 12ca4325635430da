"""Whether a file is the one that a plan means, and may leave its folder; refusals in words. Nothing is changed here."""

from __future__ import annotations

import os
import stat

from dicomsort.files import look_up
from dicomsort.metadata import Metadata
from dicomsort.records import Operation, Verb

CANNOT_LEAVE = "its folder may not be changed, so the file cannot leave it"
LINK_REFUSED = "hard link refused ({}); use --copy or --move"
_UNITS = (1, 100, 10**3, 10**6, 10**9, 2 * 10**9)  # nanoseconds, in which file systems keep times


class Leaving:
    """From which folders this process may remove files; each folder is looked up once."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[bool, bool]] = {}  # whether it may be changed; whether only by a file's owner

    def may_leave(self, path: str, status: os.stat_result) -> bool:
        """Whether a file, at an absolute path and with that status, may be removed from its folder."""
        may_change, is_sticky = self._rights(path.rpartition("/")[0])
        return may_change and (not is_sticky or status.st_uid == os.geteuid())

    def depends_on_owner(self, folder: str) -> bool:
        """Whether only the owner of a file may remove it from a folder."""
        return self._rights(folder)[1]

    def _rights(self, folder: str) -> tuple[bool, bool]:
        if folder not in self._folders:
            there, user = os.stat(folder), os.geteuid()
            is_sticky = bool(there.st_mode & stat.S_ISVTX) and user not in {0, there.st_uid}
            self._folders[folder] = os.access(folder, os.W_OK | os.X_OK), is_sticky
        return self._folders[folder]


def has_changed(path: str, before: os.stat_result) -> bool:
    """Whether the file at a path was replaced or changed since a look at it."""
    now = look_up(path)
    return now is None or (now.st_ino, now.st_ctime_ns) != (before.st_ino, before.st_ctime_ns)


def is_at(descriptor: int, path: str) -> bool:
    """Whether an open file still has this name."""
    there = look_up(path)
    return there is not None and os.path.samestat(there, os.fstat(descriptor))


def is_stamped(status: os.stat_result, stamp_ns: int) -> bool:
    """Whether a file has the given time, as a file system rounds it."""
    return any(status.st_mtime_ns == stamp_ns - stamp_ns % unit for unit in _UNITS)


def mode_of(o: Operation) -> int:
    """Return the mode that a copy gets, which must not become somebody's setuid program where root makes it."""
    return o.mode & 0o777


def stamp_of(o: Operation) -> int:
    """Return the mtime that an operation gives its target, in nanoseconds since 1970."""
    return o.mtime_ns if o.stamp_ns is None else o.stamp_ns


def is_unchanged(o: Operation, status: os.stat_result) -> bool:
    """Whether this is the file that the plan means; one that was linked may have its new time already."""
    is_timed = status.st_mtime_ns == o.mtime_ns or (o.stamp_ns is not None and is_stamped(status, o.stamp_ns))
    is_same = status.st_ino == o.inode or is_member(o)
    return is_timed and is_same and status.st_size == o.size and stat.S_ISREG(status.st_mode)


def is_member(o: Operation) -> bool:
    """Whether a file came out of an archive: it may have been unpacked again, which gives it another inode."""
    return bool(o.target and o.archive_sha256)


def is_one_file(o: Operation, target: os.stat_result, source: os.stat_result | None) -> bool:
    """Whether the target is the source under its new name; inode numbers mean nothing across devices."""
    if source is not None and os.path.samestat(target, source):
        return True
    return (target.st_dev, target.st_ino) == (o.device, o.inode)


def wanted_metadata(o: Operation, found: Metadata) -> Metadata:
    """Return the metadata for a file that moves: the plan's where an earlier move could not keep it, else its present.

    Set-ID bits are kept only where the file has them with its present owner: the plan is older.
    """
    if o.owner is not None:
        own = found if o.verb is Verb.MOVE else found._replace(attributes={})  # a copy is of another file
        return own._replace(owner=o.owner[0], group=o.owner[1], mode=o.mode)
    return found._replace(mode=o.mode & (found.mode | 0o777))
