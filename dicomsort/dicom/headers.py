"""The header of a DICOM, PNG or JPEG file, as a record: what it is by content, and the tags that matter.

``ElementReader`` takes plain data sets; what it finds unusual goes to pydicom (``full_parser``), which is imported only
then. Both keep raw values (``Tags``), so there is one way from bytes to fields.

Reason codes of ``Header.problem``: ``empty-file``, ``not-dicom``, ``not-an-image-despite-name`` (the name says so, the
content does not); ``truncated-header``, ``damaged-header``, ``deflate-broken``, ``nesting-beyond-limit``,
``header-beyond-limit`` (reading ended before Modality (0008,0060) was settled); ``executable-preamble``.
Where it ended later, what decides was read: no problem, but a ``message``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dicomsort import modalities
from dicomsort.dicom import file_meta, full_parser, magic
from dicomsort.dicom.elements import (
    DELIMITERS,
    UNDEFINED,
    ByteSource,
    ElementReader,
    InflatedSource,
    NeedsFullParser,
    ReadingEnded,
)
from dicomsort.dicom.encoding import DEFLATED, Encoding, settled_syntax, sniff
from dicomsort.dicom.tags import (
    CHARACTER_SET,
    CODES,
    COLUMNS,
    FRAMES,
    IMAGE_TYPE,
    MODALITY,
    PATHS,
    REFERENCES,
    ROWS,
    SERIES,
    SOP_CLASS,
    TEXTS,
    VALUE_LIMIT,
    WANTED,
    Tags,
)
from dicomsort.records import Header, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

_DICOMDIR: Final = "1.2.840.10008.1.3.10"  # Media Storage Directory (PS3.10 8.6)
_GROUP_8: Final = (b"\x08\x00", b"\x00\x08")  # where a data set without file meta information begins
_GROUP_10: Final = 0x00100000
_PADDING: Final = " \0\t\r\n"
_ESCAPE: Final = b"\x1b"
_DEFLATE_RATIO: Final = 1032  # no stream inflates to more than this times its size
_TEXT_LIMIT: Final = 1024  # characters kept; LO has 64 at most (PS3.5 6.2)
_MESSAGES: Final = {
    "truncated-header": "the data end within the header",
    "damaged-header": "no data element that tells what this file is could be read",
    "deflate-broken": "the deflated data set cannot be inflated",
    "nesting-beyond-limit": "sequences are nested deeper than any real file nests them",
    "header-beyond-limit": "the header is larger than any real one",
}


def read_header(data: bytes | memoryview, size: int, name: str, more: Callable[[int, int], bytes]) -> Header:
    """Read the header of a file of ``size`` bytes called ``name`` from its first bytes.

    ``data`` is the whole of a small file, else its first 16 KiB or so; ``more(offset, length)`` reads further bytes
    and is asked for at most 4 MiB in all. No content raises: what cannot be read is a ``problem`` or ``ignored``.

    Raises:
        OSError: from ``more``.

    """
    head = bytes(data)
    source = ByteSource(head, size, more)
    start = file_meta.offset(head)
    if start is not None and start > file_meta.PREAMBLE:
        header = _dicom(source, start, size)
        program = magic.executable(head)
        if program and not header.ignored:
            return replace(header, problem="executable-preamble", message=f"the preamble begins like {program}")
        return header
    if head.startswith(magic.PNG):
        return Header(Kind.PNG)
    if head.startswith(magic.JPEG):
        return Header(Kind.JPEG)
    if start is not None and (start or sniff(head) == file_meta.ENCODING):
        return _dicom(source, start, size)
    bare = _bare(source, head, size, name) if head.startswith(_GROUP_8) else None
    return bare or magic.not_an_image(head, size, name, more)


def data_set_offset(data: bytes | memoryview, size: int, more: Callable[[int, int], bytes]) -> int | None:
    """Offset of the data set behind the file meta information (PS3.10 7.1), None where that is damaged.

    The arguments are those of ``read_header``, for a file that it found to be DICOM; 0 where it has none.

    Raises:
        OSError: from ``more``.

    """
    head = bytes(data)
    start = file_meta.offset(head)
    if start is None:
        return 0
    meta = file_meta.read(ByteSource(head, size, more), start)
    return meta.end if meta.is_whole else None


def _dicom(source: ByteSource, start: int, size: int) -> Header:
    """Header of a DICOM file whose file meta information begins at ``start``."""
    meta = file_meta.read(source, start)
    declared = meta.syntax
    if meta.sop_class == _DICOMDIR:
        return Header(Kind.DICOM, ignored="dicomdir", transfer_syntax=declared, has_pixels=False)
    try:
        body, start, encoding = _body(source, meta.end, declared)
    except ReadingEnded as ended:
        message = _MESSAGES[ended.code]
        return Header(Kind.DICOM, ended.code, message=message, transfer_syntax=declared, has_pixels=False)
    syntax = declared if body is not source else settled_syntax(declared, encoding)
    tags, code = _read(body, start, encoding)
    return _header(tags, code, encoding, syntax, size)


def _body(source: ByteSource, start: int, declared: str) -> tuple[ByteSource, int, Encoding]:
    """Find where the data set's bytes are, and how they are encoded, whatever the transfer syntax says."""
    if declared in DEFLATED:
        inflated = InflatedSource(source, start)
        with suppress(ReadingEnded):
            if encoding := sniff(inflated.window(0, 6)[0]):
                return inflated, 0, encoding
    buffer, base = source.window(start, 6)
    first = buffer[start - base : start - base + 6]
    encoding = sniff(first)
    if encoding is None or (declared in DEFLATED and not encoding.explicit):
        broken = "deflate-broken" if declared in DEFLATED else "damaged-header"
        raise ReadingEnded(broken if len(first) == 6 else "truncated-header")  # noqa: PLR2004
    return source, start, encoding


