"""One file operation: its checks, its steps, and how an unfinished one is recognised after a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from dicomsort.errors import PlacingFailed
from dicomsort.execute.leaving import (
    CANNOT_LEAVE,
    LINK_REFUSED,
    Leaving,
    is_member,
    is_one_file,
    is_stamped,
    is_unchanged,
    mode_of,
    stamp_of,
    wanted_metadata,
)
from dicomsort.execute.outcomes import Fatal, outcome_of_error, outcome_unseen
from dicomsort.execute.part_files import OwnCopy, PartFiles
from dicomsort.execute.removing import NOT_KEPT, OTHER_THERE, Remover
from dicomsort.execute.roots import Resolver, Roots, spare_name
from dicomsort.execute.two_mounts import TwoMounts
from dicomsort.files import NO_LINK, NO_ROOM, Files, flush_path, look_up, opened, sha256_of
from dicomsort.files.copying import Copied, copy
from dicomsort.journal import Replay
from dicomsort.metadata import ACL, Applied, Metadata, apply_metadata, copy_with_metadata, lost_with, metadata_of
from dicomsort.records import Operation, Outcome, Result, Verb

IsNeeded = Callable[[str, str], object]  # whether another run needs what lies at a place, by its SHA-256


def by_nobody(_place: str, _sha256: str) -> bool:
    """Say that no other run needs anything."""
    return False


class _Made(NamedTuple):
    """A new file; if it moved, the metadata of its source, and what could not be kept of it."""

    copied: Copied
    metadata: Metadata | None = None
    applied: Applied = Applied()


class Placer:
    """Checks, applies and finishes single operations; safe to call from several threads.

    ``known`` says which operations an earlier attempt of this run had begun; ``is_needed`` and ``gives_up``: see
    ``Executor``.
    """

    def __init__(
        self,
        files: Files,
        roots: Roots,
        run: str,
        known: Replay,
        is_needed: IsNeeded = by_nobody,
        *,
        gives_up: bool = False,
    ) -> None:
        self._files = files
        self._roots = roots
        self._resolver = Resolver(roots)
        self._path, self.kept_open = self._resolver.path, self._resolver.kept_open
        self._begun = frozenset(known.begun)
        self._is_needed, self._gives_up = is_needed, gives_up
        self._leaving = Leaving()
        is_resumed = not known.is_empty and "reported" not in known.marks  # else all was cleared
        self.parts = PartFiles(files, self._resolver, run, known, is_resumed=is_resumed)
        self._mounts = TwoMounts(files, self._path)
        self._remover = Remover(files, self._path, self._mounts)
        self.flushed: set[int] = set()  # whose copies are durable, as their file systems flush files one by one
        self.copies = False  # whether links were refused, so that files were copied instead

    def check(self, o: Operation, *, fresh: bool = False) -> Result | None:
        """Return the result of an operation that cannot be done or is done already, else None.

        ``fresh``: the target's folder is not there yet, so neither is the target.
        """
        try:
            with self.kept_open():
                return self._check(o, fresh=fresh)
        except OSError as error:
            return Result(o.number, Outcome.FAILED, f"{error.strerror}")

    def _check(self, o: Operation, *, fresh: bool) -> Result | None:
        target = self._target(o) if o.target and not fresh else None
        if target is not None and o.number not in self._begun:
            return self._occupied(o, target)
        if target is not None:
            return self._recognise(o, target)
        if o.number in self._begun and self.parts.is_alone(o):
            return None
        source = look_up(path := self._path(o.source))
        if source is None:
            return Result(o.number, Outcome.CHANGED, "the file is gone")
        if not is_unchanged(o, source) or (source.st_ino != o.inode and sha256_of(path) != o.sha256):
            return Result(o.number, Outcome.CHANGED, "the file changed after it was judged")
        leaves = o.verb is Verb.MOVE or o.verb is Verb.REMOVE
        if leaves and not self._leaving.may_leave(self._roots.absolute(o.source), source):
            return Result(o.number, Outcome.FAILED, CANNOT_LEAVE)
        if o.verb is Verb.REMOVE and not self._remover.is_kept(o):
            return Result(o.number, Outcome.CHANGED, NOT_KEPT if o.kept.startswith("outbox/") else OTHER_THERE)
        return None

    def conclude(self, o: Operation) -> Result | None:
        """Return how an operation ended that had begun and is not made again; None where it was not done.

        Its own new name stays where that is whole, and nothing torn stays.
        """
        try:
            with self.kept_open():
                target = self._target(o) if o.target else None
                own = self.parts.own_copy(o, target)
                if target is not None and own in {OwnCopy.WHOLE, OwnCopy.FLUSHED}:
                    return Result(o.number, Outcome.DONE, *self.parts.complete(o, target.st_ino))
                if own is OwnCopy.TORN:
                    self._files.unlink(self._path(o.target))
                if self.parts.is_alone(o):
                    return Result(o.number, Outcome.FAILED, self.parts.stays(o))
        except OSError as error:
            return Result(o.number, Outcome.FAILED, f"{error.strerror}")
        return self.check(o)

    def is_under_way(self, o: Operation) -> bool:
        """Whether an operation that had begun can be made again without its inbox, or has a new name of its own."""
        with contextlib.suppress(OSError), self.kept_open():
            if self.parts.own_copy(o, self._target(o)) is not OwnCopy.NONE:
                return True
        return self.parts.is_last(o)

    def _target(self, o: Operation) -> os.stat_result | None:
        """Look at the target; PlacingFailed where an earlier attempt may have made one that cannot be seen now."""
        try:
            return look_up(self._path(o.target))
        except OSError as error:
            if o.number not in self._begun or not o.target.startswith("outbox/"):
                raise
            raise PlacingFailed(f"{o.target!r}: expected to look at it, received {error.strerror}") from error

    def _recognise(self, o: Operation, target: os.stat_result) -> Result | None:
        """Return the result where an interrupted attempt may have made the target; None where it must be made again.

        A copy is made again while its source holds the bytes: its flush may have failed. Linux reports that once; then
        the pages count as clean, and reading finds them whole in memory. A copy that another run needs stays as it is:
        that run has flushed it, and read it from the disk.
        """
        if o.verb is not Verb.COPY and self._is_renamed(o, target):
            return self._under_its_new_name(o, target)
        own, is_in_source = self.parts.own_copy(o, target), self.parts.holds(o, o.source)
        is_believed = own is OwnCopy.FLUSHED or (
            own is OwnCopy.WHOLE and (not is_in_source or self._is_needed(o.target, o.sha256))
        )
        if is_believed:
            return Result(o.number, Outcome.DONE, *self.parts.complete(o, target.st_ino))
        if own is not OwnCopy.NONE and (is_in_source or self.parts.is_whole(o)):
            return None
        occupied = self._occupied(o, target)
        if occupied.outcome is Outcome.CONFLICT and self.parts.is_alone(o):
            return Result(o.number, Outcome.CONFLICT, f"{occupied.message}; {self.parts.stays(o)}")
        return occupied

    def _is_renamed(self, o: Operation, target: os.stat_result) -> bool:
        """Whether the target is the source under its new name."""
        try:
            source = look_up(self._path(o.source))
        except OSError:
            source = None
        return is_one_file(o, target, source)

    def _occupied(self, o: Operation, target: os.stat_result) -> Result:
        is_alike = stat.S_ISREG(target.st_mode) and target.st_size == o.size
        if is_alike and sha256_of(self._path(o.target)) == o.sha256:
            return Result(o.number, Outcome.DUPLICATE, "the same file is there already", target.st_ino)
        return Result(o.number, Outcome.CONFLICT, "another file stands at the destination; both were kept")

    def apply(self, o: Operation) -> Result | Fatal:
        """Make the new name; sources, and what is to be removed, stay until ``remove_source``.

        Fatal where the disk, not the file, is the cause.
        """
        try:
            with self.kept_open():
                return self._placed(o)
        except OSError as error:
            return outcome_of_error(o, error, f"placing {o.source!r} at {o.target!r}")

    def _placed(self, o: Operation) -> Result:
        target = self._path(o.target)
        try:
            if o.verb is Verb.REMOVE:
                return Result(o.number, Outcome.DONE, lost=lost_with(self._path(o.source)))
            if o.number not in self._begun:
                return self._new_name(o, target)
            is_whole = self.parts.is_whole(o)
            if is_whole and self.parts.holds(o, o.source):
                return self._copy_anew(o, target)
            self.parts.discard(o)
            return self._name_part(o, target) if is_whole else self._new_name(o, target)
        except FileExistsError:
            status = look_up(target)
            return self._occupied(o, status) if status else Result(o.number, Outcome.CONFLICT, "a race for the name")
        except FileNotFoundError:
            if look_up(self._path(o.source)) is None:
                return Result(o.number, Outcome.CHANGED, "the file vanished while it was placed")
            return Result(o.number, Outcome.FAILED, "the destination's folder vanished")

    def _new_name(self, o: Operation, target: str) -> Result:
        if o.verb is Verb.COPY:
            return self._copy(o, target)
        try:
            self._link(self._path(o.source), target)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            if o.verb is Verb.LINK:
                return Result(o.number, Outcome.FAILED, LINK_REFUSED.format(error.strerror))
            self.copies = True
            return self._copy(o, target)
        there = os.lstat(target)
        if there.st_ino != o.inode and not is_member(o):
            return self._rejected(o, target, there)
        return self._under_its_new_name(o, there)

    def _name_part(self, o: Operation, target: str) -> Result:
        """Give a temporary copy of an earlier attempt its name."""
        self._give_name(o, target, None)
        return Result(o.number, Outcome.DONE, *self.parts.complete(o, os.lstat(target).st_ino))

    def _rejected(self, o: Operation, target: str, there: os.stat_result) -> Result:
        """Remove a new name of another inode than the plan's, if the source has these bytes; else it is somebody's."""
        source, message = look_up(self._path(o.source)), "the file was replaced while it was placed"
        is_linked = source is not None and os.path.samestat(source, there)
        if source is not None and not is_linked and self._remover.is_same(o.source, o.target):
            is_linked, message = True, "its file system gives another inode number to a linked file: use --copy"
        if is_linked:
            self._files.unlink(target)
        return Result(o.number, Outcome.CHANGED, message)

    def _under_its_new_name(self, o: Operation, status: os.stat_result) -> Result:
        """Restore metadata of a linked file that an earlier move or a backup did not keep; not of one edited since."""
        is_whole = o.owner is None and (o.stamp_ns is None or is_stamped(status, o.stamp_ns))
        if is_whole or not is_unchanged(o, status):
            return Result(o.number, Outcome.DONE, inode=status.st_ino)
        try:
            with opened(self._path(o.target)) as file:
                there = metadata_of(file)  # it has kept its other attributes
                there = there._replace(attributes={n: v for n, v in there.attributes.items() if n == ACL})
                message, lost = apply_metadata(self._files, file, wanted_metadata(o, there), stamp_of(o))
        except OSError as error:
            message, lost = f"not restored: owner, mode and time ({error.strerror})", None
        return Result(o.number, Outcome.DONE, message, status.st_ino, lost)

    def _copy(self, o: Operation, target: str) -> Result:
        part = self.parts.of(o)
        try:
            made = self._filled(o, part)
            if made is None:
                self.parts.clear(o)
                return Result(o.number, Outcome.CHANGED, "the bytes changed after the file was judged")
            return self._named(o, made, target)
        except OSError:
            with contextlib.suppress(OSError):
                self.parts.clear(o)
            raise

    def _copy_anew(self, o: Operation, target: str) -> Result:
        """Copy where an earlier attempt left a whole copy, which is removed when the new one is durable.

        Where there is no room for both, it gets its name if it is whole on the disk.
        """
        part, new = self.parts.of(o), spare_name(self.parts.of(o))
        try:
            made = self._filled(o, new)
            if made is not None:
                flush_path(self._files, new)
                self.parts.discard(o)
                self._files.replace(new, part)
                return self._named(o, made, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._files.unlink(new)
            if error.errno not in NO_ROOM or not self.parts.reread(o):
                raise
        else:
            self._files.unlink(new)
        return self._name_part(o, target)

    def _named(self, o: Operation, made: _Made, target: str) -> Result:
        """Give a new temporary copy its name."""
        made = self._give_name(o, target, made) or made
        if made.copied.device in self._files.flushed_singly:
            self.flushed.add(o.number)
        return Result(o.number, Outcome.DONE, made.applied.message, made.copied.inode, made.applied.lost)

    def _give_name(self, o: Operation, target: str, made: _Made | None) -> _Made | None:
        """Link the temporary copy; where there are no links, rename it.

        Where the target's path is too long for a temporary copy beside it, that may be on another file system. Then it
        is copied once more, and the new file returned.
        """
        part = self.parts.of(o)
        try:
            self._link(part, target)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            try:
                self.parts.put_at(o, target)
            except OSError as refusal:
                if refusal.errno != errno.EXDEV:
                    raise
                return self._copied(o, part, target, made and made.metadata)
        return None

    def _link(self, source: str, target: str) -> None:
        """Link; NFS may make a link and say that it exists: its answer was lost, so it was asked twice."""
        try:
            self._files.link(source, target)
        except FileExistsError:
            one, other = look_up(source), look_up(target)
            if one is None or other is None or not os.path.samestat(one, other):
                raise

    def _filled(self, o: Operation, part: str) -> _Made | None:
        """Make the temporary file; None where its bytes are not those of the plan (they are read again for a move)."""
        source = self._path(o.source)
        before = look_up(source) if o.verb is Verb.MOVE else None
        try:
            made = self._copied(o, source, part)
        except FileExistsError:  # left by an interrupted attempt
            if part == self.parts.of(o):
                self.parts.clear(o)
            else:
                self._files.unlink(part)
            made = self._copied(o, source, part)
        if made.copied.sha256 != o.sha256:
            return None
        if o.verb is Verb.MOVE:
            if sha256_of(part) != o.sha256:
                return None
            ctime_ns = before.st_ctime_ns if before is not None else 0
            self._remover.proven[o.number] = made.copied.device, made.copied.inode, stamp_of(o), ctime_ns
        return made

    def _copied(self, o: Operation, source: str, target: str, metadata: Metadata | None = None) -> _Made:
        """Make a copy; one with an owner, as a move's, gets ``metadata``, or else that of the source."""
        if o.verb is not Verb.MOVE and o.owner is None:
            return _Made(copy(self._files, source, target, mode_of(o), stamp_of(o)))
        wanted = lambda found: metadata or wanted_metadata(o, found)
        return _Made(*copy_with_metadata(self._files, source, target, wanted, stamp_of(o)))

    def remove_source(self, o: Operation) -> Result | Fatal | None:
        """After the result is durable: remove the temporary copy, and the source of a move or remove.

        A plan may be executed again much later, so what replaces the source must be there at this moment. A result is
        returned only where the source stays; then ``roll_back`` removes what was placed. Fatal where the temporary copy
        cannot be removed, or the disk of the source refuses.
        """
        if o.verb is Verb.COPY or o.verb is Verb.LINK:
            return self.parts.remove(o)
        with self.kept_open():
            stuck: Result | Fatal | None
            try:
                stuck, linked = self._remover.remove(o)
            except OSError as error:
                stuck, linked = outcome_unseen(o, error, is_final=self._gives_up), False
            cleared = None if linked else self.parts.remove(o)
            return stuck or cleared

    def roll_back(self, o: Operation, inode: int) -> bool:
        """Remove the new name of a file whose source stays; return whether it may still hold the bytes of the plan.

        It stays where the source is gone or has changed, as nothing else may hold them, and where another run needs it.
        """
        if o.verb is not Verb.MOVE:
            return False
        with contextlib.suppress(OSError), self.kept_open():
            source, target = (look_up(self._path(place)) for place in (o.source, o.target))
            is_ours = source is not None and target is not None and target.st_ino == inode and is_unchanged(o, source)
            # An inode may be somebody's new file's by now.
            is_same = is_ours and self._remover.is_same(o.source, o.target)
            if is_same and self._is_needed(o.target, o.sha256):
                return True
            if is_same and not self._mounts.may_be_one(o.target, o.source):  # else it is the source, by another path
                self._files.unlink(self._path(o.target))
            elif not is_same and self.parts.holds(o, o.target):
                return True
            return source is None
        return True
