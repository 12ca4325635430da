"""What tells that two images show the same: a perceptual hash of the rendering, and the patient of a DICOM file."""

from __future__ import annotations

import hashlib
import re
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HASH_SIDE, THUMBNAIL = 16, 64
# A picture that varies less, in grey levels of 255, is blank: its hash is noise.
BLANK = 2.0
PATIENT_BYTES = 8
RASTER = (b"\x89PNG", b"\xff\xd8\xff")  # files without a patient
# What de-identified files carry in (0010,0020) *Patient ID* instead of a name for one person.
NOBODY = re.compile(
    r"[0x*?._ -]+|anon(ym(ous|i[sz]ed)?)?|de-?identified|removed|unknown|none|no ?(name|id)|patient|test", re.IGNORECASE
)


def perceptual_hash(image: NDArray[np.uint8]) -> NDArray[np.uint64] | None:
    """Return a hash, uint64 (4,), whose bits differ little for images that look alike; None for a blank image.

    ``image``: uint8 (side, side, 3). The bits tell which of the 16 x 16 lowest frequencies of the discrete cosine
    transform lie above their median (pHash: Zauner, Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010; 256 bits instead of 64, which cannot tell one chest radiograph from the next).
    """
    return hash_picture(Image.fromarray(image))


def hash_picture(picture: Image.Image) -> NDArray[np.uint64] | None:
    """Return the hash of an image of mode RGB or L, see ``perceptual_hash``."""
    grey = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.float32)
    if pixels.std() < BLANK:
        return None
    spectrum = (_cosines() @ pixels @ _cosines().T).ravel()
    middle = (spectrum.size - 1) // 2
    bits = spectrum > np.partition(spectrum[1:], middle)[middle]  # the median of an odd number
    bits[0] = False  # the mean grey
    return np.packbits(bits).view(np.uint64)


def patient(path: Path, salt: bytes) -> str:
    """Return a salted hash of a DICOM file's patient, "" where it names none; the name itself goes nowhere.

    Read are (0010,0020) *Patient ID* and (0010,0021) *Issuer of Patient ID*; what stands for nobody is none.
    """
    from pydicom import dcmread

    try:
        with path.open("rb") as file:
            if file.read(4).startswith(RASTER):
                return ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = ["PatientID", "IssuerOfPatientID"]
            header = dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(tags))
            name, issuer = (str(header.get(tag) or "").strip(" \0") for tag in tags)
    except Exception:  # noqa: BLE001 - the pixels were readable; a header that is not has no patient to tell of
        return ""
    if not name or NOBODY.fullmatch(name):
        return ""
    whole = f"{issuer}\0{name}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(whole, key=salt, digest_size=PATIENT_BYTES).hexdigest()


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float32]:
    """Return the lowest rows of the discrete cosine transform (II), float32 (16, 64)."""
    frequency, place = np.arange(HASH_SIDE)[:, None], np.arange(THUMBNAIL)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * THUMBNAIL)).astype(np.float32)
