"""The temporary copy (part file) of an operation, and the new name that an interrupted attempt has made of it."""

from __future__ import annotations

import contextlib
import os
from enum import Enum

from dicomsort.execute.leaving import is_stamped, is_unchanged, mode_of, stamp_of, wanted_metadata
from dicomsort.execute.outcomes import UNREACHABLE, Fatal
from dicomsort.execute.roots import Resolver, renaming_name, spare_name
from dicomsort.files import NO_RENAME, PATH_MAX, Files, flush_and_drop, flush_path, look_up, opened, sha256_of
from dicomsort.journal import Replay
from dicomsort.metadata import apply_metadata, metadata_of
from dicomsort.records import Lost, Operation, Verb

_NOT_SEEN = "its source was not seen again, and may still be there"


class OwnCopy(Enum):
    """What an earlier attempt of this run has left under a new name; ``FLUSHED`` is whole, and was so on the disk."""

    NONE, TORN, WHOLE, FLUSHED = range(4)


class PartFiles:
    """Finds, judges and removes the part files of a run; safe to call from several threads.

    ``known`` says which operations an earlier attempt of this run had begun, if it ``is_resumed``.
    """

    def __init__(
        self,
        files: Files,
        resolver: Resolver,
        run: str,
        known: Replay,
        *,
        is_resumed: bool,
    ) -> None:
        self._files = files
        self._roots = resolver.roots
        self._path, self._kept_open = resolver.path, resolver.kept_open
        self._run = run
        self._known, self._begun = known, frozenset(known.begun)
        self._is_resumed = is_resumed
        self._marked: set[int] = set()  # operations whose part file this attempt has renamed

    def of(self, o: Operation) -> str:
        """Return the temporary copy's path: beside the target, or as near above it as the length of paths allows.

        Else it is in the outbox, whose state folder has longer paths; where that is on another file system than the
        target, the target is made as where links do not exist.
        """
        name, folder = f".dicomsort-{self._run}-{o.number}.part", o.target
        while folder := folder.rpartition("/")[0]:
            if len(os.fsencode(f"{self._roots.absolute(folder)}/{spare_name(name)}")) < PATH_MAX:  # the longest of them
                return self._path(f"{folder}/{name}")
        return f"{self._roots.outbox}/{name}"

    def is_whole(self, o: Operation) -> bool:
        """Whether an earlier attempt has left a temporary copy that holds the bytes of the plan."""
        if o.verb is not Verb.COPY and o.verb is not Verb.MOVE:
            return False
        return _holds(o, self.of(o))

    def holds(self, o: Operation, place: str) -> bool:
        """Whether the file at a place is seen, and holds the bytes of the plan."""
        with contextlib.suppress(OSError):
            return _holds(o, self._path(place))
        return False

    def is_alone(self, o: Operation) -> bool:
        """Whether a temporary copy may be the last of the bytes: it is whole, and the source does not hold them."""
        return self.is_whole(o) and not self.holds(o, o.source)

    def stays(self, o: Operation) -> str:
        """Return in words that a part file stays, and why."""
        return f"{o.source!r} is not seen, so the whole temporary copy {os.path.basename(self.of(o))!r} stays"

    def own_copy(self, o: Operation, target: os.stat_result | None) -> OwnCopy:
        """Return how far an interrupted attempt came with the target, NONE where it or its part file is not there."""
        if target is None:
            return OwnCopy.NONE
        made, path = look_up(part := self.of(o)), self._path(o.target)
        # A power cut may take the bytes of a whole copy and leave its time; who edits a file gives it another time.
        has_time = is_stamped(target, stamp_of(o))
        if made is None:  # FAT numbers its inodes anew each time that it is mounted
            is_renamed = has_time and look_up(renaming_name(part)) is not None and _holds(o, path)
            return OwnCopy.FLUSHED if is_renamed else OwnCopy.NONE
        if not os.path.samestat(made, target):
            return OwnCopy.NONE
        return OwnCopy.WHOLE if _holds(o, path) else OwnCopy.TORN if has_time else OwnCopy.NONE

    def put_at(self, o: Operation, target: str) -> None:
        """Give a temporary copy its name where there are no links; it is flushed before.

        A file beside it tells afterwards that the name was made so: it is there before the renaming, the part file
        after it is not. Where the system cannot rename without replacing, a file that was created for it is replaced.
        """
        part, mark = self.of(o), renaming_name(self.of(o))
        if os.lstat(part).st_dev not in self._files.flushed_singly:  # else who wrote it has flushed it
            self._flush(part)
        self._marked.add(o.number)
        with contextlib.suppress(FileExistsError):
            os.close(self._files.create(mark))
        try:
            self._rename(part, target)
        except OSError:
            _unlink(self._files, mark)
            raise

    def _rename(self, part: str, target: str) -> None:
        try:
            self._files.rename(part, target)
        except OSError as error:
            if error.errno not in NO_RENAME:
                raise
            os.close(self._files.create(target))
            try:
                self._files.replace(part, target)
            except OSError:
                if look_up(part) is not None:  # else it took place
                    self._files.unlink(target)
                raise

    def _flush(self, part: str) -> None:
        try:
            flush_path(self._files, part)
        except PermissionError:  # its mode forbids to open it again
            self._files.flush_system(os.path.dirname(part))

    def reread(self, o: Operation) -> bool:
        """Whether the temporary copy holds the bytes of the plan on the disk; it is flushed, and read from there."""
        with opened(self.of(o)) as descriptor:
            flush_and_drop(self._files, descriptor)
        return self.is_whole(o)

    def discard(self, o: Operation) -> None:
        """Remove a new name of an earlier attempt that is made anew: torn, or while its source holds the bytes."""
        with self._kept_open():
            target = look_up(self._path(o.target)) if o.target else None
            own = self.own_copy(o, target)
            if own is OwnCopy.TORN or (own is not OwnCopy.NONE and self.holds(o, o.source)):
                self._files.unlink(self._path(o.target))

    def complete(self, o: Operation, inode: int) -> tuple[str, int, Lost | None]:
        """Set again what a whole copy gets last; return what it could not keep in words, its inode, and the loss."""
        path, part = self._path(o.target), self.of(o)
        if o.verb is not Verb.MOVE:
            self._files.set_mode(path, mode_of(o))
            self._files.set_mtime(path, stamp_of(o))
            return "", inode, None
        origin, words = path if look_up(part) is None else part, _NOT_SEEN
        with contextlib.suppress(OSError):
            source = look_up(self._path(o.source))
            if source is not None and is_unchanged(o, source):  # its disk may keep more than that of the part file
                origin, words = self._path(o.source), ""
        with opened(origin) as reader, opened(path) as copied:
            message, lost = apply_metadata(self._files, copied, wanted_metadata(o, metadata_of(reader)), stamp_of(o))
        return "; ".join(filter(None, (message, words))), inode, lost

    def is_last(self, o: Operation) -> bool:
        """Whether nothing but the temporary copy may hold the bytes of an operation that is not done.

        It is so where nobody can tell. A target that holds them is flushed: it may be somebody's of a moment ago.
        """
        if self._known.is_done(o.number):
            return False
        try:
            with self._kept_open():
                if not self.is_alone(o):
                    return False
                if self.holds(o, o.target):
                    for path in (self._path(o.target), self._path(o.target.rpartition("/")[0])):
                        flush_path(self._files, path)
                    return False
        except OSError:
            return self.is_there(o)
        return True

    def is_there(self, o: Operation) -> bool:
        """Whether the temporary copy is there."""
        with contextlib.suppress(OSError), self._kept_open():
            return look_up(self.of(o)) is not None
        return False

    def remove(self, o: Operation) -> Fatal | None:
        """Remove the temporary copy; return Fatal with the reason where it cannot be removed."""
        try:
            with self._kept_open():
                if self.is_last(o):
                    return Fatal(self.stays(o))
                self.clear(o)
        except OSError as error:
            if error.errno in UNREACHABLE and not self.is_there(o):  # nobody can tell; the walk names it later
                return None
            return Fatal(f"removing the temporary copy of {o.source!r}: expected success, received {error.strerror}")
        return None

    def clear(self, o: Operation) -> None:
        """Remove the temporary copy, if there is one."""
        if o.verb is Verb.COPY or o.verb is Verb.MOVE:
            part = self.of(o)
            if o.number in self._begun:
                _unlink(self._files, spare_name(part))
            if self._is_resumed or o.number in self._marked:
                _unlink(self._files, renaming_name(part))  # first: without the part file it says that this was renamed
            _unlink(self._files, part)


def _unlink(files: Files, path: str) -> None:
    """Remove a name that may be there."""
    try:
        files.unlink(path)
    except OSError:
        if look_up(path) is not None:
            raise


def _holds(o: Operation, path: str) -> bool:
    """Whether the file at a path holds the bytes of the plan."""
    there = look_up(path)
    return there is not None and there.st_size == o.size and sha256_of(path) == o.sha256
