"""What a bundle is, and the checks that stand between a folder of unknown origin and a run.

Nothing in a bundle is code: one bounded JSON file, a LiteRT model, and maybe the features of images that it was judged
by, each file's SHA-256 pinned by the JSON (whose fields ``fields`` checks). What else lies there is not read: earlier
bundles have a second model, ``screen.tflite``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dicomsort.bundle.fields import FILE, MAX_EVALUATION_BYTES, MAX_MODEL_BYTES, check, fail
from dicomsort.config import quoted
from dicomsort.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

SPEC_NAME = "bundle.json"
MODEL_NAME = "model.tflite"
EVALUATION_NAME = "evaluation.npz"
MAX_SPEC_BYTES = 1 << 20


class Pinned(NamedTuple):
    """SHA-256 and size of a file that ``bundle.json`` pins."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A validated bundle; picklable, so that workers can be handed one.

    ``labels`` are in the order of the model's outputs; ``header_classes`` maps CT, MRI, XRAY to labels (empty where the
    labels are others, such as CHEST and HAND: such a model sorts by pixels alone). ``input_shape`` is (height, width,
    3). ``temperature`` divides the logits. ``decide`` is the calibrated mean confidence (0..1) from which pixels alone
    decide, ``contradict`` the share between a clear header's class and their own from which pixels that would decide
    hold the series for review, ``distance`` the one (0 or more) beyond which the pixels are like none that the model
    knows (None: it tells no distance). ``training`` tells the images' fingerprint and counts, ``created_with`` the
    versions of the software that wrote it. ``evaluation`` is None where the bundle keeps no features of images that
    it is judged by (a training that goes on from it reads them, nothing else).
    """

    folder: Path
    name: str
    arch: str
    labels: tuple[str, ...]
    header_classes: Mapping[str, str]
    input_shape: tuple[int, int, int]
    rendering_version: int
    temperature: float
    decide: float
    contradict: float
    distance: float | None
    training: Mapping[str, Any]
    created_with: Mapping[str, str]
    model_sha256: str
    model_size: int
    evaluation: Pinned | None = None


def default_path() -> Path:
    """Return the folder of the bundle that ships: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "models" / "default"
    return shipped if shipped.is_dir() else package.parent / "models" / "default"


def load(path: Path, rendering_version: int) -> Bundle:
    """Read and check the bundle in the folder ``path``.

    ``rendering_version`` is the loader's own; a model trained on another rendering would see other pixels than it
    learnt, so it is refused. Raises BundleError saying what was expected and what was received.
    """
    if not path.is_dir():
        what = "a file" if path.is_file() else "nothing there"
        msg = f"model {quoted(path)}: expected a bundle (a folder with {SPEC_NAME} and {MODEL_NAME}), received {what}"
        raise BundleError(msg)
    spec = check(_read_spec(path / SPEC_NAME), str(path))
    if spec["rendering_version"] != rendering_version:
        fail(str(path), "rendering_version", f"{rendering_version}, that of this program", spec["rendering_version"])
    bundle = _bundle(path, spec)
    read_model(bundle)
    return bundle


def read_model(bundle: Bundle, name: str = MODEL_NAME) -> bytes:
    """Return the content of the model's file, or of the other by its name, checked against what bundle.json pins.

    BundleError where size or SHA-256 differ, or the bundle pins no such file.
    """
    where = str(bundle.folder)
    if name not in (pinned := _pinned(bundle)):
        fail(where, name, f"one of {', '.join(pinned)}", "one that the bundle does not pin")
    sha256, size = pinned[name]
    data = _read_bounded(bundle.folder / name, MAX_EVALUATION_BYTES if name == EVALUATION_NAME else MAX_MODEL_BYTES)
    if len(data) != size:
        fail(where, name, f"{size} bytes", f"{len(data)} bytes")
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        fail(where, name, f"SHA-256 {sha256}", digest)
    return data


def _pinned(bundle: Bundle) -> dict[str, Pinned]:
    """Return what is pinned of the files that a bundle has, by name."""
    pinned = {MODEL_NAME: Pinned(bundle.model_sha256, bundle.model_size)}
    if bundle.evaluation:
        pinned[EVALUATION_NAME] = bundle.evaluation
    return pinned


def _read_spec(path: Path) -> object:
    """Return the parsed JSON of ``path``."""
    try:
        spec: object = json.loads(_read_bounded(path, MAX_SPEC_BYTES))
    except (ValueError, RecursionError) as error:
        fail(str(path.parent), SPEC_NAME, "JSON in UTF-8", str(error))
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


def _bundle(folder: Path, spec: Mapping[str, Any]) -> Bundle:
    """Return the record of a checked ``spec``."""
    height, width, channels = spec["input_shape"]
    return Bundle(
        folder=folder,
        name=spec["name"],
        arch=spec["arch"],
        labels=tuple(spec["labels"]),
        header_classes=dict(spec["header_classes"]),
        input_shape=(height, width, channels),
        rendering_version=spec["rendering_version"],
        temperature=float(spec["temperature"]),
        decide=float(spec["thresholds"]["decide"]),
        contradict=float(spec["thresholds"]["contradict"]),
        distance=None if (distance := spec["thresholds"].get("distance")) is None else float(distance),
        training=spec["training"],
        created_with=spec["created_with"],
        model_sha256=spec["model_sha256"],
        model_size=spec["model_size"],
        evaluation=None if (kept := spec.get("evaluation")) is None else Pinned(*(kept[key] for key in FILE)),
    )
