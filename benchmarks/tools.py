"""What is compared: dicomsort, its peers, and yardsticks of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inboxes import files_below
from measuring import CLEAN, dicomsort, run
from peers import Installed
from pydicom import dcmread

HEAD = 16 << 10


@dataclass(frozen=True, slots=True)
class Tool:
    """A way from an inbox to a target.

    ``way``: moves, copies, or reads, and then nothing arrives. One that is ``foreign`` may fail.
    """

    name: str
    way: str
    task: Callable[[Path, Path], None]
    foreign: bool = False


def ours(mode: str, *options: str) -> Tool:
    """``dicomsort sort`` as a user runs it."""
    return Tool(" ".join(("sort", f"--{mode}", *options)), _WAYS[mode], partial(sort, mode, options))


def sort(mode: str, options: tuple[str, ...], source: Path, target: Path) -> None:
    """Sort; ``--settle 0`` because the inbox was just made."""
    dicomsort("sort", source, target, f"--{mode}", "--settle", "0", "--quiet", *options)


def peer(it: Installed) -> Tool:
    """Another sorter."""
    return Tool(it.peer.package, "moves" if it.peer.moves else "copies", it.sort, foreign=True)


def copy(source: Path, target: Path) -> None:
    """Copy as a person would."""
    run(["/bin/cp", "-r", source, target], CLEAN)


def copy_and_sync(source: Path, target: Path) -> None:
    """The same, until it is on the disk."""
    copy(source, target)
    run(["/bin/sync", "-f", target], CLEAN)


def rename(source: Path, target: Path) -> None:
    """Rename every file into one folder."""
    target.mkdir()
    for path in files_below(source):
        os.rename(path, f"{target}/{path.rpartition('/')[2]}")  # noqa: PTH104 - no faster way is to be had


def walk(source: Path, _: Path) -> None:
    """Read the first 16 KiB of every file."""
    for path in files_below(source):
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, HEAD)
        os.close(descriptor)


def read_headers(source: Path, _: Path) -> None:
    """Read every header with pydicom."""
    for path in files_below(source):
        dcmread(path, stop_before_pixels=True)


_WAYS = {"move": "moves", "copy": "copies"}
MOVE, COPY = ours("move"), ours("copy")
CP = Tool("cp -r", "copies", copy)
CP_SYNC = Tool("cp -r; sync -f", "copies", copy_and_sync)
RENAME = Tool("os.rename into one folder", "moves", rename)
WALK = Tool("walk, 16 KiB read of each file", "reads", walk)
HEADERS = Tool("pydicom, header of each file", "reads", read_headers)
