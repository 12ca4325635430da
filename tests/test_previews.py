from __future__ import annotations

import os
from pathlib import Path

from building import make_dicom, make_files

from dicomsort.engines import open_engine
from dicomsort.engines.engine import SerialEngine, TaskLimits
from dicomsort.pages.report import previews
from dicomsort.tasks import PictureRequest


def test_previews_come_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    paths = [f"{number}.dcm" for number in range(11)]
    for path in paths:
        make_dicom(tmp_path / path, instance=int(path[:-4]) + 1)
    made = list(previews(SerialEngine(), str(tmp_path), [PictureRequest(path, None, 64) for path in paths]))
    assert [preview.header and preview.header.instance_number for preview in made] == [str(n + 1) for n in range(11)]
    assert all(preview.picture.startswith(b"\xff\xd8") for preview in made)


def test_what_has_no_picture_says_why_and_costs_no_other(tmp_path: Path) -> None:
    make_dicom(tmp_path / "whole.dcm")
    make_dicom(tmp_path / "bare.dcm", has_pixels=False)
    make_files(tmp_path, {"text.txt": "no image"})
    asked = [PictureRequest(path, None, 64) for path in ("bare.dcm", "gone.dcm", "whole.dcm", "text.txt")]
    made = list(previews(SerialEngine(), str(tmp_path), asked))
    assert [bool(preview.picture) for preview in made] == [False, False, True, False]
    assert all(preview.problem for preview in made if not preview.picture)


def test_a_worker_that_is_lost_costs_one_preview(tmp_path: Path) -> None:
    for number in range(3):
        make_dicom(tmp_path / f"{number}.dcm")
    os.mkfifo(tmp_path / "stalls.dcm")  # opening it waits for a writer that never comes
    asked = [PictureRequest(path, None, 64) for path in ("0.dcm", "stalls.dcm", "1.dcm", "2.dcm")]
    with open_engine("processes", 1, None, limits=TaskLimits(2, 1 << 30), warm=("dicomsort.pixels",)) as engine:
        made = list(previews(engine, str(tmp_path), asked))
    assert [bool(preview.picture) for preview in made] == [True, False, True, True]
    assert made[1].problem
