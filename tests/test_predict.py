from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import run
from PIL import Image
from pydicom.data import get_testdata_file

from dicomsort.bundle import default_path, load

KEYS = ["path", "class", "confidence", "probabilities", "abstained", "reason"]


def _file(name: str) -> str:
    found = get_testdata_file(name)
    assert isinstance(found, str)
    return found


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """More than one task holds: images of two kinds, a header alone, a damaged, an empty, and a missing file."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    (folder / "empty").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (100, 80, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise, with a comma.png")
    small, other = _file("CT_small.dcm"), _file("MR_small.dcm")
    strange = [str(folder / name) for name in ("cut.png", "empty", "gone.dcm", "noise, with a comma.png")]
    return [small, other, _file("reportsi.dcm"), *strange, str(folder), small, _file("emri_small.dcm"), other]


@pytest.fixture(scope="module")
def answers(arguments: list[str]) -> list[dict[str, object]]:
    ran = run("predict", "--json", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return [json.loads(line) for line in ran.out.splitlines()]


def test_json_is_a_line_an_argument_with_exactly_these_keys(
    arguments: list[str], answers: list[dict[str, object]]
) -> None:
    assert [answer["path"] for answer in answers] == arguments
    assert all(list(answer) == KEYS for answer in answers)


def test_images_have_probabilities_also_where_the_model_abstains(
    arguments: list[str], answers: list[dict[str, object]]
) -> None:
    bundle = load(default_path())
    seen = [answer for answer in answers if answer["probabilities"]]
    assert {Path(str(answer["path"])).name for answer in seen} == {
        "CT_small.dcm",
        "MR_small.dcm",
        "emri_small.dcm",
        "noise, with a comma.png",
    }
    for answer in seen:
        shares = answer["probabilities"]
        assert isinstance(shares, dict)
        assert set(shares) == {"CT", "MRI", "OTHER", "XRAY"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert answer["class"] == max(shares, key=shares.__getitem__)
        assert answer["confidence"] == pytest.approx(max(shares.values()), abs=1e-6)
        assert answer["abstained"] is bool(answer["reason"])
        assert answer["reason"] in {"", "unsure", "out-of-distribution", "too-small"}
        assert (answer["reason"] == "") <= (max(shares.values()) >= bundle.decide)
        assert (answer["reason"] == "unsure") <= (max(shares.values()) < bundle.decide)
    assert answers[0] == answers[8]


@pytest.mark.parametrize("place", [2, 3, 4, 5, 7])
def test_files_without_pixels_say_why(answers: list[dict[str, object]], place: int) -> None:
    answer = answers[place]
    assert (answer["class"], answer["confidence"], answer["probabilities"]) == ("", 0, {})
    assert answer["abstained"] is True
    assert answer["reason"]
    assert str(answer["path"]) not in str(answer["reason"])


def test_lines_for_a_person_are_csv(arguments: list[str], answers: list[dict[str, object]]) -> None:
    ran = run("predict", *arguments)
    lines = list(csv.reader(io.StringIO(ran.out)))
    assert ran.code == 0
    assert [line[0] for line in lines] == arguments
    assert [line[1] for line in lines] == [answer["class"] for answer in answers]
    assert lines[0][3].startswith("CT=0.")
    assert {line[4] for line in lines} <= {"yes", "no"}


def test_the_argument_comes_back_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"sub/../n\xe9 \x1b[1m.dcm")
    (tmp_path / "sub").mkdir()
    shutil.copy(_file("CT_small.dcm"), odd)
    ran = run("predict", "--json", odd)
    answer = json.loads(ran.out)
    assert answer["path"] == odd
    assert answer["class"]
    assert run("predict", odd).out.startswith("sub/../n\\xe9 \\x1b[1m.dcm,")
    (tmp_path / "two\nlines\x9b1m").write_bytes(b"")
    assert run("predict", "two\nlines\x9b1m").out.startswith("two\\nlines\\x9b1m,")
    Path("=cmd.dcm").write_bytes(b"")
    assert run("predict", "=cmd.dcm").out.startswith("'=cmd.dcm,")  # no spreadsheet runs it


def test_a_path_that_is_no_bundle_exits_2_in_one_line(tmp_path: Path) -> None:
    ran = run("predict", "--model", tmp_path / "gone", _file("CT_small.dcm"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("dicomsort: model ")
    assert "expected a bundle" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("labels", ["CT", "MRI", "XRAY"], "expected output "),
        ("input_shape", [128, 128, 3], "input_shape: expected [224, 224, 3], the images that this program renders"),
    ],
)
def test_a_broken_model_exits_2_in_one_line(tmp_path: Path, field: str, value: object, expected: str) -> None:
    broken = Path(shutil.copytree(default_path(), tmp_path / "broken"))
    spec = json.loads((broken / "bundle.json").read_text("utf-8"))
    spec[field] = value
    spec["thresholds"]["decide"] = 0.95
    (broken / "bundle.json").write_text(json.dumps(spec), "utf-8")
    ran = run("predict", "--model", broken, _file("CT_small.dcm"))
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert len(ran.err.splitlines()) == 1


def test_predicting_loads_no_tensorflow() -> None:
    code = (
        "import sys, dicomsort.tasks; from dicomsort.bundle import default_path, load\n"
        "bundle = load(default_path()).reference\n"
        "(seen,) = dicomsort.tasks.predict_frames(bundle, '', [(sys.argv[1].lstrip('/'), None)])\n"
        "from dicomsort.cli import main\n"
        "sys.argv[1:] = ['predict', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(len(seen.probabilities), {'tensorflow', 'keras', 'matplotlib', 'pandas'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, _file("CT_small.dcm")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "4 set()"
