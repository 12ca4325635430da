"""What a file is by its first bytes, and what its name promises; for all that is not DICOM."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from dicomsort.dicom.file_meta import MAGIC, PREAMBLE
from dicomsort.records import OPENS, Header, Kind

PNG: Final = b"\x89PNG\r\n\x1a\n"
JPEG: Final = b"\xff\xd8\xff"
_MACH_O: Final = tuple(bytes.fromhex(magic) for magic in ("feedface", "feedfacf", "cefaedfe", "cffaedfe", "cafebabe"))
_EXECUTABLES: Final = {
    "a Windows program": (b"MZ",),
    "a Linux program": (b"\x7fELF",),
    "a script": (b"#!",),
    "a macOS program": _MACH_O,
}
_ARCHIVES: Final = {
    "ZIP": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    "gzip": (b"\x1f\x8b",),
    "7z": (b"7z\xbc\xaf\x27\x1c",),
    "RAR": (b"Rar!\x1a\x07",),
    "bzip2": (b"BZh",),
    "xz": (b"\xfd7zXZ\0",),
    "zstd": (b"\x28\xb5\x2f\xfd",),
    "CAB": (b"MSCF",),
}
OPENED: Final = frozenset({"ZIP", "tar", "gzip", "bzip2", "xz", "zstd"})  # gzip and the like where they hold TAR
_OTHER_IMAGES: Final = {
    "TIFF": (b"II*\0", b"MM\0*"),
    "GIF": (b"GIF8",),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
}
_DICOM_SUFFIXES: Final = (".dcm", ".dicom", ".dic", ".ima")
_IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")
_TAR: Final = slice(257, 262)
_ISO_OFFSET: Final = 32769  # ISO 9660 volume descriptor

_unknown = partial(Header, Kind.UNKNOWN, has_pixels=False)


def _format_of(data: bytes, formats: dict[str, tuple[bytes, ...]]) -> str:
    return next((name for name, magics in formats.items() if data.startswith(magics)), "")


def named_dicom(name: str) -> bool:
    """Return whether the file's name says DICOM."""
    return name.lower().endswith(_DICOM_SUFFIXES)


def executable(preamble: bytes) -> str:
    """Return what program a DICOM preamble pretends to be, "" for none."""
    return _format_of(preamble, _EXECUTABLES)


def archive_of(data: bytes, size: int, more: Callable[[int, int], bytes]) -> str:
    """Return what archive a file is by its first bytes, "" for none."""
    name = _format_of(data, _ARCHIVES)
    if name or data[_TAR] == b"ustar":
        return name or "tar"
    return "ISO 9660" if size > _ISO_OFFSET + 5 and more(_ISO_OFFSET, 5) == b"CD001" else ""


def not_an_image(data: bytes, size: int, name: str, more: Callable[[int, int], bytes]) -> Header:
    """Return the header of a file that is neither DICOM, PNG nor JPEG: unreadable where its name says that it is."""
    is_dicom = named_dicom(name)
    if is_dicom or name.lower().endswith(_IMAGE_SUFFIXES):
        expected = "DICOM" if is_dicom else "PNG or JPEG"
        if not size:
            return _unknown("empty-file", message=f"expected {expected} by its name, received 0 bytes")
        if is_dicom and size < PREAMBLE + len(MAGIC) and (bytes(PREAMBLE) + MAGIC).startswith(data):
            return _unknown("truncated-header", message=f"the DICOM preamble ends after {size} bytes")
        problem = "not-dicom" if is_dicom else "not-an-image-despite-name"
        return _unknown(problem, message=f"expected {expected} by its name, received other content")
    if archive := archive_of(data, size, more):
        how = OPENS if archive in OPENED else "unpack it to sort what it holds"
        return _unknown(ignored="archive", message=f"{archive} archive: {how}")
    image = _format_of(data, _OTHER_IMAGES)
    return _unknown(ignored="not-an-image", message=image and f"{image}: only DICOM, PNG and JPEG are sorted")
