"""What must hold of any bytes: the targets of ``make fuzz``, and of the test that replays its corpus."""

from __future__ import annotations

import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from backports import zstd
from building import make_dicom
from packing import tarred, zipped
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomsort.archives import ArchiveLimits, UnpackRequest, remove_staging, unpack
from dicomsort.dicom.headers import read_header
from dicomsort.files import Files
from dicomsort.pixels import PixelsError, render
from dicomsort.records import Found, Kind

CORPUS = Path(__file__).resolve().parent / "fuzz_corpus"
MOST = 4096  # bytes of an input: every construct fits, and mutations stay near it
ASKED = (4 << 20) + 5  # bytes that one header may cost (dicom.elements.HEADER_LIMIT)


def header(data: bytes) -> None:
    """Reading a header never raises, and reads a bounded part."""
    asked = 0

    def more(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return data[offset : offset + length]

    for head in (data, data[:256]):
        asked = 0
        found = read_header(head, len(data), "fuzz.dcm", more)
        assert asked <= ASKED
        assert found.kind is not Kind.UNKNOWN or bool(found.problem) != bool(found.ignored)


def pixels(data: bytes) -> None:
    """Rendering gives an image or a PixelsError with a reason, nothing else."""
    path = _place()
    path.write_bytes(data)
    try:
        image = render(path)
    except PixelsError as error:
        if not str(error):
            raise
    else:
        assert (image.shape, image.dtype) == ((224, 224, 3), np.uint8)


def archive(data: bytes) -> None:
    """Unpacking gives members within the limits, or a reason, and writes nothing outside its folder."""
    place = _place()
    place.write_bytes(data)
    folder = f"{place}.staging"
    status = place.stat()
    found = Found(place.name, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
    try:
        unpacked = unpack(UnpackRequest(str(place.parent), found, folder, LIMITS))
        assert not unpacked.failed
        assert not (unpacked.reason and unpacked.members)
        there = {path.name: path.stat().st_size for path in Path(folder).iterdir()} if unpacked.members else {}
        assert {*there} == {member.file for member in unpacked.members if member.file}
        assert sum(there.values()) <= LIMITS.bytes
        for member in unpacked.members:
            assert bool(member.file) != bool(member.reason)
            assert not {"", ".", ".."} & set(member.name.split("/"))
    finally:
        remove_staging(Files(), folder)


LIMITS = ArchiveLimits(100, 1 << 20, 1 << 22, 200.0, 10.0)
TARGETS: dict[str, Callable[[bytes], None]] = {"header": header, "pixels": pixels, "archive": archive}


@lru_cache
def _place() -> Path:
    memory = Path("/dev/shm")  # noqa: S108 - a write costs nothing there
    handle, path = tempfile.mkstemp(prefix="dicomsort-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    os.close(handle)
    return Path(path)


def archive_seeds(folder: Path) -> None:
    """Small archives of each kind, to begin from."""
    files = {"DICOM/1": b"one" * 30, "two": b"2"}
    for number, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):
        (folder / f"{number}.zip").write_bytes(zipped(files, method))
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            (folder / f"{mode[2:]}.{kind}.tar").write_bytes(tarred({"x" * 120: b"long", **files}, mode, kind))
    (folder / "zst.tar").write_bytes(zstd.compress(tarred(files)))


def seeds(folder: Path) -> None:
    """Small valid files of several kinds, to begin from."""
    small = np.arange(16, dtype=np.uint16).reshape(4, 4)
    make_dicom(folder / "explicit.dcm", pixels=small)
    make_dicom(folder / "implicit.dcm", pixels=small, syntax=ImplicitVRLittleEndian)
    make_dicom(folder / "big endian.dcm", pixels=small, syntax=ExplicitVRBigEndian)
    make_dicom(folder / "frames.dcm", pixels=np.stack([small, small]), RescaleSlope=2, RescaleIntercept=-1024)
    make_dicom(folder / "window.dcm", pixels=small, WindowCenter=8, WindowWidth=4, PatientID="P")
    make_dicom(folder / "no pixels.dcm", has_pixels=False, modality="SR", SpecificCharacterSet="ISO_IR 192")
