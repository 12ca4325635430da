from __future__ import annotations

import csv
import random
import resource
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from pydicom.data import get_testdata_file

from dicomsort.pixels import PixelsError, render

HEADERS_ONLY = {"no pixel data", "neither PNG, JPEG nor DICOM"}


def outcome(path: Path) -> str:
    """The reason why a file is not rendered, "" where it is."""
    try:
        pixels = render(path)
    except PixelsError as exc:
        return str(exc)
    assert (pixels.shape, pixels.dtype) == ((224, 224, 3), np.uint8)
    return ""


def test_corpus_is_rendered_or_refused(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (shared / "dicom" / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {(r["source_id"], r["path"]): outcome(shared / "dicom" / r["source_id"] / r["path"]) for r in rows}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    good = {(row["source_id"], row["path"]) for row in rows if row["decode_full"] == "ok"}
    shown = {key for key, reason in outcomes.items() if not reason}
    assert capfd.readouterr() == ("", "")
    counts = f"{len(shown & good)} of {len(good)} good ones rendered, {len(shown - good)} more"
    with capfd.disabled():
        print(f"\n{len(rows)} files: {counts}, {len(rows) - len(shown)} refused")  # noqa: T201
    assert {key: outcomes[key] for key in good - shown} == {}
    assert len(shown - good) >= 15
    assert all(len(reason) < 100 and str(shared) not in reason for reason in outcomes.values())
    assert grown < 1 << 30


def test_every_file_that_pydicom_brings_is_rendered_or_refused() -> None:
    files = (Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm")
    outcomes = {path.name: outcome(path) for path in files}
    assert len(outcomes) > 60
    refused = {name: reason for name, reason in outcomes.items() if reason and reason not in HEADERS_ONLY}
    # Damaged on purpose: truncated, no image module, a broken codestream.
    assert refused.keys() <= {
        "MR_truncated.dcm",
        "meta_missing_tsyntax.dcm",
        "nested_priv_SQ.dcm",
        "JPEG2000-embedded-sequence-delimiter.dcm",
    }


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_expb.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("liver_expb_1frame.dcm", "liver_1frame.dcm"),
        ("rtdose_rle_1frame.dcm", "rtdose_1frame.dcm"),
        ("rtdose_expb.dcm", "rtdose.dcm"),
        ("SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd.dcm"),
    ],
)
def test_the_same_image_in_another_coding_is_the_same_picture(name: str, same: str) -> None:
    assert np.array_equal(render(get_testdata_file(name)), render(get_testdata_file(same)))


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_jp2klossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "OBXXXX1A_rle.dcm",
        "liver_expb_1frame.dcm",
        "image_dfl.dcm",
    ],
)
def test_a_damaged_file_is_rendered_or_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = Path(get_testdata_file(name)).read_bytes()
    chance = random.Random(name)
    for _ in range(40):
        content = bytearray(whole[: chance.randrange(1, len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.choice((0, 1, 5, 20))):
            at = chance.randrange(min(len(content), 3000) if chance.random() < 0.6 else len(content))
            content[at] = chance.choice((0, 1, 127, 128, 255))
        (tmp_path / "a").write_bytes(content)
        outcome(tmp_path / "a")
    assert capfd.readouterr() == ("", "")
