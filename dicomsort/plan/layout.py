"""Layouts: from a verdict and a header to a path below the outbox, with every component made harmless."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, Protocol

from dicomsort.errors import UsageError
from dicomsort.records import Examined, Header, Operation


class NameLookup(Protocol):
    """Which names in an outbox are free."""

    def claim(self, name: str) -> bool:
        """Reserve a name; False where it is taken."""

    def holds(self, destination: str, content: Examined) -> bool | None:
        """Whether a file at a destination has this content; None where it is free, False where no file can be there."""

    def passable(self, path: str) -> str:
        """Return the path with a suffix for each of its folders whose name a file has."""


class PlanContext(NameLookup, Protocol):
    """What planning must know of this run and of earlier ones."""

    def is_repeated(self, sop: str) -> bool:
        """Whether several files of this run have this SOP Instance UID."""

    def placed_instance(self, sop: str, content: Examined | None) -> str | None:
        """Return where an earlier run put a file with this SOP Instance UID, of this content or (None) of any."""

    def give(self, sop: str, sha256: str, destination: str) -> None:
        """Store where this run will put a file with this SOP Instance UID and content."""

    def given(self, sop: str, sha256: str | None) -> str | None:
        """Return where this run will put the first file with this SOP Instance UID, of this or (None) any content."""

    def defer(self, operation: Operation, queue: str = "", /) -> None:
        """Store an operation for later."""

    def deferred(self, queue: str = "", /) -> Iterator[Operation]:
        """Yield the stored operations of a queue in their order."""


MAX_COMPONENT = 64
RESERVED = ".dicomsort"  # the beginning of the names of state folders, temporary copies and records
_HARMLESS = re.compile(r"[^\w.+-]+")
_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+)*(\.dcm)?")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_KEY = 8

TOKENS: dict[str, tuple[str, Callable[[Header], str]]] = {
    "study_uid": ("Study Instance UID (0020,000D)", lambda h: h.study_uid),
    "series_uid": ("Series Instance UID (0020,000E)", lambda h: h.series_uid),
    "sop_uid": ("SOP Instance UID (0008,0018)", lambda h: h.sop_uid),
    "study_key": ("first 8 hex digits of the SHA-256 of the Study Instance UID", lambda h: _key(h.study_uid)),
    "series_key": ("the same of the Series Instance UID", lambda h: _key(h.series_uid)),
    "sop_key": ("the same of the SOP Instance UID", lambda h: _key(h.sop_uid)),
    "modality": ("Modality (0008,0060)", lambda h: h.modality),
    "study_date": ("Study Date (0008,0020)", lambda h: h.study_date),
    "study_description": ("Study Description (0008,1030)", lambda h: h.study_description),
    "series_number": ("Series Number (0020,0011)", lambda h: h.series_number),
    "series_description": ("Series Description (0008,103E)", lambda h: h.series_description),
    "instance_number": ("Instance Number (0020,0013)", lambda h: h.instance_number),
    "body_part": ("Body Part Examined (0018,0015)", lambda h: h.body_part),
    "accession_number": ("Accession Number (0008,0050); names the visit in paths", lambda h: h.accession_number),
    "patient_id": ("Patient ID (0010,0020); names the patient in paths", lambda h: h.patient_id),
}
_NAMED = {
    "uid": "{class}/{study_uid}/{series_uid}/{sop_uid}.dcm",
    "readable": "{class}/{study_date}_{modality}_{study_key}/{series_number}_{series_description}_{series_key}/"
    "{instance_number}_{sop_key}.dcm",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How files of a class are named; ``parts`` are None for ``keep``, which keeps the path in the inbox."""

    parts: tuple[tuple[tuple[str, str], ...], ...] | None

    @property
    def by_instance(self) -> bool:
        """Whether the SOP Instance UID is in the name, so that two contents under one name are one UID used twice."""
        return any(name == "sop_uid" for part in self.parts or () for _, name in part)

    def path(self, folder: str, e: Examined, *, with_uids: bool) -> str:
        """Return the path below the outbox of a file that belongs in a class folder."""
        if self.parts is None or e.header.kind != "dicom":
            return f"{folder}/{e.found.path}"
        if not with_uids:
            return f"{folder}/no-uid/{e.found.path}"
        if self == UID:  # by far the most common, and made of valid UIDs only, which are harmless
            h = e.header
            return f"{folder}/{h.study_uid}/{h.series_uid}/{h.sop_uid}.dcm"
        return "/".join([folder, *(_component(part, e.header) for part in self.parts)])


