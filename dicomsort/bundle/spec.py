"""What a bundle is, and the checks of a bundle of unknown origin.

Nothing in a bundle is code: one bounded JSON file, a LiteRT model, and maybe a replay set. The JSON pins the SHA-256 of
each file, and each of its fields is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from dicomsort.errors import BundleChanged, BundleError, quoted
from dicomsort.records import ARCHIVES, INPUT_SHAPE, RENDERING_VERSION, REVIEW, UNREADABLE

Field = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is that
Fields = dict[str, Field]

SPEC_NAME = "bundle.json"
MODEL_NAME = "model.tflite"
EVALUATION_NAME = "evaluation.npz"
FORMAT_VERSION = 1
HEADER_CLASSES = ("CT", "MRI", "XRAY")
MAX_MODEL_BYTES = 512 << 20
MAX_EVALUATION_BYTES = 16 << 20
MAX_SPEC_BYTES = 1 << 20
MIN_LABELS, MAX_LABELS = 2, 256
MAX_LABEL_BYTES = 64
MAX_TEXT = 128
MAX_DISTANCE = 1e9

_HEX = re.compile(r"[0-9a-f]{64}")
_COPIED = ("name", "arch", "header_classes", "training", "model_sha256", "model_size")
# The names that an outbox, or a file system it may be copied to, reserves.
_RESERVED = frozenset({*map(str.casefold, (REVIEW, UNREADABLE, ARCHIVES)), "manifest.csv", "con", "prn", "aux", "nul"})


def check(spec: object, where: str) -> dict[str, Any]:
    """Return ``spec`` (parsed JSON) if every field is valid; BundleError names the first that is not."""
    if not isinstance(spec, dict):
        fail(where, "the whole", "an object", type(spec).__name__)
    _check_fields(spec, _FIELDS, where)
    _check_fields(spec["training"], _TRAINING_FIELDS, where, "training.")
    _check_fields(spec["training"].get("recipe") or {}, _RECIPE_FIELDS, where, "training.recipe.")
    if (evaluation := spec.get("evaluation")) is not None:
        if not isinstance(evaluation, dict):
            fail(where, "evaluation", "an object, or none", evaluation)
        _check_fields(evaluation, _EVALUATION_FIELDS, where, "evaluation.")
    for label in spec["labels"]:
        if problem := label_problem(label):
            fail(where, "labels", f"names that can be folders ({problem})", label)
    if not set(spec["header_classes"].values()) <= set(spec["labels"]):
        fail(where, "header_classes", f"values among the labels {spec['labels']}", spec["header_classes"])
    return spec


def _check_fields(values: dict[str, Any], fields: Fields, where: str, prefix: str = "") -> None:
    for key, (expected, is_valid) in fields.items():
        if not is_valid(values.get(key)):
            fail(where, f"{prefix}{key}", expected, values.get(key))


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
    raise BundleError(f"bundle {where!r}: {key}: expected {expected}, received {shown}")


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
    if not isinstance(value, dict):
        return False
    if not all(_is_number(value.get(name), 0.0, 1.0) for name in ("decide", "contradict")):
        return False
    return value.get("distance") is None or _is_number(value["distance"], 0.0, MAX_DISTANCE)


_SHA256: Field = ("64 hexadecimal digits", lambda v: isinstance(v, str) and bool(_HEX.fullmatch(v)))
_FIELDS: Fields = {
    "format_version": (str(FORMAT_VERSION), lambda v: v == FORMAT_VERSION),
    "name": (f"a line of at most {MAX_TEXT} characters", _is_text),
    "arch": (f"a line of at most {MAX_TEXT} characters", _is_text),
    "labels": (f"a list of 2 to {MAX_LABELS} names, each once", _is_labels),
    "header_classes": (f"an object from {', '.join(HEADER_CLASSES)} to labels", lambda v: _is_map(v, HEADER_CLASSES)),
    "input_shape": (
        f"{list(INPUT_SHAPE)}, the images that this program renders",
        lambda v: v == list(INPUT_SHAPE) and all(isinstance(n, int) for n in v),
    ),
    "rendering_version": (
        f"{RENDERING_VERSION}, that of this program",
        lambda v: _is_int(v, RENDERING_VERSION, RENDERING_VERSION),
    ),
    "temperature": ("a number from 0.05 to 20", lambda v: _is_number(v, 0.05, 20.0)),
    "thresholds": (f"decide and contradict, 0 to 1, maybe distance, 0 to {MAX_DISTANCE:.0f}", _is_thresholds),
    "training": ("an object", lambda v: isinstance(v, dict)),
    "created_with": ("an object from software to version", _is_map),
    "model_sha256": _SHA256,
    "model_size": (f"1 to {MAX_MODEL_BYTES} bytes", lambda v: _is_int(v, 1, MAX_MODEL_BYTES)),
}
_TEXT_OR_NONE: Field = ("text, or none", lambda v: v is None or isinstance(v, str))
_OBJECT_OR_NONE: Field = ("an object, or none", lambda v: v is None or isinstance(v, dict))
_TRAINING_FIELDS: Fields = {
    "fingerprint": _TEXT_OR_NONE,
    "files": _TEXT_OR_NONE,
    "images": (
        "an object from label to number, or none",
        lambda v: v is None or (isinstance(v, dict) and all(_is_int(n, 0, 1 << 53) for n in v.values())),
    ),
    "recipe": _OBJECT_OR_NONE,
}
_RECIPE_FIELDS: Fields = {"variation": _OBJECT_OR_NONE}
_EVALUATION_FIELDS: Fields = {
    "sha256": _SHA256,
    "size": (f"1 to {MAX_EVALUATION_BYTES} bytes", lambda v: _is_int(v, 1, MAX_EVALUATION_BYTES)),
}


class Pinned(NamedTuple):
    """SHA-256 and size of a file that ``bundle.json`` pins."""

    sha256: str
    size: int


class BundleReference(NamedTuple):
    """What workers are sent in place of a bundle: its absolute folder, and the SHA-256 of ``bundle.json``.

    That pins the model, too: so no worker takes another bundle that came into the folder for the one that is meant.
    """

    folder: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A validated, picklable bundle.

    ``labels`` are in the order of the model's outputs; ``header_classes`` maps CT, MRI, XRAY to labels (empty where the
    labels are others, such as CHEST and HAND: such a model sorts by pixels alone). ``temperature`` divides the logits.
    ``decide`` is the calibrated mean confidence (0..1) from which pixels alone decide. ``contradict`` is the share
    (0..1) that their class must get of what they give to it and to a clear header's class, to hold the series for
    review. ``distance`` (0 or more) is the Mahalanobis distance beyond which an image is out of distribution (None: the
    model computes none). ``training`` holds the images' fingerprint and counts. ``evaluation`` pins the replay set
    (None: there is none), which only later trainings read. ``spec_sha256`` is the SHA-256 of ``bundle.json``.
    """

    folder: Path
    name: str
    arch: str
    labels: tuple[str, ...]
    header_classes: Mapping[str, str]
    temperature: float
    decide: float
    contradict: float
    distance: float | None
    training: Mapping[str, Any]
    model_sha256: str
    model_size: int
    spec_sha256: str
    evaluation: Pinned | None = None

    @property
    def reference(self) -> BundleReference:
        """What workers are sent in its place."""
        return BundleReference(str(self.folder.resolve()), self.spec_sha256)


