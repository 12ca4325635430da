"""One frame of encapsulated pixel data, PS3.5 A.4, decoded by what its bytes are."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from dicomsort.dicom.elements import ByteSource
from dicomsort.pixels import codestream, decoders, grey, native, reduced
from dicomsort.pixels.fragments import read_frame
from dicomsort.pixels.layout import GREY, Frame, Layout, alignment, keep_bits, to_frame
from dicomsort.pixels.problems import PixelsError, border, check_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomsort.pixels.source import Source

_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"


def decode(source: Source, layout: Layout, frame: int | None, least: int) -> Frame:
    """Decode one frame by what its bytes are: they decide where the transfer syntax says otherwise."""
    index, data = read_frame(source, frame)
    if source.syntax == uid.RLELossless:
        check_size(layout.rows, layout.columns)
        return _decode_rle(data, layout, index)
    if source.syntax == _DEFLATED_FRAMES:
        check_size(layout.rows, layout.columns)
        return _decode_deflated(data, source, layout, index)
    stream = codestream.parse(data)
    if stream is None:
        if source.syntax in decoders.DECODER_DEPENDENCIES:
            raise PixelsError(f"no codestream of transfer syntax {source.syntax}")
        raise PixelsError(f"transfer syntax {source.syntax or '(none)'} is not supported for encapsulated pixel data")
    check_size(stream.rows, stream.columns)
    layout = _as_coded(layout, stream)
    with border("the compressed pixel data cannot be decoded"):
        if (small := _decode_smaller(data, stream, layout, source, index, least)) is not None:
            return small
        if stream.codec not in decoders.SYNTAXES:
            return _unknown_to_pydicom(decoders.decode(data, stream, layout.photometric), layout, index)
        decoders.register()
        pixels, facts = get_decoder(decoders.SYNTAXES[stream.codec]).as_array(
            encapsulate([data]), index=0, raw=True, decoding_plugin=decoders.PLUGIN, **layout.options(1)
        )
    if _hides_sign(layout, stream):
        pixels = keep_bits(pixels, layout.stored)
    return to_frame(pixels, facts, replace(layout, shift=0), index)


def _decode_smaller(
    data: bytes, stream: codestream.Codestream, layout: Layout, source: Source, index: int, least: int
) -> Frame | None:
    """Decode a large frame at a fraction of its size, where the mean of neighbours is a value like theirs.

    It is not among indices of a palette, beside padding that is black by decree, or where bits mean another number than
    they were coded as. A JPEG without a window is decoded whole, which costs little: the ends of its grey scale are
    noise, and the percentiles of less of it are others.
    """
    same = bool(layout.signed) == stream.signed and (stream.codec != "jpeg" or stream.bits <= layout.stored)
    if not same or layout.photometric == "PALETTE COLOR":
        return None
    if stream.codec == "jpeg" and layout.samples == 1 and not grey.has_window(source.dataset, index):
        return None
    pixels = reduced.decode(data, stream, decoders.jpeg_colour(stream, layout.photometric), least)
    if pixels is None:
        return None
    pixels = pixels.astype(f"{'ui'[layout.signed]}{layout.allocated // 8}", copy=False)
    inverted = layout.photometric == "MONOCHROME1"
    if layout.samples == 1 and not grey.padding_is_black(source.dataset, index, pixels.dtype, inverted=inverted):
        return None
    decoded = stream.codec == "jpeg" or layout.photometric in {"YBR_ICT", "YBR_RCT"}  # by the codec itself
    return Frame(pixels, "RGB" if layout.samples > 1 and decoded else layout.photometric, layout.stored, index)


def _hides_sign(layout: Layout, stream: codestream.Codestream) -> bool:
    """Whether signed values were coded as unsigned ones of more bits than are stored; no decoder can tell."""
    return bool(layout.signed) and not stream.signed and not layout.stored >= stream.bits > 0


def _unknown_to_pydicom(pixels: NDArray[Any], layout: Layout, index: int) -> Frame:
    if pixels.ndim == 3 and pixels.shape[2] == 3:  # noqa: PLR2004
        return Frame(pixels, "RGB", pixels.dtype.itemsize * 8, index)
    if pixels.ndim != 2:  # noqa: PLR2004
        raise PixelsError("the number of samples per pixel is not supported")
    if layout.signed and pixels.dtype.kind == "u":
        pixels = keep_bits(pixels.view(f"i{pixels.dtype.itemsize}"), min(layout.stored, pixels.dtype.itemsize * 8))
    return Frame(pixels, layout.photometric if layout.samples == 1 else "MONOCHROME2", layout.stored, index)


def _as_coded(layout: Layout, stream: codestream.Codestream) -> Layout:
    """Let the codestream's size, samples and depth win over the header's."""
    samples = stream.samples or layout.samples
    if samples not in {1, 3}:
        raise PixelsError(f"{samples} samples per pixel are not supported")
    photometric = layout.photometric
    if (samples == 1) != (photometric in GREY):
        photometric = "MONOCHROME2" if samples == 1 else "RGB"
    allocated = max(layout.allocated, 8 if stream.bits <= 8 else 16 if stream.bits <= 16 else 32)  # noqa: PLR2004
    stored = min(max(layout.stored, 1), allocated)
    return replace(
        layout,
        rows=stream.rows,
        columns=stream.columns,
        samples=samples,
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        signed=int(layout.signed or stream.signed),
        planar=0,
    )


def _decode_rle(data: bytes, layout: Layout, index: int) -> Frame:
    """Decode PS3.5 annex G: by pydicom, but for packed bits, which it does not know."""
    if layout.allocated == 1:
        with border("the compressed pixel data cannot be decoded"):
            return _unpack(imagecodecs.packbits_decode(data[64:]), layout, index)
    with border("the compressed pixel data cannot be decoded"):
        pixels, facts = get_decoder(uid.RLELossless).as_array(
            encapsulate([data]),
            index=0,
            raw=True,
            decoding_plugin="pydicom",
            **alignment(layout),
            **layout.options(1),
        )
    return to_frame(pixels, facts, layout, index)


def _unpack(packed: bytes | bytearray, layout: Layout, index: int) -> Frame:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little", count=layout.rows * layout.columns)
    return Frame(bits.reshape(layout.rows, layout.columns), layout.photometric, 1, index)


def _decode_deflated(data: bytes, source: Source, layout: Layout, index: int) -> Frame:
    """Decode a frame of Deflated Image Frame Compression, PS3.5 A.4.12."""
    expected = (layout.bits + 7) // 8
    with border("the compressed pixel data cannot be decoded"):
        plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, expected)
    return replace(native.decode(ByteSource.of_bytes(plain), 0, len(plain), source, layout, 0), index=index)
