"""One frame of a DICOM file, decoded alone however many others the file holds."""

from __future__ import annotations

from pydicom import uid

from dicomsort.pixels import encapsulated, native
from dicomsort.pixels.layout import Frame, read_layout
from dicomsort.pixels.problems import check_size
from dicomsort.pixels.source import UNDEFINED, Source

_ITEM = b"\xfe\xff\x00\xe0"
_NATIVE = {
    "",
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}


def decode(source: Source, frame: int | None) -> Frame:
    """Decode one frame, the middle one where ``frame`` is None."""
    layout = read_layout(source)
    source.file.seek(source.element.offset)
    item = source.file.read(len(_ITEM)) == _ITEM
    # A defined length is native data, whatever the transfer syntax says, unless an item shows that it is not.
    if source.element.length == UNDEFINED or (item and source.syntax not in _NATIVE):
        return encapsulated.decode(source, layout, frame)
    check_size(layout.rows, layout.columns)
    source.file.seek(source.element.offset)
    length = min(source.element.length, source.size - source.element.offset)
    return native.decode(source.file, length, source, layout, frame)
