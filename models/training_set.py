"""Assemble the training set of models/default: links to the images of DATASET and to the DICOM files of CORPUS.

Usage: python models/training_set.py DATASET CORPUS OUT

DATASET has a folder a class, in each a folder a source. CORPUS has DICOM files in a folder a source, and ``index.csv``
with source_id, path, truth and modality of each: images of small matrices, multi-frame files and field maps, which no
export to JPEG shows as a scanner writes them. Without CORPUS the set is DATASET alone.

Left out are images that ``wrong_labels.csv`` names: their label says something else than what they show. So are DICOM
files that ``sort`` never decides by their pixels: localizers, maps that were calculated, and images of too few pixels.
Of DICOM files of a class that look alike, one is enough: the corpus has some images in a dozen encodings, and a dozen
equal mistakes would say more of these than of the model.
"""

from __future__ import annotations

import ast
import csv
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dicomsort.errors import DicomsortError
from dicomsort.modalities import is_derived_map
from dicomsort.pixels.render import picture
from dicomsort.records import LEAST_SIDE
from dicomsort.training.data.grouping import perceptual_hash

OTHERS = {"US", "SM", "NM", "OP", "PT"}  # Modality (0008,0060) of images that belong to OTHER
MADE = "crafted"  # sources whose headers were changed on purpose
ALIKE = 10  # bits of 256 in which the perceptual hashes of two encodings of one image differ at most
WRONG_LABELS = Path(__file__).with_name("wrong_labels.csv")


def link(source: Path, target: Path) -> None:
    """Link ``target`` to ``source``; parents are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def from_dataset(dataset: Path, out: Path) -> int:
    """Link every image of a class's folder, and the table of licences; return how many images."""
    count, wrong = 0, wrong_labels()
    if (dataset / "manifest.csv").is_file():
        link(dataset / "manifest.csv", out / "manifest.csv")
    for folder, _, names in os.walk(dataset):
        place = Path(folder).relative_to(dataset)
        for name in names if place.parts else ():
            if (place / name).as_posix() not in wrong:
                link(Path(folder, name), out / place / name)
                count += 1
    return count


def wrong_labels() -> set[str]:
    """Return the paths, below the data set, of images whose label is wrong."""
    with WRONG_LABELS.open(encoding="utf-8", newline="") as stream:
        return {row["path"] for row in csv.DictReader(stream)}


def is_decided_by_pixels(row: dict[str, str]) -> bool:
    """Whether ``sort`` may decide by the pixels of such a file."""
    sides = [int(row[name]) for name in ("rows", "cols") if row[name].isdecimal()]
    values = ast.literal_eval(row["image_type"] or "[]")
    is_shown = row["has_pixels"] == "yes" and "LOCALIZER" not in values and not is_derived_map("\\".join(values))
    return is_shown and max(sides, default=0) >= LEAST_SIDE


def is_new(path: Path, known: list[Any]) -> bool:
    """Whether an image looks like none of the ``known`` perceptual hashes; its own is appended to them."""
    try:
        seen = perceptual_hash(picture(path))
    except DicomsortError:
        return True  # the training tells why it cannot be read
    if seen is None or any(np.bitwise_count(seen ^ other).sum() <= ALIKE for other in known):
        return seen is None
    known.append(seen)
    return True


def from_corpus(corpus: Path, out: Path) -> int:
    """Link the DICOM files of known class, each source in a folder of its own; return how many."""
    count, known = 0, defaultdict[str, list[Any]](list)
    with (corpus / "index.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            label = row["truth"] if row["truth"] in {"CT", "MRI", "XRAY"} else ""
            label = label or ("OTHER" if row["modality"] in OTHERS else "")
            source, path = row["source_id"], corpus / row["source_id"] / row["path"]
            if not label or source.startswith(MADE) or not is_decided_by_pixels(row) or not path.is_file():
                continue
            if not is_new(path, known[label]):
                continue
            link(path, out / label / f"corpus_{source.replace('+', '_')}" / row["path"].replace("/", "_"))
            count += 1
    return count


def main(dataset: Path, corpus: Path, out: Path) -> None:
    """Assemble the set in the new folder ``out``, and say of what."""
    out.mkdir(parents=True)
    images = from_dataset(dataset, out)
    files = from_corpus(corpus, out) if (corpus / "index.csv").is_file() else 0
    print(f"{out}: {images:,} images and {files:,} DICOM files")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
