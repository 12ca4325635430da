"""One frame of a DICOM file, decoded alone however many others the file holds.

Uncompressed pixel data (PS3.5 8.1 and A.1 to A.3) is found by its offset. Encapsulated pixel data (PS3.5 A.4) is found
by an offset table, else by its fragments, and decoded by what its bytes are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from dicomsort.dicom.elements import ITEM, SEQUENCE_END, UNDEFINED, ByteSource
from dicomsort.dicom.encoding import ELEMENT_HEADERS, NATIVE, SHORT_HEADER
from dicomsort.pixels import codestream, decoders, grayscale
from dicomsort.pixels.layout import GREY, Frame, PixelLayout, choose, drop_unused_bits, read_layout, to_frame
from dicomsort.pixels.limits import MAX_FRAGMENTS, PixelsError, check_size, wrap_errors
from dicomsort.pixels.source import Source
from dicomsort.pixels.values import encoded, integer

Fragment = tuple[int, int]  # offset and number of its bytes
_OFFSET, _LONG_OFFSET = 4, 8  # bytes
_END_OF_IMAGE, _NEAR_END = b"\xff\xd9", 10  # of JPEG, JPEG-LS and JPEG 2000; bytes in which it is found
_DAMAGED = "the encapsulated pixel data is damaged"
_UNDECODABLE = "the compressed pixel data cannot be decoded"


def read_frame(source: Source, frame: int | None) -> tuple[int, bytes]:
    """Return the index and the encoded bytes of a frame, the middle one where ``frame`` is None."""
    content, start = source.content, source.element.offset
    tag, length = _item(content, start, content.size)
    if length > _OFFSET * MAX_FRAGMENTS:
        raise PixelsError("the offset table is too long")
    if tag != ITEM or length % _OFFSET:
        raise PixelsError(_DAMAGED)
    first = start + SHORT_HEADER + length
    extended = [encoded(source.dataset, f"ExtendedOffsetTable{suffix}") for suffix in ("", "Lengths")]
    has_extended = len(extended[0]) == len(extended[1]) > 0
    chain: list[Fragment] = []
    if has_extended:
        present = len(extended[0]) // _LONG_OFFSET
    elif length:
        present = length // _OFFSET
    else:
        chain = list(_fragments(content, first, content.size))
        present = len(chain)
    if not present:
        raise PixelsError("truncated pixel data")
    index, count = choose(frame, integer(source.dataset, "NumberOfFrames", 1), present)
    if has_extended:
        offset, size = (_integer(table, index, _LONG_OFFSET) for table in extended)
        fragments: Iterable[Fragment] = [(first + offset + SHORT_HEADER, size)]
    elif length:
        fragments = _between_offsets(content, start + SHORT_HEADER, first, index, present)
    else:
        fragments = _without_table(content, chain, index, count)
    data = b"".join(content.at(offset, size) for offset, size in fragments)
    if not data:
        raise PixelsError("truncated pixel data")
    return index, data


def _integer(table: bytes, index: int, size: int) -> int:
    return int.from_bytes(table[index * size : (index + 1) * size], "little")


def _between_offsets(content: ByteSource, table: int, first: int, index: int, present: int) -> Iterator[Fragment]:
    """Return the fragments from a frame's offset to the next one's, or to the end."""
    offsets = content.at(table + index * _OFFSET, 2 * _OFFSET)
    begin, after = (_integer(offsets, i, _OFFSET) for i in range(2))
    end = first + after if index < present - 1 and after >= begin else content.size
    return _fragments(content, first + begin, end)


def _without_table(content: ByteSource, chain: list[Fragment], index: int, count: int) -> list[Fragment]:
    """Return a frame's fragments: one a frame, all of a single frame, or up to the marker that ends an image."""
    if len(chain) in {1, count}:
        return chain[index : index + 1]
    if count == 1:
        return chain
    frames: list[list[Fragment]] = [[]]
    for offset, size in chain:
        frames[-1].append((offset, size))
        if _END_OF_IMAGE in content.at(max(offset, offset + size - _NEAR_END), min(size, _NEAR_END)):
            frames.append([])
    if index >= len(frames) or not frames[index]:
        raise PixelsError(_DAMAGED)
    return frames[index]


