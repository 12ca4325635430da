"""How a file of the sample inbox is made from a real one: each recipe takes the source's bytes, gives the new bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

Recipe = Callable[[bytes], bytes]

EXIF_ORIENTATION = 0x0112
TURN_CLOCKWISE = 6  # the viewer is to turn the picture 90 degrees clockwise


def as_it_is(source: bytes) -> bytes:
    """The file, unchanged."""
    return source


def first_bytes(count: int) -> Recipe:
    """The file, cut off after ``count`` bytes, as a broken transfer leaves it."""
    return lambda source: source[:count]


def without_preamble(source: bytes) -> bytes:
    """The bare data set: preamble, prefix and file meta information cut off (PS3.10 7.1), as old archives keep it."""
    meta_length = int.from_bytes(source[140:144], "little")  # (0002,0000), the first element after the prefix
    return source[144 + meta_length :]


def as_instance(number: int) -> Recipe:
    """Another instance of the series: the last two digits of the SOP Instance UID become ``number``, in any syntax."""

    def recipe(source: bytes) -> bytes:
        uid = dcmread(io.BytesIO(source), specific_tags=["SOPInstanceUID"], force=True).SOPInstanceUID
        return source.replace(uid.encode(), f"{uid[:-2]}{number:02d}".encode())

    return recipe


def chain(*recipes: Recipe) -> Recipe:
    """One recipe after the other."""

    def recipe(source: bytes) -> bytes:
        for step in recipes:
            source = step(source)
        return source

    return recipe


def retagged(study: str, **tags: str | None) -> Recipe:
    """As an instance of a new study that ``study`` names, with ``tags`` set by keyword (None removes one)."""

    def recipe(source: bytes) -> bytes:
        dataset = dcmread(io.BytesIO(source))
        _retag(dataset, study, tags)
        return _written(dataset)

    return recipe


def joined_to(study_uid: str) -> Recipe:
    """With another Study Instance UID (0020,000D), as a report about that study has it."""

    def recipe(source: bytes) -> bytes:
        dataset = dcmread(io.BytesIO(source))
        dataset.StudyInstanceUID = study_uid
        return _written(dataset)

    return recipe


def reduced(factor: int, study: str, **tags: str | None) -> Recipe:
    """Uncompressed, each ``factor`` x ``factor`` pixels averaged to one, and retagged."""

    def recipe(source: bytes) -> bytes:
        dataset = dcmread(io.BytesIO(source))
        pixels = dataset.pixel_array
        rows, columns = (side // factor for side in pixels.shape)
        blocks = pixels[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
        dataset.Rows, dataset.Columns = rows, columns
        dataset.PixelData = (blocks.sum(axis=(1, 3), dtype=np.int64) // factor**2).astype(pixels.dtype).tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        _retag(dataset, study, tags)
        return _written(dataset)

    return recipe


def edited_pixels(source: bytes) -> bytes:
    """The same instance by its UIDs, with the upper quarter of the picture blanked (as an export that masks text)."""
    dataset = dcmread(io.BytesIO(source))
    pixels = dataset.pixel_array.copy()
    pixels[: len(pixels) // 4] = pixels.min()
    dataset.PixelData = pixels.tobytes()
    return _written(dataset)


def as_png(side: int) -> Recipe:
    """A PNG of 8-bit grey, at most ``side`` pixels high and wide."""
    return lambda source: _encoded(_picture(source, side), "PNG", optimize=True)


def as_png16(side: int) -> Recipe:
    """A PNG of 16-bit grey, at most ``side`` pixels high and wide."""

    def recipe(source: bytes) -> bytes:
        grey = np.asarray(_picture(source, side), np.uint16)
        return _encoded(Image.fromarray(grey * 257), "PNG", optimize=True)

    return recipe


def as_jpeg(side: int) -> Recipe:
    """A JPEG of 8-bit grey, at most ``side`` pixels high and wide."""
    return lambda source: _encoded(_picture(source, side), "JPEG", quality=88)


def as_phone_jpeg(side: int) -> Recipe:
    """A colour JPEG stored lying on its side, with the EXIF orientation that puts it right."""

    def recipe(source: bytes) -> bytes:
        picture = _picture(source, side).convert("RGB").transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = TURN_CLOCKWISE
        return _encoded(picture, "JPEG", quality=85, exif=exif)

    return recipe


def zipped(name: str) -> Recipe:
    """A ZIP archive that holds the file as ``name``."""

    def recipe(source: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name, (2019, 5, 2, 10, 0, 0)), source)
        return buffer.getvalue()

    return recipe


def text(content: str) -> Recipe:
    """A text file with the line ends of Windows; the source plays no part."""
    return lambda _: content.replace("\n", "\r\n").encode()


def thumbnails_database(_: bytes) -> bytes:
    """The first sector of an OLE compound file, which is what a Thumbs.db is."""
    return bytes.fromhex("D0CF11E0A1B11AE1").ljust(24, b"\0") + bytes.fromhex("3E000300FEFF0900").ljust(488, b"\xff")


def _retag(dataset: Dataset, study: str, tags: dict[str, str | None]) -> None:
    for keyword, level in (("StudyInstanceUID", 0), ("SeriesInstanceUID", 1), ("SOPInstanceUID", 2)):
        setattr(dataset, keyword, generate_uid(entropy_srcs=["dicomsort sample", study, str(level)]))
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset)
    return buffer.getvalue()


def _picture(source: bytes, side: int) -> Image.Image:
    """The picture through the first window of its header (PS3.3 C.11.2.1.2), bright on dark, mode L."""
    dataset = dcmread(io.BytesIO(source))
    values = apply_modality_lut(dataset.pixel_array, dataset)
    center, width = (float(np.atleast_1d(dataset[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth"))
    grey = np.clip((values - center) / width + 0.5, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    picture = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return picture


def _encoded(picture: Image.Image, encoder: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, encoder, **options)
    return buffer.getvalue()
