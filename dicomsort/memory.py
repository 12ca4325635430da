"""How much memory there is for workers, and the messages for memory and other limits of the system that are reached.

It is used when memory is short, so it imports little.
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
ADDRESSES = 256 * MIB  # address space that a worker takes beside its task's
SORTING = 1280 * MIB  # address space that is recommended where it is not known what failed
TENSORFLOW = 4096 * MIB  # address space that TensorFlow needs to train: with less it aborts
# Files of cgroups version 2 and version 1: limit, use, and the field of memory.stat with what could be freed at once.
_CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that processes may still take, by the system and each cgroup above this one; None if unknown.

    ``root`` is the folder of ``proc`` and ``sys``.
    """
    free = [
        int(count.removesuffix(" kB")) << 10
        for name, count in _fields(root / "proc/meminfo", 2)
        if name == "MemAvailable:" and count.removesuffix(" kB").isdecimal()
    ]
    for _, controllers, path in _fields(root / "proc/self/cgroup", 3, ":"):
        for kind, names in _CGROUPS.items():
            if kind in controllers.split(","):
                free += _left(root / names[0], path, *names[1:])
    return max(min(free), 0) if free else None


def _left(top: Path, path: str, limit: str, used: str, inactive: str) -> Iterator[int]:
    """Yield what the cgroup at ``path``, and each above it, leaves; in a container the path may be one of the host."""
    here = top / path.strip("/")
    for folder in (here, *here.parents):
        most, taken = ("".join(_lines(folder / name)) for name in (limit, used))
        if most.isdecimal() and taken.isdecimal():
            counts = (count for name, count in _fields(folder / "memory.stat", 2) if name == inactive)
            yield int(most) - int(taken) + sum(int(count) for count in counts if count.isdecimal())
        if folder == top:
            return


def _fields(path: Path, count: int, separator: str | None = None) -> Iterator[list[str]]:
    """Yield the fields of lines that have so many; the last is the rest of its line."""
    for line in _lines(path):
        if len(fields := line.split(separator, count - 1)) == count:
            yield fields


def _lines(path: Path) -> list[str]:
    """Return the lines, split at line feeds only: a path in them may hold what else ends a line in Python."""
    try:
        return [os.fsdecode(line) for line in path.read_bytes().split(b"\n")]
    except OSError:
        return []


def workers_for(requested: int, task: int) -> int:
    """Return how many of the requested workers have memory for tasks of so many bytes, at least one."""
    free = available()
    return requested if free is None else max(1, min(requested, free // (WORKER + task)))


def require_address_space(needed: int) -> None:
    """Raise ``DicomsortError`` where `ulimit -v` allows less than ``needed`` bytes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise DicomsortError(_address_space(needed, limit))


def _address_space(needed: int, limit: int) -> str:
    expected = f"expected at least about {needed // MIB} MiB of address space"
    return f"{expected}, received a limit of {limit // MIB} MiB; raise `ulimit -v`"


def refusal() -> str:
    """Return the message for a thread or process that the system did not start."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return f"{shortage()}, or `ulimit -u`"  # there was no room for its stack, or no more were allowed
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    received = "a refusal" if limit == resource.RLIM_INFINITY else f"a limit of {limit:,} for all of this user"
    advice = "raise `ulimit -u`, or the limit of the service or container (pids.max), or use fewer --workers"
    return f"expected another thread or process to start, received {received}; {advice}"


def file_limit() -> str:
    """Return the advice for a file that would become too large; ``""`` where the system has no such limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return "" if limit == resource.RLIM_INFINITY else f"files may have {limit:,} bytes at most: raise `ulimit -f`"


def no_temporary_room(what: str, error: Exception) -> DicomsortError:
    """Return the error for a base of SQLite in the temporary folder that could not be written."""
    import tempfile  # which imports much

    try:
        where = tempfile.gettempdir()
    except OSError:
        where = "(none)"
    name = getattr(error, "sqlite_errorname", "")
    is_limit = name.startswith("SQLITE_IOERR") or where == "(none)"  # also the error of a file that became too large
    advice = (is_limit and file_limit()) or "free some, or set TMPDIR"
    return DicomsortError(f"temporary folder {where}: expected room for {what}, received: {error}; {advice}")


def shortage() -> str:
    """Return the message for memory that ran out in this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return "expected enough memory, received none; free some, or use fewer --workers"
    return _address_space(max(SORTING, 2 * limit), limit)
