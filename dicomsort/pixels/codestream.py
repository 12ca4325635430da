"""What a compressed frame declares, read from its first markers and without decoding it.

Rows and columns decide whether a frame is decoded at all, so that an image which claims 65,535 x 65,535 costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from dicomsort.pixels.limits import PixelsError

_SOF = Struct(">BHHB")  # precision, rows, columns, components: ISO/IEC 10918-1 B.2.2
_SIZ = Struct(">IIIIIIIIHB")  # ISO/IEC 15444-1 A.5.1, from Xsiz to the first Ssiz
_LOSSY = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; the same arithmetic coded
_FRAMES = {**dict.fromkeys(_LOSSY, "jpeg"), 0xC3: "ljpeg", 0xF7: "jpegls"}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}  # TEM and RSTn have no length
_TILES = {0x90, 0x93, 0xD9}  # SOT, SOD, EOC: the main header has ended
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_JXL_SIGNATURE = b"\x00\x00\x00\x0cJXL "
_JXL_RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # ISO/IEC 18181-1, columns to rows


@dataclass(frozen=True, slots=True)
class Codestream:
    """What a codestream declares; ``samples`` and ``bits`` are 0 where its first bytes do not hold them (JPEG XL)."""

    codec: str  # jpeg, ljpeg, jpegls, jpeg2k, htj2k, jpegxl
    rows: int
    columns: int
    samples: int = 0
    bits: int = 0
    colour: str = ""  # RGB or YCBCR where the markers name one
    signed: bool = False
    levels: int = 0  # of the wavelet transform of JPEG 2000: how often its sides can be halved


def parse(data: bytes) -> Codestream | None:
    """Parse a JPEG, JPEG-LS, JPEG 2000, HTJ2K or JPEG XL codestream; None where its magic is none of these."""
    if data[:2] == b"\xff\xd8":
        return _parse_jpeg(data)
    if data[:8] == _JP2_SIGNATURE:
        data = _box(data, (b"jp2c",))
    if data[:4] == b"\xff\x4f\xff\x51":
        return _parse_jpeg2000(data)
    if data[:8] == _JXL_SIGNATURE:
        data = _box(data, (b"jxlc", b"jxlp"))
    if data[:2] == b"\xff\x0a":
        return _parse_jpegxl(data)
    return None


def _box(data: bytes, wanted: tuple[bytes, ...]) -> bytes:
    """Return the content of the first wanted box of an ISO/IEC 15444-1 annex I file, b"" if there is none."""
    offset = 0
    while offset + 8 <= len(data):
        length, kind = int.from_bytes(data[offset : offset + 4]), data[offset + 4 : offset + 8]
        start = 8
        if length == 1:  # an extended length follows
            length, start = int.from_bytes(data[offset + 8 : offset + 16]), 16
        if kind in wanted:
            return data[offset + start + (4 if kind == b"jxlp" else 0) :]
        if length < start:
            break
        offset += length
    return b""


def _parse_jpeg(data: bytes) -> Codestream | None:
    offset, adobe, jfif = 2, -1, False
    while offset + 4 <= len(data) and data[offset] == 0xFF:  # noqa: PLR2004 - every marker's first byte
        marker = data[offset + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:  # noqa: PLR2004 - fill bytes
            offset += 1 if marker == 0xFF else 2  # noqa: PLR2004
            continue
        length = int.from_bytes(data[offset + 2 : offset + 4])
        body = data[offset + 4 : offset + 2 + length]
        if marker in _FRAMES and len(body) >= _SOF.size:
            bits, rows, columns, samples = _SOF.unpack_from(body)
            identifiers = body[6 : 6 + 3 * samples : 3]
            return Codestream(_FRAMES[marker], rows, columns, samples, bits, _colour(identifiers, adobe, jfif=jfif))
        if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:  # noqa: PLR2004 - ITU-T T.872 6.5.3
            adobe = body[11]
        elif marker == 0xE0 and body[:5] == b"JFIF\0":  # noqa: PLR2004
            jfif = True
        offset += 2 + max(length, 2)
    return None


def _colour(identifiers: bytes, adobe: int, *, jfif: bool) -> str:
    """Return the colour space of three components as libjpeg guesses it, "" where the DICOM header decides."""
    if identifiers in {b"RGB", b"rgb"}:
        return "RGB"
    if jfif:
        return "YCBCR"
    return {0: "RGB", 1: "YCBCR"}.get(adobe, "YCBCR" if identifiers == b"\1\2\3" else "")


def _parse_jpeg2000(data: bytes) -> Codestream:
    if len(data) < 8 + _SIZ.size:
        raise PixelsError("truncated pixel data")
    right, bottom, left, top, *_tiles, samples, depth = _SIZ.unpack_from(data, 8)
    # Bit 14 of Rsiz announces part 15, high throughput.
    codec = "htj2k" if int.from_bytes(data[6:8]) & 0x4000 else "jpeg2k"
    rows, columns, bits, signed = bottom - top, right - left, (depth & 0x7F) + 1, bool(depth & 0x80)
    return Codestream(codec, rows, columns, samples, bits, signed=signed, levels=_levels(data))


def _levels(data: bytes) -> int:
    """Return the decomposition levels in the COD segment (ISO/IEC 15444-1 A.6.1) of the main header, else 0."""
    offset = 2
    while offset + 10 <= len(data) and data[offset] == 0xFF and data[offset + 1] not in _TILES:  # noqa: PLR2004
        if data[offset + 1] == 0x52:  # noqa: PLR2004 - COD: Lcod, Scod, progression, layers, transform of components
            return data[offset + 9]
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4])
    return 0


def _parse_jpegxl(data: bytes) -> Codestream:
    """Read the SizeHeader (ISO/IEC 18181-1 D.2), whose bits come lowest first."""
    bits = int.from_bytes(data[2:14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    rows, ratio = side(), take(3)
    if ratio:
        wide, high = _JXL_RATIOS[ratio - 1]
        return Codestream("jpegxl", rows, rows * wide // high)
    return Codestream("jpegxl", rows, side())
