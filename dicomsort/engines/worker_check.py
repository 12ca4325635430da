"""Whether a worker on another machine sees the same inbox and the same model as the run that sends it tasks.

Equal paths prove nothing: the mount may be missing, or another server's. Nor does ``stat`` of the folder. Device
numbers are each host's own. Inode numbers are the server's on NFS, Lustre and most of SMB, but a client makes them up
for SMB without ``serverino`` and for FUSE; and the top folders of two disks often have the same one. A list of names
may be as old as the client's cache (a minute on NFS by default), and differs while files arrive. A token written to the
inbox would be proof, but a dry run changes nothing, and an inbox may be read-only.

So run and worker compare a few files below the inbox: kind, size, and mtime in seconds (SMB and some FUSE systems keep
no nanoseconds). Each is opened first, because then an NFS client asks the server (close-to-open consistency). More than
half must agree: some may be written or removed just now, but nothing else passes by chance. A true copy of the folder
passes and does no harm: its bytes are the same, and each file is compared with its own record again when it is read and
when it is placed.

The SHA-256 of each file of the model that is read must be the same.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dicomsort.bundle import MODEL_NAME, SPEC_NAME
from dicomsort.files import opened, sha256_of

SAMPLE = 16
ENTRIES = 2000  # listed for the sample, so that a folder of a million folders costs no minute
SHOWN = 16  # digits of a SHA-256


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a host sees of the inbox, some regular files (path below it, size, mtime in seconds), and of the model.

    ``model`` is the bundle's folder, ``""`` where none is used; ``hashes`` are names of its files and their SHA-256.
    """

    inbox: str
    files: tuple[tuple[str, int, int], ...]
    model: str
    hashes: tuple[tuple[str, str], ...]


def snapshot(inbox: str, outbox: str | None, model: str) -> Snapshot:
    """Return what this host sees, by absolute paths; what lies in the outbox is no part of the inbox."""
    statuses = ((path, *_status(f"{inbox}/{path}")) for path in _paths(inbox, outbox))
    files = ((path, size, mtime) for path, size, mtime, problem in statuses if not problem)
    names = (name for name in (SPEC_NAME, MODEL_NAME) if model and os.path.isfile(f"{model}/{name}"))
    hashes = ((name, sha256_of(f"{model}/{name}")) for name in names)
    return Snapshot(inbox, tuple(islice(files, SAMPLE)), model, tuple(hashes))


def difference(expected: Snapshot) -> str:
    """Return how what this host sees differs from a snapshot, and what to do; ``""`` where it does not."""
    return _inbox_difference(expected) or _model_difference(expected)


def _inbox_difference(expected: Snapshot) -> str:
    problem = ""
    try:
        with os.scandir(expected.inbox):
            pass
    except OSError as error:
        problem = str(error.strerror)
    problems = []
    for path, *wanted in expected.files:
        *found, reason = _status(f"{expected.inbox}/{path}")
        problems.append(reason or ("" if found == wanted else "another size or time"))
    same = problems.count("")
    if not problem and problems and same * 2 <= len(problems):
        most_common = Counter(filter(None, problems)).most_common(1)[0][0]
        problem = f"a folder with {same} of {len(problems)} of its files (others: {most_common})"
    if not problem:
        return ""
    return (
        f"inbox {expected.inbox!r}: expected the folder that the run sees, received: {problem}; mount the same file "
        "system at this path, readable for the worker"
    )


def _model_difference(expected: Snapshot) -> str:
    for name, wanted in expected.hashes:
        try:
            digest = sha256_of(f"{expected.model}/{name}")
            received = "" if digest == wanted else f"{digest[:SHOWN]}…"
        except OSError as error:
            received = str(error.strerror)
        if received:
            return (
                f"model {expected.model!r}: {name}: expected SHA-256 {wanted[:SHOWN]}…, received: {received}; name a "
                "bundle by --model that every worker sees at the same path"
            )
    return ""


def _status(path: str) -> tuple[int, int, str]:
    """Return size, mtime in seconds, and the reason where there are none."""
    try:
        with opened(path) as descriptor:
            status = os.fstat(descriptor)
    except OSError as error:
        return 0, 0, str(error.strerror)
    if not stat.S_ISREG(status.st_mode):
        return 0, 0, "not a regular file"
    return status.st_size, status.st_mtime_ns // 10**9, ""


def _paths(inbox: str, outbox: str | None) -> Iterator[str]:
    """Yield some paths of regular files below the inbox, in no order."""
    waiting, left = [""], ENTRIES
    while waiting and left:
        folder = waiting.pop()
        try:
            with os.scandir(f"{inbox}/{folder}") as entries:
                for entry in islice(entries, left):
                    left -= 1
                    if entry.is_dir(follow_symlinks=False) and entry.path != outbox:
                        waiting.append(f"{folder}{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        yield f"{folder}{entry.name}"
        except OSError:
            continue
