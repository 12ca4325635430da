"""What workers do: examine files and look at pixels. Module-level functions on picklable records, nothing else."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dicomsort.bundle import Predictor, load
from dicomsort.dicom.headers import read_header
from dicomsort.files import hashed, opened
from dicomsort.records import RENDERING_VERSION, Examined, Found, FramePrediction, Header, Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

WHOLE = 256 << 10  # files up to this size are read once, for header and hash alike
HEAD = 16 << 10
QUALITY = 85  # of JPEG pictures for people
HOLES = 64 << 30  # bytes of a sparse file that are not on disk, but would have to be read
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
            if status.st_size - status.st_blocks * 512 > HOLES:
                return Examined(found, Header(Kind.UNKNOWN), failed=f"more than {HOLES >> 30} GiB of it are holes")
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
    return hashed(descriptor, data, size)


def predict_frames(bundle: str, inbox: str, frames: Sequence[tuple[str, int | None]]) -> list[FramePrediction]:
    """What the model sees in each frame (path below the inbox, frame number or None for the middle one)."""
    return [each.look for each in explain(bundle, inbox, frames)]


@dataclass(frozen=True, slots=True)
class ExplainedPrediction:
    """A look with what it was at.

    ``image``: uint8 (height, width, 3), as the model was shown it; ``maps``: float32 (h, w, classes), 0 or more, where
    in it the evidence for each class lies. None where there was nothing to see, or the model has no maps.
    """

    look: FramePrediction
    image: NDArray[np.uint8] | None = None
    maps: NDArray[np.float32] | None = None


def explain(bundle: str, inbox: str, frames: Sequence[tuple[str, int | None]]) -> list[ExplainedPrediction]:
    """What the model sees in each frame (path below the inbox, frame number or None for the middle one), and where."""
    shown = [_rendered(inbox, path, frame) for path, frame in frames]
    return [
        ExplainedPrediction(each) if isinstance(each, FramePrediction) else _predict(_predictor(bundle), each)
        for each in shown
    ]


@dataclass(frozen=True, slots=True)
class FramePicture:
    """A frame as a person is shown it, with what the file's header says and, where it was asked, what the model sees.

    ``picture``: a JPEG file (JFIF), empty where ``problem`` says in one short phrase why there is none; ``rendering``:
    the model's input as a PNG file, where that was asked for.
    """

    picture: bytes
    problem: str = ""
    header: Header | None = None
    look: FramePrediction | None = None
    rendering: bytes = b""


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """What ``portray`` is asked for: a file below the root, a frame of it (None: the middle one), pixels a side.

    ``side`` 0 asks for no picture, ``bundle`` names the one whose model looks, if any; ``rendering`` asks for that.
    """

    path: str
    frame: int | None
    side: int
    bundle: str = ""
    rendering: bool = False


def make_pictures(root: str, asked: Sequence[PictureRequest]) -> list[FramePicture]:
    """Show frames to a person."""
    return [_make_picture(root, each) for each in asked]


def _make_picture(root: str, asked: PictureRequest) -> FramePicture:
    from dicomsort.pixels import PixelsError, show

    header = _header(f"{root}/{asked.path}")
    try:
        picture = _jpeg(show(f"{root}/{asked.path}", asked.frame, asked.side)) if asked.side else b""
        image = _rendered(root, asked.path, asked.frame) if asked.bundle or asked.rendering else FramePrediction()
    except PixelsError as error:
        return FramePicture(b"", str(error), header)
    if isinstance(image, FramePrediction):
        return FramePicture(picture, image.problem, header)
    seen = _predict(_predictor(asked.bundle), image).look if asked.bundle else None
    return FramePicture(picture, "", header, seen, _png(image) if asked.rendering else b"")


def _header(path: str) -> Header | None:
    """What a file's header says; None where it cannot be read."""
    try:
        with opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
            read = partial(os.pread, descriptor)
            return read_header(read(HEAD, 0), size, path.rpartition("/")[2], lambda offset, count: read(count, offset))
    except OSError:
        return None


def _jpeg(image: Image) -> bytes:
    image.info.clear()  # a comment of the file that it was read from would be written into this one
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _png(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _rendered(inbox: str, path: str, frame: int | None) -> NDArray[np.uint8] | FramePrediction:
    from dicomsort.pixels import PixelsError, render

    try:
        return render(f"{inbox}/{path}", frame)
    except PixelsError as error:
        return FramePrediction(problem=str(error))


def _predict(predictor: Predictor, image: NDArray[np.uint8]) -> ExplainedPrediction:
    seen = predictor.predict(image[None])
    distance = None if predictor.bundle.distance is None else float(seen.distances[0])
    look = FramePrediction(tuple(seen.probabilities[0].tolist()), distance=distance)
    return ExplainedPrediction(look, image, None if seen.maps is None else seen.maps[0])


@lru_cache(maxsize=1)  # loaded when it is first asked: most workers of a small sort never need it
def _predictor(folder: str) -> Predictor:
    return Predictor(load(Path(folder), RENDERING_VERSION))
