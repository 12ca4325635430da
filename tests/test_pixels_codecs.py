from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from building import make_dicom
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, encapsulate_extended

from dicomsort.pixels import MAX_PIXELS, PixelsError, codestream, render
from dicomsort.pixels.limits import MAX_FRAGMENTS

JPEG_XL = "1.2.840.10008.1.2.4.110"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def picture(top: int = 4095) -> NDArray[np.uint16]:
    y, x = np.mgrid[:224, :224]
    return ((np.sin(x / 30) * np.cos(y / 20) + 1) / 2 * top).astype(np.uint16)


def jpeg(pixels: NDArray[Any], **options: Any) -> bytes:
    return imagecodecs.jpeg_encode(pixels, **options)


ENCODERS: dict[str, Callable[[NDArray[Any]], bytes]] = {
    uid.JPEGExtended12Bit: lambda pixels: jpeg(pixels, level=98, bitspersample=12),
    uid.JPEGLossless: lambda pixels: jpeg(pixels, lossless=True, predictor=4, bitspersample=12),
    uid.JPEGLosslessSV1: lambda pixels: jpeg(pixels, lossless=True, predictor=1, bitspersample=16),
    "1.2.840.10008.1.2.4.53": lambda pixels: jpeg(pixels, level=98, bitspersample=12),
    "1.2.840.10008.1.2.4.55": lambda pixels: jpeg(pixels, level=98, bitspersample=12),
    uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    uid.JPEGLSNearLossless: lambda pixels: imagecodecs.jpegls_encode(pixels, level=4),
    uid.JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k"),
    uid.JPEG2000: lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=90, codecformat="jp2"),
    uid.HTJ2KLossless: lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True),
    JPEG_XL: lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True),
    "1.2.840.10008.1.2.4.112": lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=True),
}

LOSSY = {
    uid.JPEGExtended12Bit,
    "1.2.840.10008.1.2.4.53",
    "1.2.840.10008.1.2.4.55",
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
}


def compressed(path: Path, frames: list[bytes], syntax: str, **tags: Any) -> Path:
    """A file of encoded frames, in a syntax that pydicom need not know."""
    tags = {"PixelData": encapsulate(frames), "NumberOfFrames": len(frames), **WINDOW} | tags
    known = {20: uid.RLELossless, 22: uid.JPEGBaseline8Bit, 24: uid.HTJ2KLossless}[len(syntax) + len(syntax) % 2]
    make_dicom(path, pixels=picture(), syntax=known, **tags)
    names = [name + "\0" * (len(name) % 2) for name in (known, syntax)]
    path.write_bytes(path.read_bytes().replace(names[0].encode(), names[1].encode(), 1))
    return path


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    # Not signed values by a lossy codec, which blurs the edge between 2,047 and -2,048.
    [
        (syntax, dtype)
        for syntax in ENCODERS
        for dtype in (np.uint16, np.int16)
        if dtype is np.uint16 or syntax not in LOSSY
    ],
)
def test_every_codec_gives_the_picture_back(tmp_path: Path, syntax: str, dtype: type) -> None:
    signed = dtype is np.int16
    plain = picture().astype(np.int16) - 2048 if signed else picture()
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed), "WindowCenter": 0 if signed else 2048}
    expected = make_dicom(tmp_path / "plain", pixels=plain, WindowWidth=4096, **tags)
    frame = ENCODERS[syntax]((plain & 0x0FFF).astype(np.uint16))  # signed values are coded as the 12 bits they are
    assert (
        np.abs(render(compressed(tmp_path / "coded", [frame], syntax, **tags)).astype(int) - render(expected)).max()
        <= 2
    )


def test_the_bytes_decide_where_the_syntax_says_otherwise(tmp_path: Path) -> None:
    frame = imagecodecs.jpegls_encode(picture())
    right = render(compressed(tmp_path / "a", [frame], uid.JPEGLSLossless))
    for syntax in (uid.JPEG2000, uid.JPEGBaseline8Bit, "1.2.840.10008.1.2.4.99"):
        assert (render(compressed(tmp_path / "b", [frame], syntax)) == right).all()


