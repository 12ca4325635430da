"""What stands in ``bundle.json``: its fields, and the checks that each must pass before it is believed."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, NoReturn

from dicomsort.errors import BundleError
from dicomsort.records import REVIEW, UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    Fields = dict[str, tuple[str, Callable[[Any], bool]]]

FORMAT_VERSION = 1
HEADER_CLASSES = ("CT", "MRI", "XRAY")
MAX_MODEL_BYTES = 512 << 20
MAX_EVALUATION_BYTES = 16 << 20
MIN_LABELS, MAX_LABELS = 2, 256
MAX_LABEL_BYTES = 64
MAX_TEXT = 128
MAX_DISTANCE = 1e9

_HEX = re.compile(r"[0-9a-f]{64}")
# The names that an outbox, or a file system it may be copied to, keeps for itself.
_RESERVED = frozenset({REVIEW.casefold(), UNREADABLE.casefold(), "manifest.csv", "con", "prn", "aux", "nul"})


def check(spec: object, where: str) -> dict[str, Any]:
    """Return ``spec`` (parsed JSON) if every field is as the format says; BundleError names the first that is not."""
    if not isinstance(spec, dict):
        fail(where, "the whole", "an object", type(spec).__name__)
    if spec.get("format_version") != FORMAT_VERSION:
        fail(where, "format_version", str(FORMAT_VERSION), spec.get("format_version"))
    for key, (expected, holds) in FIELDS.items():
        if key not in spec or not holds(spec[key]):
            fail(where, key, expected, spec.get(key))
    _check_evaluation(spec, where)
    for label in spec["labels"]:
        if problem := label_problem(label):
            fail(where, "labels", f"names that can be folders ({problem})", label)
    if not set(spec["header_classes"].values()) <= set(spec["labels"]):
        fail(where, "header_classes", f"values among the labels {spec['labels']}", spec["header_classes"])
    return spec


def _check_evaluation(spec: dict[str, Any], where: str) -> None:
    """Raise BundleError where the block for the evaluation images' features is not as the format says."""
    block = spec.get("evaluation")
    if block is None:
        return
    if not isinstance(block, dict):
        fail(where, "evaluation", "an object, or none", block)
    for key, (expected, holds) in FILE.items():
        if not holds(block.get(key)):
            fail(where, f"evaluation.{key}", expected, block.get(key))


def label_problem(label: str) -> str:
    """Return why ``label`` cannot be a class's folder in an outbox; empty where it can."""
    if label.casefold() in _RESERVED:
        return "the name is reserved"
    if not label or len(label.encode("utf-8", "surrogatepass")) > MAX_LABEL_BYTES:
        return f"1 to {MAX_LABEL_BYTES} bytes are allowed"
    if not label.isprintable() or any(char in '/\\:*?"<>|' for char in label):
        return "a character is not allowed in folder names"
    if label[0] in ".-~ " or label[-1] in ". " or unicodedata.normalize("NFC", label) != label:
        return "it starts or ends with a character that is not allowed there"
    return ""


def fail(where: str, key: str, expected: str, received: object) -> NoReturn:
    """Raise the one form of error that a bundle's content gets; long values are cut."""
    text = repr(received)
    shown = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    msg = f"bundle {where!r}: {key}: expected {expected}, received {shown}"
    raise BundleError(msg)


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def _is_labels(value: object) -> bool:
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        return False
    return MIN_LABELS <= len(value) <= MAX_LABELS and len({label.casefold() for label in value}) == len(value)


def _is_map(value: object, keys: tuple[str, ...] | None = None) -> bool:
    return isinstance(value, dict) and all(
        (keys is None or key in keys) and isinstance(text, str) for key, text in value.items()
    )


def _is_thresholds(value: object) -> bool:
    if not isinstance(value, dict) or not all(_is_number(value.get(key), 0.0, 1.0) for key in ("decide", "contradict")):
        return False
    return value.get("distance") is None or _is_number(value["distance"], 0.0, MAX_DISTANCE)


_SHA256: tuple[str, Callable[[Any], bool]] = (
    "64 hexadecimal digits",
    lambda v: isinstance(v, str) and bool(_HEX.fullmatch(v)),
)
_SIZE: tuple[str, Callable[[Any], bool]] = (
    f"1 to {MAX_MODEL_BYTES} bytes",
    lambda v: _is_int(v, 1, MAX_MODEL_BYTES),
)
FIELDS: Fields = {
    "name": (f"a line of at most {MAX_TEXT} characters", _is_text),
    "arch": (f"a line of at most {MAX_TEXT} characters", _is_text),
    "labels": (f"a list of 2 to {MAX_LABELS} names, each once", _is_labels),
    "header_classes": (f"an object from {', '.join(HEADER_CLASSES)} to labels", lambda v: _is_map(v, HEADER_CLASSES)),
    "input_shape": (
        "[height, width, 3] of 16 to 1024 pixels",
        lambda v: isinstance(v, list) and v[2:] == [3] and all(_is_int(n, 16, 1024) for n in v[:2]),
    ),
    "rendering_version": ("a number from 1", lambda v: _is_int(v, 1, 1 << 31)),
    "temperature": ("a number from 0.05 to 20", lambda v: _is_number(v, 0.05, 20.0)),
    "thresholds": (
        f"an object with decide and contradict, 0 to 1, and maybe distance, 0 to {MAX_DISTANCE:.0f}",
        _is_thresholds,
    ),
    "training": ("an object", lambda v: isinstance(v, dict)),
    "created_with": ("an object from software to version", _is_map),
    "model_sha256": _SHA256,
    "model_size": _SIZE,
}
FILE: Fields = {
    "sha256": _SHA256,
    "size": (f"1 to {MAX_EVALUATION_BYTES} bytes", lambda v: _is_int(v, 1, MAX_EVALUATION_BYTES)),
}
