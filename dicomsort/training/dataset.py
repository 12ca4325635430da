"""From folders to classes and sources: which files there are, what they are called, and how they may be split."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dicomsort.bundle import label_problem
from dicomsort.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Indices = NDArray[np.intp]

MIN_CLASSES = 2
MIN_IMAGES = 2
_FOLDERS = {1: "one folder", MIN_CLASSES: "two folders"}


class DatasetError(UsageError):
    """A data set that no model can be trained on."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file of the data set: ``path`` relative to it, index of its label, and the source it must not be parted from.

    ``group`` is "" where the file lies directly in its class's folder.
    """

    path: str
    label: int
    group: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set's files in a fixed order, and the labels in theirs."""

    root: Path
    labels: tuple[str, ...]
    items: tuple[Item, ...]

    def only(self, indices: Iterable[int]) -> Dataset:
        """Return the data set with these items alone."""
        return Dataset(self.root, self.labels, tuple(self.items[i] for i in indices))

    def counts(self) -> dict[str, int]:
        """Return label -> number of files."""
        by_label = Counter(item.label for item in self.items)
        return {label: by_label[i] for i, label in enumerate(self.labels)}

    def classes(self) -> NDArray[np.int64]:
        """Return the label index of each item, int64 (N,)."""
        return np.array([item.label for item in self.items], np.int64)

    def grouped(self) -> bool:
        """Tell whether whole sources can be held out: every file has one, and every class at least two."""
        sources = {(item.label, item.group) for item in self.items}
        per_class = Counter(label for label, _ in sources)
        return all(item.group for item in self.items) and min(per_class.values()) >= MIN_CLASSES

    def joined(self) -> bool:
        """Tell whether several sources were named as one group."""
        return any(item.group not in {"", item.path.split("/")[1]} for item in self.items)


def scan(root: Path, groups: Mapping[str, str] | None = None, *, least: int = MIN_CLASSES) -> Dataset:
    """Return the files below ``root``: a class is a folder in it, a source a folder in that.

    ``groups`` names sources that must stay together (see ``read_groups``). Nothing is opened. DatasetError where
    ``root`` is missing, or has fewer than ``least`` class folders with files, or a folder that cannot be a label.
    """
    if not root.is_dir():
        msg = f"data set {str(root)!r}: expected a folder with a folder a class, received {_what(root)}"
        raise DatasetError(msg)
    found = {folder.name: sorted(_files(folder)) for folder in sorted(root.iterdir()) if _is_class(folder)}
    labels = tuple(label for label, files in found.items() if files)
    if len(labels) < least:
        msg = (
            f"data set {str(root)!r}: expected at least {_FOLDERS[least]} with images, one a class, "
            f"received {len(labels)} ({', '.join(labels) or 'none'})"
        )
        raise DatasetError(msg)
    for label in labels:
        if problem := label_problem(label):
            msg = f"data set {str(root)!r}: folder {label!r}: expected a name that can be a class, but {problem}"
            raise DatasetError(msg)
    items = (
        Item(f"{label}/{path}", index, _group(path, groups or {}))
        for index, label in enumerate(labels)
        for path in found[label]
    )
    return Dataset(root, labels, tuple(items))


def read_groups(path: Path) -> dict[str, str]:
    """Return source -> group from a CSV file with the columns ``source`` and ``group``; UsageError for another file."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, restval=""))
        return {row["source"]: row["group"] or row["source"] for row in rows}
    except (OSError, KeyError, UnicodeError, csv.Error) as error:
        msg = f"--groups {str(path)!r}: expected a CSV file with the columns source and group, received {error}"
        raise UsageError(msg) from error


def require_trainable(dataset: Dataset, skipped: int) -> None:
    """Raise DatasetError unless every class has at least two readable images."""
    for label, count in dataset.counts().items():
        if count < MIN_IMAGES:
            msg = (
                f"data set {str(dataset.root)!r}: class {label!r}: expected at least {MIN_IMAGES} readable images, "
                f"received {count} ({skipped} files of the data set were skipped)"
            )
            raise DatasetError(msg)


def split(dataset: Dataset, fraction: float, seed: int, *, grouped: bool) -> tuple[Indices, Indices]:
    """Return (training, validation) indices; ``fraction`` of the items, or of each class's sources, is held out.

    Ungrouped it is the plain random split. Grouped, no source has items on both sides. Every class keeps at least one
    training item, and both sides have one.
    """
    random = np.random.default_rng(seed)
    if not grouped:
        order = random.permutation(len(dataset.items))
        held = order[: max(1, round(fraction * len(order)))]
    else:
        held = _hold_groups(dataset, fraction, random)
    inside = np.zeros(len(dataset.items), bool)
    inside[held] = True
    classes = dataset.classes()
    for label in range(len(dataset.labels)):
        members = np.flatnonzero(classes == label)
        if inside[members].all():
            inside[members[0]] = False
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def folds(dataset: Dataset, count: int, seed: int, *, grouped: bool) -> NDArray[np.int64]:
    """Return each item's fold, 0..count-1, int64 (N,): whole sources if ``grouped``, else single images.

    They are dealt out one class after the other, the largest first, each to the fold that has least of its class.
    """
    random = np.random.default_rng(seed)
    classes = dataset.classes()
    groups = np.array([item.group if grouped else item.path for item in dataset.items])
    table = np.zeros((count, len(dataset.labels)))
    assigned: dict[str, int] = {}
    for label in range(len(dataset.labels)):
        names, sizes = np.unique(groups[classes == label], return_counts=True)
        shuffled = random.permutation(len(names))
        for i in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
            fold = assigned.setdefault(str(names[i]), int(np.argmin(table[:, label])))
            table[fold, label] += sizes[i]
    return np.array([assigned[str(group)] for group in groups], np.int64)


def fingerprint(items: Sequence[Item], digests: Sequence[str]) -> str:
    """Return the SHA-256 over the sorted (relative path, SHA-256 of the file) pairs."""
    whole = hashlib.sha256()
    for path, digest in sorted(zip((item.path for item in items), digests, strict=True)):
        whole.update(f"{path}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _hold_groups(dataset: Dataset, fraction: float, random: np.random.Generator) -> Indices:
    """Return the items of random sources: of each class about ``fraction`` of them, at least one, never all."""
    held: set[str] = set()
    for label in range(len(dataset.labels)):
        names = sorted({item.group for item in dataset.items if item.label == label})
        wanted = min(max(1, round(fraction * len(names))), len(names) - 1)
        have = sum(name in held for name in names)
        free = [name for name in names if name not in held]
        held.update(free[i] for i in random.permutation(len(free))[: max(0, wanted - have)])
    return np.array([i for i, item in enumerate(dataset.items) if item.group in held], np.intp)


def _files(folder: Path) -> Iterator[str]:
    """Yield the regular files below ``folder``, relative to it, hidden ones and links to folders left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in names:
            if not name.startswith(".") and os.path.isfile(os.path.join(parent, name)):
                yield name if below == "." else f"{below}/{name}"


def _group(path: str, groups: Mapping[str, str]) -> str:
    """Return the source of a path relative to its class's folder: the first folder, or the group that it belongs to."""
    source = path.split("/", 1)[0] if "/" in path else ""
    return groups.get(source, source)


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")


def _what(path: Path) -> str:
    return "a file" if path.exists() else "nothing there"
