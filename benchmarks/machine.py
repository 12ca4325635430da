"""The machine that was measured on, in words: no names, no paths."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from peers import Installed


def described(folder: Path, peers: Sequence[Installed]) -> str:
    """Processor, cores, memory, kernel, file system of ``folder``, Python, versions of the peers, load, day."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{each.peer.package} {each.version or each.problem}" for each in peers)
    return (
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d}: {_processor()}, "
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"{_file_system(folder)}, Python {platform.python_version()}"
        + (f"; {versions}." if versions else ".")
        + f" Load of the machine before: {os.getloadavg()[0]:.1f}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the file system, by the device number of the folder."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        fields, _, tail = line.partition(" - ")
        if fields.split(" ")[2] == wanted:
            return tail.split(" ")[0]
    return "unknown file system"
