"""What workers do: examine files and look at pixels. Module-level functions on picklable records, nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from dicomsort.bundle import Predictor, load
from dicomsort.files import chunks, opened
from dicomsort.headers import read_header
from dicomsort.records import RENDERING_VERSION, Examined, Found, Header, Kind, Look

WHOLE = 256 << 10  # files up to this size are read once, for header and hash alike
HEAD = 16 << 10
HASHED_HERE = 32 << 20  # larger files are hashed where no time limit cuts a slow disk short


def examine(inbox: str, files: Sequence[Found]) -> list[Examined]:
    """Header and SHA-256 of each file; what cannot be read says why."""
    return [_examine(inbox, found) for found in files]


def _examine(inbox: str, found: Found) -> Examined:
    try:
        with opened(f"{inbox}/{found.path}") as descriptor:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (found.device, found.inode):
                return Examined(found, Header(Kind.UNKNOWN), failed="replaced by another file while it was read")
            found = replace(found, size=status.st_size, mtime_ns=status.st_mtime_ns)
            data = os.pread(descriptor, found.size if found.size <= WHOLE else HEAD, 0)
            name = found.path.rpartition("/")[2]
            header = read_header(data, found.size, name, lambda offset, size: os.pread(descriptor, size, offset))
            return Examined(found, header, _digest(descriptor, data, found.size))
    except OSError as error:
        return Examined(found, Header(Kind.UNKNOWN), failed=error.strerror or str(error))


def _digest(descriptor: int, data: bytes, size: int) -> str:
    if size > HASHED_HERE:
        return ""
    if len(data) == size:
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    for piece in chunks(descriptor):
        digest.update(piece)
    return digest.hexdigest()


def look(bundle: str, inbox: str, frames: Sequence[tuple[str, int | None]]) -> list[Look]:
    """What the model sees in each frame (path below the inbox, frame number or None for the middle one)."""
    import numpy as np

    from dicomsort.pixels import PixelsError, render

    looks: list[Look | None] = []
    images = []
    for path, frame in frames:
        try:
            images.append(render(f"{inbox}/{path}", frame))
            looks.append(None)
        except PixelsError as error:
            looks.append(Look(problem=str(error)))
    if not images:
        return [look for look in looks if look is not None]
    seen = iter(_predictor(bundle).predict(np.stack(images)).tolist())
    return [Look(tuple(next(seen))) if look is None else look for look in looks]


@lru_cache(maxsize=1)
def _predictor(bundle: str) -> Predictor:
    return Predictor(load(Path(bundle), RENDERING_VERSION))
