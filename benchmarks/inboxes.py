"""Inboxes to sort: DICOM files made from test files of pydicom, each with UIDs of its own, in nested folders.

UIDs are replaced in place by others of the same length, so that every length in a file stays right.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import data_store
import imagecodecs
import numpy as np
from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
UID_ROOT = b"1.2.826.0.1.1"  # a digit for the level (study, series, instance) and the number follow, as one component
MOST = 2_000_000


class Shape(NamedTuple):
    """How many files there are of a study, and of a series."""

    per_study: int = 50
    per_series: int = 25


SHAPE = Shape()
VARIED = Shape(40, 20)


class Template(NamedTuple):
    """A DICOM file cut at its UIDs: every second piece is one; ``levels`` says of what, by its place in ``UIDS``."""

    pieces: tuple[bytes, ...]
    levels: tuple[int, ...]

    def filled(self, numbers: tuple[int, int, int]) -> bytes:
        """The file with the UIDs of this study, series and instance, as long as before."""
        pieces = list(self.pieces)
        for place, level in enumerate(self.levels):
            pieces[2 * place + 1] = renumbered(len(pieces[2 * place + 1]), level, numbers[level])
        return b"".join(pieces)

    @property
    def size(self) -> int:
        """Bytes of each file made from it."""
        return sum(map(len, self.pieces))


def renumbered(length: int, level: int, number: int) -> bytes:
    """A UID (PS3.5 9.1) of this many bytes; another for every level and number."""
    start = b"%s%d" % (UID_ROOT, level + 1)
    uid = b"%s%0*d" % (start, length - len(start), number)
    if len(uid) != length or not 0 <= number < MOST:
        raise ValueError(f"expected room for numbers up to {MOST:,}, received a UID of {length} bytes, number {number}")
    return uid


def cut(content: bytes) -> Template:
    """Cut a file at its own three UIDs, wherever they stand."""
    dataset = dcmread(io.BytesIO(content), stop_before_pixels=True)
    uids = [str(dataset[keyword].value).encode() for keyword in UIDS]
    longest_first = sorted(uids, key=len, reverse=True)
    pieces = re.split(b"(" + b"|".join(map(re.escape, longest_first)) + b")", content)
    return Template(tuple(pieces), tuple(uids.index(uid) for uid in pieces[1::2]))


def packaged(name: str) -> bytes:
    """The test file of that name, of pydicom or of pydicom-data."""
    beside = Path(data_store.__file__).parent / "data" / name
    return (beside if beside.is_file() else Path(str(get_testdata_file(name, download=False)))).read_bytes()


def content_of(dataset: Dataset) -> bytes:
    """The data set as a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shrunk(name: str) -> bytes:
    """A test file with every second pixel of every second row: 3.7 KB where it was 10."""
    dataset = dcmread(io.BytesIO(packaged(name)))
    pixels = dataset.pixel_array[::2, ::2]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelSpacing = [2 * spacing for spacing in dataset.PixelSpacing]
    dataset.PixelData = pixels.tobytes()
    return content_of(dataset)


def encoded(name: str, syntax: str, encode: Callable[..., bytes | bytearray], every: int = 1) -> bytes:
    """A test file in another transfer syntax, of every so many pixels of every so many rows; 8 bits for JPEG."""
    dataset = dcmread(io.BytesIO(packaged(name)))
    pixels = np.ascontiguousarray(dataset.pixel_array[::every, ::every])
    pixels = pixels.view(np.uint16) if syntax == uid.JPEGLosslessSV1 else pixels
    if syntax == uid.JPEGBaseline8Bit:
        pixels = (pixels >> (dataset.BitsStored - 8)).astype(np.uint8)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.Rows, dataset.Columns = pixels.shape
    coded = bytes(encode(pixels))
    dataset.PixelData = encapsulate([coded + b"\0" * (len(coded) % 2)])
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    return content_of(dataset)


# By study in turn. small: CT of 39 KB and MR of 10; slices: CT and MR of about 512 KB; tiny: MR of 3.7 KB; varied: CT,
# MR and CR of 4 to 117 KB in ten transfer syntaxes.
KINDS: dict[str, tuple[Callable[[], bytes], ...]] = {
    "small": (partial(packaged, "CT_small.dcm"), partial(packaged, "MR_small.dcm")),
    "slices": (partial(packaged, "693_UNCR.dcm"), partial(packaged, "MR-SIEMENS-DICOM-WithOverlays.dcm")),
    "tiny": (partial(shrunk, "MR_small.dcm"),),
    "varied": (
        partial(packaged, "CT_small.dcm"),
        partial(packaged, "MR_small_implicit.dcm"),
        partial(packaged, "693_J2KR.dcm"),
        partial(packaged, "MR_small_bigendian.dcm"),
        partial(packaged, "693_J2KI.dcm"),
        partial(packaged, "MR_small_RLE.dcm"),
        partial(encoded, "693_UNCR.dcm", uid.HTJ2KLossless, imagecodecs.htj2k_encode),
        partial(packaged, "MR_small_jpeg_ls_lossless.dcm"),
        partial(
            encoded, "CT_small.dcm", uid.JPEGLosslessSV1, partial(imagecodecs.jpeg8_encode, lossless=True, predictor=1)
        ),
        partial(encoded, "RG3_UNCR.dcm", uid.JPEGBaseline8Bit, imagecodecs.jpeg8_encode, every=2),
    ),
}


def templates(kind: str) -> list[Template]:
    """What the files of this kind are made from."""
    return [cut(make()) for make in KINDS[kind]]


def fill(inbox: Path, count: int, kind: str = "small", shape: Shape = SHAPE) -> dict[bytes, str]:
    """Write ``count`` files, no two alike, into a new folder; return the place in it of each, by digest."""
    made = templates(kind)
    places: dict[bytes, str] = {}
    folder = ""
    for number in range(count):
        study, series = number // shape.per_study, number // shape.per_series
        if number % shape.per_series == 0 or number % shape.per_study == 0:
            folder = f"PA{study // 10:05d}/ST{study:06d}/SE{series:06d}"
            (inbox / folder).mkdir(parents=True, exist_ok=True)
        content = made[study % len(made)].filled((study, series, number))
        place = f"{folder}/IM{number:07d}.dcm"  # some sorters look at .dcm alone
        (inbox / place).write_bytes(content)
        places[digest(content)] = place
    if len(places) != count:
        raise ValueError(f"expected {count} files that differ, received {len(places)}")
    return places


def digest(content: bytes) -> bytes:
    """What a file is known by, 12 bytes."""
    return hashlib.blake2b(content, digest_size=12).digest()


def files_below(folder: Path) -> Iterator[str]:
    """The paths of all files below a folder."""
    for place, _, names in os.walk(folder):
        for name in names:
            yield f"{place}/{name}"


def arrived(target: Path, places: dict[bytes, str]) -> dict[bytes, str]:
    """Which of these files lie below ``target``, whole, and where; told by their bytes."""
    return {known: path for path in files_below(target) if (known := digest(Path(path).read_bytes())) in places}


def roll_back(found: dict[bytes, str], inbox: Path, places: dict[bytes, str]) -> None:
    """Rename files that were moved into a new inbox, each to its place."""
    for folder in {place.rpartition("/")[0] for place in places.values()}:
        (inbox / folder).mkdir(parents=True)
    for known, place in places.items():
        Path(found[known]).rename(inbox / place)
