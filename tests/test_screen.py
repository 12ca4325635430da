"""A bundle's screen: a second model that confirms clear headers, and can say nothing else.

Stub models that always say the same tell which of the two was asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import make_dicom
from command import by_source, run
from networks import saying
from PIL import Image

from dicomsort import tasks
from dicomsort.bundle import SCREEN_NAME, Predictor, default_path, load, seal
from dicomsort.bundle.spec import read_model
from dicomsort.errors import BundleError
from dicomsort.records import RENDERING_VERSION, Look
from dicomsort.training.progress import load_tensorflow

pytestmark = pytest.mark.xdist_group("screen")

LABELS = ("CT", "MRI", "OTHER", "XRAY")
LIMIT, CONFIRM = 2.0, 0.8
MODELS: dict[str, tuple[float, float, float, float, float]] = {
    "all for MRI": (0.001, 0.997, 0.001, 0.001, 1.0),
    "all for CT": (0.997, 0.001, 0.001, 0.001, 1.0),
    "for CT": (0.9, 0.06, 0.03, 0.01, 1.0),
    "hardly for CT": (0.7, 0.2, 0.06, 0.04, 1.0),
    "for CT, of which it knows none alike": (0.9, 0.06, 0.03, 0.01, 3.0),
    "for OTHER, of which it knows none alike": (0.06, 0.01, 0.9, 0.03, 3.0),
}


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    load_tensorflow()
    return {name: saying(*shares, distance=distance) for name, (*shares, distance) in MODELS.items()}


@pytest.fixture
def bundle(tmp_path: Path, models: dict[str, bytes]) -> Iterator[Any]:
    """Makes a bundle of two of the models; what workers keep of earlier ones is forgotten."""

    def make(model: str, screen: str | None) -> Path:
        folder = tmp_path / f"bundle of {model}, {screen}"
        folder.mkdir()
        spec = json.loads((default_path() / "bundle.json").read_text("utf-8"))
        spec |= {"labels": list(LABELS), "temperature": 1.0}
        spec |= {"thresholds": {"decide": 0.95, "contradict": 0.985, "distance": LIMIT}}
        spec |= {"screen": {"confirm": CONFIRM} if screen else None, "evaluation": None}
        (folder / "model.tflite").write_bytes(models[model])
        if screen:
            (folder / SCREEN_NAME).write_bytes(models[screen])
        seal(folder, spec)
        return folder

    forget()
    yield make
    forget()


def forget() -> None:
    for kept in (tasks._bundle, tasks._predictor, tasks._screen):
        kept.cache_clear()


def said(look: Look) -> str:
    """Which of the models said this."""
    return next(name for name, shares in MODELS.items() if np.allclose(look.probabilities, shares[:4], atol=1e-3))


def look(bundle: Path, inbox: Path, named: str) -> Look:
    make_dicom(inbox / "a.dcm")
    (found,) = tasks.look(str(bundle), str(inbox), [("a.dcm", None, named)])
    return found


def test_what_the_screen_confirms_needs_no_model(bundle: Any, tmp_path: Path) -> None:
    folder = bundle("all for MRI", "for CT")
    found = look(folder, tmp_path, "CT")
    assert said(found) == "for CT"
    assert found.distance == pytest.approx(1)
    assert tasks._predictor.cache_info().misses == 0  # it was not even loaded
    assert said(look(folder, tmp_path, "")) == "all for MRI"


@pytest.mark.parametrize(
    ("screen", "named"),
    [
        ("hardly for CT", "CT"),
        ("for CT", "MRI"),
        ("for CT", "OTHER"),
        ("for CT", ""),
        ("for CT", "CHEST"),
        ("for CT, of which it knows none alike", "CT"),
        ("for OTHER, of which it knows none alike", "CT"),
        (None, "CT"),
    ],
)
def test_all_else_comes_from_the_model(bundle: Any, tmp_path: Path, screen: str | None, named: str) -> None:
    found = look(bundle("all for MRI", screen), tmp_path, named)
    assert said(found) == "all for MRI"


def test_what_lies_far_from_all_classes_confirms_other(bundle: Any, tmp_path: Path) -> None:
    screen = "for OTHER, of which it knows none alike"
    assert said(look(bundle("all for MRI", screen), tmp_path, "OTHER")) == screen


def test_pixels_that_cannot_be_had_are_no_confirmation(bundle: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    make_dicom(tmp_path / "whole.dcm")
    frames = [("cut.png", None, "CT"), ("whole.dcm", None, "CT"), ("whole.dcm", None, "")]
    cut, *others = tasks.look(str(bundle("all for MRI", "for CT")), str(tmp_path), frames)
    assert cut.problem
    assert not cut.probabilities
    assert [said(other) for other in others] == ["for CT", "all for MRI"]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Two clear headers, one of them of a series of many files, one that names no class, and a picture."""
    folder = tmp_path / "in"
    for i in range(8):
        make_dicom(folder / "ct" / f"{i}.dcm", study=1, instance=i + 1)
    make_dicom(folder / "mr.dcm", study=2, modality="MR")
    make_dicom(folder / "unclear.dcm", study=3, modality="OT")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)).save(folder / "picture.png")
    return folder


def _sorted(bundle: Path, inbox: Path, *options: str) -> dict[str, dict[str, str]]:
    outbox = inbox.with_name(f"out{len(list(inbox.parent.iterdir()))}")
    run("sort", "--engine", "serial", "--quiet", "--model", bundle, *options, inbox, outbox)
    return by_source(outbox)