def _fragments(content: ByteSource, at: int, end: int) -> Iterator[Fragment]:
    """Yield the fragments between two offsets, as far as there are any."""
    for _ in range(MAX_FRAGMENTS):
        tag, length = _item(content, at, end)
        if tag in {0, SEQUENCE_END}:
            return
        if tag != ITEM or length == UNDEFINED:
            raise PixelsError(_DAMAGED)
        at += SHORT_HEADER
        yield at, max(0, min(length, end - at))
        at += length
    raise PixelsError("there are too many fragments")


def _item(content: ByteSource, at: int, end: int) -> tuple[int, int]:
    """Return tag and length of the item at an offset, (0, 0) where there is none before the end."""
    header = content.at(at, max(0, min(SHORT_HEADER, end - at)))
    if len(header) < SHORT_HEADER:
        return 0, 0
    group, element, length = ELEMENT_HEADERS[True].implicit(header)  # little endian (PS3.5 A.4)
    return group << 16 | element, length


# Words whose bytes are swapped against the transfer syntax make noise of an image: one that is rough, and far smoother
# with its bytes exchanged, was written so.
_WORD = 16
_LONGEST = (1 << 16) - 1  # rows and columns are US
_PATCH, _MIN_PATCH = 256, 32  # pixels of a side that are compared, and that there must be
_ROUGH, _SMOOTHER = 0.05, 0.25


def decode_native(
    content: ByteSource, start: int, length: int, source: Source, layout: PixelLayout, frame: int | None
) -> Frame:
    """Decode one uncompressed frame (PS3.5 8.1) of the ``length`` bytes of a content from ``start`` on."""
    if layout.photometric_interpretation == "YBR_FULL_422" and length * 8 >= layout.bits * 3 // 2:
        layout = replace(layout, photometric_interpretation="YBR_FULL")  # the chroma was never subsampled
    present = length * 8 // layout.bits
    if not present:
        raise PixelsError(f"truncated pixel data: {length} of {(layout.bits + 7) // 8} bytes")
    declared = integer(source.dataset, "NumberOfFrames", 1 if "NumberOfFrames" not in source.dataset else 0)
    index, count = choose(frame, declared, present)
    size = layout.bits // 8
    plain = content.at(start + index * size, size) if _is_plain(layout, source) else b""

    def read(*, little: bool) -> Frame:
        if len(plain) * 8 == layout.bits:
            return _read_plain(plain, layout, index, little=little)
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        with wrap_errors("the pixel data cannot be read"):
            pixels, properties = get_decoder(syntax).as_array(
                content.stream(start), index=index, raw=True, **layout.options(count)
            )
        return to_frame(pixels, properties, layout, index)

    decoded = read(little=source.little)
    if layout.bits_allocated == _WORD and (roughness := _roughness(decoded.pixels)) > _ROUGH:
        swapped = read(little=not source.little)
        if _roughness(swapped.pixels) < roughness * _SMOOTHER:
            return swapped
    return decoded


def _read_plain(data: bytes, layout: PixelLayout, index: int, *, little: bool) -> Frame:
    dtype = np.dtype(f"{'<' if little else '>'}{_dtype_name(layout)}")
    pixels = np.frombuffer(data, dtype).reshape(layout.rows, layout.columns)
    if layout.bits_stored < layout.bits_allocated:
        pixels = drop_unused_bits(pixels, layout.bits_stored)
    return Frame(pixels, layout.photometric_interpretation, layout.bits_stored, index)


def _dtype_name(layout: PixelLayout) -> str:
    return f"{'ui'[layout.pixel_representation]}{layout.bits_allocated // 8}"


