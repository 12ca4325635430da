"""The header of a DICOM, PNG or JPEG file, as a record: what it is by content, and the tags that matter.

A fast, bounds-checked reader (``fast``) takes plain data sets; what it finds unusual goes to pydicom (``reference``),
which is imported only then. Both keep raw values (``tags``), so there is one way from bytes to fields (``fields``).

Reason codes of ``Header.problem``: ``empty-file``, ``not-dicom``, ``not-an-image-despite-name`` (the name says so, the
content does not); ``truncated-header``, ``damaged-header``, ``deflate-broken``, ``nesting-beyond-limit``,
``header-beyond-limit`` (reading ended before Modality (0008,0060) was settled); ``executable-preamble``.
Where it ended later, what decides was read: no problem, but a ``message``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dicomsort.headers import fast, magic, reference
from dicomsort.headers.encoding import DEFLATED, Encoding, settled_syntax, sniff
from dicomsort.headers.fields import convincing, follows, text_fields
from dicomsort.headers.source import Ended, FileSource, InflatedSource
from dicomsort.headers.tags import (
    CHARACTER_SET,
    COLUMNS,
    MEDIA_SOP_CLASS,
    MODALITY,
    REFERENCES,
    SOP_CLASS,
    TRANSFER_SYNTAX,
    Tags,
)
from dicomsort.records import Header, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomsort.headers.source import Source

_DICOMDIR: Final = b"1.2.840.10008.1.3.10"  # Media Storage Directory (PS3.10 8.6)
_FILE_META: Final = Encoding(explicit=True, little=True)  # PS3.10 7.1
_META_END: Final = 0x0002FFFF
_GROUP_8: Final = (b"\x08\x00", b"\x00\x08")  # where a data set without file meta information begins
_GROUP_10: Final = 0x00100000
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
    source = FileSource(head, size, more)
    if head.startswith(b"DICM", magic.PREAMBLE):
        header = _dicom(source, magic.PREAMBLE + 4, size)
        program = magic.executable(head)
        if program and not header.ignored:
            return replace(header, problem="executable-preamble", message=f"the preamble begins like {program}")
        return header
    if head.startswith(magic.PNG):
        return Header(Kind.PNG)
    if head.startswith(magic.JPEG):
        return Header(Kind.JPEG)
    if head.startswith(b"DICM"):
        return _dicom(source, 4, size)
    if head.startswith(b"\x02\x00") and sniff(head) == _FILE_META:
        return _dicom(source, 0, size)
    bare = _bare(source, head, size, name) if head.startswith(_GROUP_8) else None
    return bare or magic.not_an_image(head, size, name, more)


def data_set_offset(data: bytes | memoryview, size: int, more: Callable[[int, int], bytes]) -> int | None:
    """Offset of the data set behind the file meta information (PS3.10 7.1), None where that is damaged.

    The arguments are those of ``read_header``, for a file that it found to be DICOM; 0 where it has none.

    Raises:
        OSError: from ``more``.

    """
    head = bytes(data)
    if head.startswith(b"DICM", magic.PREAMBLE):
        start = magic.PREAMBLE + 4
    elif head.startswith(b"DICM"):
        start = 4
    elif head.startswith(b"\x02\x00"):
        start = 0
    else:
        return 0
    meta, source = Tags(), FileSource(head, size, more)
    try:
        with suppress(fast.Unusual):  # as an implicit or deflated data set is to a reader of explicit elements
            fast.scan(source, start, _FILE_META, meta, _META_END)
        buffer, base = source.window(meta.position, 2)
    except Ended:
        return None
    return None if buffer.startswith(b"\x02\x00", meta.position - base) else meta.position


def _dicom(source: Source, start: int, size: int) -> Header:
    """Header of a DICOM file whose file meta information begins at ``start``."""
    meta = Tags()
    with suppress(Ended, fast.Unusual):
        fast.scan(source, start, _FILE_META, meta, _META_END)
    declared = meta.values.get(TRANSFER_SYNTAX, b"").decode("ascii", "replace").strip(" \0")
    if meta.values.get(MEDIA_SOP_CLASS, b"").rstrip(b" \0") == _DICOMDIR:
        return Header(Kind.DICOM, ignored="dicomdir", transfer_syntax=declared, has_pixels=False)
    try:
        body, start, encoding = _body(source, meta.position, declared)
    except Ended as ended:
        message = _MESSAGES[ended.code]
        return Header(Kind.DICOM, ended.code, message=message, transfer_syntax=declared, has_pixels=False)
    syntax = declared if body is not source else settled_syntax(declared, encoding)
    tags, code = _read(body, start, encoding)
    return _header(tags, code, encoding, syntax, size)


def _body(source: Source, start: int, declared: str) -> tuple[Source, int, Encoding]:
    """Find where the data set's bytes are, and how they are encoded, whatever the transfer syntax says."""
    if declared in DEFLATED:
        inflated = InflatedSource(source, start)
        with suppress(Ended):
            if encoding := sniff(inflated.window(0, 6)[0]):
                return inflated, 0, encoding
    buffer, base = source.window(start, 6)
    first = buffer[start - base : start - base + 6]
    encoding = sniff(first)
    if encoding is None or (declared in DEFLATED and not encoding.explicit):
        broken = "deflate-broken" if declared in DEFLATED else "damaged-header"
        raise Ended(broken if len(first) == 6 else "truncated-header")  # noqa: PLR2004
    return source, start, encoding


def _bare(source: Source, head: bytes, size: int, name: str) -> Header | None:
    """Header of a data set without file meta information (as ACR-NEMA wrote it), if it convinces."""
    encoding = sniff(head)
    if encoding is None:
        return None
    tags, code = _read(source, 0, encoding)
    if convincing(tags) or (magic.named_dicom(name) and tags.reached >= _GROUP_10):
        return _header(tags, code, encoding, encoding.uid, size)
    return None


def _read(source: Source, start: int, encoding: Encoding) -> tuple[Tags, str | None]:
    """Read what matters; the reason code if reading ended before all of it was passed (empty: the data just end)."""
    tags = Tags()
    code = None
    try:
        try:
            fast.scan(source, start, encoding, tags, COLUMNS)
        except fast.Unusual:
            reference.read(source, start, encoding, tags)
    except Ended as ended:
        code = ended.code
    if not tags.values.keys() - {CHARACTER_SET}:
        code = code or "damaged-header"
    if follows(tags):
        tags.referred = _referred(source, encoding, tags)
    return tags, code


def _referred(source: Source, encoding: Encoding, tags: Tags) -> bytes:
    """Series Instance UID that the object refers to; sequences behind the image's description are read only for it."""
    with suppress(Ended, fast.Unusual):
        if not tags.spans:
            with suppress(Ended, fast.Unusual):
                fast.scan(source, tags.position, encoding, tags, REFERENCES[-1])
        series = (fast.first_series(source, tags.spans[tag], encoding) for tag in REFERENCES if tag in tags.spans)
        return next(filter(None, series), b"")
    return b""


def _header(tags: Tags, code: str | None, encoding: Encoding, syntax: str, size: int) -> Header:
    settled = tags.reached >= MODALITY and (MODALITY in tags.values or SOP_CLASS in tags.values)
    problem = "" if code is None or settled else code or "truncated-header"
    message = _MESSAGES.get(problem or code or "", "")
    fields = text_fields(tags, size, encoding)
    return Header(Kind.DICOM, problem, message=message, transfer_syntax=syntax, **fields)