def test_a_sort_asks_the_screen_about_clear_headers_alone(bundle: Any, inbox: Path) -> None:
    rows = _sorted(bundle("all for MRI", "for CT"), inbox)
    clear, other = rows["ct/0.dcm"], rows["mr.dcm"]
    assert (clear["class"], clear["reason"], clear["decided_by"]) == ("CT", "header-and-pixels", "both")
    assert (clear["pixel_class"], float(clear["pixel_confidence"])) == ("CT", pytest.approx(0.9, abs=1e-3))
    assert (other["class"], float(other["pixel_confidence"])) == ("MRI", pytest.approx(0.997, abs=1e-3))
    for name in ("unclear.dcm", "picture.png"):
        assert (rows[name]["pixel_class"], rows[name]["reason"]) == ("MRI", "pixels")
    rows = _sorted(bundle("all for MRI", "all for CT"), inbox, "--evidence", "pixels")
    assert {row["pixel_class"] for row in rows.values() if row["status"] != "duplicate"} == {"MRI"}


def test_a_screen_denies_nothing(bundle: Any, inbox: Path) -> None:
    rows = _sorted(bundle("all for CT", "all for MRI"), inbox)
    assert (rows["ct/0.dcm"]["reason"], rows["ct/0.dcm"]["pixel_class"]) == ("header-and-pixels", "CT")
    # Both confident, each of what the other is not: what holds mr.dcm is said by neither, for the screen confirms it.
    assert (rows["mr.dcm"]["reason"], rows["mr.dcm"]["pixel_class"]) == ("header-and-pixels", "MRI")
    assert rows["picture.png"]["pixel_class"] == "CT"


def test_a_denial_is_the_models_in_the_second_round_too(
    bundle: Any, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    see = Predictor.predict

    def watched(self: Predictor, images: Any) -> Any:
        asked.append(self._name)
        return see(self, images)

    monkeypatch.setattr(Predictor, "predict", watched)
    for path in inbox.iterdir():
        if path.is_file():
            path.unlink()
    rows = _sorted(bundle("all for MRI", "hardly for CT"), inbox)
    assert rows["ct/0.dcm"]["reason"] == "header-against-pixels"
    assert asked[0] == SCREEN_NAME
    assert set(asked[1:]) == {"model.tflite"}
    assert len(asked) > 2  # that frame, and more of the series before a person is asked


def test_predict_asks_the_model(bundle: Any, inbox: Path) -> None:
    ran = run("predict", "--json", "--model", bundle("all for MRI", "all for CT"), inbox / "ct" / "0.dcm")
    assert json.loads(ran.out)["class"] == "MRI"


def _with_block(folder: Path, block: object) -> None:
    spec = json.loads((folder / "bundle.json").read_text("utf-8"))
    (folder / "bundle.json").write_text(json.dumps(spec | {"screen": block}), "utf-8")


@pytest.mark.parametrize(
    ("field", "value"),
    [("", []), ("", "yes"), ("", {}), ("confirm", 0.4), ("confirm", 1.1), ("confirm", "0.9"), ("confirm", True),
     ("sha256", "A" * 64), ("sha256", None), ("size", 0), ("size", 1 << 40)],
)  # fmt: skip
def test_a_wrong_block_is_refused_by_name(bundle: Any, field: str, value: object) -> None:
    folder = bundle("all for MRI", "for CT")
    block = json.loads((folder / "bundle.json").read_text("utf-8"))["screen"]
    _with_block(folder, {**block, field: value} if field else value)
    with pytest.raises(BundleError, match=rf"screen\.?{field}\w*: expected .*, received "):
        load(folder, RENDERING_VERSION)


def test_a_missing_cut_or_changed_screen_is_refused(bundle: Any) -> None:
    folder = bundle("all for MRI", "for CT")
    assert load(folder, RENDERING_VERSION).screen is not None
    file = folder / SCREEN_NAME
    whole = file.read_bytes()
    for content, expected in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), r"screen\.tflite: expected SHA-256 "),
        (whole[:-1], rf"screen\.tflite: expected {len(whole)} bytes"),
        (None, r"screen\.tflite: expected a file, received 'none'"),
    ):
        file.write_bytes(content) if content else file.unlink()
        with pytest.raises(BundleError, match=expected):
            load(folder, RENDERING_VERSION)


def test_a_screen_is_checked_as_the_model_is(bundle: Any, models: dict[str, bytes]) -> None:
    folder = bundle("all for MRI", "for CT")
    spec = json.loads((folder / "bundle.json").read_text("utf-8"))
    for content, expected in (
        (b"no model", "expected a LiteRT model"),
        (saying(0.5, 0.5, distance=1.0), r"expected output \w+ \(N, 4\)"),
        (saying(0.7, 0.1, 0.1, 0.1), "expected outputs distance, probabilities, received probabilities"),
    ):
        (folder / SCREEN_NAME).write_bytes(content)
        seal(folder, spec)
        with pytest.raises(BundleError, match=rf"screen\.tflite: {expected}"):
            Predictor(load(folder, RENDERING_VERSION), SCREEN_NAME)
    assert Predictor(load(folder, RENDERING_VERSION)).bundle.screen is not None


def test_a_bundle_without_a_screen_is_as_before(bundle: Any, models: dict[str, bytes]) -> None:
    folder = bundle("all for MRI", None)
    (folder / SCREEN_NAME).write_bytes(models["for CT"])  # pinned by nothing, so never read
    found = load(folder, RENDERING_VERSION)
    assert found.screen is None
    with pytest.raises(BundleError, match=r"screen\.tflite: expected one of model\.tflite, received"):
        read_model(found, SCREEN_NAME)
