"""The header of a DICOM, PNG or JPEG file, as a record: what it is by content, and the tags that matter.

``ElementReader`` reads plain data sets. Unusual ones go to pydicom (``pydicom_parser``), which is imported only then.
Both collect raw values (``RawValues``), so there is one way from bytes to fields.

Reason codes of ``Header.problem``: ``empty-file``, ``not-dicom``, ``not-an-image-despite-name`` (the name says so, the
content does not); ``truncated-header``, ``damaged-header``, ``deflate-broken``, ``nesting-beyond-limit``,
``header-beyond-limit`` (reading ended before Modality (0008,0060) was passed); ``executable-preamble``.
Where reading ended later, what decides was read: no problem, but a ``message``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from dicomsort import modalities
from dicomsort.dicom import file_meta, magic, pydicom_parser, tags
from dicomsort.dicom.elements import (
    DELIMITERS,
    UNDEFINED,
    ByteSource,
    ElementReader,
    InflatedSource,
    NeedsFullParser,
    ReadingEnded,
)
from dicomsort.dicom.encoding import DEFLATED, NATIVE, Encoding, sniff
from dicomsort.records import Header, Kind

_DICOMDIR: Final = "1.2.840.10008.1.3.10"  # Media Storage Directory (PS3.10 8.6)
_GROUP_8: Final = (b"\x08\x00", b"\x00\x08")  # where a data set without file meta information begins
_STORAGE: Final = "1.2.840.10008.5.1.4."  # SOP Classes of instances and services (PS3.4 Annex B)
_GROUP_10: Final = 0x00100000
_ESCAPE: Final = b"\x1b"
_DEFLATE_RATIO: Final = 1032  # no stream inflates to more than this times its size
_TEXT_LIMIT: Final = 1024  # characters of a text field; LO has 64 at most (PS3.5 6.2)
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
    """Return the offset of the data set behind the file meta information (PS3.10 7.1), None where that is damaged.

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
    """Return the header of a DICOM file whose file meta information begins at ``start``."""
    meta = file_meta.read(source, start)
    unread = partial(Header, Kind.DICOM, transfer_syntax=meta.syntax, has_pixels=False)
    if meta.sop_class == _DICOMDIR:
        return unread(ignored="dicomdir")
    try:
        body, start, encoding = _body(source, meta.end, meta.syntax)
    except ReadingEnded as ended:
        return unread(ended.code, message=_MESSAGES[ended.code])
    # The bytes win over a declared native syntax; compression can only be declared.
    syntax = encoding.uid if body is source and meta.syntax in NATIVE else meta.syntax
    return _header(*_read(body, start, encoding), syntax, size)


def _body(source: ByteSource, start: int, declared: str) -> tuple[ByteSource, int, Encoding]:
    """Return where the bytes of the data set are, and how they are encoded, whatever the transfer syntax says."""
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
    """Return the header of a data set without file meta information, as ACR-NEMA wrote it, None if it is none.

    A known SOP Class or a defined Modality proves a data set; a name that says DICOM is enough with some elements.
    """
    encoding = sniff(head)
    if encoding is None:
        return None
    raw, code = _read(source, 0, encoding)
    is_proven = raw.code(tags.SOP_CLASS).startswith(_STORAGE) or modalities.modality_category(raw.code(tags.MODALITY))
    if is_proven or (magic.named_dicom(name) and raw.reached >= _GROUP_10):
        return _header(raw, code, encoding.uid, size)
    return None


def _read(source: ByteSource, start: int, encoding: Encoding) -> tuple[tags.RawValues, str | None]:
    """Return what was read, and the code if reading ended before all of it was passed ("": the data just end)."""
    raw = tags.RawValues()
    code = None
    reader = ElementReader(source, encoding, start, value_limit=tags.VALUE_LIMIT)
    try:
        try:
            _scan(reader, raw, tags.COLUMNS)
        except NeedsFullParser:
            pydicom_parser.read(source, start, encoding, raw)
    except ReadingEnded as ended:
        code = ended.code
    if not raw.values.keys() - {tags.CHARACTER_SET}:
        code = code or "damaged-header"
    if modalities.FOLLOWS in (
        modalities.sop_class_category(raw.code(tags.SOP_CLASS)),
        modalities.modality_category(raw.code(tags.MODALITY)),
    ):
        raw.referenced_series = _referenced_series(reader, raw)
    return raw, code


