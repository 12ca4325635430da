"""The tags that matter (PS3.6), and what was read of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

MEDIA_SOP_CLASS: Final = 0x00020002
TRANSFER_SYNTAX: Final = 0x00020010
CHARACTER_SET: Final = 0x00080005
IMAGE_TYPE: Final = 0x00080008
SOP_CLASS: Final = 0x00080016
MODALITY: Final = 0x00080060
SERIES: Final = 0x0020000E
FRAMES: Final = 0x00280008
ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011

# Fields of ``records.Header`` that are text in the character set of the data set (LO, SH), and those that never are.
TEXTS: Final[dict[int, str]] = {
    0x00080050: "accession_number",
    0x00081030: "study_description",
    0x0008103E: "series_description",
    0x00100020: "patient_id",
}
CODES: Final[dict[int, str]] = {
    SOP_CLASS: "sop_class_uid",
    0x00080018: "sop_uid",
    0x00080020: "study_date",
    MODALITY: "modality",
    0x00180015: "body_part",
    0x0020000D: "study_uid",
    SERIES: "series_uid",
    0x00200011: "series_number",
    0x00200013: "instance_number",
}
# Referenced Series Sequence; Current Requested Procedure Evidence Sequence (SR, KO; PS3.3 C.17.2.3);
# Referenced Frame of Reference Sequence (RT Structure Set; PS3.3 C.8.8.5)
REFERENCES: Final = (0x00081115, 0x0040A375, 0x30060010)
# The sequences that lead from one of those down to a Series Instance UID
PATHS: Final = frozenset({*REFERENCES, 0x30060012, 0x30060014})
WANTED: Final = frozenset(
    {MEDIA_SOP_CLASS, TRANSFER_SYNTAX, CHARACTER_SET, IMAGE_TYPE, FRAMES, ROWS, COLUMNS, *TEXTS, *CODES, *REFERENCES}
)
VALUE_LIMIT: Final = 4096  # bytes read of one value; the longest that PS3.5 allows here has 64 characters
PADDING: Final = " \0\t\r\n"
_MAX_UID: Final = 64
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(slots=True)
class RawValues:
    """Raw values by tag, and how far reading came (it may have ended anywhere)."""

    values: dict[int, bytes] = field(default_factory=dict)
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)  # REFERENCES: offsets of the value and its end
    reached: int = 0  # the last tag whose element was read or passed
    referenced_series: bytes = b""  # Series Instance UID below one of REFERENCES

    def code(self, tag: int) -> str:
        """Return a value that is no text by itself, as ``decode_code`` does; "" where it is absent."""
        return decode_code(self.values.get(tag, b""))


def is_uid(text: str) -> bool:
    """Return whether a text is a UID by PS3.5 9.1, or has leading zeros in a component, which are common."""
    return len(text) <= _MAX_UID and _UID.fullmatch(text) is not None


def decode_code(value: bytes) -> str:
    """Return a value of the default repertoire (PS3.5 6.1.1) without padding."""
    return value.decode("ascii", "replace").strip(PADDING)
