"""imagecodecs as a decoding plugin of pydicom.

``register`` adds the plugin named ``PLUGIN`` to pydicom's decoder of each syntax below. It is idempotent and must run
in every process that decodes; importing this module registers nothing. Callers name the plugin, so that no other
installed decoder is used. Uncompressed, deflated and RLE pixel data stay with pydicom's own code.

Large JPEG and JPEG 2000 frames are decoded at a half, a quarter or an eighth of their size. The scaling to the model's
input would average away what is left out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Jpeg2KImagePlugin, JpegImagePlugin
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from dicomsort.pixels import codestream
from dicomsort.pixels.codestream import Codestream
from dicomsort.pixels.limits import PixelsError, check_size

PLUGIN = "dicomsort"

# pydicom's plugin protocol: the syntaxes, and what is missing where ``is_available`` returns False.
DECODER_DEPENDENCIES = dict.fromkeys(
    (
        *uid.JPEGTransferSyntaxes,
        *uid.JPEGLSTransferSyntaxes,
        uid.JPEG2000Lossless,
        uid.JPEG2000,
        uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL,
        uid.HTJ2K,
    ),
    ("numpy", "imagecodecs"),
)

# The pydicom decoder of each codec ("": none), whatever the file's transfer syntax is, and the function that decodes.
CODECS: dict[str, tuple[str, Callable[[bytes], NDArray[Any]]]] = {
    "jpeg": (uid.JPEGBaseline8Bit, imagecodecs.jpeg8_decode),
    "ljpeg": (uid.JPEGLossless, imagecodecs.jpeg8_decode),
    # CharLS takes seconds to notice the end of a stream that was cut off, unless there is an end marker.
    "jpegls": (uid.JPEGLSLossless, lambda data: imagecodecs.jpegls_decode(data + b"\xff\xd9")),
    "jpeg2k": (uid.JPEG2000, lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1)),
    # OpenJPEG reads high throughput too; imagecodecs' htj2k_decode returns a damaged stream as if it were whole.
    "htj2k": (uid.HTJ2K, lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1)),
    "jpegxl": ("", lambda data: imagecodecs.jpegxl_decode(data, numthreads=1)),
}


def register() -> None:
    """Add the plugin to pydicom's decoders in this process, where it is not there yet."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def is_available(syntax: str) -> bool:
    """Return whether this plugin decodes a transfer syntax, for pydicom."""
    return syntax in DECODER_DEPENDENCIES


def decode(data: bytes, stream: Codestream, photometric: str) -> NDArray[Any]:
    """Decode one frame: (rows, columns) or (rows, columns, samples), of the codestream's own unsigned or signed type.

    Three components of a lossy JPEG come back as RGB whatever they were; other codecs return their components, after
    the inverse of JPEG 2000's own component transform.
    """
    if colour := jpeg_colour(stream, photometric):
        return imagecodecs.jpeg8_decode(data, colorspace=colour, outcolorspace="RGB")
    _, decoder = CODECS[stream.codec]
    return decoder(data)


