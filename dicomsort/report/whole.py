"""Files that stand in the place of earlier ones: written beside them, then renamed, and never over anything else.

Whoever reads meets the old file or the new one, never a half.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dicomsort.content import DEVICES, Content
from dicomsort.errors import UsageError
from dicomsort.files import Files, closing, flush_path, look_up


@dataclass(frozen=True, slots=True)
class Replaced:
    """A kind of file: the option that names it, what tells an earlier one, its mode."""

    option: str
    content: Content
    mode: int

    def write(self, files: Files, path: Path, data: bytes) -> None:
        """Write such a file; the one that was there stays whole until it is.

        UsageError where something else has the name, or the name of the file beside it that is renamed.
        """
        if str(path) in DEVICES:
            with closing(files.open_device(str(path))) as descriptor:
                files.write(descriptor, data)
            return
        target = os.path.realpath(path)
        folder, name = os.path.split(target)
        part = f"{folder}/.{name}.part"
        for each in (target, part):
            if problem := self.content.problem(each, torn=each == part):
                raise UsageError(
                    f"{self.option}: expected a new file or {self.content.name}, received {each!r}: {problem}"
                )
        if look_up(part) is not None:
            files.unlink(part)
        try:
            with closing(files.create(part, self.mode)) as descriptor:
                files.write(descriptor, data)
                files.flush(descriptor)
            files.replace(part, target)
        except (OSError, KeyboardInterrupt):
            with suppress(OSError):
                files.unlink(part)
            raise
        flush_path(files, folder)
