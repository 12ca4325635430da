"""Folders: those that targets need, made after they were journalled; and the folder operations of a plan."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence

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

    def needed(self, operations: Sequence[Operation]) -> tuple[list[Operation], list[Result], list[str]]:
        """Which operations may go on, which may not (something else stands where a folder should), what is missing."""
        missing: dict[str, None] = {}
        ready, refused = [], []
        for operation in operations:
            try:
                if operation.target:
                    missing.update(dict.fromkeys(self._missing(_parent(operation.target), missing)))
            except NotADirectoryError as error:
                refused.append(Result(operation.number, Outcome.FAILED, str(error)))
            else:
                ready.append(operation)
        return ready, refused, list(missing)

    def make(self, paths: Iterable[str]) -> None:
        """Make folders, parents first; one that appeared meanwhile is as good."""
        for path in paths:
            try:
                self._files.make_folder(self._roots.absolute(path))
            except FileExistsError:
                pass
            except OSError as error:
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
        folder = _parent(target)
        if folder not in self._devices:
            self._devices[folder] = os.stat(self._roots.absolute(folder)).st_dev
        return self._devices[folder]

    def chains(self, targets: Iterable[str]) -> set[str]:
        """All folders between the root and each target, the root too: what must be flushed one by one."""
        found: set[str] = set()
        for target in targets:
            path = _parent(target)
            while path and path not in found:
                found.add(path)
                path = _parent(path)
        return found

    def _missing(self, path: str, planned: Iterable[str]) -> list[str]:
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
            path = _parent(path)
        return chain[::-1]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