def test_the_codestreams_size_and_samples_win_over_the_header(tmp_path: Path) -> None:
    frame = imagecodecs.jpegls_encode(picture())
    path = compressed(tmp_path / "a", [frame], uid.JPEGLSLossless, Rows=3, Columns=9, SamplesPerPixel=3)
    assert (render(path) == render(make_dicom(tmp_path / "b", pixels=picture(), **WINDOW))).all()


FRAMES = [picture(), picture()[::-1].copy(), picture().T.copy()]


def _fragmented(frames: list[bytes], *, table: bool) -> bytes:
    return encapsulate(frames, fragments_per_frame=3, has_bot=table)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("fragments", [True, False])
def test_the_chosen_frame_is_found_by_offset_or_by_fragments(tmp_path: Path, table: bool, fragments: bool) -> None:  # noqa: FBT001
    coded = [imagecodecs.jpegls_encode(frame) for frame in FRAMES]
    data = _fragmented(coded, table=table) if fragments else encapsulate(coded, has_bot=table)
    path = compressed(tmp_path / "a", coded, uid.JPEGLSLossless, PixelData=data)
    for index, frame in enumerate(FRAMES):
        expected = make_dicom(tmp_path / "b", pixels=frame, **WINDOW)
        assert (render(path, index) == render(expected)).all()
    assert (render(path) == render(path, 1)).all()


def test_the_extended_offset_table_is_used(tmp_path: Path) -> None:
    coded = [imagecodecs.jpegls_encode(frame) for frame in FRAMES]
    data, offsets, lengths = encapsulate_extended(coded)
    tags = {"PixelData": data, "ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    path = compressed(tmp_path / "a", coded, uid.JPEGLSLossless, **tags)
    assert (render(path) == render(make_dicom(tmp_path / "b", pixels=FRAMES[1], **WINDOW))).all()


@pytest.mark.parametrize(("declared", "middle"), [(2**31 - 1, 1), (-1, 1), (1, 0)])
def test_a_false_number_of_frames_is_put_right(tmp_path: Path, declared: int, middle: int) -> None:
    coded = [imagecodecs.jpegls_encode(frame) for frame in FRAMES]
    path = compressed(tmp_path / "a", coded, uid.JPEGLSLossless, NumberOfFrames=declared)
    assert (render(path) == render(make_dicom(tmp_path / "b", pixels=FRAMES[middle], **WINDOW))).all()


def test_rle_by_pydicom_and_of_one_bit(tmp_path: Path) -> None:
    assert (render(get_testdata_file("MR_small_RLE.dcm")) == render(get_testdata_file("MR_small.dcm"))).all()
    mask = picture() > 2000
    packed = imagecodecs.packbits_encode(np.packbits(mask, bitorder="little").tobytes())
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + packed + b"\0" * (len(packed) % 2)
    one_bit = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "WindowWidth": 0}
    path = compressed(tmp_path / "a", [frame], uid.RLELossless, **one_bit)
    assert (render(path)[:, :, 0] == mask * 255).all()


def test_deflated_frames_are_inflated_no_further_than_the_frame(tmp_path: Path) -> None:
    deflater = zlib.compressobj(wbits=-15)
    frame = deflater.compress(picture().tobytes() + bytes(1 << 24)) + deflater.flush()
    path = compressed(tmp_path / "a", [frame + b"\0" * (len(frame) % 2)], DEFLATED_FRAMES)
    assert (render(path) == render(make_dicom(tmp_path / "b", pixels=picture(), **WINDOW))).all()


def _claiming(rows: int, columns: int) -> dict[str, bytes]:
    """Codestreams of real codecs whose headers say another size."""
    size = struct.pack(">HH", rows, columns)
    small = picture(255).astype(np.uint8)
    plain = struct.pack(">HH", 224, 224)
    jpegxl = (rows - 1) << 3 | 3 << 1 | ((columns - 1) << 38 | 3 << 36)  # two sides of 30 bits
    wide = struct.pack(">II", columns, rows)
    jpeg2000 = imagecodecs.jpeg2k_encode(small, codecformat="j2k")
    return {
        "jpeg": jpeg(small).replace(plain, size, 1),
        "ljpeg": jpeg(small, lossless=True).replace(plain, size, 1),
        "jpegls": imagecodecs.jpegls_encode(small).replace(plain, size, 1),
        "jpeg2k": jpeg2000[:8] + wide + jpeg2000[16:],
        "jpegxl": b"\xff\x0a" + jpegxl.to_bytes(12, "little"),
    }


