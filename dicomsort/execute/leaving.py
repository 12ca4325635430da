"""What refuses an operation, in words; what may leave its folder, and is still there. Nothing is changed here."""

from __future__ import annotations

import os
import stat

from dicomsort.files import look_up

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
