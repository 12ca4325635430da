"""What workers do: examine files, predict frames, and make the pictures that pages show.

Module-level functions on picklable records. A picture is made of pixels alone: no header comes with it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dicomsort.bundle import BundleReference, predictor_of
from dicomsort.dicom.headers import read_header
from dicomsort.files import hashed, opened
from dicomsort.files.beneath import Beneath
from dicomsort.records import LEAST_SIDE, Examined, Found, Header, Kind, Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

WHOLE = 256 << 10  # files up to this size are read once, for header and hash alike
HEAD = 16 << 10
QUALITY = 85  # of JPEG pictures for people
HOLES = 64 << 30  # bytes of a sparse file that are not on disk, but would have to be read
HASHED_HERE = 32 << 20  # larger files are hashed outside the worker, where a slow disk meets no time limit


def examine(inbox: str, files: Sequence[Found]) -> list[Examined]:
    """Return header and SHA-256 of each file, or why it cannot be read."""
    beneath = Beneath(inbox)
    with beneath.kept_open():
        return [_examine(beneath, found) for found in files]


def location(beneath: Beneath, found: Found) -> str:
    """Return where the bytes of a file lie: below the inbox, or where an archive was unpacked to."""
    return found.unpacked or beneath.path(found.path)


def _examine(beneath: Beneath, found: Found) -> Examined:
    try:
        with opened(location(beneath, found)) as descriptor:
            status = os.fstat(descriptor)
            if not _is_as_found(status, found):
                if status.st_ino != found.inode:
                    return Examined(found, Header(Kind.UNKNOWN), failed="replaced by another file while it was read")
                found = replace(found, size=status.st_size, mtime_ns=status.st_mtime_ns)
            if status.st_size - status.st_blocks * 512 > HOLES:
                return Examined(found, Header(Kind.UNKNOWN), failed=f"more than {HOLES >> 30} GiB of it are holes")
            data = os.pread(descriptor, found.size if found.size <= WHOLE else HEAD, 0)
            header = _header(descriptor, data, found.path, found.size)
            return Examined(found, header, _digest(descriptor, data, found.size))
    except OSError as error:
        return Examined(found, Header(Kind.UNKNOWN), failed=error.strerror or str(error))


def _header(descriptor: int, head: bytes, path: str, size: int) -> Header:
    """Read the header of an open file whose first bytes are ``head``."""
    return read_header(head, size, path.rpartition("/")[2], lambda offset, count: os.pread(descriptor, count, offset))


def _is_as_found(status: os.stat_result, found: Found) -> bool:
    """Whether an open file is the one that the walk found, as far as another host can see.

    A device number means nothing elsewhere, an inode number is made up where SMB or FUSE keep none, and time may be cut
    to 100 ns or a second there. So the record keeps what the walk found: placing compares with that, on the same host.
    """
    return (status.st_size, status.st_mtime_ns // 10**9) == (found.size, found.mtime_ns // 10**9)


def _digest(descriptor: int, data: bytes, size: int) -> str:
    if size > HASHED_HERE:
        return ""
    if len(data) == size:
        return hashlib.sha256(data).hexdigest()
    return hashed(descriptor, data, size)


def predict_frames(bundle: BundleReference, inbox: str, frames: Sequence[tuple[str, int | None]]) -> list[Prediction]:
    """Return the prediction of each frame: path below the inbox, or absolute; frame number, or None for the middle."""
    return [each.prediction for each in explain(bundle, inbox, frames)]


@dataclass(frozen=True, slots=True)
class ExplainedPrediction:
    """The prediction of a frame, with its rendering and class maps.

    ``image``: uint8 (height, width, 3), the model's input; ``maps``: float32 (h, w, classes), 0 or more. None where the
    frame cannot be rendered, or the model has no maps.
    """

    prediction: Prediction
    image: NDArray[np.uint8] | None = None
    maps: NDArray[np.float32] | None = None


def explain(bundle: BundleReference, inbox: str, frames: Sequence[tuple[str, int | None]]) -> list[ExplainedPrediction]:
    """Return prediction, rendering and class maps of each frame (path, and frame number as for ``predict_frames``)."""
    beneath = Beneath(inbox)
    with beneath.kept_open():
        images = [_rendered_below(beneath, path, frame) for path, frame in frames]
    return [
        ExplainedPrediction(image) if isinstance(image, Prediction) else _predict(bundle, *image) for image in images
    ]


@dataclass(frozen=True, slots=True)
class FramePicture:
    """A frame for a person, with the file's header and, where requested, the model's prediction.

    ``picture``: a JPEG file (JFIF), empty where ``problem`` says in one short phrase why there is none; ``rendering``:
    the model's input as a PNG file, where requested.
    """

    picture: bytes
    problem: str = ""
    header: Header | None = None
    prediction: Prediction | None = None
    rendering: bytes = b""


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """A request for pictures of a frame: a file below the root, the frame (None: the middle one), pixels a side.

    ``side`` 0 requests no picture, ``bundle`` is that of the model that predicts, if any; ``rendering`` requests the
    model's input.
    """

    path: str
    frame: int | None
    side: int
    bundle: BundleReference | None = None
    rendering: bool = False


def make_pictures(root: str, requests: Sequence[PictureRequest]) -> list[FramePicture]:
    """Return the requested pictures."""
    return [_make_picture(root, request) for request in requests]


def _make_picture(root: str, request: PictureRequest) -> FramePicture:
    from dicomsort.pixels import PixelsError, show

    path = f"{root}/{request.path}"
    header = _header_of(path)
    try:
        picture = _jpeg(show(path, request.frame, request.side)) if request.side else b""
        needs_image = request.bundle or request.rendering
        rendered = _rendered(path, request.frame) if needs_image else Prediction()
    except PixelsError as error:
        return FramePicture(b"", str(error), header)
    if isinstance(rendered, Prediction):
        return FramePicture(picture, rendered.problem, header)
    prediction = _predict(request.bundle, *rendered).prediction if request.bundle else None
    return FramePicture(picture, "", header, prediction, _png(rendered[0]) if request.rendering else b"")


def _header_of(path: str) -> Header | None:
    """Return a file's header; None where it cannot be read."""
    try:
        with opened(path) as descriptor:
            return _header(descriptor, os.pread(descriptor, HEAD, 0), path, os.fstat(descriptor).st_size)
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


def _rendered_below(beneath: Beneath, path: str, frame: int | None) -> tuple[NDArray[np.uint8], int] | Prediction:
    try:
        return _rendered(path if path.startswith("/") else beneath.path(path), frame)
    except OSError as error:  # a folder was closed, or became a link
        return Prediction(problem=error.strerror or str(error))


def _rendered(path: str, frame: int | None) -> tuple[NDArray[np.uint8], int] | Prediction:
    from dicomsort.pixels import PixelsError, render_sized

    try:
        return render_sized(path, frame)
    except PixelsError as error:
        return Prediction(problem=str(error))


def _predict(bundle: BundleReference, image: NDArray[np.uint8], side: int) -> ExplainedPrediction:
    """Predict a rendered frame whose longer side has ``side`` pixels."""
    predictor = predictor_of(bundle)
    output = predictor.predict(image[None])
    distance = None if predictor.bundle.distance is None else float(output.distances[0])
    prediction = Prediction(tuple(output.probabilities[0].tolist()), distance=distance, too_small=side < LEAST_SIDE)
    return ExplainedPrediction(prediction, image, None if output.maps is None else output.maps[0])
