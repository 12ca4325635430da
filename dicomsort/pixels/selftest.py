"""Whether every decoder of this installation works: a small picture through each codec and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

from dicomsort.pixels import codestream
from dicomsort.pixels.decoders import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEEP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # 12 bits: 0…4095
_FLAT = (_DEEP >> 4).astype(np.uint8)
_LOSSY = 8  # of 255; what JPEG may change in a ramp

# The codec, what is encoded, how, and how far what comes back may lie from it.
_CODECS: dict[str, tuple[NDArray[Any], Callable[[NDArray[Any]], bytes | bytearray], int]] = {
    "JPEG, 8 bits": (_FLAT, imagecodecs.jpeg8_encode, _LOSSY),
    "JPEG, 12 bits": (_DEEP, lambda image: imagecodecs.jpeg8_encode(image, bitspersample=12), 16 * _LOSSY),
    "JPEG lossless": (_FLAT, lambda image: imagecodecs.jpeg8_encode(image, lossless=True), 0),
    "JPEG-LS": (_DEEP, imagecodecs.jpegls_encode, 0),
    "JPEG 2000": (_DEEP, lambda image: imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0), 0),
    "HTJ2K": (_DEEP, imagecodecs.htj2k_encode, 0),
    "JPEG XL": (_DEEP, lambda image: imagecodecs.jpegxl_encode(image, lossless=True), 0),
}


def failures() -> Iterator[tuple[str, str]]:
    """Yield each codec that does not give back what was encoded, and why."""
    for name, (image, encode, allowed) in _CODECS.items():
        try:
            data = bytes(encode(image))
            stream = codestream.parse(data)
            if stream is None:
                yield name, "its codestream is not recognised"
                continue
            strayed = int(np.abs(decode(data, stream, "MONOCHROME2").astype(int) - image).max())
        except Exception as error:  # noqa: BLE001 - a library that cannot be loaded raises anything
            yield name, f"{type(error).__name__}: {error}"
        else:
            if strayed > allowed:
                yield name, f"expected the picture that was encoded, received another (by {strayed})"
