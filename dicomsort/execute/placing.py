"""One file operation: its checks, its steps, and how an unfinished one is recognised after a crash."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from enum import Enum
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
)
from dicomsort.execute.outcomes import UNREACHABLE, Fatal, outcome_of_error, outcome_unseen
from dicomsort.execute.removing import NOT_KEPT, Remover
from dicomsort.execute.roots import Resolver, Roots, second_name
from dicomsort.execute.two_mounts import TwoMounts
from dicomsort.files import (
    NO_LINK,
    PATH_MAX,
    Copied,
    Files,
    begins_with,
    copy,
    look_up,
    opened,
    same_bytes,
    sha256_of,
)
from dicomsort.journal import Replay
from dicomsort.metadata import ACL, Applied, Metadata, apply_metadata, copy_with_metadata, lost_with, metadata_of
from dicomsort.records import Lost, Operation, Outcome, Result, Verb

_NOT_SEEN = "its source was not seen again, and may still be there"
_CREATED_MODE = 0o600  # of files that are not complete yet


class _OwnCopy(Enum):
    """What an earlier attempt of this run has left under a new name."""

    NONE, TORN, WHOLE = range(3)


class _Made(NamedTuple):
    """A new file; if it moved, the metadata of its source, and what could not be kept of it."""

    copied: Copied
    metadata: Metadata | None = None
    applied: Applied = Applied()


class Placer:
    """Checks, applies and finishes single operations; safe to call from several threads.

    ``known`` says which operations an earlier attempt of this run had begun; ``is_theirs``, ``gives_up``: see
    ``Executor``.
    """

    def __init__(
        self,
        files: Files,
        roots: Roots,
        run: str,
        known: Replay,
        is_theirs: Callable[[str], object] = lambda _: False,
        *,
        gives_up: bool = False,
    ) -> None:
        self._files = files
        self._roots = roots
        self._resolver = Resolver(roots)
        self._path, self.held = self._resolver.path, self._resolver.held
        self._run = run
        self._known = known
        self._begun = frozenset(known.begun)
        self._is_theirs = is_theirs
        self._gives_up = gives_up
        self._leaving = Leaving()
        self._mounts = TwoMounts(files, self._path)
        self._remover = Remover(files, self._path, self._mounts)
        self._has_links: dict[int, bool] = {}  # device -> whether its file system makes links
        self.flushed: set[int] = set()  # whose copies are durable, as their file systems flush files one by one
        self.copies = False  # whether links were refused, so that files were copied instead

    def check(self, o: Operation, *, fresh: bool = False) -> Result | None:
        """Return the result of an operation that cannot be done or is done already, else None.

        ``fresh``: the target's folder is not there yet, so neither is the target.
        """
        try:
            with self.held():
                return self._check(o, fresh=fresh)
        except OSError as error:
            return Result(o.number, Outcome.FAILED, f"{error.strerror}")

    def _check(self, o: Operation, *, fresh: bool) -> Result | None:
        target = self._target(o) if o.target and not fresh else None
        if target is not None and o.number not in self._begun:
            return self._occupied(o, target)
        if target is not None:
            return self._recognise(o, target)
        if o.number in self._begun and self._is_in_part_alone(o):
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
            return Result(o.number, Outcome.CHANGED, NOT_KEPT)
        return None

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

        A copy is not believed that can be made again from its source. Its flush may have failed, which Linux says once;
        then it calls the pages clean, and reading finds them whole.
        """
        if o.verb is not Verb.COPY and self._is_renamed(o, target):
            return self._under_its_new_name(o, target)
        own, is_in_source = self._own_copy(o, target), self._is_in_source(o)
        if own is _OwnCopy.WHOLE and not is_in_source:
            return Result(o.number, Outcome.DONE, *self._complete(o, target.st_ino))
        if own is not _OwnCopy.NONE and (is_in_source or self._has_whole_part(o)):
            self._files.unlink(self._path(o.target))
            return None
        occupied = self._occupied(o, target)
        if occupied.outcome is Outcome.CONFLICT and self._is_in_part_alone(o):
            return Result(o.number, Outcome.CONFLICT, f"{occupied.message}; {self._stays(o)}")
        self._unlink_part(o)
        return occupied

    def _is_renamed(self, o: Operation, target: os.stat_result) -> bool:
        """Whether the target is the source under its new name."""
        try:
            source = look_up(self._path(o.source))
        except OSError:
            source = None
        return is_one_file(o, target, source)

    def _own_copy(self, o: Operation, target: os.stat_result) -> _OwnCopy:
        """Return how far an interrupted attempt came with the target, NONE where another made that."""
        part, path = self._part(o), self._path(o.target)
        made = look_up(part)
        if made is None:
            return _OwnCopy.NONE
        is_part = os.path.samestat(made, target)
        is_copy = target.st_nlink == 1 and not self._links(part, target.st_dev)
        if not is_part and (not is_copy or self._is_theirs(o.target)):
            return _OwnCopy.NONE
        if target.st_size == o.size and sha256_of(path) == o.sha256:
            return _OwnCopy.WHOLE
        # A power cut may take the bytes of a whole copy and leave its time; who edits a file gives it another time.
        is_torn = is_stamped(target, stamp_of(o)) if is_part else self._is_torn(path, target, part)
        return _OwnCopy.TORN if is_torn else _OwnCopy.NONE

    def _is_in_source(self, o: Operation) -> bool:
        """Whether the source is seen, and holds the bytes of the plan; another file may have its place."""
        with contextlib.suppress(OSError):
            source = look_up(path := self._path(o.source))
            return source is not None and source.st_size == o.size and sha256_of(path) == o.sha256
        return False

    def _has_whole_part(self, o: Operation) -> bool:
        """Whether an earlier attempt has left a temporary copy that holds the bytes of the plan."""
        if o.verb is not Verb.COPY and o.verb is not Verb.MOVE:
            return False
        made = look_up(part := self._part(o))
        return made is not None and made.st_size == o.size and sha256_of(part) == o.sha256

    def _is_in_part_alone(self, o: Operation) -> bool:
        """Whether a temporary copy may be the last of the bytes: it is whole, and the source does not hold them."""
        return self._has_whole_part(o) and not self._is_in_source(o)

    def _stays(self, o: Operation) -> str:
        return f"its source is not seen, so the whole temporary copy {os.path.basename(self._part(o))!r} stays"

    def _is_torn(self, path: str, status: os.stat_result, part: str) -> bool:
        """Whether a file is our own copy of ``part``, cut short: not yet stamped, and the beginning of it.

        exFAT gives all files one mode.
        """
        if stat.S_IMODE(status.st_mode) != _CREATED_MODE:
            with contextlib.suppress(OSError):
                self._files.set_mode(part, _CREATED_MODE)
            if os.lstat(part).st_mode != status.st_mode:
                return False
        with opened(path) as shorter, opened(part) as longer:
            return begins_with(longer, shorter)

    def _links(self, part: str, device: int) -> bool:
        """Whether the file system of a temporary copy makes hard links: then only a file of its inode is ours."""
        if device not in self._has_links:
            try:
                self._files.link(part, second := second_name(part))
                self._files.unlink(second)
                self._has_links[device] = True
            except OSError as error:  # refused, or no room for a name; a second name that is there was made by a link
                self._has_links[device] = isinstance(error, FileExistsError)
        return self._has_links[device]

    def _complete(self, o: Operation, inode: int) -> tuple[str, int, Lost | None]:
        """Set again what a whole copy gets last; return what it could not keep in words, its inode, and the loss."""
        path, part = self._path(o.target), self._part(o)
        if o.verb is not Verb.MOVE:
            self._files.set_mode(path, mode_of(o))
            self._files.set_mtime(path, stamp_of(o))
            return "", inode, None
        with opened(part) as reader, opened(path) as copied:
            message, lost = apply_metadata(self._files, copied, _wanted(o, metadata_of(reader)), stamp_of(o))
        return "; ".join(filter(None, (message, _NOT_SEEN))), inode, lost

    def _occupied(self, o: Operation, target: os.stat_result) -> Result:
        if stat.S_ISREG(target.st_mode) and target.st_size == o.size:
            same = is_one_file(o, target, None) or sha256_of(self._path(o.target)) == o.sha256
            if same:
                return Result(o.number, Outcome.DUPLICATE, "the same file is there already", target.st_ino)
        return Result(o.number, Outcome.CONFLICT, "another file stands at the destination; both were kept")

    def apply(self, o: Operation) -> Result | Fatal:
        """Make the new name; the source stays. Fatal where the disk, not the file, is the cause."""
        try:
            with self.held():
                return self._placed(o)
        except OSError as error:
            return outcome_of_error(o, error, f"placing {o.source!r} at {o.target!r}")

    def _placed(self, o: Operation) -> Result:
        target = self._path(o.target)
        try:
            if o.verb is Verb.REMOVE:
                return Result(o.number, Outcome.DONE, lost=lost_with(self._path(o.source)))
            if o.number in self._begun and self._is_in_part_alone(o):
                return self._name_part(o, target)
            return self._new_name(o, target)
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
        """Give a temporary copy of an earlier attempt its name; where there are no links, copy it."""
        part = self._part(o)
        try:
            self._link(part, target)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            self._copied(o, part, target)
            if not same_bytes(part, target):
                self._files.unlink(target)
                return Result(o.number, Outcome.FAILED, f"its copy holds other bytes; {self._stays(o)}")
        return Result(o.number, Outcome.DONE, *self._complete(o, os.lstat(target).st_ino))

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
                message, lost = apply_metadata(self._files, file, _wanted(o, there), stamp_of(o))
        except OSError as error:
            message, lost = f"not restored: owner, mode and time ({error.strerror})", None
        return Result(o.number, Outcome.DONE, message, status.st_ino, lost)

    def _copy(self, o: Operation, target: str) -> Result:
        part = self._part(o)
        try:
            made = self._filled(o, part)
            if made is None:
                self._files.unlink(part)
                return Result(o.number, Outcome.CHANGED, "the bytes changed after the file was judged")
            try:
                self._link(part, target)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                made = self._copied(o, part, target, made.metadata)
        except OSError:
            with contextlib.suppress(OSError):
                self._files.unlink(part)
            raise
        if made.copied.device in self._files.flushed_singly:
            self.flushed.add(o.number)
        return Result(o.number, Outcome.DONE, made.applied.message, made.copied.inode, made.applied.lost)

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
        wanted = lambda found: metadata or _wanted(o, found)
        return _Made(*copy_with_metadata(self._files, source, target, wanted, stamp_of(o)))

    def remove_source(self, o: Operation) -> Result | Fatal | None:
        """After the result is durable: remove the temporary copy, and the source of a move or remove.

        A plan may be executed again much later, so what replaces the source must be there at this moment. A result is
        returned only where the source stays; then ``roll_back`` removes what was placed. Fatal where the temporary copy
        cannot be removed, or the disk of the source refuses.
        """
        if o.verb is Verb.COPY or o.verb is Verb.LINK:
            return self.remove_part(o)
        with self.held():
            stuck: Result | Fatal | None
            try:
                stuck, linked = self._remover.remove(o)
            except OSError as error:
                stuck, linked = outcome_unseen(o, error, is_final=self._gives_up), False
            cleared = None if linked else self.remove_part(o)
            return stuck or cleared

    def roll_back(self, o: Operation, inode: int) -> bool:
        """Remove the new name of a file whose source stays, unless it holds other bytes by now; return success.

        The new name stays where the source is gone or has changed: then nothing else may hold the bytes.
        """
        if o.verb is not Verb.MOVE:
            return True
        with contextlib.suppress(OSError), self.held():
            source, target = (look_up(self._path(place)) for place in (o.source, o.target))
            is_ours = source is not None and target is not None and target.st_ino == inode and is_unchanged(o, source)
            # An inode may be somebody's new file's by now.
            is_same = is_ours and self._remover.is_same(o.source, o.target)
            if is_same and not self._mounts.may_be_one(o.target, o.source):
                self._files.unlink(self._path(o.target))
            return source is not None
        return False

    def remove_part(self, o: Operation) -> Fatal | None:
        """Remove the temporary copy; return Fatal with the reason where it cannot be removed."""
        try:
            with self.held():
                if self.is_last(o):
                    return Fatal(f"{o.source!r}: {self._stays(o)}")
                self._unlink_part(o)
        except OSError as error:
            if error.errno in UNREACHABLE and not self.has_part(o):  # nobody can tell; the walk names it later
                return None
            return Fatal(f"removing the temporary copy of {o.source!r}: expected success, received {error.strerror}")
        return None

    def has_part(self, o: Operation) -> bool:
        """Whether the temporary copy is there."""
        with contextlib.suppress(OSError), self.held():
            return look_up(self._part(o)) is not None
        return False

    def is_last(self, o: Operation) -> bool:
        """Whether nothing but the temporary copy may hold the bytes of an operation that is not done."""
        with contextlib.suppress(OSError), self.held():
            if self._known.is_done(o.number) or not self._is_in_part_alone(o):
                return False
            target = look_up(path := self._path(o.target))
            return target is None or sha256_of(path) != o.sha256
        return False

    def _unlink_part(self, o: Operation) -> None:
        """Remove the temporary copy, if there is one."""
        if o.verb is Verb.COPY or o.verb is Verb.MOVE:
            part = self._part(o)
            if o.number in self._begun:
                with contextlib.suppress(OSError):
                    self._files.unlink(second_name(part))
            try:
                self._files.unlink(part)
            except OSError:
                if look_up(part) is not None:
                    raise

    def _part(self, o: Operation) -> str:
        """Return the temporary copy's path: beside the target, or as near above it as the length of paths allows.

        Else it is in the outbox, whose state folder has longer paths; where that is on another file system than the
        target, the target is made as where links do not exist.
        """
        name, folder = f".dicomsort-{self._run}-{o.number}.part", o.target
        while folder := folder.rpartition("/")[0]:
            if len(os.fsencode(f"{self._roots.absolute(folder)}/{name}")) < PATH_MAX:
                return self._path(f"{folder}/{name}")
        return f"{self._roots.outbox}/{name}"


def _wanted(o: Operation, found: Metadata) -> Metadata:
    """Return the metadata for a file that moves: the plan's where an earlier move could not keep it, else its present.

    Set-ID bits are kept only where the file has them with its present owner: the plan is older.
    """
    if o.owner is not None:
        own = found if o.verb is Verb.MOVE else found._replace(attributes={})  # a copy is of another file
        return own._replace(owner=o.owner[0], group=o.owner[1], mode=o.mode)
    return found._replace(mode=o.mode & (found.mode | 0o777))