def jpeg_colour(stream: Codestream, photometric: str) -> str:
    """Return the colour space of the components of a lossy JPEG that has three, YCBCR or RGB, else ""."""
    if stream.codec != "jpeg" or stream.samples != 3:  # noqa: PLR2004
        return ""
    return stream.colour or ("RGB" if photometric == "RGB" else "YCBCR")


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode for pydicom, and set what the returned bytes are as options of its runner."""
    stream = codestream.parse(src)
    if stream is None:
        raise PixelsError("no known codestream")
    check_size(stream.rows, stream.columns)
    photometric = str(runner.photometric_interpretation)
    pixels = decode(src, stream, photometric)
    if stream.codec == "jpeg" or photometric in {"YBR_ICT", "YBR_RCT"}:
        runner.set_option("photometric_interpretation", "RGB" if pixels.ndim > 2 else photometric)  # noqa: PLR2004
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    return pixels.tobytes()


_TEST_DEEP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # 12 bits: 0…4095
_TEST_FLAT = (_TEST_DEEP >> 4).astype(np.uint8)
_TEST_LOSSY = 8  # of 255; what JPEG may change in a ramp

# The codec, what is encoded, how, and the largest difference allowed after decoding.
_TESTED_CODECS: dict[str, tuple[NDArray[Any], Callable[[NDArray[Any]], bytes | bytearray], int]] = {
    "JPEG, 8 bits": (_TEST_FLAT, imagecodecs.jpeg8_encode, _TEST_LOSSY),
    "JPEG, 12 bits": (_TEST_DEEP, lambda image: imagecodecs.jpeg8_encode(image, bitspersample=12), 16 * _TEST_LOSSY),
    "JPEG lossless": (_TEST_FLAT, lambda image: imagecodecs.jpeg8_encode(image, lossless=True), 0),
    "JPEG-LS": (_TEST_DEEP, imagecodecs.jpegls_encode, 0),
    "JPEG 2000": (_TEST_DEEP, lambda image: imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0), 0),
    "HTJ2K": (_TEST_DEEP, imagecodecs.htj2k_encode, 0),
    "JPEG XL": (_TEST_DEEP, lambda image: imagecodecs.jpegxl_encode(image, lossless=True), 0),
}


def decoder_failures() -> Iterator[tuple[str, str]]:
    """Yield each codec that does not give back what was encoded, and why."""
    for name, (image, encode, allowed) in _TESTED_CODECS.items():
        try:
            data = bytes(encode(image))
            stream = codestream.parse(data)
            if stream is None:
                yield name, "its codestream is not recognised"
                continue
            difference = int(np.abs(decode(data, stream, "MONOCHROME2").astype(int) - image).max())
        except Exception as error:  # noqa: BLE001 - a library that cannot be loaded raises anything
            yield name, f"{type(error).__name__}: {error}"
        else:
            if difference > allowed:
                yield name, f"expected the picture that was encoded, received another (by {difference})"


_MAX_HALVINGS = 3  # libjpeg's smallest scale is 1/8
_BYTE, _WORD = 8, 16
_RAW = b"\xff\x4f\xff\x51"  # JPEG 2000 without boxes, which may name another colour space than the header
_JPEG_MODES = {"YCBCR": "YCbCr", "RGB": "RGB"}


def decode_reduced(data: bytes, stream: Codestream, colour: str, min_side: int) -> NDArray[Any] | None:
    """Decode a frame with its sides halved as long as the longer one keeps ``min_side`` pixels, at most three times.

    (rows, columns), or (rows, columns, 3): components of a JPEG, whose ``colour`` is YCBCR or RGB, come back as RGB.
    The values are the codestream's own, unsigned or signed. None where it cannot be halved or is damaged: that is left
    to the full decoder.
    """
    times = _halvings(stream, max(stream.rows, stream.columns) // min_side)
    if not times or not (stream.codec == "jpeg" or data.startswith(_RAW)):
        return None
    shape = (-(-stream.rows >> times), -(-stream.columns >> times))
    with contextlib.suppress(Exception):
        is_jpeg = stream.codec == "jpeg"
        pixels = _reduced_jpeg(data, times, colour) if is_jpeg else _reduced_jpeg2000(data, times, stream)
        if pixels.shape[:2] == shape and pixels.size:
            return pixels
    return None


def _halvings(stream: Codestream, divisor: int) -> int:
    """Return how often the sides of a frame can be halved, by no more than ``divisor``."""
    grey, colour = stream.samples == 1, stream.samples == 3  # noqa: PLR2004
    levels = 0
    if stream.codec == "jpeg":
        levels = _MAX_HALVINGS if stream.bits == _BYTE and (grey or colour) else 0
    elif (grey and stream.bits <= _WORD) or (colour and stream.bits == _BYTE and not stream.signed):
        levels = min(_MAX_HALVINGS, stream.levels)  # 0 of other codecs than JPEG 2000
    return min(levels, max(divisor, 1).bit_length() - 1)


def _reduced_jpeg(data: bytes, times: int, colour: str) -> NDArray[Any]:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.draft(None, (image.width >> times, image.height >> times))
    if image.mode == "RGB":  # what the header says wins over what libjpeg would guess
        image.tile = [image.tile[0]._replace(args=("RGB", _JPEG_MODES[colour]))]
    return np.asarray(image)


def _reduced_jpeg2000(data: bytes, times: int, stream: Codestream) -> NDArray[Any]:
    image = _Halved(io.BytesIO(data), times)
    pixels = np.asarray(image)
    if stream.samples > 1:
        return pixels
    # Pillow moves values to the top of 8 or 16 bits, and signed ones up until none is negative.
    pixels = pixels >> (8 * pixels.dtype.itemsize - stream.bits)
    if not stream.signed:
        return pixels
    return (pixels.astype(np.int32) - (1 << (stream.bits - 1))).astype(f"i{pixels.dtype.itemsize}")


class _Halved(Jpeg2KImagePlugin.Jpeg2KImageFile):
    """Pillow's ``reduce`` rounds the sides to the nearest, OpenJPEG up: where they differ, Pillow fails."""

    def __init__(self, file: io.BytesIO, times: int) -> None:
        super().__init__(file)
        self._size = (-(-self.width >> times), -(-self.height >> times))
        whole = self.tile[0]
        codec, _, *rest = cast("tuple[str, int, int, int, int]", whole.args)
        self.tile = [whole._replace(extents=(0, 0, *self._size), args=(codec, times, *rest))]
