"""Splits a data set: which images are held out. What ``grouping`` ties is never divided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dicomsort.training.data.dataset import Dataset, DatasetError, Indices


def split(dataset: Dataset, fraction: float, seed: int, *, grouped: bool) -> tuple[Indices, Indices]:
    """Return (training, validation) indices; ``fraction`` of the items, or of each class's sources, is held out.

    Ungrouped it is a random split of images, which keeps kin on one side. Grouped, no source has items on both sides.
    Every class keeps a training item. DatasetError where so much belongs together that nothing can be held out.
    """
    random = np.random.default_rng(seed)
    units = np.array(dataset.units(grouped=grouped))
    held_out = _hold_sources(dataset, fraction, random) if grouped else _hold_images(units.tolist(), fraction, random)
    inside = np.isin(units, sorted(held_out))
    classes = dataset.classes()
    for label in range(len(dataset.labels)):
        members = np.flatnonzero(classes == label)
        if inside[members].all():
            inside[units == units[members[0]]] = False
    if not inside.any():
        inside = _any_unit(dataset, units, random)
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def folds(dataset: Dataset, count: int, seed: int, *, grouped: bool) -> NDArray[np.int64]:
    """Return each item's fold, 0..count-1, int64 (N,): whole sources if ``grouped``, else whole kin.

    They are dealt out one class after the other, the largest first, each to the fold that has least of its class.
    """
    random = np.random.default_rng(seed)
    classes = dataset.classes()
    groups = np.array(dataset.units(grouped=grouped))
    table = np.zeros((count, len(dataset.labels)))
    assigned: dict[str, int] = {}
    for label in range(len(dataset.labels)):
        names, sizes = np.unique(groups[classes == label], return_counts=True)
        shuffled = random.permutation(len(names))
        for i in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
            fold = assigned.setdefault(str(names[i]), int(np.argmin(table[:, label])))
            table[fold, label] += sizes[i]
    return np.array([assigned[str(group)] for group in groups], np.int64)


def _hold_images(units: Sequence[str], fraction: float, random: np.random.Generator) -> set[str]:
    """Return random units of about ``fraction`` of the images, at least one."""
    names = list(dict.fromkeys(units))
    counts = dict(zip(*np.unique(units, return_counts=True), strict=True))
    left = max(1, round(fraction * len(units)))
    held_out: set[str] = set()
    for i in random.permutation(len(names)):
        if counts[names[i]] <= left:
            held_out.add(names[i])
            left -= counts[names[i]]
    return held_out or {min(names, key=lambda name: counts[name])}


def _hold_sources(dataset: Dataset, fraction: float, random: np.random.Generator) -> set[str]:
    """Return random sources: of each class about ``fraction`` of them, at least one, never all."""
    held_out: set[str] = set()
    for label in range(len(dataset.labels)):
        names = sorted({item.group for item in dataset.items if item.label == label})
        wanted = min(max(1, round(fraction * len(names))), len(names) - 1)
        have = sum(name in held_out for name in names)
        free = [name for name in names if name not in held_out]
        held_out.update(free[i] for i in random.permutation(len(free))[: max(0, wanted - have)])
    return held_out


def _any_unit(dataset: Dataset, units: NDArray[np.str_], random: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of a random unit without which every class still has an item; DatasetError if there is none."""
    classes = dataset.classes()
    for name in random.permutation(np.unique(units)):
        inside: NDArray[np.bool_] = units == name
        if len(np.unique(classes[~inside])) == len(dataset.labels):
            return inside
    raise DatasetError(held_together(dataset))


def held_together(dataset: Dataset) -> str:
    """Return the error message for a data set of which nothing can be held out."""
    return (
        f"data set {str(dataset.root)!r}: expected images of which some can be held out, received in every class only "
        "near-duplicates of one image, or images of one patient or one named group"
    )
