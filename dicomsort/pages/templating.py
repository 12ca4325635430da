"""Templates and styles to pages: everything is escaped, and nothing is fetched from anywhere.

A page may say codes, numbers and paths below the inbox; never what a person typed into a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.template import Loader

from dicomsort.classify import RULES
from dicomsort.records import Header, Kind, Row, Status
from dicomsort.report import visible

TEMPLATES = Path(__file__).parent / "templates"


def rendered(folder: Path, name: str, /, **facts: Any) -> bytes:
    """Return a template of a folder, filled in; what it puts out is escaped unless it says ``raw``."""
    loader = Loader(str(folder), autoescape="xhtml_escape", whitespace="single")
    return loader.load(name).generate(**facts)


LONGEST = 240  # characters of a name that are shown
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}", re.ASCII)  # Code String, PS3.5 6.2
# PS3.16 Annex L, Tables L-1 and L-2, the terms in common use: a name that was typed into (0018,0015) is not among them.
_BODY_PARTS = {
    "ABDOMEN", "ABDOMENPELVIS", "ADRENAL", "ANKLE", "AORTA", "ARM", "AXILLA", "BACK", "BLADDER", "BRAIN",
    "BREAST", "BRONCHUS", "BUTTOCK", "CALCANEUS", "CALF", "CAROTID", "CEREBELLUM", "CERVIX", "CHEEK", "CHEST",
    "CHESTABDOMEN", "CHESTABDPELVIS", "CHESTPELVIS", "CIRCLEOFWILLIS", "CLAVICLE", "COCCYX", "COLON", "CORNEA",
    "CORONARYARTERY", "CSPINE", "CTSPINE", "DUODENUM", "EAR", "ELBOW", "ESOPHAGUS", "EXTREMITY", "EYE",
    "EYELID", "FACE", "FEMUR", "FINGER", "FOOT", "FOREARM", "GALLBLADDER", "HAND", "HEAD", "HEADNECK", "HEART",
    "HIP", "HUMERUS", "IAC", "ILEUM", "ILIUM", "JAW", "JAWREGION", "JEJUNUM", "KIDNEY", "KNEE", "LARYNX", "LEG",
    "LIVER", "LSPINE", "LSSPINE", "LUNG", "MANDIBLE", "MAXILLA", "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST",
    "NECKCHESTABDOMEN", "NOSE", "ORBIT", "OVARY", "PANCREAS", "PAROTID", "PATELLA", "PELVIS", "PENIS",
    "PHARYNX", "PROSTATE", "RECTUM", "RIB", "SACRUM", "SCALP", "SCAPULA", "SCLERA", "SCROTUM", "SELLA",
    "SHOULDER", "SINUS", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH", "TESTIS", "THIGH", "THUMB",
    "THYMUS", "THYROID", "TIBIA", "TIBIAFIBULA", "TLSPINE", "TMJ", "TOE", "TONGUE", "TRACHEA", "TSPINE",
    "UMBILICAL", "URETER", "URETHRA", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY", "WRIST", "ZYGOMA",
}  # fmt: skip
_WHY = {
    "uid-collision": "Another file has the same SOP Instance UID and other content; that one kept its place.",
    "changed": "The file changed between being judged and being placed; it stayed where it was.",
    "failed": "The file could not be read, or not be placed; it stayed where it was.",
}
_RULES = {rule.name: rule.when for rule in RULES}


@dataclass(frozen=True, slots=True)
class Fact:
    """A term and its value; ``is_code``: an identifier or a path, which is shown in a fixed pitch."""

    term: str
    value: str
    is_code: bool = False


def why(reason: str, status: str) -> str:
    """Return one sentence on a reason, as the table of rules has it."""
    words = _WHY.get(reason) or _RULES.get("damaged" if status == Status.UNREADABLE else reason, "")
    return words if words.endswith(".") else f"{words[:1].upper()}{words[1:]}." if words else ""


def shown(text: str, longest: int = LONGEST) -> str:
    """Return a text from a file or a name for a page: nothing that is not printable, at most ``longest`` of it."""
    half = longest // 2
    whole = visible(text if len(text) <= longest * 4 else f"{text[: longest * 2]}{text[-longest * 2 :]}")
    return whole if len(whole) <= longest else f"{whole[:half]} … {whole[-half:]}"


def title(row: Row) -> str:
    """Return what a file is, in a few words: the name of its SOP Class, else its format."""
    if row.kind == Kind.DICOM:
        return sop_class(row.sop_class_uid) or "DICOM file"
    return {str(Kind.PNG): "PNG image", str(Kind.JPEG): "JPEG image"}.get(row.kind, "file of unknown kind")


def sop_class(uid: str) -> str:
    """Return the name of a SOP Class by PS3.6, less "Storage"; the UID itself where that has none."""
    from pydicom.uid import UID

    return shown(UID(uid).name.removesuffix(" Storage"), 64) if uid else ""


def of_header(header: Header | None) -> Iterator[Fact]:
    """Yield what codes a header has, beside Modality and SOP Class."""
    if header is None or header.kind != Kind.DICOM:
        return
    values = header.image_type.split("\\")
    if header.image_type and all(_CODE.fullmatch(value) for value in values if value):
        yield Fact("Image type", " \\ ".join(values))
    if header.body_part.upper() in _BODY_PARTS:
        yield Fact("Body part", header.body_part.upper())
    if header.frames > 1:
        yield Fact("Frames", f"{header.frames:,}")
