"""Which files a model was trained on: a bundle has their fingerprint, and the first 32 bits of each one's SHA-256.

Of 100,000 files that it was not trained on, the digests of as many others name two by chance.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomsort.errors import counted
from dicomsort.training.data.dataset import Item

KEY = "files"
HEX_DIGITS = 8
MAX_KEPT = 100_000  # bundle.json is bounded


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many of ``images`` files the model was trained on; ``count`` is None where the bundle does not say."""

    images: int
    count: int | None

    def words(self) -> str:
        """Return it as a sentence without a stop."""
        if self.count is None:
            return "the bundle does not tell which files it was trained on: whether these were is not known"
        if self.count == self.images:
            return "NOT held out: the model was trained on every one of these images, so these figures flatter it"
        if self.count:
            images = f"{self.count:,} of these {counted(self.images, 'image')}"
            return f"NOT all held out: the model was trained on {images}, so these figures flatter it"
        return "the model was trained on none of these files; whether it knows their sources or patients is not known"


def of_files(items: Sequence[Item], digests: Sequence[str]) -> str:
    """Return the fingerprint: the SHA-256 over the sorted (relative path, SHA-256 of the file) pairs."""
    whole = hashlib.sha256()
    for path, digest in sorted(zip((item.path for item in items), digests, strict=True)):
        whole.update(f"{path}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def encode(digests: Sequence[str], earlier: Mapping[str, Any] | None = None) -> str:
    """Return what a bundle holds of the SHA-256 of its training files, in Base64; "" for more than 100,000.

    ``earlier`` is the ``training`` of the bundle that was fine-tuned; "" where that names no files.
    """
    stored = np.unique(keys(digests))
    if earlier is not None:
        before = _decode(earlier)
        if not len(before):
            return ""
        stored = np.union1d(stored, before)
    return "" if len(stored) > MAX_KEPT else base64.b64encode(stored.astype(">u4").tobytes()).decode()


def compare(training: Mapping[str, Any], items: Sequence[Item], digests: Sequence[str]) -> Overlap:
    """Return how many of these files ``training``, as in bundle.json, was on; ``digests`` are their SHA-256."""
    found = _find(training, items, digests)
    return Overlap(len(items), None if found is None else int(found.sum()))


def known(training: Mapping[str, Any], items: Sequence[Item], digests: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of these files ``training``, as in bundle.json, was on, bool (N,); none where it names none."""
    found = _find(training, items, digests)
    return np.zeros(len(digests), bool) if found is None else found


def _find(training: Mapping[str, Any], items: Sequence[Item], digests: Sequence[str]) -> NDArray[np.bool_] | None:
    """Return which of these files ``training`` was on, bool (N,), None where it names none."""
    if training.get("fingerprint") == of_files(items, digests):
        return np.ones(len(digests), bool)
    stored = _decode(training)
    return np.isin(keys(digests), stored) if len(stored) else None


def _decode(training: Mapping[str, Any]) -> NDArray[np.uint32]:
    """Return the keys of the training files, none where the bundle names none."""
    try:
        stored = np.frombuffer(base64.b64decode(str(training.get(KEY) or ""), validate=True), ">u4")
    except (binascii.Error, ValueError):
        return np.zeros(0, np.uint32)
    return stored.astype(np.uint32)


def keys(digests: Sequence[str]) -> NDArray[np.uint32]:
    """Return the first 32 bits of SHA-256 in hexadecimal digits, (N,)."""
    return np.array([int(digest[:HEX_DIGITS], 16) for digest in digests], np.uint32)
