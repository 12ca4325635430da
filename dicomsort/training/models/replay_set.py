"""The replay set of a bundle: features of some images that it was evaluated on, without pixels (``evaluation.npz``).

Fine-tuning changes the last layer alone, so these features stay exact. One part of them is shown again between the new
images, so that the network does not forget (rehearsal: Robins 1995, Catastrophic Forgetting, Rehearsal and
Pseudorehearsal). Their target is the bundle's own prediction (Li and Hoiem 2016, arXiv:1606.09282): with their labels
as the target a model overfits to them, and is less often right about other images. The other part shares no source with
the first, and fine-tuning never learns from it: it measures what got better and what got worse.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle import EVALUATION_NAME, Bundle
from dicomsort.bundle.spec import read_model
from dicomsort.errors import BundleError, counted
from dicomsort.training.data import fingerprint
from dicomsort.training.data.balancing import draw
from dicomsort.training.data.dataset import Dataset, Indices
from dicomsort.training.data.rendered import Rendered
from dicomsort.training.data.splitting import folds
from dicomsort.training.models.tflite_head import FeatureExtractor, predict_head
from dicomsort.training.models.tflite_weights import read_head
from dicomsort.training.progress import Reporter

KEY = "evaluation"
ROOM = 700_000  # bytes of features at most, before compression: a bundle has to stay small
LEVELS = 255
MOST = 4000  # images at most, however few features they have
MAX_RAW = 32 << 20  # bytes that a file may unpack to
PROBES = 4
ALIKE = 0.02  # the share of the largest feature by which two computations of the same one may differ
HALVES = 2
MOST_FLOAT16 = float(np.finfo(np.float16).max)
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
# What zipfile, zlib, json, or the checks here raise for damaged content.
BROKEN = (
    ValueError, LookupError, TypeError, ArithmeticError, EOFError, OSError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplaySet:
    """Features of N images, of D numbers each.

    ``features``: float16 (N, D), the input of the network's last layer, of 256 levels each; ``classes``: uint8 (N,),
    indices of ``labels``; ``clusters``: uint16 (N,), which images are resampled as one, ``unit`` what that is (source,
    patient, file); ``rehearsed``: bool (N,), which of them fine-tuning learns from, whole clusters; ``trained``: bool
    (N,), which the network itself was trained on; ``files``: uint32 (N,), the first bits of their SHA-256 (see
    ``fingerprint``); ``probes``: float16 (n, D), the features of ``probe_images``, which identify the network.
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
        return replace(self, **{name: getattr(self, name)[chosen] for name in ("features", *EACH)})

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
        return np.asarray(weights / weights.sum(), np.float64)

    def counts(self) -> dict[str, int]:
        """Return label -> number of images."""
        return dict(zip(self.labels, np.bincount(self.classes, minlength=len(self.labels)).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.classes)

    def pack(self) -> bytes:
        """Return the file's content, the same for the same features."""
        header = json.dumps({"labels": self.labels, "unit": self.unit}).encode()
        floors, tops = (edge(self.features, axis=0).astype(np.float32) for edge in (np.min, np.max))
        scales = (tops - floors) / LEVELS
        levels = np.rint((self.features - floors) / np.where(scales > 0, scales, 1))
        arrays = {name: getattr(self, name) for name in (*EACH, "probes")}
        arrays |= {"features": levels, "floors": floors, "scales": scales, "story": np.frombuffer(header, np.uint8)}
        typed = {name: arrays[name].astype(kind) for name, kind in ARRAYS.items()}
        written = io.BytesIO()
        np.savez_compressed(written, allow_pickle=False, **typed)
        return written.getvalue()


def probe_images(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the images by whose features two networks are compared: uint8 (n, height, width, 3), always the same."""
    return np.random.default_rng(0).integers(0, 256, (PROBES, *shape), np.uint8)


def choose(dataset: Dataset, width: int, seed: int) -> Indices:
    """Return as many items as there is room for, of ``width`` features: classes alike, and sources in each."""
    return draw(dataset, min(MOST, max(1, ROOM // width)), seed)


def build_replay_set(
    dataset: Dataset,
    digests: Sequence[str],
    features: NDArray[np.float32],
    probes: NDArray[np.float32],
    trained: NDArray[np.bool_],
    seed: int,
) -> ReplaySet:
    """Return the replay set of the items of ``dataset``, with their ``features`` (N, D).

    ``digests``: SHA-256 of their files; ``probes``: the features of ``probe_images``; ``trained``: bool (N,), which
    items the network was trained on. Half of the sources are rehearsed, where every class has some, else half of the
    patients or files.
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
    """Return the content of a replay set's file, of some of ``items`` (n,); or why no features are kept.

    ``trained``: bool (n,), which of them the model was trained on; ``seed`` fixes which are chosen.
    """
    try:
        extractor = FeatureExtractor(model)
    except BundleError:
        return NO_END
    dataset = rendered.dataset.only(items)
    chosen = choose(dataset, extractor.output.shape[1], seed)
    parts = [extractor.output]
    with reporter.step("Keeping features of evaluation images", len(chosen)) as step:
        for row in rendered.rows[items[chosen]]:
            parts.append(extractor.predict_on_batch(rendered.images[row : row + 1]))
            step.advance()
    probes = extractor.predict_on_batch(probe_images(rendered.images.shape[1:]))
    digests, features = [rendered.digests[i] for i in items[chosen]], np.concatenate(parts)
    if not (largest := float(np.abs(np.concatenate([features, probes])).max())) <= MOST_FLOAT16:
        return f"they reach {largest:.3g}, and float16, in which they would be kept, ends at {MOST_FLOAT16:,.0f}"
    return build_replay_set(dataset.only(chosen), digests, features, probes, trained[chosen], seed).pack()


def load_replay_set(bundle: Bundle) -> ReplaySet | None:
    """Return a bundle's replay set, None where it has none.

    BundleError where the file is not the one that the bundle pins, or not as ``pack`` writes it.
    """
    if bundle.evaluation is None:
        return None
    content = read_model(bundle, EVALUATION_NAME)
    try:
        replay = _unpack(content)
        _require(replay.labels == bundle.labels, f"labels {bundle.labels}", replay.labels)
    except BROKEN as error:
        raise BundleError(
            f"bundle {str(bundle.folder)!r}: {EVALUATION_NAME}: expected features as dicomsort keeps them, received "
            f"{' '.join(str(error).split())[:200] or type(error).__name__}"
        ) from error
    return replay


def predictions_of(bundle: Bundle, replay: ReplaySet) -> NDArray[np.float32] | None:
    """Return the predictions of a bundle's last layer for a replay set, float32 (N, C), not calibrated.

    None where that layer cannot be read from its file, or has other features.
    """
    try:
        kernel, bias = read_head(read_model(bundle))
    except BundleError:
        return None
    fits = kernel.shape == (replay.features.shape[1], len(bundle.labels))
    return predict_head(replay.features, kernel, bias) if fits else None


def require_of(bundle: Bundle, replay: ReplaySet, features: NDArray[np.float32]) -> None:
    """Raise BundleError unless the replay set has the ``features`` (n, D) of ``probe_images`` of a bundle's network."""
    ours = replay.probes.astype(np.float32)
    same = ours.shape == features.shape
    difference = float(np.abs(ours - features).max() / max(float(np.abs(ours).max()), 1e-6)) if same else float("inf")
    if not difference <= ALIKE:
        received = f"others by {difference:.0%}" if same else f"{ours.shape[1]} of them for {features.shape[1]}"
        raise BundleError(
            f"bundle {str(bundle.folder)!r}: {EVALUATION_NAME}: expected features of its own network, received "
            f"{received}"
        )


def _unpack(content: bytes) -> ReplaySet:
    """Return the replay set of a file; one of ``BROKEN`` where it is not as ``pack`` writes it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        _require(set(parts) == set(ARRAYS), f"the arrays {', '.join(ARRAYS)}", ", ".join(sorted(parts))[:100])
        _require(all(info.compress_type in PACKED for info in parts.values()), "stored or deflated arrays", "others")
        size = sum(info.file_size for info in parts.values())
        _require(size <= MAX_RAW, f"at most {MAX_RAW} bytes unpacked", size)
        arrays = {name: _array(archive.read(parts[name]), kind) for name, kind in ARRAYS.items()}
    header = json.loads(arrays.pop("story").tobytes())
    labels, unit = tuple(map(str, header["labels"])), str(header["unit"])
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
    """Return an array of the type ``kind``, a view of ``content``; ValueError for another head, type or size."""
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


def report_of(content: bytes) -> dict[str, Any]:
    """Return the report, for metrics.json, of a file that ``pack`` wrote."""
    replay = _unpack(content)
    return {
        "unit": replay.unit,
        "trained_on": int(replay.trained.sum()),
        "rehearsed": replay.part(rehearsed=True).counts(),
        "judged": replay.part(rehearsed=False).counts(),
        "megabytes": round(len(content) / 1e6, 2),
    }


def words(replay: Mapping[str, Any]) -> str:
    """Return a report of ``report_of`` as a sentence without a stop."""
    parts = {name: replay[name] for name in ("judged", "rehearsed")}
    images = sum(sum(counts.values()) for counts in parts.values())
    trained = f"{replay['trained_on']:,} of them" if replay["trained_on"] else "none of these files"
    listed = {name: ", ".join(f"{label} {count:,}" for label, count in parts[name].items()) for name in parts}
    return (
        f"Features of {counted(images, 'image')} kept for later trainings ({replay['megabytes']} MB, no pixels; on "
        f"{trained} the network was trained); {'; '.join(f'{name}: {counts}' for name, counts in listed.items())}"
    )
