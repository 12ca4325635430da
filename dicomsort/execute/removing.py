"""The removal of a file whose bytes another name or another file holds, proven at that moment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from dicomsort.execute.leaving import has_changed, is_at, is_unchanged
from dicomsort.execute.two_mounts import TwoMounts
from dicomsort.files import Files, flush_and_drop, hashed, look_up, opened, same_bytes, sha256_of
from dicomsort.records import Operation, Outcome, Result, Verb

_CHANGED_SINCE = "the file changed while it was placed"
NOT_KEPT = "the kept file does not hold the same bytes any more"
OTHER_THERE = "the file that has its old name by now holds other bytes; this one stays"
LOCKED = "another run removes it, or its kept copy"
_IS_KEPT = "it may be the kept file itself, seen through another mount; it stays"


class Remover:
    """Removes sources of operations; safe to call from several threads. ``path`` is that of a place."""

    def __init__(self, files: Files, path: Callable[[str], str], mounts: TwoMounts) -> None:
        self._files = files
        self._path = path
        self._mounts = mounts
        self._archives: dict[tuple[str | int, ...], str] = {}  # SHA-256 of those that were read, by their status
        # Copies that were read again: device, inode, mtime of the new file, and the source's ctime before it was read.
        self.proven: dict[int, tuple[int, int, int, int]] = {}

    def remove(self, o: Operation) -> tuple[Result | None, bool]:
        """Remove the source where another name, or another file, has its present content.

        Return a Result where it stays because it changed, and whether it is another name of its target.
        """
        path = self._path(o.source)
        source = look_up(path)
        target = look_up(self._path(o.target)) if source is not None and o.target else None
        linked = source is not None and target is not None and os.path.samestat(source, target)
        if source is None or not is_unchanged(o, source):
            return None, linked
        if o.verb is Verb.REMOVE:
            return self._remove_duplicate(o, source), False
        if linked and source.st_nlink == 1:  # one name, by two ways
            return None, linked
        is_replaced = linked or self._is_replaced(o, source, target)
        if not linked and has_changed(path, source):  # comparing takes a while
            return Result(o.number, Outcome.CHANGED, _CHANGED_SINCE), linked
        if not is_replaced:
            why = "its new name is gone" if target is None else "it and its new name hold different bytes by now"
            return Result(o.number, Outcome.CHANGED, f"{why}; it stays"), linked
        return self._unlinked(o), linked

    def _unlinked(self, o: Operation) -> Result | None:
        """Remove the source's name; return a Result where that is refused."""
        try:
            self._files.unlink(self._path(o.source))
        except OSError as error:
            return Result(o.number, Outcome.FAILED, f"the source cannot be removed: {error.strerror}")
        return None

    def _remove_duplicate(self, o: Operation, source: os.stat_result) -> Result | None:
        """Remove a duplicate whose kept copy holds the same bytes; return a Result where it stays for a reason.

        Two runs can cross, each removing what the other keeps. So the source is locked against all others, and the kept
        copy against removal, from the comparison to the end.
        """
        path, kept = self._path(o.source), self._path(o.kept)
        try:
            if self._mounts.may_be_one(o.source, o.kept):
                return Result(o.number, Outcome.CHANGED, _IS_KEPT)
            with opened(path) as mine, opened(kept) as theirs:
                is_one = os.path.samestat(os.fstat(mine), os.fstat(theirs))
                if not (self._is_locked(mine) and (is_one or self._is_locked(theirs, shared=True))):
                    return Result(o.number, Outcome.FAILED, LOCKED)
                flush_and_drop(self._files, theirs)  # somebody may have put it there a moment ago
                is_kept = is_at(theirs, kept) and self.is_kept(o)
                if has_changed(path, source):  # comparing takes a while
                    return Result(o.number, Outcome.CHANGED, _CHANGED_SINCE)
                return self._unlinked(o) if is_kept else Result(o.number, Outcome.CHANGED, NOT_KEPT)
        except FileNotFoundError:  # of the kept copy: then the file stays; else somebody has removed it
            return Result(o.number, Outcome.CHANGED, NOT_KEPT) if look_up(path) else None
        except OSError as error:
            return Result(o.number, Outcome.FAILED, f"the kept copy cannot be compared, or flushed: {error.strerror}")

    def _is_locked(self, descriptor: int, *, shared: bool = False) -> bool:
        """Lock a file; True also where its file system has no locks, or none for files open for reading (NFS)."""
        try:
            return self._files.lock(descriptor, shared=shared)
        except OSError:
            return True

    def _is_replaced(self, o: Operation, source: os.stat_result, target: os.stat_result | None) -> bool:
        """Whether the target holds the source's bytes."""
        if target is None or target.st_size != o.size:
            return False
        proven = self.proven.pop(o.number, None)
        if (target.st_dev, target.st_ino, target.st_mtime_ns, source.st_ctime_ns) == proven:
            return True
        return self.is_same(o.source, o.target) and not self._mounts.may_be_one(o.source, o.target)

    def is_kept(self, o: Operation) -> bool:
        """Whether ``kept`` holds the bytes of the source: it equals it, or is the archive that it came out of."""
        if not o.archive_sha256:
            return self.is_same(o.source, o.kept)
        with contextlib.suppress(FileNotFoundError):
            return self._is_archive(o) and sha256_of(self._path(o.source)) == o.sha256
        return False

    def _is_archive(self, o: Operation) -> bool:
        """Whether the archive that held a file is whole; it is read once, as long as nothing changes it."""
        with opened(self._path(o.kept)) as descriptor:
            status = os.fstat(descriptor)
            key = (o.kept, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if key not in self._archives:
                self._archives[key] = hashed(descriptor)
            return self._archives[key] == o.archive_sha256

    def is_same(self, one: str, other: str) -> bool:
        """Whether two places hold the same bytes; False where one is gone."""
        try:
            return same_bytes(self._path(one), self._path(other))
        except FileNotFoundError:
            return False