def _scan(reader: ElementReader, raw: tags.RawValues, last: int) -> None:
    """Read on up to and including the tag ``last``; raises as the reader, ``raw`` holds what came before."""
    try:
        for tag, _, length, value, data in reader.elements(tags.WANTED, last):
            if tag in tags.REFERENCES:
                raw.spans[tag] = value, reader.position if length == UNDEFINED else value + length
            elif data is not None:
                raw.values[tag] = data
            elif length != UNDEFINED:
                raw.values[tag] = reader.value(value, length)
    finally:
        raw.reached = max(raw.reached, reader.passed)


def _referenced_series(reader: ElementReader, raw: tags.RawValues) -> bytes:
    """Return the Series Instance UID that the object refers to; only for it is read beyond Columns."""
    with suppress(ReadingEnded, NeedsFullParser):
        if not raw.spans:
            with suppress(ReadingEnded, NeedsFullParser):
                _scan(reader, raw, tags.REFERENCES[-1])
        series = (_first_series(reader, *raw.spans[tag]) for tag in tags.REFERENCES if tag in raw.spans)
        return next(filter(None, series), b"")
    return b""


def _first_series(reader: ElementReader, offset: int, end: int) -> bytes:
    """Return the first Series Instance UID inside a sequence whose value lies between these offsets, b"" if none."""
    explicit = reader.encoding.explicit
    while offset < end:
        tag, vr, length, value = reader.element(offset, explicit=explicit)
        if tag == tags.SERIES:
            return reader.value(value, length)
        is_inside = tag in tags.PATHS or tag >> 16 == DELIMITERS
        offset = value if is_inside else reader.end(vr, length, value, explicit=explicit)
    return b""


def _header(raw: tags.RawValues, code: str | None, syntax: str, size: int) -> Header:
    """Return the header that the values of a file of ``size`` bytes give; ``code`` is that of ``_read``.

    (0008,0060) and (0018,0015) have their first value where there are several; UIDs are not validated here.
    """
    values = raw.values
    is_decisive = raw.reached >= tags.MODALITY and (tags.MODALITY in values or tags.SOP_CLASS in values)
    problem = "" if code is None or is_decisive else code or "truncated-header"
    fields: dict[str, Any] = {name: tags.decode_code(values[tag]) for tag, name in tags.CODES.items() if tag in values}
    for name in ("modality", "body_part"):
        if name in fields:
            fields[name] = fields[name].partition("\\")[0].strip(tags.PADDING)
    character_set = raw.code(tags.CHARACTER_SET)
    fields |= {name: _text(values[tag], character_set) for tag, name in tags.TEXTS.items() if tag in values}
    if tags.IMAGE_TYPE in values:
        fields["image_type"] = "\\".join(part.strip(tags.PADDING) for part in raw.code(tags.IMAGE_TYPE).split("\\"))
    if raw.referenced_series:
        fields["refers_to"] = tags.decode_code(raw.referenced_series)
    if tags.FRAMES in values:
        fields["frames"] = _frames(values[tags.FRAMES], size)
    fields["has_pixels"] = all(any(values.get(tag, b"")[:2]) for tag in (tags.ROWS, tags.COLUMNS))
    message = _MESSAGES.get(problem or code or "", "")
    return Header(Kind.DICOM, problem, message=message, transfer_syntax=syntax, **fields)


def _text(value: bytes, character_set: str) -> str:
    plain = value.isascii() and _ESCAPE not in value
    text = value.decode("ascii") if plain else pydicom_parser.decode(value, character_set)
    return text.strip(tags.PADDING)[:_TEXT_LIMIT]


def _frames(value: bytes, size: int) -> int:
    """Return Number of Frames, 1 where it is below 1, unreadable, or more than a file of ``size`` bytes can hold."""
    try:
        frames = int(tags.decode_code(value.partition(b"\\")[0]))
    except ValueError:
        return 1
    return frames if 1 <= frames <= size * _DEFLATE_RATIO else 1
