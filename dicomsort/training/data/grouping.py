"""Which images of a data set stay together: those of one patient, source or named group, and near-duplicates."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicomsort.errors import counted
from dicomsort.training.data.dataset import Dataset

Hashes = Sequence[NDArray[np.uint64] | None]
Link = tuple[int, Hashable]

# Of 256 bits. Measured on 8,705 images of 93 sources: up to 38 no pair is of different patients of different sources;
# from 40 on heads of the same shape are pairs, and from about 70 on chains of pairs join everything.
NEAR = 36
WORDS, ROWS = 4, 64
HASH_SIDE, THUMBNAIL = 16, 64
# The standard deviation, in grey levels of 255, below which an image is blank: its hash would be noise.
BLANK = 2.0
PATIENT_BYTES = 8
RASTER = (b"\x89PNG", b"\xff\xd8\xff")  # files without a patient
# What de-identified files carry in (0010,0020) *Patient ID* instead of a name for one person.
NOBODY = re.compile(
    r"[0x*?._ -]+|anon(ym(ous|i[sz]ed)?)?|de-?identified|removed|unknown|none|no ?(name|id)|patient|test", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ImageGroups:
    """Counts of the images that stay together.

    ``near_duplicates`` is the number of images that have one, ``clusters`` that of their clusters, ``largest`` the size
    of the largest cluster; ``patients`` and ``groups`` (named by the user) are those with several images; ``sources``
    counts the folders in the classes' folders, ``joined`` names those that a split takes for one source, because they
    share a patient, a near-duplicate or a name in the user's table. ``blank`` images have no near-duplicates.
    """

    near_duplicates: int
    clusters: int
    largest: int
    patients: int
    groups: int
    sources: int
    joined: tuple[tuple[str, ...], ...]
    blank: int

    def words(self) -> str:
        """Return the counts as words."""
        near = f"{counted(self.near_duplicates, 'near-duplicate')} in {counted(self.clusters, 'cluster')}"
        named = f", {counted(self.groups, 'named group')}" if self.groups else ""
        return f"{near}, {counted(self.patients, 'patient')}{named}, {counted(self.sources, 'source')}"


def keep_together(dataset: Dataset, hashes: Hashes, patients: Sequence[str]) -> tuple[Dataset, ImageGroups]:
    """Return the data set with ``group`` and ``kin`` of its items completed, and the counts.

    ``hashes`` and ``patients`` ("": unknown) have one for each item. Sources with images of one kin are one group.
    """
    items = dataset.items
    twins = [link for pair in near_duplicates(hashes) for link in ((i, ("twin", pair[0])) for i in pair)]
    persons = [(i, ("patient", name)) for i, name in enumerate(patients) if name]
    named = [(i, ("group", item.group)) for i, item in enumerate(items) if item.group != item.source]
    sources = [(i, ("group", item.group)) for i, item in enumerate(items) if item.group]
    kin = _components(len(items), [*twins, *persons, *named])
    group = _components(len(items), [*twins, *persons, *sources])
    clusters = [size for size in Counter(_components(len(items), twins)).values() if size > 1]
    names: defaultdict[int, set[str]] = defaultdict(set)
    folders: defaultdict[int, set[str]] = defaultdict(set)
    for root, item in zip(group, items, strict=True):
        names[root] |= {item.group} - {""}
        folders[root] |= {item.source} - {""}
    sizes = Counter(kin)
    completed = (
        replace(item, group=min(names[g], default=""), kin=items[k].path if sizes[k] > 1 else "")
        for item, g, k in zip(items, group, kin, strict=True)
    )
    counts = ImageGroups(
        sum(clusters), len(clusters), max(clusters, default=0), _repeated(persons), _repeated(named),
        len(set().union(*folders.values())), tuple(tuple(sorted(each)) for each in folders.values() if len(each) > 1),
        sum(each is None for each in hashes),
    )  # fmt: skip
    return replace(dataset, items=tuple(completed)), counts


def near_duplicates(hashes: Hashes) -> Iterator[tuple[int, int]]:
    """Yield the pairs (i < j) of items whose perceptual hashes differ in at most ``NEAR`` bits."""
    known = np.array([i for i, phash in enumerate(hashes) if phash is not None], np.intp)
    words = [np.array([phash[w] for phash in hashes if phash is not None], np.uint64) for w in range(WORDS)]
    for start in range(0, len(known), ROWS):
        distance = sum(
            np.bitwise_count(word[start : start + ROWS, None] ^ word[None, start:]).astype(np.uint16) for word in words
        )
        rows, columns = np.nonzero(np.triu(distance <= NEAR, 1))
        yield from zip(known[rows + start].tolist(), known[columns + start].tolist(), strict=True)


def _components(count: int, links: Iterable[Link]) -> list[int]:
    """Return for each of ``count`` items the first that is linked to it; items with a link to one key are linked."""
    parents = list(range(count))
    anchors: dict[Hashable, int] = {}

    def find(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    for item, key in links:
        one, other = find(item), find(anchors.setdefault(key, item))
        parents[max(one, other)] = min(one, other)
    return [find(i) for i in range(count)]


def _repeated(links: Iterable[Link]) -> int:
    """Return how many keys have several items."""
    return sum(count > 1 for count in Counter(key for _, key in links).values())


def perceptual_hash(picture: Image.Image) -> NDArray[np.uint64] | None:
    """Return a hash, uint64 (4,), of which few bits differ for images that look alike; None for a blank image.

    ``picture`` is of mode RGB or L. A bit is set where one of the 16 x 16 lowest frequencies of the discrete cosine
    transform lies above their median (pHash: Zauner, Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010; 256 bits instead of 64, which do not distinguish chest radiographs).
    """
    grey = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.float32)
    if pixels.std() < BLANK:
        return None
    spectrum = (_cosines() @ pixels @ _cosines().T).ravel()
    bits = spectrum > np.median(spectrum[1:])
    bits[0] = False  # the mean grey
    return np.packbits(bits).view(np.uint64)


def patient(path: Path, salt: bytes) -> str:
    """Return a salted hash of a DICOM file's patient, "" where it names none; the name itself is not kept.

    It is made of (0010,0020) *Patient ID* and (0010,0021) *Issuer of Patient ID*; placeholders name no patient.
    """
    from pydicom import dcmread

    try:
        with path.open("rb") as file:
            if file.read(4).startswith(RASTER):
                return ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = ["PatientID", "IssuerOfPatientID"]
            header = dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(tags))
            name, issuer = (str(header.get(tag) or "").strip(" \0") for tag in tags)
    except Exception:  # noqa: BLE001 - the pixels were readable; an unreadable header names no patient
        return ""
    if not name or NOBODY.fullmatch(name):
        return ""
    whole = f"{issuer}\0{name}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(whole, key=salt, digest_size=PATIENT_BYTES).hexdigest()


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float32]:
    """Return the lowest rows of the discrete cosine transform (II), float32 (16, 64)."""
    frequency, place = np.arange(HASH_SIDE)[:, None], np.arange(THUMBNAIL)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * THUMBNAIL)).astype(np.float32)
