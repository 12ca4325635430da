"""One frame of a DICOM file, decoded alone however many others the file holds."""

from __future__ import annotations

from pydicom import uid

from dicomsort.dicom.elements import UNDEFINED
from dicomsort.pixels import encapsulated, native
from dicomsort.pixels.layout import Frame, read_layout
from dicomsort.pixels.problems import check_size
from dicomsort.pixels.source import Source

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
        return encapsulated.decode(source, layout, frame, least)
    check_size(layout.rows, layout.columns)
    length = min(element.length, source.content.size - element.offset)
    return native.decode(source.content, element.offset, length, source, layout, frame)