def parse_layout(text: str) -> Layout:
    """Read ``uid``, ``keep``, ``readable`` or a template such as ``{class}/{study_date}/{sop_uid}.dcm``."""
    if text == "keep":
        return Layout(None)
    template = _NAMED.get(text, text)
    first, _, rest = template.partition("/")
    parts = rest.split("/")
    if first != "{class}" or not all(parts) or {".", ".."} & set(parts):
        _refuse(text, "uid, keep, readable or a template that begins with {class}/ and has no empty, '.' or '..' part")
    return Layout(tuple(_pieces(part, text) for part in parts))


def _pieces(part: str, text: str) -> tuple[tuple[str, str], ...]:
    try:
        parsed = list(string.Formatter().parse(part))
    except ValueError as error:
        _refuse(text, f"balanced braces ({error})")
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in TOKENS or spec or conversion):
            _refuse(text, "tokens of {class} " + " ".join(f"{{{token}}}" for token in TOKENS))
    return tuple((literal, name or "") for literal, name, _, _ in parsed)


def _refuse(text: str, expected: str) -> NoReturn:
    raise UsageError(f"--layout: expected {expected}; received {text!r}")


def _component(pieces: tuple[tuple[str, str], ...], header: Header) -> str:
    texts = (literal + (harmless(TOKENS[name][1](header)) if name else "") for literal, name in pieces)
    return harmless("".join(texts), bounded=False)


def harmless(text: str, *, bounded: bool = True) -> str:
    """Return a path component without separators, control characters, leading dots or reserved names; never empty."""
    if len(text) <= MAX_COMPONENT and _NUMBERS.fullmatch(text):  # a UID, as nearly always
        return text
    clean = _HARMLESS.sub("_", unicodedata.normalize("NFC", text)).strip("._-") or "none"
    if _RESERVED.fullmatch(clean):
        clean = f"_{clean}"
    encoded = clean.encode()
    limit = MAX_COMPONENT if bounded else 255
    if len(encoded) <= limit:
        return clean
    return encoded[: limit - _KEY - 1].decode(errors="ignore") + "-" + _key(text)


def with_suffix(path: str, sha256: str) -> str:
    """Return the path with ``.<8 hex of SHA-256>`` before its extension, the name cut to 255 bytes."""
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension) > _KEY:
        stem, dot, extension = name, "", ""
    room = 255 - len((dot + extension).encode(errors="surrogateescape")) - _KEY - 1
    stem = stem.encode(errors="surrogateescape")[:room].decode(errors="surrogateescape")
    return f"{folder}{slash}{stem}.{sha256[:_KEY]}{dot}{extension}"


def unreserved(path: str) -> str:
    """Return the path with ``_`` before each name that our own files have: else it would be taken for state."""
    names = path.split("/")
    return "/".join(f"_{name}" if name.casefold().startswith(RESERVED) else name for name in names)


def with_folder_suffix(folder: str) -> str:
    """Return the folder's name, cut to 255 bytes, with ``.<8 hex>`` of its own SHA-256: the same in each run."""
    cut = folder.encode(errors="surrogateescape")[: 255 - _KEY - 1].decode(errors="surrogateescape")
    return f"{cut}.{_key(folder)}"


def prove_inside(path: str) -> None:
    """Raise AssertionError where a component is no name, which no input may cause."""
    if path.startswith("/") or {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise AssertionError(f"planned a target outside the outbox: {path!r}")


def parents(path: str) -> Iterator[str]:
    """Yield the folders that hold a path, the nearest first."""
    while path := path.rpartition("/")[0]:
        yield path


UID = parse_layout("uid")


def _key(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_KEY]
