"""A data set on disk: its files, with the classes and sources that its folders name."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomsort.bundle import label_problem
from dicomsort.errors import UsageError, counted
from dicomsort.files import opened_input
from dicomsort.records import OTHER

Indices = NDArray[np.intp]

MIN_CLASSES = 2
MIN_IMAGES = 2
_FOLDERS = {1: "one folder", MIN_CLASSES: "two folders"}


class DatasetError(UsageError):
    """A data set that no model can be trained on."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file of the data set: ``path`` relative to it, index of its label, and which files it stays together with.

    ``group`` names its source, or the sources that are kept together, "" where the file lies directly in its class's
    folder. ``kin`` names the images of its patient, near-duplicates and named group, "" where it is alone; images of
    one kin have one ``group``. ``subclass`` is its finer class, "" where that is not known.
    """

    path: str
    label: int
    group: str = ""
    kin: str = ""
    subclass: str = ""

    @property
    def source(self) -> str:
        """The folder in its class's folder, "" where it lies directly in that."""
        parts = self.path.split("/", 2)
        return parts[1] if len(parts) > 2 else ""  # noqa: PLR2004 - class, source, the rest


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

    def other(self) -> int | None:
        """Return the index of the label OTHER where there are two more classes, else None."""
        return self.labels.index(OTHER) if OTHER in self.labels and len(self.labels) > MIN_CLASSES else None

    def known(self, items: Indices) -> Indices:
        """Return those of ``items`` that are not of the class ``other``; all where none are left."""
        other = self.other()
        known: Indices = items if other is None else items[self.classes()[items] != other]
        return known if len(known) else items

    def subclasses(self) -> NDArray[np.float32]:
        """Return the items' subclasses, one-hot, float32 (N, K), those of each class apart; 0 where it is not known."""
        names = sorted({(item.label, item.subclass) for item in self.items if item.subclass})
        columns = {name: column for column, name in enumerate(names)}
        truth = np.zeros((len(self.items), len(names)), np.float32)
        for row, item in enumerate(self.items):
            if item.subclass:
                truth[row, columns[item.label, item.subclass]] = 1
        return truth

    def units(self, *, grouped: bool) -> list[str]:
        """Return for each item the name of what no split divides: its ``group`` if ``grouped``, else its kin."""
        return [(grouped and item.group) or item.kin or item.path for item in self.items]

    def grouped(self) -> bool:
        """Return whether whole sources can be held out: every file has one, and every class at least two."""
        sources = {(item.label, item.group) for item in self.items}
        per_class = Counter(label for label, _ in sources)
        return all(item.group for item in self.items) and min(per_class.values()) >= MIN_CLASSES

    def sources_held(self) -> str:
        """Return in words what is held out where whole sources are."""
        return "whole sources, near-twins kept together" if self.joined() else "whole sources"

    def joined(self) -> bool:
        """Return whether several sources are one group."""
        return any(item.group not in {"", item.source} for item in self.items)


def scan(
    root: Path,
    groups: Mapping[str, str] | None = None,
    subclasses: Mapping[str, str] | None = None,
    *,
    least: int = MIN_CLASSES,
) -> Dataset:
    """Return the files below ``root``: a class is a folder in it, a source a folder in that.

    ``groups`` names sources and files that must stay together (see ``read_groups``), ``subclasses`` finer classes of
    files and folders (see ``read_subclasses``). Nothing is opened. DatasetError
    where ``root`` is missing, or has fewer than ``least`` class folders with files, or a folder that cannot be a label.
    """
    where = f"data set {str(root)!r}"
    if not root.is_dir():
        received = "a file" if root.exists() else "nothing there"
        raise DatasetError(f"{where}: expected a folder with one folder per class, received {received}")
    folders = (folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith("."))
    found = {folder.name: sorted(_files(folder)) for folder in folders}
    labels = tuple(label for label, files in found.items() if files)
    if len(labels) < least:
        raise DatasetError(
            f"{where}: expected at least {_FOLDERS[least]} with images, one a class, "
            f"received {len(labels)} ({', '.join(labels) or 'none'})"
        )
    for label in labels:
        if problem := label_problem(label):
            raise DatasetError(f"{where}: folder {label!r}: expected a name that can be a class, but {problem}")
    items = (Item(f"{label}/{path}", index) for index, label in enumerate(labels) for path in found[label])
    dataset = Dataset(root, labels, tuple(_named(item, groups or {}, subclasses or {}) for item in items))
    if subclasses is not None and not any(item.subclass for item in dataset.items):
        expected = "expected paths of the data set's files or folders (CT/site, CT/site/1.png)"
        raise DatasetError(f"--subclasses: {expected}, received none that it has")
    return dataset


