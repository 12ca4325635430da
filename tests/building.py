"""What tests are built from: file trees as dictionaries, and small valid DICOM files from numbers."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

UID_ROOT = "1.2.826.0.1.3680043.10.999"
STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "NM": "1.2.840.10008.5.1.4.1.1.20",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
    "": "1.2.840.10008.5.1.4.1.1.7",
}


def make_files(root: Path, files: dict[str, str | bytes]) -> None:
    """Write ``files`` (relative path -> content) below ``root``."""
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)


def read_tree(root: Path) -> dict[str, bytes]:
    """Every file below ``root``: relative path -> content."""
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(paths)}


def open_descriptors() -> int:
    """How many descriptors this process holds, those that other tests left among them."""
    gc.collect()  # what they dropped is closed now, and not between two counts
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def attributes_of(path: Path) -> dict[str, bytes]:
    """The extended attributes of a file that are its own, access control lists among them."""
    names = (name for name in os.listxattr(path) if not name.startswith("security.selinux"))
    return {name: os.getxattr(path, name) for name in sorted(names)}


def uid(*numbers: int) -> str:
    """A UID made of ``numbers``: (study,), (study, series) or (study, series, instance)."""
    return ".".join((UID_ROOT, *map(str, numbers)))


def make_dicom(
    path: Path,
    *,
    study: int = 1,
    series: int = 1,
    instance: int = 1,
    modality: str = "CT",
    sop_class: str | None = None,
    pixels: NDArray[Any] | None = None,
    has_pixels: bool = True,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> Path:
    """Write a small valid DICOM file and return ``path``.

    ``pixels`` is (rows, columns) or (frames, rows, columns) of uint8, uint16 or int16, a gradient where there are none.
    ``tags`` are set by keyword; None removes one. An empty ``modality`` leaves (0008,0060) out.
    """
    dataset = Dataset()
    dataset.SOPClassUID = sop_class or STORAGE[modality]
    dataset.StudyInstanceUID = uid(study)
    dataset.SeriesInstanceUID = uid(study, series)
    dataset.SOPInstanceUID = uid(study, series, instance)
    dataset.SeriesNumber, dataset.InstanceNumber = series, instance
    dataset.PatientID = f"P{study}"
    if modality:
        dataset.Modality = modality
    if has_pixels:
        chosen = gradient() if pixels is None else pixels
        _set_pixels(dataset, chosen.byteswap() if syntax == ExplicitVRBigEndian else chosen)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def gradient(rows: int = 16, columns: int = 16) -> NDArray[np.uint16]:
    """A picture that is not constant: (rows, columns), uint16, 0 to 4,095."""
    return np.linspace(0, 4095, rows * columns).astype(np.uint16).reshape(rows, columns)


def _set_pixels(dataset: Dataset, pixels: NDArray[Any]) -> None:
    *frames, dataset.Rows, dataset.Columns = pixels.shape
    if frames:
        dataset.NumberOfFrames = frames[0]
    bits = pixels.dtype.itemsize * 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    content = np.ascontiguousarray(pixels).tobytes()
    value = content + b"\0" * (len(content) % 2)
    dataset["PixelData"] = DataElement("PixelData", "OW" if bits > 8 else "OB", value)