def _is_plain(layout: PixelLayout, source: Source) -> bool:
    """Return whether a frame needs no pydicom: grey, in bytes or words, with no bits below the stored ones."""
    is_whole = layout.bits_allocated == _WORD or (layout.bits_allocated == 8 and source.little)  # noqa: PLR2004
    is_grey = layout.pixel_keyword == "PixelData" and layout.samples_per_pixel == 1
    return is_whole and is_grey and layout.shift == 0 and max(layout.rows, layout.columns) <= _LONGEST


def _roughness(pixels: NDArray[Any]) -> float:
    """Return the mean step between neighbours in the middle of an image, as a share of the range: noise has 1/3.

    An image that is too small to measure has 0.
    """
    rows, columns = (max(0, side - _PATCH) // 2 for side in pixels.shape[:2])
    patch = pixels[rows : rows + _PATCH, columns : columns + _PATCH].astype(np.float32)
    span = float(np.ptp(patch)) if min(patch.shape[:2]) >= _MIN_PATCH else 0.0
    if not span:
        return 0.0
    steps = (patch[1:] - patch[:-1], patch[:, 1:] - patch[:, :-1])
    return sum(float(np.abs(step, out=step).mean()) for step in steps) / (2 * span)


_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"  # Deflated Image Frame Compression (PS3.5 A.4.12)


def decode_encapsulated(source: Source, layout: PixelLayout, frame: int | None, min_side: int) -> Frame:
    """Decode one frame by what its bytes are: they decide where the transfer syntax says otherwise."""
    index, data = read_frame(source, frame)
    if source.syntax == uid.RLELossless:
        check_size(layout.rows, layout.columns)
        return _decode_rle(data, layout, index)
    if source.syntax == _DEFLATED_FRAMES:
        check_size(layout.rows, layout.columns)
        with wrap_errors(_UNDECODABLE):
            plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, (layout.bits + 7) // 8)
        return replace(decode_native(ByteSource.of_bytes(plain), 0, len(plain), source, layout, 0), index=index)
    stream = codestream.parse(data)
    if stream is None:
        if source.syntax in decoders.DECODER_DEPENDENCIES:
            raise PixelsError(f"no codestream of transfer syntax {source.syntax}")
        raise PixelsError(f"transfer syntax {source.syntax or '(none)'} is not supported for encapsulated pixel data")
    check_size(stream.rows, stream.columns)
    layout = _as_coded(layout, stream)
    with wrap_errors(_UNDECODABLE):
        if (small := _decode_smaller(data, stream, layout, source, index, min_side)) is not None:
            return small
        syntax, _ = decoders.CODECS[stream.codec]
        if not syntax:
            return _unknown_to_pydicom(decoders.decode(data, stream, layout.photometric_interpretation), layout, index)
        decoders.register()
        pixels, properties = get_decoder(syntax).as_array(
            encapsulate([data]), index=0, raw=True, decoding_plugin=decoders.PLUGIN, **layout.options(1)
        )
    # Signed values that were coded as unsigned ones of more bits than are stored: no decoder knows their sign.
    if layout.pixel_representation and not stream.signed and not layout.bits_stored >= stream.bits > 0:
        pixels = drop_unused_bits(pixels, layout.bits_stored)
    return to_frame(pixels, properties, layout, index)


def _decode_smaller(
    data: bytes, stream: codestream.Codestream, layout: PixelLayout, source: Source, index: int, min_side: int
) -> Frame | None:
    """Decode a large frame at a fraction of its size, where the mean of neighbours is a value like theirs.

    Indices of a palette have no mean, nor do padding that its window does not show black, and values whose bits mean
    another number than they were coded as. A JPEG without a window is decoded whole, which costs little: the ends of
    its grey scale are noise, and the percentiles of a part of it are others.
    """
    photometric, is_grey = layout.photometric_interpretation, layout.samples_per_pixel == 1
    is_jpeg = stream.codec == "jpeg"
    same = layout.pixel_representation == stream.signed and (not is_jpeg or stream.bits <= layout.bits_stored)
    if not same or photometric == "PALETTE COLOR":
        return None
    if is_jpeg and is_grey and not grayscale.has_window(source.dataset, index):
        return None
    pixels = decoders.decode_reduced(data, stream, decoders.jpeg_colour(stream, photometric), min_side)
    if pixels is None:
        return None
    pixels = pixels.astype(_dtype_name(layout), copy=False)
    inverted = photometric == "MONOCHROME1"
    if is_grey and not grayscale.padding_is_black(source.dataset, index, pixels.dtype, inverted=inverted):
        return None
    if not is_grey and (is_jpeg or photometric in {"YBR_ICT", "YBR_RCT"}):  # the codec itself made it RGB
        photometric = "RGB"
    return Frame(pixels, photometric, layout.bits_stored, index)


def _unknown_to_pydicom(pixels: NDArray[Any], layout: PixelLayout, index: int) -> Frame:
    bits = pixels.dtype.itemsize * 8
    if pixels.ndim == 3 and pixels.shape[2] == 3:  # noqa: PLR2004
        return Frame(pixels, "RGB", bits, index)
    if pixels.ndim != 2:  # noqa: PLR2004
        raise PixelsError("the number of samples per pixel is not supported")
    if layout.pixel_representation and pixels.dtype.kind == "u":
        pixels = drop_unused_bits(pixels.view(f"i{pixels.dtype.itemsize}"), min(layout.bits_stored, bits))
    photometric = layout.photometric_interpretation if layout.samples_per_pixel == 1 else "MONOCHROME2"
    return Frame(pixels, photometric, layout.bits_stored, index)


def _as_coded(layout: PixelLayout, stream: codestream.Codestream) -> PixelLayout:
    """Let the codestream's size, samples and depth win over the header's."""
    samples = stream.samples or layout.samples_per_pixel
    if samples not in {1, 3}:
        raise PixelsError(f"{samples} samples per pixel are not supported")
    photometric = layout.photometric_interpretation
    if (samples == 1) != (photometric in GREY):
        photometric = "MONOCHROME2" if samples == 1 else "RGB"
    allocated = max(layout.bits_allocated, 8 if stream.bits <= 8 else 16 if stream.bits <= 16 else 32)  # noqa: PLR2004
    return replace(
        layout,
        rows=stream.rows,
        columns=stream.columns,
        samples_per_pixel=samples,
        photometric_interpretation=photometric,
        bits_allocated=allocated,
        bits_stored=min(max(layout.bits_stored, 1), allocated),
        shift=0,
        pixel_representation=int(layout.pixel_representation or stream.signed),
        planar_configuration=0,
    )


def _decode_rle(data: bytes, layout: PixelLayout, index: int) -> Frame:
    """Decode PS3.5 annex G by pydicom, which does not know packed bits: these are decoded here."""
    with wrap_errors(_UNDECODABLE):
        if layout.bits_allocated == 1:
            packed = np.frombuffer(imagecodecs.packbits_decode(data[64:]), np.uint8)
            shape = (layout.rows, layout.columns)
            bits = np.unpackbits(packed, bitorder="little", count=layout.rows * layout.columns).reshape(shape)
            return Frame(bits, layout.photometric_interpretation, 1, index)
        pixels, properties = get_decoder(uid.RLELossless).as_array(
            encapsulate([data]), index=0, raw=True, decoding_plugin="pydicom", **layout.options(1)
        )
    return to_frame(pixels, properties, layout, index)


_ITEM = b"\xfe\xff\x00\xe0"


def decode(source: Source, frame: int | None, min_side: int) -> Frame:
    """Decode one frame, the middle one where ``frame`` is None; a large one comes back smaller, if that is cheaper.

    Its longer side is then no less than ``min_side`` pixels.
    """
    layout, element = read_layout(source), source.element
    item = source.content.at(element.offset, len(_ITEM)) == _ITEM
    # A defined length is native data, whatever the transfer syntax says, unless an item shows that it is not.
    if element.length == UNDEFINED or (item and source.syntax not in NATIVE):
        return decode_encapsulated(source, layout, frame, min_side)
    check_size(layout.rows, layout.columns)
    length = min(element.length, source.content.size - element.offset)
    return decode_native(source.content, element.offset, length, source, layout, frame)
