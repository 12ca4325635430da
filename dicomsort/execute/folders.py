"""Folders: those that targets need, made after they were journalled; and the folder operations of a plan."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Iterable, Sequence

from dicomsort.errors import PlacingFailed
from dicomsort.execute.placing import Roots
from dicomsort.files import Files, look_up
from dicomsort.records import Operation, Outcome, Result, Verb

_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY})


class Folders:
    """Knows which folders are there, so that each is looked up once a run."""

    def __init__(self, files: Files, roots: Roots) -> None:
        """Start with the roots alone, which must be there."""
        self._files = files
        self._roots = roots
        self._there: set[str] = {"inbox", "outbox"}
        self._devices: dict[str, int] = {}

    def survey(self, operations: Sequence[Operation]) -> tuple[set[str], dict[int, Result]]:
        """Which folders are missing, and which operations may not go on: where a folder should be is something else."""
        absent: set[str] = set()
        refused: dict[int, Result] = {}
        for operation in operations:
            try:
                if operation.target:
                    absent.update(self._missing(parent(operation.target), absent))
            except NotADirectoryError as error:
                refused[operation.number] = Result(operation.number, Outcome.FAILED, str(error))
        return absent, refused

    def make(self, paths: Iterable[str]) -> None:
        """Make folders, parents first; one that appeared meanwhile is as good."""
        for path in paths:
            absolute = self._roots.absolute(path)
            try:
                self._files.make_folder(absolute)
            except OSError as error:
                there = look_up(absolute) if isinstance(error, FileExistsError) else None
                if there is None or not stat.S_ISDIR(there.st_mode):
                    message = f"making folder {path!r}: expected success, received {error.strerror}"
                    raise PlacingFailed(message) from error
            self._there.add(path)

    def change(self, operation: Operation) -> Result:
        """Carry out MAKE_FOLDER (mode and mtime too) or REMOVE_FOLDER (only where it is empty)."""
        path = self._roots.absolute(operation.source)
        try:
            if operation.verb is Verb.REMOVE_FOLDER:
                self._files.remove_folder(path)
                self._there.discard(operation.source)
            else:
                self.make([p for p in self._missing(operation.source, ()) if p])
                self._files.set_mode(path, operation.mode)
                self._files.set_mtime(path, operation.mtime_ns)
        except FileNotFoundError:
            return Result(operation.number, Outcome.DONE)
        except OSError as error:
            outcome = Outcome.SKIPPED if error.errno in _NOT_EMPTY else Outcome.FAILED
            return Result(operation.number, outcome, error.strerror or "")
        return Result(operation.number, Outcome.DONE)

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


def needed(operations: Iterable[Operation], absent: Container[str]) -> list[str]:
    """Those of the missing folders that operations need, parents first."""
    found: dict[str, None] = {}
    for operation in operations:
        chain = []
        path = parent(operation.target)
        while path in absent and path not in found:
            chain.append(path)
            path = parent(path)
        found.update(dict.fromkeys(reversed(chain)))
    return list(found)


def parent(path: str) -> str:
    """The path of the folder that holds it."""
    return path.rpartition("/")[0]