def _bare(source: ByteSource, head: bytes, size: int, name: str) -> Header | None:
    """Header of a data set without file meta information (as ACR-NEMA wrote it), if it convinces."""
    encoding = sniff(head)
    if encoding is None:
        return None
    tags, code = _read(source, 0, encoding)
    if _convincing(tags) or (magic.named_dicom(name) and tags.reached >= _GROUP_10):
        return _header(tags, code, encoding, encoding.uid, size)
    return None


def _read(source: ByteSource, start: int, encoding: Encoding) -> tuple[Tags, str | None]:
    """Read what matters; the reason code if reading ended before all of it was passed (empty: the data just end)."""
    tags = Tags()
    code = None
    reader = ElementReader(source, encoding, start, value_limit=VALUE_LIMIT)
    try:
        try:
            _scan(reader, tags, COLUMNS)
        except NeedsFullParser:
            full_parser.read(source, start, encoding, tags)
    except ReadingEnded as ended:
        code = ended.code
    if not tags.values.keys() - {CHARACTER_SET}:
        code = code or "damaged-header"
    if _follows(tags):
        tags.referred = _referred(reader, tags)
    return tags, code


def _scan(reader: ElementReader, tags: Tags, last: int) -> None:
    """Read on up to and including the tag ``last``; raises as the reader, ``tags`` holds what came before."""
    try:
        for tag, _, length, value, data in reader.elements(WANTED, last):
            if tag in REFERENCES:
                tags.spans[tag] = value, reader.position if length == UNDEFINED else value + length
            elif data is not None:
                tags.values[tag] = data
            elif length != UNDEFINED:
                tags.values[tag] = reader.value(value, length)
    finally:
        tags.reached = max(tags.reached, reader.passed)


def _referred(reader: ElementReader, tags: Tags) -> bytes:
    """Series Instance UID that the object refers to; sequences behind the image's description are read only for it."""
    with suppress(ReadingEnded, NeedsFullParser):
        if not tags.spans:
            with suppress(ReadingEnded, NeedsFullParser):
                _scan(reader, tags, REFERENCES[-1])
        series = (_first_series(reader, *tags.spans[tag]) for tag in REFERENCES if tag in tags.spans)
        return next(filter(None, series), b"")
    return b""


def _first_series(reader: ElementReader, offset: int, end: int) -> bytes:
    """Return the first Series Instance UID inside a sequence whose value lies between these offsets; empty if none."""
    explicit = reader.encoding.explicit
    while offset < end:
        tag, vr, length, value = reader.element(offset, explicit=explicit)
        if tag == SERIES:
            return reader.value(value, length)
        is_inside = tag in PATHS or tag >> 16 == DELIMITERS
        offset = value if is_inside else reader.end(vr, length, value, explicit=explicit)
    return b""


def _header(tags: Tags, code: str | None, encoding: Encoding, syntax: str, size: int) -> Header:
    settled = tags.reached >= MODALITY and (MODALITY in tags.values or SOP_CLASS in tags.values)
    problem = "" if code is None or settled else code or "truncated-header"
    message = _MESSAGES.get(problem or code or "", "")
    fields = _text_fields(tags, size, encoding)
    return Header(Kind.DICOM, problem, message=message, transfer_syntax=syntax, **fields)


def _code(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(_PADDING)


def _text(value: bytes, character_set: str) -> str:
    plain = value.isascii() and _ESCAPE not in value
    text = value.decode("ascii") if plain else full_parser.decode(value, character_set)
    return text.strip(_PADDING)[:_TEXT_LIMIT]


def _frames(value: bytes, size: int) -> int:
    try:
        frames = int(_code(value.partition(b"\\")[0]))
    except ValueError:
        return 1
    return frames if 1 <= frames <= size * _DEFLATE_RATIO else 1


def _positive(value: bytes, *, little: bool) -> bool:
    return int.from_bytes(value[:2], "little" if little else "big") > 0


def _text_fields(tags: Tags, size: int, encoding: Encoding) -> dict[str, Any]:
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


def _follows(tags: Tags) -> bool:
    """Tell whether the object goes where its study goes, so that what it refers to matters."""
    return modalities.FOLLOWS in (
        modalities.sop_class_category(_code(tags.values.get(SOP_CLASS, b""))),
        modalities.modality_category(_code(tags.values.get(MODALITY, b""))),
    )


def _convincing(tags: Tags) -> bool:
    """Tell whether the values could only come from a DICOM data set: a known SOP Class or a defined Modality."""
    sop_class = _code(tags.values.get(SOP_CLASS, b""))
    modality = _code(tags.values.get(MODALITY, b""))
    return sop_class.startswith("1.2.840.10008.5.1.4.") or modalities.modality_category(modality) is not None
