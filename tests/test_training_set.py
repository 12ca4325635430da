"""models/training_set.py: links to a data set and to the DICOM files of a corpus, by their class."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

from pydicom.data import get_testdata_file

SCRIPT = Path(__file__).parents[1] / "models" / "training_set.py"
COLUMNS = ("source_id", "path", "truth", "modality", "has_pixels", "rows", "cols", "image_type")
AXIAL, SCOUT = "['ORIGINAL', 'PRIMARY', 'AXIAL']", "['ORIGINAL', 'PRIMARY', 'LOCALIZER']"
MAP = "['DERIVED', 'PRIMARY', 'PERFUSION', 'RCBF']"
ROWS = (
    ("one+two", "a/ct.dcm", "CT", "CT", "yes", 128, 128, AXIAL),
    ("one+two", "scout.dcm", "CT", "CT", "yes", 512, 512, SCOUT),
    ("one+two", "tiny.dcm", "CT", "CT", "yes", 16, 16, AXIAL),
    ("one+two", "map.dcm", "CT", "CT", "yes", 512, 512, MAP),
    ("one+two", "us.dcm", "none", "US", "yes", 20, 640, ""),
    ("one+two", "sr.dcm", "none", "SR", "no", "", "", ""),
    ("one+two", "mystery.dcm", "none", "OT", "yes", 128, 128, ""),
    ("one+two", "missing.dcm", "MRI", "MR", "yes", 128, 128, ""),
    ("crafted+identity", "lie.dcm", "CT", "MR", "yes", 128, 128, ""),
)
WRONG = "MRI/braintumor_sartaj/eab65e29_Training__no_tumor__image_(55).jpg"  # a CT of a head


def test_it_links_what_has_a_class_and_follows_nothing_else(tmp_path: Path) -> None:
    dataset, corpus, out = tmp_path / "dataset", tmp_path / "corpus", tmp_path / "out"
    for path in (dataset / "CT/site/1.png", dataset / WRONG, dataset / "manifest.csv", dataset / "README.md"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    for source, path, *_ in ROWS:
        if path != "missing.dcm":
            (corpus / source / path).parent.mkdir(parents=True, exist_ok=True)
            (corpus / source / path).write_text(path)
    with (corpus / "index.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *ROWS])
    ran = subprocess.run([sys.executable, SCRIPT, dataset, corpus, out], check=True, capture_output=True, text=True)
    assert ran.stdout == f"{out}: 1 images and 2 DICOM files\n"
    links = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if not path.is_dir()}
    assert links == {
        "manifest.csv": "manifest.csv",
        "CT/site/1.png": "1.png",
        "CT/corpus_one_two/a_ct.dcm": "a/ct.dcm",
        "OTHER/corpus_one_two/us.dcm": "us.dcm",
    }
    assert all(path.is_symlink() for path in out.rglob("*") if not path.is_dir())


def test_of_images_of_a_class_that_look_alike_there_is_one(tmp_path: Path) -> None:
    corpus, out, real = tmp_path / "corpus", tmp_path / "out", Path(get_testdata_file("CT_small.dcm")).parent
    names = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "CT_small.dcm")
    (corpus / "real").mkdir(parents=True)
    (tmp_path / "dataset").mkdir()
    with (corpus / "index.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for name in names:
            shutil.copy(real / name, corpus / "real" / name)
            table.writerow(("real", name, "CT" if name.startswith("CT") else "MRI", "", "yes", 64, 64, AXIAL))
    subprocess.run([sys.executable, SCRIPT, tmp_path / "dataset", corpus, out], check=True, capture_output=True)
    assert sorted(path.name for path in out.rglob("*.dcm")) == ["CT_small.dcm", "MR_small.dcm"]
