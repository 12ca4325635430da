"""What workers do: examine files and look at pixels. Module-level functions on picklable records, nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dicomsort.bundle import Predictor, load
from dicomsort.files import chunks, opened
from dicomsort.headers import read_header
from dicomsort.records import RENDERING_VERSION, Examined, Found, Header, Kind, Look

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
            if not _is_as_found(status, found):
                if status.st_ino != found.inode:
                    return Examined(found, Header(Kind.UNKNOWN), failed="replaced by another file while it was read")
                found = replace(found, size=status.st_size, mtime_ns=status.st_mtime_ns)
            data = os.pread(descriptor, found.size if found.size <= WHOLE else HEAD, 0)
            name = found.path.rpartition("/")[2]
            header = read_header(data, found.size, name, lambda offset, size: os.pread(descriptor, size, offset))
            return Examined(found, header, _digest(descriptor, data, found.size))
    except OSError as error:
        return Examined(found, Header(Kind.UNKNOWN), failed=error.strerror or str(error))


def _is_as_found(status: os.stat_result, found: Found) -> bool:
    """Whether an open file is what the walk met, as far as another host can tell.

    A device number means nothing elsewhere, an inode number is made up where SMB or FUSE keep none, and time may be cut
    to 100 ns or a second there. So the record keeps what the walk saw: placing compares with that, on the same host.
    """
    return (status.st_size, status.st_mtime_ns // 10**9) == (found.size, found.mtime_ns // 10**9)


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
    return [explained.look for explained in explain(bundle, inbox, frames)]


@dataclass(frozen=True, slots=True)
class Explained:
    """A look with what it was at.

    ``image``: uint8 (height, width, 3), as the model was shown it; ``maps``: float32 (h, w, classes), 0 or more, where
    in it the evidence for each class lies. None where there was nothing to see, or the model has no maps.
    """

    look: Look
    image: NDArray[np.uint8] | None = None
    maps: NDArray[np.float32] | None = None


def explain(bundle: str, inbox: str, frames: Sequence[tuple[str, int | None]]) -> list[Explained]:
    """As ``look``, with the images and the class maps."""
    from dicomsort.pixels import PixelsError, render

    shown: list[NDArray[np.uint8] | Look] = []
    for path, frame in frames:
        try:
            shown.append(render(f"{inbox}/{path}", frame))
        except PixelsError as error:
            shown.append(Look(problem=str(error)))
    return [Explained(each) if isinstance(each, Look) else _seen(_predictor(bundle), each) for each in shown]


def _seen(predictor: Predictor, image: NDArray[np.uint8]) -> Explained:
    seen = predictor.predict(image[None])
    distance = None if predictor.bundle.distance is None else float(seen.distances[0])
    look = Look(tuple(seen.probabilities[0].tolist()), distance=distance)
    return Explained(look, image, None if seen.maps is None else seen.maps[0])


@lru_cache(maxsize=1)
def _predictor(bundle: str) -> Predictor:
    return Predictor(load(Path(bundle), RENDERING_VERSION))
