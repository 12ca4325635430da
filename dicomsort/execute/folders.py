"""The folders that a plan makes and removes: each is looked up once a batch, and journalled before it is made."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from dicomsort.execute.outcomes import Fatal, outcome_of_error
from dicomsort.execute.roots import Resolver, Roots
from dicomsort.files import REFUSED_BY_DISK, Files, look_up, opened
from dicomsort.metadata import lost_with
from dicomsort.records import Lost, Operation, Outcome, Result, Verb

_NAME_REFUSED = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})
_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY})


class NotMade(NamedTuple):
    """A folder that cannot be made, and why."""

    path: str
    error: OSError

    def outcome(self, operation: Operation, *, is_retried: bool) -> Result | Fatal:
        """Return how an operation ends that needs the folder: Fatal where the disk refused, else it alone failed.

        Where it is retried, all that may pass is Fatal, so that a resume makes the folder later.
        """
        message = f"making folder {self.path!r}: expected success, received {self.error.strerror}"
        if self.error.errno in REFUSED_BY_DISK or (is_retried and self.error.errno not in _NAME_REFUSED):
            return Fatal(message)
        return Result(operation.number, Outcome.FAILED, message)


class Folders:
    """Which folders exist, each looked up once a run; ``begun`` are those that an interrupted attempt was to make."""

    def __init__(self, files: Files, roots: Roots, begun: Iterable[str] = ()) -> None:
        self._files = files
        self._roots = roots
        self._resolver = Resolver(roots)
        self._there: set[str] = {"inbox", "outbox"}
        self._devices: dict[str, int] = {}
        self._ours = set(begun)  # made by this run, or perhaps by the interrupted attempt

    def absent_and_refused(self, operations: Sequence[Operation]) -> tuple[set[str], dict[int, Result | Fatal]]:
        """Return the missing folders, and the ends of operations whose folder cannot be there or be looked up."""
        absent: set[str] = set()
        refused: dict[int, Result | Fatal] = {}
        self._there = {"inbox", "outbox"}  # somebody may have put a link in a folder's place since the last batch
        for operation in operations:
            folder = folder_of(operation)
            try:
                if folder:
                    absent.update(self._missing(folder, absent))
                elif operation.verb is Verb.REMOVE_FOLDER:
                    self._missing(parent(operation.source), absent)
            except NotADirectoryError as error:
                refused[operation.number] = Result(operation.number, Outcome.FAILED, str(error))
            except OSError as error:
                refused[operation.number] = outcome_of_error(operation, error, f"looking for the folder {folder!r}")
        return absent, refused

    def make(self, paths: Iterable[str]) -> dict[str, NotMade]:
        """Make folders, parents first, and accept those that exist; return those that cannot be made, and why."""
        unmade: dict[str, NotMade] = {}
        for path in paths:
            if reason := unmade.get(parent(path)):
                unmade[path] = reason
                continue
            try:
                self._make(path)
                self._there.add(path)
            except OSError as error:
                unmade[path] = NotMade(path, error)
        return unmade

    def _make(self, path: str) -> None:
        with self._resolver.kept_open():
            absolute = self._resolver.path(path)
            try:
                self._files.make_folder(absolute)
                self._ours.add(path)
            except FileExistsError:
                if not _is_folder(absolute):
                    raise

    def change(self, operation: Operation) -> Result | Fatal:
        """Remove a folder if it is empty (REMOVE_FOLDER), or set mode and mtime of one of ours (MAKE_FOLDER)."""
        try:
            with self._resolver.kept_open():
                lost = self._change(operation, self._resolver.path(operation.source))
        except FileNotFoundError:
            return Result(operation.number, Outcome.DONE)
        except OSError as error:
            outcome = Outcome.SKIPPED if error.errno in _NOT_EMPTY else Outcome.FAILED
            return Result(operation.number, outcome, error.strerror or "")
        return Result(operation.number, Outcome.DONE, lost=lost)

    def _change(self, operation: Operation, path: str) -> Lost | None:
        if operation.verb is Verb.REMOVE_FOLDER:
            lost = lost_with(path)
            self._files.remove_folder(path)
            self._there.discard(operation.source)
            return lost
        if operation.source in self._ours:  # else somebody else made it again
            with opened(path, os.O_DIRECTORY) as descriptor:  # by its path, a link would be followed
                if operation.owner is not None:
                    with suppress(PermissionError):  # it stays ours
                        self._files.set_owner(descriptor, *operation.owner)
                self._files.set_mode(descriptor, operation.mode)
                self._files.set_mtime(descriptor, operation.mtime_ns)
        return None

    def reconcile(self, operation: Operation) -> Result:
        """Return the result of REMOVE_FOLDER of an interrupted attempt: whether an undo must make the folder again."""
        is_there = os.path.lexists(self._roots.absolute(operation.source))
        return Result(operation.number, Outcome.SKIPPED if is_there else Outcome.DONE)

    def device(self, target: str) -> int:
        """Return the device that a target's folder lies on."""
        folder = parent(target)
        if folder not in self._devices:
            self._devices[folder] = os.stat(self._roots.absolute(folder)).st_dev
        return self._devices[folder]

    def chains(self, targets: Iterable[str]) -> set[str]:
        """Return all folders above the targets, roots too: what must be flushed one by one."""
        found: set[str] = set()
        for target in targets:
            path = parent(target)
            while path and path not in found:
                found.add(path)
                path = parent(path)
        return found

    def _missing(self, path: str, planned: Container[str]) -> list[str]:
        """Return the missing folders of a path, parents first; NotADirectoryError where a file or link is."""
        chain: list[str] = []
        while path not in self._there and path not in planned:
            status = look_up(self._roots.absolute(path))
            if status is None:
                chain.append(path)
            elif not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(f"expected a folder at {path!r}, found something else")
            else:
                self._there.add(path)
            path = parent(path)
        return chain[::-1]


def _is_folder(path: str) -> bool:
    there = look_up(path)
    return there is not None and stat.S_ISDIR(there.st_mode)


def needed(operations: Iterable[Operation], absent: Container[str]) -> list[str]:
    """Return the missing folders that operations need, parents first."""
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
    """Return the folder that an operation needs, ``""`` where it needs none."""
    return operation.source if operation.verb is Verb.MAKE_FOLDER else parent(operation.target)


def parent(path: str) -> str:
    """Return the path of the folder that holds it."""
    return path.rpartition("/")[0]
