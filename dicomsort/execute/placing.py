"""One file operation: what it meets, what it does, and how a half-done one is recognised after a crash."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from dicomsort.files import (
    NO_LINK,
    Files,
    chunks,
    copy_bytes,
    look_up,
    opened,
    same_bytes,
    sha256_of,
)
from dicomsort.journal import Replay
from dicomsort.records import Operation, Outcome, Result, Verb

_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class Roots:
    """The absolute folders that ``inbox/`` and ``outbox/`` stand for."""

    inbox: str
    outbox: str

    def absolute(self, path: str) -> str:
        """The absolute path of one that begins with its root."""
        root, slash, rest = path.partition("/")
        return (self.inbox if root == "inbox" else self.outbox) + slash + rest


@dataclass(frozen=True, slots=True)
class Fatal:
    """The disk itself refused: the run ends here, and ``resume`` goes on."""

    message: str


class Placer:
    """Checks, does and finishes single operations; safe to call from several threads."""

    def __init__(self, files: Files, roots: Roots, run: str, known: Replay) -> None:
        """``known`` tells which operations an earlier attempt of this run had begun."""
        self._files = files
        self._roots = roots
        self._run = run
        self._begun = frozenset(known.begun)

    def check(self, o: Operation) -> Result | None:
        """What can be said before anything is done; None where the operation is to be done."""
        try:
            return self._check(o)
        except OSError as error:
            return Result(o.number, Outcome.FAILED, f"{error.strerror}")

    def _check(self, o: Operation) -> Result | None:
        source = look_up(self._roots.absolute(o.source))
        ours = o.number in self._begun
        if o.target and (target := look_up(self._roots.absolute(o.target))) is not None:
            return self._recognise(o, target, source) if ours else self._occupied(o, target)
        if source is None:
            if o.verb is Verb.REMOVE and ours:
                return Result(o.number, Outcome.DONE)
            return Result(o.number, Outcome.CHANGED, "the file is gone")
        if not _unchanged(o, source):
            return Result(o.number, Outcome.CHANGED, "the file changed after it was judged")
        if o.verb is Verb.REMOVE and not self._same(o.source, o.kept):
            return Result(o.number, Outcome.CHANGED, "the kept file does not hold the same bytes any more")
        return None

    def _recognise(self, o: Operation, target: os.stat_result, source: os.stat_result | None) -> Result | None:
        """A target that an attempt cut short may have made: ours by inode, or torn and ours to make again."""
        if target.st_ino == o.inode and o.verb is not Verb.COPY:
            return Result(o.number, Outcome.DONE, inode=target.st_ino)
        part, path = self._part(o), self._roots.absolute(o.target)
        made = look_up(part)
        if made is None or source is None or not (made.st_ino == target.st_ino or _is_beginning(path, part)):
            return self._occupied(o, target)
        if target.st_size == o.size and sha256_of(path) == o.sha256:
            self._stamp(o, path)
            return Result(o.number, Outcome.DONE, inode=target.st_ino)
        self._files.unlink(path)
        return None

    def _occupied(self, o: Operation, target: os.stat_result) -> Result:
        if stat.S_ISREG(target.st_mode) and target.st_size == o.size:
            same = target.st_ino == o.inode or sha256_of(self._roots.absolute(o.target)) == o.sha256
            if same:
                return Result(o.number, Outcome.DUPLICATE, "the same file is there already", target.st_ino)
        return Result(o.number, Outcome.CONFLICT, "another file stands at the destination; both were kept")

    def act(self, o: Operation) -> Result | Fatal:
        """Make the new name; the source stays. Fatal where the disk, not the file, is the cause."""
        target = self._roots.absolute(o.target)
        try:
            if o.verb is Verb.REMOVE:
                return Result(o.number, Outcome.DONE)
            return self._new_name(o, target)
        except FileExistsError:
            status = look_up(target)
            return self._occupied(o, status) if status else Result(o.number, Outcome.CONFLICT, "a race for the name")
        except FileNotFoundError:
            if look_up(self._roots.absolute(o.source)) is None:
                return Result(o.number, Outcome.CHANGED, "the file vanished while it was placed")
            return Result(o.number, Outcome.FAILED, "the destination's folder vanished")
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _FATAL:
                return Fatal(f"placing {o.source!r} at {o.target!r}: expected success, received {reason}")
            return Result(o.number, Outcome.FAILED, reason)

    def _new_name(self, o: Operation, target: str) -> Result:
        if o.verb is not Verb.COPY:
            try:
                self._files.link(self._roots.absolute(o.source), target)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                if o.verb is Verb.LINK:
                    message = f"hard link refused ({error.strerror}); use --copy or --move"
                    return Result(o.number, Outcome.FAILED, message)
            else:
                return Result(o.number, Outcome.DONE, inode=os.lstat(target).st_ino)
        return self._copy(o, target)

    def _copy(self, o: Operation, target: str) -> Result:
        source, part = self._roots.absolute(o.source), self._part(o)
        if look_up(part) is not None:
            self._files.unlink(part)
        digest = copy_bytes(self._files, source, part)
        if o.verb is Verb.MOVE and digest == o.sha256:
            digest = sha256_of(part)
        if digest != o.sha256:
            self._files.unlink(part)
            return Result(o.number, Outcome.CHANGED, "the bytes changed after the file was judged")
        self._stamp(o, part)
        try:
            self._files.link(part, target)
        except OSError as error:
            if error.errno == errno.EEXIST:
                self._files.unlink(part)
            if error.errno not in NO_LINK:
                raise
            copy_bytes(self._files, part, target)
            self._stamp(o, target)
        return Result(o.number, Outcome.DONE, inode=os.lstat(target).st_ino)

    def finish(self, o: Operation, result: Result) -> None:
        """After the result is durable: remove the temporary copy, and the source of a move or remove."""
        copied = o.verb in {Verb.COPY, Verb.MOVE} and result.inode != o.inode
        if copied and look_up(part := self._part(o)) is not None:
            self._files.unlink(part)
        if o.verb in {Verb.MOVE, Verb.REMOVE}:
            path = self._roots.absolute(o.source)
            source = look_up(path)
            if source is not None and _unchanged(o, source):
                self._files.unlink(path)

    def _part(self, o: Operation) -> str:
        folder = self._roots.absolute(o.target).rpartition("/")[0]
        return f"{folder}/.dicomsort-{self._run}-{o.number}.part"

    def _stamp(self, o: Operation, path: str) -> None:
        self._files.set_mode(path, o.mode & 0o777)  # a copy made by root must not become somebody's setuid program
        self._files.set_mtime(path, o.stamp_ns or o.mtime_ns)

    def _same(self, one: str, other: str) -> bool:
        try:
            return same_bytes(self._roots.absolute(one), self._roots.absolute(other))
        except FileNotFoundError:
            return False


def _unchanged(o: Operation, status: os.stat_result) -> bool:
    seen = (status.st_size, status.st_mtime_ns, status.st_ino)
    return stat.S_ISREG(status.st_mode) and seen == (o.size, o.mtime_ns, o.inode)


def _is_beginning(path: str, whole: str) -> bool:
    """Whether the one file holds the beginning of the other: a copy that was cut short."""
    with opened(path) as shorter, opened(whole) as longer:
        offset = 0
        for piece in chunks(shorter):
            if piece != os.pread(longer, len(piece), offset):
                return False
            offset += len(piece)
    return True
