"""The replay set of a bundle: features of some images that it was evaluated on, without pixels (``evaluation.npz``).

A training that starts from the bundle changes the last layer alone, so these features stay exact. One part of them is
shown again between the new images, so that the training does not forget (rehearsal: Robins 1995, Catastrophic
Forgetting, Rehearsal and Pseudorehearsal). Their target is what the bundle itself predicts (Li and Hoiem 2016,
arXiv:1606.09282): with their labels as the target a model becomes ever surer of them, and is less often right about
other images. The other part shares no source with the first, and no such training learns from it: it measures what got
better and what got worse.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dicomsort.bundle import EVALUATION_NAME
from dicomsort.bundle.spec import read_model
from dicomsort.errors import BundleError
from dicomsort.training.data import fingerprint
from dicomsort.training.data.splitting import balance, folds
from dicomsort.training.models.tflite_head import Body, predict_head
from dicomsort.training.models.tflite_weights import read_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicomsort.bundle import Bundle
    from dicomsort.training.data.dataset import Dataset, Indices
    from dicomsort.training.data.rendered import Rendered
    from dicomsort.training.progress import Reporter

KEY = "evaluation"
ROOM = 700_000  # bytes of features at most, before they are packed: what ships has to stay small
LEVELS = 255
MOST = 4000  # images at most, however few features they have
MAX_RAW = 32 << 20  # bytes that a file may unpack to
PROBES = 4
ALIKE = 0.02  # of the largest feature: so much may two computations of the same one differ
HALVES = 2
NO_END = "the network does not end in features and layers behind them"
ARRAYS = {
    "features": "|u1",
    "floors": "<f4",
    "scales": "<f4",
    "classes": "|u1",
    "clusters": "<u2",
    "rehearsed": "|b1",
    "trained": "|b1",
    "files": "<u4",
    "probes": "<f2",
    "story": "|u1",
}
EACH = ("classes", "clusters", "rehearsed", "trained", "files")  # one number an image
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The head of an array as numpy writes it; numpy's own reader evaluates what it finds, and raises almost anything.
HEAD = re.compile(
    rb"\x93NUMPY\x01\x00(?s:(..))\{'descr': '([^']*)', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n"
)
# What damaged content makes zipfile, zlib, json, or what is checked here, raise.
BROKEN = (
    ValueError, LookupError, TypeError, ArithmeticError, EOFError, OSError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplaySet:
    """Features of N images, of D numbers each.

    ``features``: float16 (N, D), what the network's last layer gets, kept in 256 levels of each;
    ``classes``: uint8 (N,), places in ``labels``;
    ``clusters``: uint16 (N,), which images are resampled as one, ``unit`` what that is (source, patient, file);
    ``rehearsed``: bool (N,), which of them later trainings learn from, clusters never in part; ``trained``: bool (N,),
    which the network itself was trained on; ``files``: uint32 (N,), the first bits of their SHA-256 (see
    ``fingerprint``); ``probes``: float16 (n, D), the features of ``probe_images``, by which another network is known.
    """

    labels: tuple[str, ...]
    unit: str
    features: NDArray[np.float16]
    classes: NDArray[np.uint8]
    clusters: NDArray[np.uint16]
    rehearsed: NDArray[np.bool_]
    trained: NDArray[np.bool_]
    files: NDArray[np.uint32]
    probes: NDArray[np.float16]

    def part(self, *, rehearsed: bool) -> Self:
        """Return the images that are rehearsed, or those that are only evaluated."""
        chosen = self.rehearsed == rehearsed
        arrays = ("features", *EACH)
        return replace(self, **{name: getattr(self, name)[chosen] for name in arrays})

    @property
    def truth(self) -> NDArray[np.int64]:
        """The images' classes, int64 (N,)."""
        return self.classes.astype(np.int64)

    def weights(self) -> NDArray[np.float64]:
        """Return how much each image counts, float64 (N,), sum 1: classes alike, and in each its clusters alike."""
        _, cell, counts = np.unique(
            np.stack([self.classes, self.clusters]), axis=1, return_inverse=True, return_counts=True
        )
        weights = 1 / counts[cell]
        weights /= np.bincount(self.classes, weights)[self.classes]
        result: NDArray[np.float64] = weights / weights.sum()
        return result

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.classes)

    def pack(self) -> bytes:
        """Return the file's content, the same for the same features."""
        story = json.dumps({"labels": self.labels, "unit": self.unit}).encode()
        floors, tops = (edge(self.features, axis=0).astype(np.float32) for edge in (np.min, np.max))
        scales = (tops - floors) / LEVELS
        levels = np.rint((self.features - floors) / np.where(scales > 0, scales, 1))
        arrays = {name: getattr(self, name) for name in (*EACH, "probes")}
        whole = {
            **arrays,
            "features": levels,
            "floors": floors,
            "scales": scales,
            "story": np.frombuffer(story, np.uint8),
        }
        written = io.BytesIO()
        np.savez_compressed(
            written, allow_pickle=False, **{name: whole[name].astype(kind) for name, kind in ARRAYS.items()}
        )
        return written.getvalue()