@pytest.mark.parametrize("codec", ["jpeg", "ljpeg", "jpegls", "jpeg2k", "jpegxl"])
def test_a_claimed_size_beyond_the_limit_is_refused_unseen(tmp_path: Path, codec: str) -> None:
    frame = _claiming(65_535, 65_534)[codec]
    stream = codestream.parse(frame)
    assert stream
    assert (stream.codec, stream.rows, stream.columns) == (codec, 65_535, 65_534)
    with pytest.raises(PixelsError, match=f"65534 x 65535 exceeds the limit of {MAX_PIXELS} pixels"):
        render(compressed(tmp_path / "a", [frame + b"\0" * (len(frame) % 2)], uid.JPEG2000))


@pytest.mark.parametrize("shape", [(8, 8), (40, 64), (100, 200), (300, 300), (600, 900), (448, 256)])
@pytest.mark.parametrize("container", [True, False])
def test_jpeg_xl_says_its_size(shape: tuple[int, int], container: bool) -> None:  # noqa: FBT001
    stream = codestream.parse(imagecodecs.jpegxl_encode(np.zeros(shape, np.uint8), usecontainer=container))
    assert stream
    assert (stream.rows, stream.columns) == shape


@pytest.mark.parametrize(
    ("frame", "syntax", "reason"),
    [
        (b"\0" * 64, uid.JPEGBaseline8Bit, f"no codestream of transfer syntax {uid.JPEGBaseline8Bit}"),
        (b"\0" * 64, "1.2.840.10008.1.2.4.102", "transfer syntax 1.2.840.10008.1.2.4.102 is not supported"),
        (b"\xff\xd8\xff\xe0", uid.JPEGBaseline8Bit, "no codestream"),
        (b"\xff\x4f\xff\x51\0\0", uid.JPEG2000, "truncated pixel data"),
        (b"\xff\xff\xff\xff" * 16, uid.RLELossless, "cannot be decoded"),
        (imagecodecs.jpegls_encode(picture())[:500], uid.JPEGLSLossless, "cannot be decoded"),
        (imagecodecs.jpeg2k_encode(picture(), codecformat="j2k")[:100], uid.JPEG2000, "cannot be decoded"),
        (imagecodecs.htj2k_encode(picture())[:-9000] + b"\xff" * 9000, uid.HTJ2K, "cannot be decoded"),
        (b"\xff\x0a" + b"JXL" * 50, JPEG_XL, "cannot be decoded"),
    ],
    ids=["zeros", "video", "short-jpeg", "short-jpeg-2000", "rle", "cut-jpeg-ls", "cut-jpeg-2000", "htj2k", "jpeg-xl"],
)
def test_damaged_frames_are_errors(tmp_path: Path, frame: bytes, syntax: str, reason: str) -> None:
    with pytest.raises(PixelsError, match=reason):
        render(compressed(tmp_path / "a", [frame], syntax))


def test_a_monstrous_offset_table_is_not_read(tmp_path: Path) -> None:
    path = compressed(tmp_path / "a", [b"\xff\xd8"], uid.JPEGBaseline8Bit)
    content = path.read_bytes()
    at = content.index(b"\xfe\xff\x00\xe0") + 4
    path.write_bytes(content[:at] + (4 * MAX_FRAGMENTS + 4).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(PixelsError, match="the offset table is too long"):
        render(path)


def test_a_signed_codestream_under_an_unsigned_header_is_signed(tmp_path: Path) -> None:
    signed = picture().astype(np.int16) - 2048
    frame = imagecodecs.jpeg2k_encode(signed, reversible=True, codecformat="j2k")
    path = compressed(tmp_path / "a", [frame], uid.JPEG2000Lossless, WindowCenter=0, PixelRepresentation=0)
    expected = make_dicom(tmp_path / "b", pixels=signed, WindowCenter=0, WindowWidth=4096)
    assert dcmread(path).PixelRepresentation == 0
    assert (render(path) == render(expected)).all()
