"""Files that stand in the place of earlier ones: written beside them, then renamed, and never over anything else.

Whoever reads meets the old file or the new one, never a half.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dicomsort.errors import UsageError
from dicomsort.files import Files, closing, flush_path, look_up


@dataclass(frozen=True, slots=True)
class Replaced:
    """A kind of file: the option that names it, its first bytes, what earlier ones are called, its mode."""

    option: str
    first: bytes
    earlier: str
    mode: int

    def check_target(self, path: Path, folders: Mapping[str, str]) -> None:
        """UsageError where no such file can be put at ``path``, or would stand in the place of something else.

        ``folders`` are places where it must not lie, by name.
        """
        target = os.path.realpath(path)
        for name, folder in folders.items():
            if os.path.commonpath([folder, target]) == folder:
                raise UsageError(f"{self.option}: expected a file outside the {name}, received {str(path)!r}")
        if not os.path.isdir(parent := os.path.dirname(target)) or not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"{self.option}: expected a file in a folder that can be written, received {str(path)!r}")
        self._check_ours(target, str(path))

    def write(self, files: Files, path: Path, content: bytes) -> None:
        """Write such a file; the one that was there stays whole until it is."""
        target = os.path.realpath(path)
        self._check_ours(target, str(path))
        folder, name = os.path.split(target)
        part = f"{folder}/.{name}.part"
        if look_up(part) is not None:
            files.unlink(part)
        try:
            with closing(files.create(part, self.mode)) as descriptor:
                files.write(descriptor, content)
                files.flush(descriptor)
            files.replace(part, target)
        except (OSError, KeyboardInterrupt):
            with suppress(OSError):
                files.unlink(part)
            raise
        flush_path(files, folder)

    def _check_ours(self, target: str, shown: str) -> None:
        """A file that is there must be one that was written here before, or empty: it is going to be replaced."""
        status = look_up(target)
        if status is None:
            return
        try:
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{self.option}: expected a file, received {shown!r}, which is none")
            with Path(target).open("rb") as stream:
                first = stream.read(len(self.first))
        except OSError as error:
            raise UsageError(f"{self.option}: expected a file, received {shown!r} ({error.strerror})") from None
        if first and first != self.first:
            raise UsageError(f"{self.option}: expected a new file or {self.earlier}, received another file, {shown!r}")
