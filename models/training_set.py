"""Assemble the training set of models/default: links to the images of DATASET and to the DICOM files of CORPUS.

Usage: python models/training_set.py DATASET CORPUS OUT

DATASET has a folder a class, in each a folder a source. CORPUS has DICOM files in a folder a source, and ``index.csv``
with source_id, path, truth and modality of each: images of small matrices, multi-frame files and field maps, which no
export to JPEG shows as a scanner writes them. Without CORPUS the set is DATASET alone.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

OTHERS = {"US", "SM", "NM", "OP", "PT"}  # Modality (0008,0060) of images that belong to OTHER
MADE = "crafted"  # sources whose headers were changed on purpose


def link(source: Path, target: Path) -> None:
    """Link ``target`` to ``source``; parents are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def from_dataset(dataset: Path, out: Path) -> int:
    """Link every image of a class's folder, and the table of licences; return how many images."""
    count = 0
    if (dataset / "manifest.csv").is_file():
        link(dataset / "manifest.csv", out / "manifest.csv")
    for folder, _, names in os.walk(dataset):
        place = Path(folder).relative_to(dataset)
        for name in names if place.parts else ():
            link(Path(folder, name), out / place / name)
            count += 1
    return count


def from_corpus(corpus: Path, out: Path) -> int:
    """Link the DICOM files of known class, each source in a folder of its own; return how many."""
    count = 0
    with (corpus / "index.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            label = row["truth"] if row["truth"] in {"CT", "MRI", "XRAY"} else ""
            label = label or ("OTHER" if row["modality"] in OTHERS else "")
            source, path = row["source_id"], corpus / row["source_id"] / row["path"]
            if not label or source.startswith(MADE) or row["has_pixels"] != "yes" or not path.is_file():
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
