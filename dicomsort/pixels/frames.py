"""One frame of a DICOM file, decoded alone however many others the file holds.

Uncompressed pixel data (PS3.5 8.1 and A.1 to A.3) is found by its offset. Encapsulated pixel data (PS3.5 A.4) is found
by an offset table, else by its fragments, and decoded by what its bytes are.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from dicomsort.dicom.elements import ITEM, SEQUENCE_END, UNDEFINED, ByteSource
from dicomsort.dicom.encoding import ELEMENT_HEADERS, SHORT_HEADER
from dicomsort.pixels import codestream, decoders, grayscale
from dicomsort.pixels.layout import GREY, Frame, Layout, alignment, choose, keep_bits, read_layout, to_frame
from dicomsort.pixels.limits import MAX_FRAGMENTS, PixelsError, border, check_size
from dicomsort.pixels.source import Source
from dicomsort.pixels.values import encoded, integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydicom.dataset import Dataset

    from dicomsort.dicom.elements import ByteSource
    from dicomsort.pixels.source import Source

    Fragment = tuple[int, int]  # where its bytes begin, and how many there are

_HEADER = ELEMENT_HEADERS[True].implicit  # of an item; encapsulated pixel data is little endian (PS3.5 A.4)
_OFFSET, _LONG_OFFSET = 4, 8  # bytes
_END_OF_IMAGE, _NEAR_END = b"\xff\xd9", 10  # of JPEG, JPEG-LS and JPEG 2000; bytes in which it is found
_DAMAGED = "the encapsulated pixel data is damaged"


def read_frame(source: Source, frame: int | None) -> tuple[int, bytes]:
    """Return the index and the encoded bytes of a frame, the middle one where ``frame`` is None."""
    content, start = source.content, source.element.offset
    tag, length = _header(content, start, content.size)
    if length > _OFFSET * MAX_FRAGMENTS:
        raise PixelsError("the offset table is too long")
    if tag != ITEM or length % _OFFSET:
        raise PixelsError(_DAMAGED)
    first = start + SHORT_HEADER + length
    extended, chain = _extended_offsets(source.dataset), []
    if extended:
        held = len(extended[0]) // _LONG_OFFSET
    elif length:
        held = length // _OFFSET
    else:
        chain = list(_fragments(content, first, content.size))
        held = len(chain)
    if not held:
        raise PixelsError("truncated pixel data")
    declared = integer(source.dataset, "NumberOfFrames", 1)
    count = min(declared, held) if declared > 0 else held
    index = choose(frame, count)
    if extended:
        offset, size = (_integer(table, index, _LONG_OFFSET) for table in extended)
        data = content.at(first + offset + SHORT_HEADER, size)
    elif length:
        data = _join(content, _between_offsets(content, start + SHORT_HEADER, first, index, held))
    else:
        data = _join(content, _without_table(content, chain, index, count))
    if not data:
        raise PixelsError("truncated pixel data")
    return index, data


def _extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    """Return (7FE0,0001) *Extended Offset Table* and (7FE0,0002) *Extended Offset Table Lengths* as they are stored."""
    offsets, lengths = encoded(dataset, "ExtendedOffsetTable"), encoded(dataset, "ExtendedOffsetTableLengths")
    return (offsets, lengths) if offsets and len(offsets) == len(lengths) else None


def _integer(table: bytes, index: int, size: int) -> int:
    return int.from_bytes(table[index * size : (index + 1) * size], "little")


def _between_offsets(content: ByteSource, table: int, first: int, index: int, held: int) -> Iterator[Fragment]:
    """Yield the fragments from a frame's offset to the next one's, or to the end."""
    offsets = content.at(table + index * _OFFSET, 2 * _OFFSET)
    begin, after = (_integer(offsets, i, _OFFSET) for i in range(2))
    end = first + after if index < held - 1 and after >= begin else content.size
    return _fragments(content, first + begin, end)


def _without_table(content: ByteSource, chain: list[Fragment], index: int, count: int) -> list[Fragment]:
    """Choose a frame's fragments: one a frame, all of a single frame, or up to the marker that ends an image."""
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
    """Yield the fragments between two places, as far as there are any."""
    for _ in range(MAX_FRAGMENTS):
        tag, length = _header(content, at, end)
        if tag in {0, SEQUENCE_END}:
            return
        if tag != ITEM or length == UNDEFINED:
            raise PixelsError(_DAMAGED)
        at += SHORT_HEADER
        yield at, max(0, min(length, end - at))
        at += length
    raise PixelsError("there are too many fragments")


def _header(content: ByteSource, at: int, end: int) -> tuple[int, int]:
    """Return tag and length of the item at a place, (0, 0) where there is none before the end."""
    found = content.at(at, max(0, min(SHORT_HEADER, end - at)))
    if len(found) < SHORT_HEADER:
        return 0, 0
    group, element, length = _HEADER(found)
    return group << 16 | element, length


def _join(content: ByteSource, fragments: Iterable[Fragment]) -> bytes:
    return b"".join(content.at(offset, size) for offset, size in fragments)