def probe_images(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the images by whose features two networks are compared: uint8 (n, height, width, 3), always the same."""
    return np.random.default_rng(0).integers(0, 256, (PROBES, *shape), np.uint8)


def choose(dataset: Dataset, width: int, seed: int) -> Indices:
    """Return at most so many items as there is room for, of ``width`` features: classes alike, and sources in each."""
    count = min(len(dataset.items), MOST, max(1, ROOM // width))
    weights = balance(dataset).astype(np.float64)
    drawn: Indices = np.random.default_rng(seed).choice(
        len(dataset.items), count, replace=False, p=weights / weights.sum()
    )
    return np.sort(drawn)


def remember(
    dataset: Dataset,
    digests: Sequence[str],
    features: NDArray[np.float32],
    probes: NDArray[np.float32],
    trained: NDArray[np.bool_],
    seed: int,
) -> ReplaySet:
    """Return the replay set of the items of ``dataset``, of which there are ``features`` (N, D).

    ``digests``: SHA-256 of their files; ``probes``: the features of ``probe_images``; ``trained``: bool (N,), which
    items the network was trained on. One half of the sources is rehearsed, where there are some in every class, else of
    the patients or files.
    """
    grouped = dataset.grouped()
    names, clusters = np.unique(np.array(dataset.units(grouped=grouped)), return_inverse=True)
    unit = "source" if grouped else "patient" if len(names) < len(dataset.items) else "file"
    return ReplaySet(
        dataset.labels, unit, features.astype(np.float16), dataset.classes().astype(np.uint8),
        clusters.astype(np.uint16), folds(dataset, HALVES, seed, grouped=grouped) == 0, trained,
        fingerprint.keys(digests), probes.astype(np.float16),
    )  # fmt: skip


def keep_features(
    model: bytes, rendered: Rendered, items: Indices, trained: NDArray[np.bool_], seed: int, reporter: Reporter
) -> bytes | str:
    """Return the file of a replay set of some of ``items``, (n,); or why a LiteRT model has no features to keep.

    ``trained``: bool (n,), which of them the model was trained on; ``seed`` fixes which are chosen.
    """
    try:
        body = Body(model)
    except BundleError:
        return NO_END
    dataset = rendered.dataset.only(items)
    chosen = choose(dataset, body.output.shape[1], seed)
    parts = [body.output]
    with reporter.step("Keeping features of evaluation images", len(chosen)) as step:
        for row in rendered.rows[items[chosen]]:
            parts.append(body.predict_on_batch(rendered.images[row : row + 1]))
            step.advance()
    probes = body.predict_on_batch(probe_images(rendered.images.shape[1:]))
    digests = [rendered.digests[i] for i in items[chosen]]
    return remember(dataset.only(chosen), digests, np.concatenate(parts), probes, trained[chosen], seed).pack()


def recall(bundle: Bundle) -> ReplaySet | None:
    """Return what a bundle keeps of its evaluation images, None where it keeps nothing.

    BundleError where the file is not the one that the bundle pins, or not as ``pack`` writes it.
    """
    if bundle.evaluation is None:
        return None
    content = read_model(bundle, EVALUATION_NAME)
    try:
        replay = _unpack(content)
        _require(replay.labels == bundle.labels, f"labels {bundle.labels}", replay.labels)
    except BROKEN as error:
        report_of = " ".join(str(error).split())[:200] or type(error).__name__
        msg = f"bundle {str(bundle.folder)!r}: {EVALUATION_NAME}: expected features as dicomsort keeps them, received "
        raise BundleError(msg + report_of) from error
    return replay


def predictions_of(bundle: Bundle, replay: ReplaySet) -> NDArray[np.float32] | None:
    """Return what a bundle's last layer predicts for a replay set, float32 (N, C), not calibrated.

    None where its file does not hold that layer as numbers that can be read, or it is of other features.
    """
    try:
        kernel, bias = read_head(read_model(bundle))
    except BundleError:
        return None
    fits = kernel.shape == (replay.features.shape[1], len(bundle.labels))
    return predict_head(replay.features, kernel, bias) if fits else None


def require_of(bundle: Bundle, replay: ReplaySet, features: NDArray[np.float32]) -> None:
    """Raise BundleError unless a bundle's network gives ``probe_images`` the ``features``, (n, D), that it keeps."""
    ours = replay.probes.astype(np.float32)
    same = ours.shape == features.shape
    strayed = float(np.abs(ours - features).max() / max(float(np.abs(ours).max()), 1e-6)) if same else float("inf")
    if not strayed <= ALIKE:
        received = f"others by {strayed:.0%}" if same else f"{ours.shape[1]} of them for {features.shape[1]}"
        raise BundleError(
            f"bundle {str(bundle.folder)!r}: {EVALUATION_NAME}: expected features of its own network, received "
            f"{received}"
        )


def _unpack(content: bytes) -> ReplaySet:
    """Return what a file holds; one of ``BROKEN`` where it is another than ``pack`` writes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        _require(set(parts) == set(ARRAYS), f"the arrays {', '.join(ARRAYS)}", ", ".join(sorted(parts))[:100])
        _require(all(info.compress_type in PACKED for info in parts.values()), "stored or deflated arrays", "others")
        size = sum(info.file_size for info in parts.values())
        _require(size <= MAX_RAW, f"at most {MAX_RAW} bytes unpacked", size)
        arrays = {name: _array(archive.read(parts[name]), kind) for name, kind in ARRAYS.items()}
    story = json.loads(arrays.pop("story").tobytes())
    labels, unit = tuple(map(str, story["labels"])), str(story["unit"])
    levels, floors, scales = (arrays.pop(name) for name in ("features", "floors", "scales"))
    _require(levels.ndim == 2, "features of images", levels.shape)  # noqa: PLR2004 - images, and features of each
    _require(floors.shape == scales.shape == levels.shape[1:], "a floor and a scale a feature", scales.shape)
    features = (levels * scales + floors).astype(np.float16)
    replay = ReplaySet(labels, unit, features, **arrays)
    count, width = replay.features.shape
    _require(replay.probes.shape == (PROBES, width), f"{PROBES} probes of {width} features", replay.probes.shape)
    for name in EACH:
        _require(arrays[name].shape == (count,), f"{count} {name}", arrays[name].shape)
    _require(bool(count and (replay.classes < len(labels)).all()), f"classes 0 to {len(labels) - 1}", "others")
    _require(bool(np.isfinite(replay.features).all()), "finite features", "others")
    shared = np.intersect1d(replay.clusters[replay.rehearsed], replay.clusters[~replay.rehearsed])
    _require(not len(shared), "no cluster both rehearsed and judged", f"{len(shared)}")
    return replay


def _array(content: bytes, kind: str) -> NDArray[Any]:
    """Return an array of the type ``kind``; its size is that of ``content`` before memory is taken for it."""
    head = HEAD.match(content)
    if head is None:
        raise ValueError(f"{content[:20]!r} where the head of an array is due")
    length, found, shape = int.from_bytes(head[1], "little"), head[2].decode("latin-1"), head[3].decode()
    _require(length == head.end() - head.end(1), f"a head of {head.end() - head.end(1)} bytes", f"one of {length}")
    _require(found == kind, kind, found)
    flat: NDArray[Any] = np.frombuffer(content, kind, offset=head.end())
    return flat.reshape([int(side) for side in shape.split(",") if side.strip()])


def _require(holds: bool, expected: str, received: object) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(f"{received} where {expected} is due")


def counts(replay: ReplaySet, labels: Sequence[str]) -> dict[str, int]:
    """Return label -> number of images."""
    found = np.bincount(replay.classes, minlength=len(labels))
    return {label: int(count) for label, count in zip(labels, found, strict=True)}


def report_of(content: bytes) -> dict[str, Any]:
    """Return what metrics.json reports of a file that ``pack`` wrote."""
    replay = _unpack(content)
    rehearsed, judged = replay.part(rehearsed=True), replay.part(rehearsed=False)
    return {
        "unit": replay.unit,
        "trained_on": int(replay.trained.sum()),
        "rehearsed": counts(rehearsed, replay.labels),
        "judged": counts(judged, replay.labels),
        "megabytes": round(len(content) / 1e6, 2),
    }


def words(replay: Mapping[str, Any]) -> str:
    """Say in a sentence without a stop what ``report_of`` tells."""
    judged, rehearsed = (sum(replay[name].values()) for name in ("judged", "rehearsed"))
    count = f"{replay['trained_on']:,} of them" if replay["trained_on"] else "none of these files"
    trained = f"on {count} the network was trained"
    shown = "; ".join(
        f"{name}: {', '.join(f'{label} {count:,}' for label, count in replay[name].items())}"
        for name in ("judged", "rehearsed")
    )
    return (
        f"Features of {judged + rehearsed:,} images kept for later trainings ({replay['megabytes']} MB, no pixels; "
        f"{trained}); {shown}"
    )
