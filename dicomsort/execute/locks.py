"""Locks of outboxes that are not the run's own, which files to be removed or their kept copies lie in.

Where each of two runs has the other's outbox for its inbox, each could remove a file because the other keeps the same
bytes, and both would be gone. So a run that removes a file holds every outbox that one of the two lies in.
"""

from __future__ import annotations

import os
import stat
import threading

from dicomsort.files import Files, look_up
from dicomsort.journal import STATE


class OutboxLocks:
    """Takes such locks when they are first needed, and keeps them until it is closed; safe to use in threads."""

    def __init__(self, files: Files, own: str) -> None:
        """``own`` is the outbox that the run has locked already."""
        self._files = files
        self._own = look_up(f"{own}/{STATE}/lock")
        self._problems: dict[str, str] = {}  # folder -> why a file in it must stay, empty for no reason
        self._descriptors: list[int] = []
        self._lock = threading.Lock()

    def problem(self, path: str) -> str:
        """Why the file at an absolute path must not be removed, nor a file because of it; empty for no reason."""
        with self._lock:
            return self._problem(os.path.dirname(path))

    def close(self) -> None:
        """Free the locks."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _problem(self, folder: str) -> str:
        if folder not in self._problems:
            above = os.path.dirname(folder)
            problem = self._problem(above) if above != folder else ""
            self._problems[folder] = problem or self._taken(folder)
        return self._problems[folder]

    def _taken(self, folder: str) -> str:
        """Lock a folder where it is an outbox; why it cannot be locked."""
        path = f"{folder}/{STATE}/lock"
        try:
            there = look_up(path)
            if there is None or (self._own is not None and os.path.samestat(there, self._own)):
                return ""
            if not stat.S_ISREG(there.st_mode):
                return ""  # no run could lock it
            descriptor = self._files.open_append(path, 0o600)
        except OSError as error:
            return f"the outbox {folder!r} cannot be locked: {error.strerror}"
        self._descriptors.append(descriptor)
        return "" if self._files.lock(descriptor) else f"another run holds the outbox {folder!r}"