# Words whose bytes lie the other way round than the transfer syntax says make noise of an image: what is rough, and far
# smoother with its bytes exchanged, was written so.
_WORD = 16
_LONGEST = (1 << 16) - 1  # rows and columns are US
_PATCH, _LEAST = 256, 32  # pixels of a side that are looked at, and that there must be
_ROUGH, _SMOOTHER = 0.05, 0.25


def decode_native(
    content: ByteSource, start: int, length: int, source: Source, layout: Layout, frame: int | None
) -> Frame:
    """Decode one uncompressed frame (PS3.5 8.1) of the ``length`` bytes of a content from ``start`` on."""
    if layout.photometric == "YBR_FULL_422" and length * 8 >= layout.bits * 3 // 2:
        layout = replace(layout, photometric="YBR_FULL")  # the chroma was never subsampled
    held = length * 8 // layout.bits
    if not held:
        raise PixelsError(f"truncated pixel data: {length} of {(layout.bits + 7) // 8} bytes")
    declared = integer(source.dataset, "NumberOfFrames", 1 if "NumberOfFrames" not in source.dataset else 0)
    count = min(declared, held) if declared > 0 else held
    index = choose(frame, count)
    plain = content.at(start + index * (layout.bits // 8), layout.bits // 8) if _is_plain(layout, source) else b""

    def read(*, little: bool) -> Frame:
        if len(plain) * 8 == layout.bits:
            return _read_plain(plain, layout, index, little=little)
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        with border("the pixel data cannot be read"):
            pixels, facts = get_decoder(syntax).as_array(
                content.stream(start), index=index, raw=True, **alignment(layout), **layout.options(count)
            )
        return to_frame(pixels, facts, layout, index)

    seen = read(little=source.little)
    if layout.allocated == _WORD and (roughness := _roughness(seen.pixels)) > _ROUGH:
        swapped = read(little=not source.little)
        if _roughness(swapped.pixels) < roughness * _SMOOTHER:
            return swapped
    return seen


def _read_plain(data: bytes, layout: Layout, index: int, *, little: bool) -> Frame:
    dtype = np.dtype(f"{'<' if little else '>'}{'ui'[layout.signed]}{layout.allocated // 8}")
    pixels = np.frombuffer(data, dtype).reshape(layout.rows, layout.columns)
    kept = pixels if layout.stored == layout.allocated else keep_bits(pixels, layout.stored)
    return Frame(kept, layout.photometric, layout.stored, index)


def _is_plain(layout: Layout, source: Source) -> bool:
    """Whether a frame is what most are, and nothing for pydicom: grey, in bytes or words with no bits below."""
    whole = layout.allocated == _WORD or (layout.allocated == 8 and source.little)  # noqa: PLR2004
    return (
        whole
        and layout.keyword == "PixelData"
        and layout.samples == 1
        and layout.shift == 0
        and max(layout.rows, layout.columns) <= _LONGEST
    )


def _roughness(pixels: NDArray[Any]) -> float:
    """Return the mean step between neighbours in the middle of an image, as a share of the range: noise has 1/3.

    An image too small to tell has 0.
    """
    rows, columns = (max(0, side - _PATCH) // 2 for side in pixels.shape[:2])
    patch = pixels[rows : rows + _PATCH, columns : columns + _PATCH].astype(np.float32)
    span = float(np.ptp(patch)) if min(patch.shape[:2]) >= _LEAST else 0.0
    if not span:
        return 0.0
    steps = (patch[1:] - patch[:-1], patch[:, 1:] - patch[:, :-1])
    return sum(float(np.abs(step, out=step).mean()) for step in steps) / (2 * span)


_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"


def decode_encapsulated(source: Source, layout: Layout, frame: int | None, least: int) -> Frame:
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
    if stream.codec == "jpeg" and layout.samples == 1 and not grayscale.has_window(source.dataset, index):
        return None
    pixels = decoders.decode_reduced(data, stream, decoders.jpeg_colour(stream, layout.photometric), least)
    if pixels is None:
        return None
    pixels = pixels.astype(f"{'ui'[layout.signed]}{layout.allocated // 8}", copy=False)
    inverted = layout.photometric == "MONOCHROME1"
    if layout.samples == 1 and not grayscale.padding_is_black(source.dataset, index, pixels.dtype, inverted=inverted):
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
    return replace(decode_native(ByteSource.of_bytes(plain), 0, len(plain), source, layout, 0), index=index)


_ITEM = b"\xfe\xff\x00\xe0"
_NATIVE = {
    "",
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}


def decode(source: Source, frame: int | None, least: int) -> Frame:
    """Decode one frame, the middle one where ``frame`` is None; a large one comes back smaller, if that is cheaper.

    Its longer side is then no less than ``least`` pixels.
    """
    layout, element = read_layout(source), source.element
    item = source.content.at(element.offset, len(_ITEM)) == _ITEM
    # A defined length is native data, whatever the transfer syntax says, unless an item shows that it is not.
    if element.length == UNDEFINED or (item and source.syntax not in _NATIVE):
        return decode_encapsulated(source, layout, frame, least)
    check_size(layout.rows, layout.columns)
    length = min(element.length, source.content.size - element.offset)
    return decode_native(source.content, element.offset, length, source, layout, frame)
