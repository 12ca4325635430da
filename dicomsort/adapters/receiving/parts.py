"""Instances on their way to disk: files in the inbox under names that a sort passes over, locked while in use."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from typing import Final

from dicomsort.discover import RECEIVING
from dicomsort.errors import DicomsortError
from dicomsort.files import Files, closing

MODE: Final = 0o640  # of received files, less what umask takes: never for everybody
_OURS: Final = re.compile(re.escape(RECEIVING) + r"[0-9a-f]{8}-[0-9]+\.part")
_TRIES: Final = 8


class Part:
    """One such file. Its writer holds it locked, so that what a dead one left can be told from what is in use."""

    def __init__(self, files: Files, path: str, descriptor: int) -> None:
        """Take over an open, locked file."""
        self._files = files
        self._descriptor: int | None = descriptor
        self.path = path
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append; OSError where the disk refuses."""
        self._files.write(self._open(), data)
        self.size += len(data)

    def flush(self) -> None:
        """Return when all that was written is durable."""
        self._files.flush(self._open())

    def discard(self) -> None:
        """Take this name of the file away and close, once; a name that cannot go is left to the next start."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with closing(descriptor), contextlib.suppress(OSError):
                self._files.unlink(self.path)

    @property
    def is_open(self) -> bool:
        """Whether it has not been discarded."""
        return self._descriptor is not None

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError("expected a part in use, received a discarded one")
        return self._descriptor


class Parts:
    """Makes them, and takes away what earlier processes left."""

    def __init__(self, files: Files, inbox: str) -> None:
        """``inbox`` is an absolute path."""
        self._files = files
        self._inbox = inbox
        self._token = secrets.token_hex(4)
        self._numbers = itertools.count()

    def begin(self) -> Part:
        """Make a new, empty part; OSError where the disk refuses."""
        for _ in range(_TRIES):
            path = f"{self._inbox}/{RECEIVING}{self._token}-{next(self._numbers)}.part"
            descriptor = self._files.create(path, MODE)
            try:
                # A process that starts at this moment may have taken it for a leftover before it was locked.
                ours = self._files.lock(descriptor) and os.fstat(descriptor).st_nlink > 0
            except OSError:
                os.close(descriptor)
                raise
            if ours:
                return Part(self._files, path, descriptor)
            os.close(descriptor)
        raise FileExistsError(f"expected a part of our own within {_TRIES} tries")

    def tidy(self) -> int:
        """Remove the parts that nobody holds, which a killed process left; how many there were."""
        removed = 0
        for name in os.listdir(self._inbox):
            if _OURS.fullmatch(name):
                path = f"{self._inbox}/{name}"
                with contextlib.suppress(OSError), closing(self._files.open_append(path, MODE)) as descriptor:
                    if self._files.lock(descriptor):
                        self._files.unlink(path)
                        removed += 1
        return removed

    def check(self) -> None:
        """Try what receiving needs of the inbox's file system; DicomsortError, which says what it refuses."""
        what = "writing and locking a file"
        try:
            part = self.begin()
            try:
                what = "flushing it"
                part.write(b"\x00")
                part.flush()
                what = "hard links (NFS, ext4, XFS have them; exFAT and some FUSE file systems do not)"
                self._files.link(part.path, f"{part.path[:-5]}0.part")
                self._files.unlink(f"{part.path[:-5]}0.part")
            finally:
                part.discard()
        except OSError as error:
            message = f"inbox {self._inbox!r}: expected {what} to work, received {error.strerror or error}"
            raise DicomsortError(message) from error
