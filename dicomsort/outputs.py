"""The one gate for outputs that an option names: a log, metrics, a page, a journal, a folder of results.

A path is refused where it would damage what the command reads, what an outbox holds, or a file of somebody else's.
Links are resolved first. ``content.Replaced`` and the log check again when they write.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dicomsort.config import quoted
from dicomsort.content import DEVICES, Content
from dicomsort.errors import DicomsortError, UsageError
from dicomsort.files import look_up
from dicomsort.journal import STATE
from dicomsort.records import OTHER, REVIEW, UNREADABLE
from dicomsort.report import MANIFEST, history

_CLASSES = frozenset({"CT", "MRI", "XRAY"})
_OWN = frozenset({STATE, MANIFEST, OTHER, REVIEW, UNREADABLE, *_CLASSES})


@dataclass(frozen=True, slots=True)
class Gate:
    """What a command reads, and where it places files: no output may lie in either.

    ``reads`` are files and folders by their names in the help; ``outbox`` is the command's own, ``labels`` are its
    model's classes.
    """

    reads: Mapping[str, str]
    outbox: str | None = None
    labels: Collection[str] = ()
    _options: dict[str, str] = field(default_factory=dict)  # real path -> the option that names it

    def check_file(self, option: str, path: Path, content: Content, *, devices: bool = True) -> str:
        """Return the real path of a file that may be written or replaced; UsageError where it may not.

        Where ``devices``, the standard streams and ``/dev/null`` are accepted by their names.
        """
        if str(path) in DEVICES and devices:
            return str(path)
        target = self._resolved(option, path, "file")
        if (other := self._options.setdefault(target, option)) != option:
            raise UsageError(f"{option}: expected another file than {other} names, received {quoted(path)}")
        parent = os.path.dirname(target)
        if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"{option}: expected a file in a folder that can be written, received {quoted(path)}")
        there = look_up(target)
        if there and stat.S_ISREG(there.st_mode) and there.st_nlink > 1:
            raise UsageError(f"{option}: expected a file of one name, received {str(path)!r}: it has other names")
        if problem := content.problem(target):
            raise UsageError(f"{option}: expected a new file or {content.name}, received {quoted(path)}: {problem}")
        return target

    def check_folder(self, option: str, path: Path, problem: Callable[[str], str] = lambda _: "") -> str:
        """Return the real path of a folder that may be made or added to; UsageError where it may not.

        ``problem`` returns what is wrong with a folder that exists.
        """
        target = self._resolved(option, path, "folder")
        nearest = target
        while look_up(nearest) is None:
            nearest = os.path.dirname(nearest)
        if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK | os.X_OK):
            raise UsageError(f"{option}: expected a folder that can be written, received {quoted(path)}")
        if nearest == target and (wrong := problem(target)):
            raise UsageError(
                f"{option}: expected a new folder or one of earlier results, received {quoted(path)}: {wrong}"
            )
        return target

    def _resolved(self, option: str, path: Path, what: str) -> str:
        if not str(path) or "\0" in str(path):
            raise UsageError(f"{option}: expected a path, received {quoted(path)}")
        try:
            target = os.path.realpath(path)
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(target)
        except OSError as error:
            raise UsageError(f"{option}: expected a path, received {quoted(path)} ({error.strerror})") from None
        for name, read in self.reads.items():
            if _is_within(target, os.path.realpath(read)):
                raise UsageError(f"{option}: expected a {what} outside the {name}, received {quoted(path)}")
        for outbox in self._outboxes(target):
            if _is_own(outbox, target, self.labels):
                received = f"received {quoted(path)}; another name at its top, or a place outside, will do"
                raise UsageError(f"{option}: expected a {what} that is none of the outbox's own, {received}")
        return target

    def _outboxes(self, target: str) -> list[str]:
        """Return the command's outbox and all others that a path lies in."""
        own = [os.path.realpath(self.outbox)] if self.outbox else []
        above = [target, *map(str, Path(target).parents)][:-1]
        others = [folder for folder in above if os.path.isdir(f"{folder}/{STATE}/runs")]
        return [outbox for outbox in dict.fromkeys([*own, *others]) if _is_within(target, outbox)]


def _is_within(path: str, folder: str) -> bool:
    """Whether a path is another or lies below it; hard links to a file count as the file."""
    if os.path.commonpath([path, folder]) == folder:
        return True
    here, there = look_up(path), look_up(folder)
    return here is not None and there is not None and os.path.samestat(here, there)


def _is_own(outbox: str, target: str, labels: Collection[str]) -> bool:
    """Whether a path is the outbox, or one of the names that dicomsort makes at its top, or below such a name."""
    top = os.path.relpath(target, outbox).split("/")[0]
    if top == "." or top in _OWN or top in labels or top.startswith(f"{MANIFEST}."):
        return True
    if not os.path.isdir(f"{outbox}/{top}"):
        return False
    try:
        return any(placement.destination.split("/")[0] == top for _, placement in history(outbox))
    except DicomsortError:
        return False
