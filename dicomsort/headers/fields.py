"""From raw values to the fields of a ``records.Header``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dicomsort import modalities
from dicomsort.headers import reference
from dicomsort.headers.tags import (
    CHARACTER_SET,
    CODES,
    COLUMNS,
    FRAMES,
    IMAGE_TYPE,
    MODALITY,
    ROWS,
    SOP_CLASS,
    TEXTS,
)

if TYPE_CHECKING:
    from dicomsort.headers.encoding import Encoding
    from dicomsort.headers.tags import Tags

_PADDING: Final = " \0\t\r\n"
_ESCAPE: Final = b"\x1b"
_DEFLATE_RATIO: Final = 1032  # no stream inflates to more than this times its size
_TEXT_LIMIT: Final = 1024  # characters kept; LO has 64 at most (PS3.5 6.2)


def _code(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(_PADDING)


def _text(value: bytes, character_set: str) -> str:
    plain = value.isascii() and _ESCAPE not in value
    text = value.decode("ascii") if plain else reference.decode(value, character_set)
    return text.strip(_PADDING)[:_TEXT_LIMIT]


def _frames(value: bytes, size: int) -> int:
    try:
        frames = int(_code(value.partition(b"\\")[0]))
    except ValueError:
        return 1
    return frames if 1 <= frames <= size * _DEFLATE_RATIO else 1


def _positive(value: bytes, *, little: bool) -> bool:
    return int.from_bytes(value[:2], "little" if little else "big") > 0


def text_fields(tags: Tags, size: int, encoding: Encoding) -> dict[str, Any]:
    """Fields of ``Header`` that the values of a file of ``size`` bytes give.

    (0008,0060) and (0018,0015) keep their first value where there are several; UIDs are not validated here;
    a Number of Frames below 1, unreadable, or beyond what the file could hold is 1.
    """
    values = tags.values
    fields: dict[str, Any] = {name: _code(values[tag]) for tag, name in CODES.items() if tag in values}
    for name in ("modality", "body_part"):
        if "\\" in (value := fields.get(name, "")):
            fields[name] = value.partition("\\")[0].strip(_PADDING)
    character_set = _code(values.get(CHARACTER_SET, b""))
    fields |= {name: _text(values[tag], character_set) for tag, name in TEXTS.items() if tag in values}
    if IMAGE_TYPE in values:
        fields["image_type"] = "\\".join(part.strip(_PADDING) for part in _code(values[IMAGE_TYPE]).split("\\"))
    if tags.referred:
        fields["refers_to"] = _code(tags.referred)
    if FRAMES in values:
        fields["frames"] = _frames(values[FRAMES], size)
    fields["has_pixels"] = all(_positive(values.get(tag, b""), little=encoding.little) for tag in (ROWS, COLUMNS))
    return fields


def follows(tags: Tags) -> bool:
    """Tell whether the object goes where its study goes, so that what it refers to matters."""
    return modalities.FOLLOWS in (
        modalities.sop_class_category(_code(tags.values.get(SOP_CLASS, b""))),
        modalities.modality_category(_code(tags.values.get(MODALITY, b""))),
    )


def convincing(tags: Tags) -> bool:
    """Tell whether the values could only come from a DICOM data set: a known SOP Class or a defined Modality."""
    sop_class = _code(tags.values.get(SOP_CLASS, b""))
    modality = _code(tags.values.get(MODALITY, b""))
    return sop_class.startswith("1.2.840.10008.5.1.4.") or modalities.modality_category(modality) is not None
