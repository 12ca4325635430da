"""What a file is by its first bytes, and what its name promises; for all that is not DICOM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dicomsort.dicom.file_meta import MAGIC, PREAMBLE
from dicomsort.records import Header, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

PNG: Final = b"\x89PNG\r\n\x1a\n"
JPEG: Final = b"\xff\xd8\xff"
_EXECUTABLES: Final = {
    b"MZ": "a Windows program",
    b"\x7fELF": "a Linux program",
    b"#!": "a script",
    b"\xfe\xed\xfa\xce": "a macOS program",
    b"\xfe\xed\xfa\xcf": "a macOS program",
    b"\xce\xfa\xed\xfe": "a macOS program",
    b"\xcf\xfa\xed\xfe": "a macOS program",
    b"\xca\xfe\xba\xbe": "a macOS program",
}
_ARCHIVES: Final = {
    b"PK\x03\x04": "ZIP",
    b"PK\x05\x06": "ZIP",
    b"PK\x07\x08": "ZIP",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"MSCF": "CAB",
}
_OTHER_IMAGES: Final = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
_DICOM_SUFFIXES: Final = (".dcm", ".dicom", ".dic", ".ima")
_IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")
_TAR: Final = slice(257, 262)
_ISO_OFFSET: Final = 32769  # ISO 9660 volume descriptor


def _starts(data: bytes, table: dict[bytes, str]) -> str:
    return next((name for magic, name in table.items() if data.startswith(magic)), "")


def named_dicom(name: str) -> bool:
    """Tell whether the file's name says DICOM."""
    return name.lower().endswith(_DICOM_SUFFIXES)


def executable(preamble: bytes) -> str:
    """Say what program a DICOM preamble pretends to be; empty for none."""
    return _starts(preamble, _EXECUTABLES)


def _archive(data: bytes, size: int, more: Callable[[int, int], bytes]) -> str:
    name = _starts(data, _ARCHIVES)
    if name or data[_TAR] == b"ustar":
        return name or "tar"
    return "ISO 9660" if size > _ISO_OFFSET + 5 and more(_ISO_OFFSET, 5) == b"CD001" else ""


def _cut_preamble(data: bytes, size: int) -> bool:
    return size < PREAMBLE + len(MAGIC) and (bytes(PREAMBLE) + MAGIC).startswith(data)


def not_an_image(data: bytes, size: int, name: str, more: Callable[[int, int], bytes]) -> Header:
    """Header of a file that is neither DICOM nor PNG nor JPEG; unreadable where its name says that it is."""
    dicom = named_dicom(name)
    if dicom or name.lower().endswith(_IMAGE_SUFFIXES):
        expected = "DICOM" if dicom else "PNG or JPEG"
        if not size:
            return _unknown(problem="empty-file", message=f"expected {expected} by its name, received 0 bytes")
        if dicom and _cut_preamble(data, size):
            return _unknown(problem="truncated-header", message=f"the DICOM preamble ends after {size} bytes")
        problem = "not-dicom" if dicom else "not-an-image-despite-name"
        return _unknown(problem=problem, message=f"expected {expected} by its name, received other content")
    if archive := _archive(data, size, more):
        return _unknown(ignored="archive", message=f"{archive} archive: unpack it to sort what it holds")
    image = _starts(data, _OTHER_IMAGES)
    return _unknown(ignored="not-an-image", message=image and f"{image}: only DICOM, PNG and JPEG are sorted")


def _unknown(*, problem: str = "", ignored: str = "", message: str) -> Header:
    return Header(Kind.UNKNOWN, problem, ignored, message, has_pixels=False)
