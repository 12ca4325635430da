"""Whether two paths on different devices are one file, seen through two mounts.

Neither times nor inodes tell: servers round times, some file systems keep no ctime of their own, and FUSE gives inodes
of its own. A new file tells: where it appears in both folders, they are one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable

from dicomsort.files import PROBE, Files, closing_descriptor, fold, look_up
from dicomsort.files.beneath import FOLDER


class TwoMounts:
    """Which pairs of folders are one folder; each pair is tried once. Safe to call from several threads."""

    def __init__(self, files: Files, path: Callable[[str], str]) -> None:
        self._files = files
        self._path = path  # of a place
        self._are_one: dict[tuple[str, str], bool] = {}

    def may_be_one(self, going: str, staying: str) -> bool:
        """Whether a file that is to be removed may be the one that stays.

        Of the inbox nothing is changed where the file leaves the outbox, unless nothing can be made there.
        """
        path, other_path = self._path(going), self._path(staying)
        one, other = look_up(path), look_up(other_path)
        if one is None or other is None or one.st_dev == other.st_dev:
            return False
        (folder, name), (other_folder, other_name) = os.path.split(path), os.path.split(other_path)
        pair = os.path.dirname(going), os.path.dirname(staying)
        if pair not in self._are_one:
            self._are_one[pair] = self._try(folder, other_folder, tries_both=staying.startswith("outbox/"))
        # A mount may show the file by another name, but then not by this one.
        return self._are_one[pair] and (fold(name) == fold(other_name) or not _may_show(other_folder, name))

    def _try(self, folder: str, other: str, *, tries_both: bool) -> bool:
        """Whether what is made in one folder appears in the other; True, too, where nothing can be made in either.

        Both ways: a union of file systems may show what is made in a branch, but make its own files in another.
        """
        is_tried = False
        for here, there in ((folder, other), (other, folder)):
            if is_tried and not tries_both:
                break
            name = f"{PROBE}{secrets.token_hex(8)}.part"  # new, so that no mount remembers that it is missing
            try:
                os.close(self._files.create(f"{here}/{name}"))
            except OSError:
                continue
            is_tried = True
            try:
                if _may_show(there, name):
                    return True
            finally:
                with contextlib.suppress(OSError):
                    self._files.unlink(f"{here}/{name}")
        return not is_tried


def _may_show(folder: str, name: str) -> bool:
    """Whether something may have this name in a folder, whose path may be as long as paths can be; True if unknown."""
    try:
        with closing_descriptor(os.open(folder, FOLDER)) as descriptor:
            os.lstat(name, dir_fd=descriptor)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True
