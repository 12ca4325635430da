"""How much memory there is for workers, and what to say where the system gives none, or reached another limit.

It is asked when there is little left, so it imports little itself.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from dicomsort.errors import DicomsortError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
WORKER = 128 * MIB  # resident: interpreter, NumPy, a model
ADDRESSES = 256 * MIB  # address space that a worker takes beside what its task may
SORTING = 1280 * MIB  # address space that is told of where it is not known what failed
TENSORFLOW = 4096 * MIB  # address space that TensorFlow needs to train: with less it aborts
# Where cgroups of version 2 and of version 1 keep limit, use, and what of it could be given up at once.
_CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available(root: Path = Path("/")) -> int | None:
    """Bytes that processes may still take, by the system and by each cgroup above this one; None where nothing tells.

    ``root`` is the folder of ``proc`` and ``sys``.
    """
    told = list(_system(root))
    for fields in _fields(root / "proc/self/cgroup", 3, ":"):
        _, controllers, path = fields
        for kind, names in _CGROUPS.items():
            if kind in controllers.split(","):
                told += _left(root / names[0], path, *names[1:])
    return max(min(told), 0) if told else None


def _system(root: Path) -> Iterator[int]:
    for name, count in _fields(root / "proc/meminfo", 2):
        if name == "MemAvailable:" and count.removesuffix(" kB").isdecimal():
            yield int(count.removesuffix(" kB")) << 10


def _left(top: Path, path: str, limit: str, used: str, inactive: str) -> Iterator[int]:
    """What the cgroup at ``path``, and each above it, leaves; in a container the path may be one of the host."""
    here = top / path.strip("/")
    for folder in (here, *here.parents):
        most, taken = ("".join(_lines(folder / name)) for name in (limit, used))
        if most.isdecimal() and taken.isdecimal():
            given_up = [
                int(count)
                for name, count in _fields(folder / "memory.stat", 2)
                if name == inactive and count.isdecimal()
            ]
            yield int(most) - int(taken) + sum(given_up)
        if folder == top:
            return


def _fields(path: Path, count: int, separator: str | None = None) -> Iterator[list[str]]:
    """The fields of the lines that have so many; the last holds the rest of its line."""
    for line in _lines(path):
        if len(fields := line.split(separator, count - 1)) == count:
            yield fields


def _lines(path: Path) -> list[str]:
    """The lines as the kernel ends them: a path in them may hold what Python takes for the end of a line, too."""
    try:
        return [os.fsdecode(line) for line in path.read_bytes().split(b"\n")]
    except OSError:
        return []


def workers_for(asked: int, task: int) -> int:
    """How many workers to start of those asked for: at least one, each with room for a task of so many bytes."""
    free = available()
    return asked if free is None else max(1, min(asked, free // (WORKER + task)))


def require_address_space(needed: int) -> None:
    """Raise ``DicomsortError`` where `ulimit -v` allows less than ``needed`` bytes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < needed:
        expected = f"expected at least about {needed // MIB} MiB of address space"
        raise DicomsortError(f"{expected}, received a limit of {limit // MIB} MiB; raise `ulimit -v`")


def refusal() -> str:
    """What to say where the system started no further thread or process."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return f"{shortage()}, or `ulimit -u`"  # there was no room for its stack, or no more were allowed
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    received = "a refusal" if limit == resource.RLIM_INFINITY else f"a limit of {limit:,} for all of this user"
    advice = "raise `ulimit -u`, or the limit of the service or container (pids.max), or use fewer --workers"
    return f"expected another thread or process to start, received {received}; {advice}"


def file_limit() -> str:
    """What to say where a file would have become larger than the system lets it; empty where there is no such limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return "" if limit == resource.RLIM_INFINITY else f"files may have {limit:,} bytes at most: raise `ulimit -f`"


def shortage() -> str:
    """What to say where memory ran out in this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return "expected enough memory, received none; free some, or use fewer --workers"
    expected = f"expected at least about {max(SORTING, 2 * limit) // MIB} MiB of address space"
    return f"{expected}, received a limit of {limit // MIB} MiB; raise `ulimit -v`"