def scan_with_tables(root: Path, groups: Path | None, subclasses: Path | None, *, least: int = MIN_CLASSES) -> Dataset:
    """Return ``scan`` with the tables in the files of ``--groups`` and ``--subclasses``."""
    named = read_groups(groups) if groups else None
    return scan(root, named, read_subclasses(subclasses) if subclasses else None, least=least)


def _named(item: Item, groups: Mapping[str, str], subclasses: Mapping[str, str]) -> Item:
    group = groups.get(item.path, groups.get(item.source, item.source))
    return replace(item, group=group, subclass=_nearest(item.path, subclasses))


def _nearest(path: str, names: Mapping[str, str]) -> str:
    """Return the name of a file, else of the nearest folder that has one, else ""."""
    while path not in names and "/" in path:
        path = path.rpartition("/")[0]
    return names.get(path, "")


def relabelled(dataset: Dataset, labels: Sequence[str]) -> Dataset:
    """Return the data set with the ``labels`` of a bundle in their order; DatasetError names folders of no label."""
    known = {label.casefold(): index for index, label in enumerate(labels)}
    unknown = [label for label in dataset.labels if label.casefold() not in known]
    if unknown:
        raise DatasetError(
            f"data set {str(dataset.root)!r}: expected folders with names among the bundle's labels "
            f"({', '.join(labels)}), received {', '.join(map(repr, unknown))} as well: rename them, or leave them out"
        )
    items = (replace(item, label=known[dataset.labels[item.label].casefold()]) for item in dataset.items)
    return Dataset(dataset.root, tuple(labels), tuple(items))


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file, which may be large; OSError, UnicodeError or csv.Error where it cannot be read."""
    with opened_input(path) as stream, TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        yield from csv.DictReader(text, restval="")


def read_groups(path: Path) -> dict[str, str]:
    """Return source or path -> group from a CSV file with a column ``group`` and ``source`` or ``path`` (or both).

    A path is relative to the data set (``CT/site/1.png``). UsageError for another file.
    """
    with _expecting(f"--groups {str(path)!r}", "source and group", " (path and group do as well)"):
        rows = list(read_table(path))
        keys = [key for key in ("source", "path") if rows and key in rows[0]] or ["source"]
        return {row[key]: row["group"] or row[key] for row in rows for key in keys if row[key]}


def read_subclasses(path: Path) -> dict[str, str]:
    """Return path -> subclass from a CSV file with the columns ``path`` and ``subclass``.

    A path is of a file or a folder, relative to the data set (``CT/site/1.png``, ``CT/site``). UsageError for another
    file.
    """
    with _expecting(f"--subclasses {str(path)!r}", "path and subclass"):
        return {row["path"].rstrip("/"): row["subclass"] for row in read_table(path)}


@contextmanager
def _expecting(where: str, columns: str, more: str = "") -> Iterator[None]:
    """Raise UsageError where a CSV file cannot be read, or lacks one of the ``columns``."""
    try:
        yield
    except (OSError, KeyError, UnicodeError, csv.Error) as error:
        received = error.strerror if isinstance(error, OSError) else error
        expected = f"expected a CSV file with the columns {columns}"
        raise UsageError(f"{where}: {expected}, received {received}{more}") from error


def require_trainable(dataset: Dataset, files: Mapping[str, int], skipped: int, least: int) -> None:
    """Raise DatasetError unless every class that has any of the ``files`` (label -> number) has ``least`` images."""
    for label, count in dataset.counts().items():
        if files[label] and count < least:
            expected = f"expected at least {counted(least, 'readable image')}"
            received = f"received {count} ({counted(skipped, 'file')} of the data set skipped)"
            raise DatasetError(f"data set {str(dataset.root)!r}: class {label!r}: {expected}, {received}")


def _files(folder: Path) -> Iterator[str]:
    """Yield the regular files below ``folder``, relative to it, hidden ones and links to folders left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(parent, folder)
        for name in names:
            if not name.startswith(".") and os.path.isfile(os.path.join(parent, name)):
                yield name if below == "." else f"{below}/{name}"
