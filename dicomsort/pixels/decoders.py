"""imagecodecs as a decoding plugin of pydicom.

``register`` adds the plugin named ``PLUGIN`` to pydicom's decoder of each syntax below. It is idempotent and must run
in every process that decodes; importing this module registers nothing. Callers name the plugin, so that no other
decoder which happens to be installed is asked. Uncompressed, deflated and RLE pixel data stay with pydicom's own code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import imagecodecs
from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from dicomsort.pixels import codestream
from dicomsort.pixels.problems import PixelsError, check_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from pydicom.pixels.decoders.base import DecodeRunner

PLUGIN = "dicomsort"

# pydicom's plugin protocol: the syntaxes, and what is missing where ``is_available`` says no.
DECODER_DEPENDENCIES = dict.fromkeys(
    (
        uid.JPEGBaseline8Bit,
        uid.JPEGExtended12Bit,
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEGLSNearLossless,
        uid.JPEG2000Lossless,
        uid.JPEG2000,
        uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL,
        uid.HTJ2K,
    ),
    ("numpy", "imagecodecs"),
)

# The pydicom decoder of each codec: what the bytes are decides, where the file's transfer syntax says otherwise.
SYNTAXES = {
    "jpeg": uid.JPEGBaseline8Bit,
    "ljpeg": uid.JPEGLossless,
    "jpegls": uid.JPEGLSLossless,
    "jpeg2k": uid.JPEG2000,
    "htj2k": uid.HTJ2K,
}


def _jpeg(data: bytes, colour: str) -> NDArray[Any]:
    if colour:
        return imagecodecs.jpeg8_decode(data, colorspace=colour, outcolorspace="RGB")
    return imagecodecs.jpeg8_decode(data)


def _jpegls(data: bytes) -> NDArray[Any]:
    # CharLS takes seconds to notice the end of a stream that was cut off, but for an end marker at once.
    return imagecodecs.jpegls_decode(data + b"\xff\xd9")


def _jpeg2k(data: bytes) -> NDArray[Any]:
    # OpenJPEG reads high throughput too; imagecodecs' htj2k_decode returns a damaged stream as if it were whole.
    return imagecodecs.jpeg2k_decode(data, numthreads=1)


_CODECS: dict[str, Callable[[bytes, str], NDArray[Any]]] = {
    "jpeg": _jpeg,
    "ljpeg": _jpeg,
    "jpegls": lambda data, _: _jpegls(data),
    "jpeg2k": lambda data, _: _jpeg2k(data),
    "htj2k": lambda data, _: _jpeg2k(data),
    "jpegxl": lambda data, _: imagecodecs.jpegxl_decode(data, numthreads=1),
}


def register() -> None:
    """Add the plugin to pydicom's decoders in this process, where it is not there yet."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def is_available(syntax: str) -> bool:
    """Tell pydicom whether this plugin decodes a transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def decode(data: bytes, stream: codestream.Codestream, photometric: str) -> NDArray[Any]:
    """Decode one frame: (rows, columns) or (rows, columns, samples), of the codestream's own unsigned or signed type.

    Three components of a lossy JPEG come back as RGB whatever they were; other codecs return their components, after
    the inverse of JPEG 2000's own component transform.
    """
    return _CODECS[stream.codec](data, jpeg_colour(stream, photometric))


def jpeg_colour(stream: codestream.Codestream, photometric: str) -> str:
    """Return the colour space of the components of a lossy JPEG that has three, YCBCR or RGB, else ""."""
    if stream.codec != "jpeg" or stream.samples != 3:  # noqa: PLR2004
        return ""
    return stream.colour or ("RGB" if photometric == "RGB" else "YCBCR")


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode for pydicom, and tell its runner what the returned bytes are."""
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
