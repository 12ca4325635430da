"""Folders: those that targets need, made after they were journalled; and the folder operations of a plan."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from dicomsort.execute.placing import Fatal, Roots, ending
from dicomsort.files import Files, look_up
from dicomsort.records import Operation, Outcome, Result, Verb

_NAME_REFUSED = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})
_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY})


class NotMade(NamedTuple):
    """A folder that cannot be made, and why."""

    path: str
    error: OSError

    def ending(self, operation: Operation) -> Result | Fatal:
        """How an operation ends that needs the folder: a name that cannot be costs its own files, all else the run."""
        message = f"making folder {self.path!r}: expected success, received {self.error.strerror}"
        if self.error.errno in _NAME_REFUSED:
            return Result(operation.number, Outcome.FAILED, message)
        return Fatal(message)


class Folders:
    """Knows which folders are there, so that each is looked up once a run."""

    def __init__(self, files: Files, roots: Roots, begun: Iterable[str] = ()) -> None:
        """Start with the roots alone, which must be there; ``begun`` are those that a dead attempt was to make."""
        self._files = files
        self._roots = roots
        self._there: set[str] = {"inbox", "outbox"}
        self._devices: dict[str, int] = {}
        self._ours = set(begun)  # made by this run, or perhaps made by the attempt that was cut short

    def survey(self, operations: Sequence[Operation]) -> tuple[set[str], dict[int, Result | Fatal]]:
        """Which folders are missing, and which operations cannot go on: where a folder should be is something else."""
        absent: set[str] = set()
        refused: dict[int, Result | Fatal] = {}
        for operation in operations:
            try:
                if folder := folder_of(operation):
                    absent.update(self._missing(folder, absent))
            except NotADirectoryError as error:
                refused[operation.number] = Result(operation.number, Outcome.FAILED, str(error))
            except OSError as error:
                refused[operation.number] = ending(operation, error, f"looking for the folder {folder!r}")
        return absent, refused

    def make(self, paths: Iterable[str]) -> dict[str, NotMade]:
        """Make folders, parents first; one that appeared meanwhile is as good. Which cannot be made, and why."""
        unmade: dict[str, NotMade] = {}
        for path in paths:
            if reason := unmade.get(parent(path)):
                unmade[path] = reason
                continue
            absolute = self._roots.absolute(path)
            try:
                self._files.make_folder(absolute)
                self._ours.add(path)
            except OSError as error:
                if not isinstance(error, FileExistsError) or not _is_folder(absolute):
                    unmade[path] = NotMade(path, error)
                    continue
            self._there.add(path)
        return unmade

    def change(self, operation: Operation) -> Result | Fatal:
        """Carry out REMOVE_FOLDER, where it is empty; of MAKE_FOLDER set mode and mtime, where ``make`` made it."""
        path = self._roots.absolute(operation.source)
        try:
            if operation.verb is Verb.REMOVE_FOLDER:
                self._files.remove_folder(path)
                self._there.discard(operation.source)
            elif operation.source in self._ours:  # else somebody made it again, and it is theirs
                self._files.set_mode(path, operation.mode)
                self._files.set_mtime(path, operation.mtime_ns)
        except FileNotFoundError:
            return Result(operation.number, Outcome.DONE)
        except OSError as error:
            outcome = Outcome.SKIPPED if error.errno in _NOT_EMPTY else Outcome.FAILED
            return Result(operation.number, outcome, error.strerror or "")
        return Result(operation.number, Outcome.DONE)

    def reconcile(self, operation: Operation) -> Result:
        """How REMOVE_FOLDER stands that an attempt cut short had begun: whether an undo must make the folder again."""
        is_there = os.path.lexists(self._roots.absolute(operation.source))
        return Result(operation.number, Outcome.SKIPPED if is_there else Outcome.DONE)

    def device(self, target: str) -> int:
        """The device that a target's folder lies on."""
        folder = parent(target)
        if folder not in self._devices:
            self._devices[folder] = os.stat(self._roots.absolute(folder)).st_dev
        return self._devices[folder]

    def chains(self, targets: Iterable[str]) -> set[str]:
        """All folders between the root and each target, the root too: what must be flushed one by one."""
        found: set[str] = set()
        for target in targets:
            path = parent(target)
            while path and path not in found:
                found.add(path)
                path = parent(path)
        return found

    def _missing(self, path: str, planned: Container[str]) -> list[str]:
        """The folders of the chain that are not there, parents first; NotADirectoryError where a file or link is."""
        chain: list[str] = []
        while path not in self._there and path not in planned:
            status = look_up(self._roots.absolute(path))
            if status is None:
                chain.append(path)
            elif not stat.S_ISDIR(status.st_mode):
                message = f"expected a folder at {path!r}, found something else"
                raise NotADirectoryError(message)
            else:
                self._there.add(path)
            path = parent(path)
        return chain[::-1]


def _is_folder(path: str) -> bool:
    there = look_up(path)
    return there is not None and stat.S_ISDIR(there.st_mode)


def needed(operations: Iterable[Operation], absent: Container[str]) -> list[str]:
    """Those of the missing folders that operations need, parents first."""
    found: dict[str, None] = {}
    for operation in operations:
        chain = []
        path = folder_of(operation)
        while path in absent and path not in found:
            chain.append(path)
            path = parent(path)
        found.update(dict.fromkeys(reversed(chain)))
    return list(found)


def folder_of(operation: Operation) -> str:
    """The folder that must be there for an operation; empty where none must."""
    return operation.source if operation.verb is Verb.MAKE_FOLDER else parent(operation.target)


def parent(path: str) -> str:
    """The path of the folder that holds it."""
    return path.rpartition("/")[0]
