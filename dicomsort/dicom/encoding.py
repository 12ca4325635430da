"""How a data set is encoded: what its transfer syntax declares (PS3.5 Annex A), and what its bytes show."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
# Deflated Explicit VR LE; JPIP Referenced Deflate; JPIP HTJ2K Referenced Deflate
DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
# Those whose pixel data is native, not encapsulated (PS3.5 A.4); "" where none is named
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, *DEFLATED, ""})

# Bytes of an explicit element's tag, VR and length (PS3.5 7.1.2)
SHORT_HEADER, LONG_HEADER = 8, 12
HEADER_SIZE: Final[dict[bytes, int]] = {
    **dict.fromkeys(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(), SHORT_HEADER),
    **dict.fromkeys(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split(), LONG_HEADER),
}
Unpack = Callable[..., tuple[Any, ...]]
_FIRST_GROUPS: Final = 0x0028  # groups 0008, 0010, 0020 and 0028 are in every image: its data set begins with one
_TAG_LE: Final = Struct("<HH2s").unpack_from
_TAG_BE: Final = Struct(">HH2s").unpack_from


class Encoding(NamedTuple):
    """VR and byte order of a data set (PS3.5 7.1)."""

    explicit: bool
    little: bool

    @property
    def uid(self) -> str:
        """The transfer syntax of this encoding without compression (PS3.5 A.1 to A.3)."""
        if not self.little:
            return EXPLICIT_BIG
        return EXPLICIT_LITTLE if self.explicit else IMPLICIT_LITTLE


def sniff(start: bytes) -> Encoding | None:
    """Return the encoding that the first six bytes of a data set show, None where they cannot begin one."""
    if len(start) < 6:  # noqa: PLR2004
        return None
    little = _TAG_LE(start)[0] <= _TAG_BE(start)[0]
    group, _, vr = (_TAG_LE if little else _TAG_BE)(start)
    explicit = vr in HEADER_SIZE
    return Encoding(explicit, little) if explicit or group <= _FIRST_GROUPS else None


class ElementHeader(NamedTuple):
    """The layout of element headers (PS3.5 7.1) in one byte order; a VR is the number that its two bytes make."""

    explicit: Unpack  # group, element, VR, length of two bytes
    implicit: Unpack  # group, element, length of four bytes; of items and delimiters too
    length: Unpack  # the four bytes behind an explicit header of eight, where the VR has a long one
    short: frozenset[int]
    long: frozenset[int]
    unknown: int  # UN
    names: dict[int, str]


def _element_header(*, little: bool) -> ElementHeader:
    order = "<" if little else ">"
    numbers = {vr: int.from_bytes(vr, "little" if little else "big") for vr in HEADER_SIZE}
    return ElementHeader(
        Struct(f"{order}HHHH").unpack_from,
        Struct(f"{order}HHL").unpack_from,
        Struct(f"{order}L").unpack_from,
        frozenset(numbers[vr] for vr, size in HEADER_SIZE.items() if size == SHORT_HEADER),
        frozenset(numbers[vr] for vr, size in HEADER_SIZE.items() if size == LONG_HEADER),
        numbers[b"UN"],
        {number: vr.decode() for vr, number in numbers.items()},
    )


ELEMENT_HEADERS: Final = {little: _element_header(little=little) for little in (True, False)}