def default_path() -> Path:
    """Return the folder of the bundle that ships: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "models" / "default"
    return shipped if shipped.is_dir() else package.parent / "models" / "default"


def load(path: Path) -> Bundle:
    """Read and check the bundle in the folder ``path``.

    BundleError says what was expected and what was received; a model of another rendering version is refused.
    """
    if not path.is_dir():
        ships = default_path()
        what = "a file" if path.is_file() else "nothing there"
        if path.parts[-2:] == ships.parts[-2:] and ships.is_dir():  # the manual names it so, as it lies in a checkout
            what += f"; the bundle that ships is {str(ships)!r}"
        msg = f"model {quoted(path)}: expected a bundle (a folder with {SPEC_NAME} and {MODEL_NAME}), received {what}"
        raise BundleError(msg)
    data = _read_bounded(path / SPEC_NAME, MAX_SPEC_BYTES)
    spec = check(_parsed(data, str(path)), str(path))
    bundle = _bundle(path, spec, hashlib.sha256(data).hexdigest())
    read_model(bundle)
    return bundle


def load_reference(reference: BundleReference) -> Bundle:
    """Load the bundle that is meant; BundleChanged where its folder holds another by now, or none that can be used."""
    try:
        bundle = load(Path(reference.folder))
        received = "another in its place" if bundle.spec_sha256 != reference.sha256 else ""
    except BundleError as error:
        received = str(error)
    if received:
        expected = f"bundle {reference.folder!r}: expected the one that the command began with"
        raise BundleChanged(f"{expected}, received {received}; run the command again")
    return bundle


def has_changed(bundle: Bundle) -> bool:
    """Whether ``bundle.json`` is another by now; BundleError where it cannot be read."""
    data = _read_bounded(bundle.folder / SPEC_NAME, MAX_SPEC_BYTES)
    return hashlib.sha256(data).hexdigest() != bundle.spec_sha256


def read_model(bundle: Bundle, name: str = MODEL_NAME) -> bytes:
    """Return a file's content; BundleError where size or SHA-256 differ from those pinned, or none are pinned."""
    where = str(bundle.folder)
    pinned = {MODEL_NAME: Pinned(bundle.model_sha256, bundle.model_size)}
    if bundle.evaluation:
        pinned[EVALUATION_NAME] = bundle.evaluation
    if name not in pinned:
        fail(where, name, f"one of {', '.join(pinned)}", "one that the bundle does not pin")
    sha256, size = pinned[name]
    data = _read_bounded(bundle.folder / name, MAX_EVALUATION_BYTES if name == EVALUATION_NAME else MAX_MODEL_BYTES)
    if len(data) != size:
        fail(where, name, f"{size} bytes", f"{len(data)} bytes")
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        fail(where, name, f"SHA-256 {sha256}", digest)
    return data


def _parsed(data: bytes, where: str) -> object:
    try:
        spec: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        fail(where, SPEC_NAME, "JSON in UTF-8", str(error))
    return spec


def _read_bounded(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of at most ``limit`` bytes."""
    where = str(path.parent)
    if not path.is_file():
        fail(where, path.name, "a file", "none")
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        fail(where, path.name, "a readable file", error.strerror)
    if len(data) > limit:
        fail(where, path.name, f"at most {limit} bytes", f"{path.stat().st_size} bytes")
    return data


def _bundle(folder: Path, spec: Mapping[str, Any], sha256: str) -> Bundle:
    """Return the record of a checked ``spec``, which was read from a file of that SHA-256."""
    thresholds, evaluation = spec["thresholds"], spec.get("evaluation")
    distance = thresholds.get("distance")
    return Bundle(
        folder=folder,
        labels=tuple(spec["labels"]),
        temperature=float(spec["temperature"]),
        decide=float(thresholds["decide"]),
        contradict=float(thresholds["contradict"]),
        distance=None if distance is None else float(distance),
        spec_sha256=sha256,
        evaluation=None if evaluation is None else Pinned(evaluation["sha256"], evaluation["size"]),
        **{key: spec[key] for key in _COPIED},
    )
